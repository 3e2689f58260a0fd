"""How a Transformer knows where a token stands: sinusoids, rotary angles and their scalings, relative biases.

Shapes: B batch, T positions, S positions looked at, N heads, H head_dim, h half of it (a pair of numbers turns
together). All is computed in float32, as the checkpoints were trained.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor

from yunque.configuration import Settings
from yunque.model.configuration import Flag, Size

RopeType = Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3"]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# 0 is a field left out, to transformers as to us.
_Turns = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_LARGEST_HEAD = 2**16
_LONGEST_TEXT = 2**31


def sinusoids(length: int, size: int) -> Tensor:
    """The `sinusoids_at` positions 0 to `length` less one, [length, size]."""
    return sinusoids_at(torch.arange(length), size)


def sinusoids_at(positions: Tensor, size: int) -> Tensor:
    """Sines on even and cosines on odd dimensions, [..., size] of positions [...], of waves from 2 pi to 20 000 pi
    long (Vaswani et al. 2017, arXiv:1706.03762, section 3.5)."""
    pairs_h = torch.arange(0, size, 2, dtype=torch.float32, device=positions.device)
    angles = positions[..., None].float() * torch.exp(pairs_h * (-math.log(10000.0) / size))
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., :size]


class Rope(Settings):
    """Settings of rotary positions, under the names of `rope_parameters` in a `config.json`.

    `original_max_position_embeddings` is the context before it was stretched; the other fields belong to one scaling
    or another (see `frequencies`).
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    rope_type: RopeType = "default"
    rope_theta: _Positive = 10000.0
    factor: _Positive | None = None
    original_max_position_embeddings: Size | None = None
    attention_factor: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    low_freq_factor: _Positive | None = None
    high_freq_factor: _Positive | None = None
    beta_fast: _Turns | None = None
    beta_slow: _Turns | None = None
    mscale: _Finite | None = None
    mscale_all_dim: _Finite | None = None
    truncate: Flag = True
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    partial_rotary_factor: Literal[1] = 1

    @model_validator(mode="after")
    def _check_scaling(self) -> Self:
        needed: dict[str, tuple[str, ...]] = {
            "linear": ("factor",),
            "dynamic": ("factor",),
            "yarn": ("factor",),
            "longrope": ("short_factor", "long_factor"),
            "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
        }
        for name in needed.get(self.rope_type, ()):
            if getattr(self, name) is None:
                raise ValueError(f"rotary positions of type {self.rope_type!r} need {name}")
        return self

    @classmethod
    def of(cls, fields: Mapping[str, Any], context: int) -> "Rope":
        """Read the settings from a configuration's fields, as newer and older writers keep them.

        Newer ones have `rope_parameters`; older ones `rope_theta` and `rope_scaling`, with `type` for `rope_type`.
        """
        given = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
        if not isinstance(given, Mapping):
            raise ValueError("rope_scaling and rope_parameters are groups of fields")
        group = dict(given)
        if any(isinstance(one, Mapping) for one in group.values()):
            raise ValueError("rotary positions that differ from layer to layer are not known")
        group["rope_type"] = group.get("rope_type") or group.get("type") or "default"
        for name in ("rope_theta", "partial_rotary_factor"):
            if fields.get(name) is not None:
                group.setdefault(name, fields[name])
        if group["rope_type"] in ("llama3", "yarn", "longrope"):
            # Phi's configurations have the first context outside of the group.
            outside = fields.get("original_max_position_embeddings")
            group["original_max_position_embeddings"] = (
                outside or group.get("original_max_position_embeddings") or context
            )
        return cls.model_validate(group)

    def check(self, head_dim: int, context: int) -> None:
        """Raise ValueError where heads of this size, in a model of this context, cannot be turned so."""
        if head_dim > _LARGEST_HEAD:
            raise ValueError(f"heads of {head_dim:,} numbers are larger than any ({_LARGEST_HEAD:,})")
        factors = (self.short_factor, self.long_factor) if self.rope_type == "longrope" else ()
        if any(len(one or ()) != head_dim // 2 for one in factors):
            raise ValueError(f"short_factor and long_factor must have {head_dim // 2} numbers each")
        if self.rope_type == "dynamic" and head_dim <= 2:
            raise ValueError("rotary positions of type 'dynamic' need heads of more than 2 numbers")
        if self.rope_type == "yarn" and self.rope_theta <= 1:
            raise ValueError("rotary positions of type 'yarn' need a rope_theta above 1")
        if self.rope_type == "llama3" and not (self.low_freq_factor or 0) < (self.high_freq_factor or 0):
            raise ValueError("rotary positions of type 'llama3' need low_freq_factor below high_freq_factor")
        try:
            found = [self.frequencies(head_dim, context, length) for length in (1, _LONGEST_TEXT)]
        except (ArithmeticError, ValueError, RuntimeError):
            found = []
        # As they are used: in float32, at the end of a long text.
        angles = [torch.cat((each_h * _LONGEST_TEXT, torch.tensor([factor]))) for each_h, factor in found]
        if not angles or not all(bool(each.isfinite().all()) for each in angles):
            raise ValueError(
                f"rotary positions of type {self.rope_type!r} cannot be worked out of these numbers"
            )

    def frequencies(self, head_dim: int, context: int, length: int) -> tuple[Tensor, float]:
        """Angle a position, for each pair [h], and the factor on cosines and sines.

        `context` is the model's, `length` that of the text: two of the scalings depend on it. Plain rotary: Su et al.
        2021 (arXiv:2104.09864); linear: Chen et al. 2023 (arXiv:2306.15595); yarn: Peng et al. 2023
        (arXiv:2309.00071); longrope: Ding et al. 2024 (arXiv:2402.13753).
        """
        exponents_h = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        if self.rope_type == "dynamic":
            assert self.factor is not None
            stretch = self.factor * max(length, context) / context - (self.factor - 1)
            theta = self.rope_theta * stretch ** (head_dim / (head_dim - 2))
            return 1.0 / theta**exponents_h, 1.0
        plain_h = 1.0 / self.rope_theta**exponents_h
        match self.rope_type:
            case "linear":
                return plain_h / (self.factor or 1.0), 1.0
            case "llama3":
                return self._llama3(plain_h), 1.0
            case "yarn":
                return self._yarn(plain_h, head_dim)
            case "longrope":
                return self._longrope(exponents_h, context, length)
        return plain_h, 1.0

    def _llama3(self, plain_h: Tensor) -> Tensor:
        """Long waves are slowed down by `factor`, short ones kept, those between mixed."""
        assert self.factor and self.low_freq_factor and self.high_freq_factor
        assert self.original_max_position_embeddings
        turns_h = self.original_max_position_embeddings * plain_h / (2 * math.pi)
        share_h = (turns_h - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        share_h = share_h.clamp(0, 1)
        return (1 - share_h) * plain_h / self.factor + share_h * plain_h

    def _yarn(self, plain_h: Tensor, head_dim: int) -> tuple[Tensor, float]:
        assert self.factor and self.original_max_position_embeddings
        original, theta = self.original_max_position_embeddings, self.rope_theta

        def pair_that_turns(times: float) -> float:
            return head_dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

        low, high = pair_that_turns(self.beta_fast or 32), pair_that_turns(self.beta_slow or 1)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        width = high - low or 0.001
        slowed_h = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
        frequencies_h = plain_h / self.factor * slowed_h + plain_h * (1 - slowed_h)
        return frequencies_h, self._yarn_attention_factor()

    def _yarn_attention_factor(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        factor = self.factor or 1.0

        def growth(scale: float) -> float:
            return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

        if self.mscale and self.mscale_all_dim:
            return growth(self.mscale) / growth(self.mscale_all_dim)
        return growth(1.0)

    def _longrope(self, exponents_h: Tensor, context: int, length: int) -> tuple[Tensor, float]:
        """Each pair has a factor of its own, one for texts within the original context and one for longer ones."""
        assert self.long_factor and self.short_factor and self.original_max_position_embeddings
        original = self.original_max_position_embeddings
        factors_h = torch.tensor(self.long_factor if length > original else self.short_factor)
        frequencies_h = 1.0 / (factors_h * self.rope_theta**exponents_h)
        if self.attention_factor is not None:
            return frequencies_h, self.attention_factor
        factor = self.factor or context / original
        return frequencies_h, 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def rotary_angles(
    positions_BT: Tensor, rope: Rope, head_dim: int, context: int, lengths: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, T, h] by which rotary positions turn each pair.

    Two scalings look at how long a text is: `lengths` says it for each row, else all are as long as the longest.
    """
    if rope.rope_type not in ("dynamic", "longrope"):
        lengths = [0]
    elif lengths is None:
        # It costs a wait for the device.
        lengths = [int(positions_BT.max()) + 1]
    found = {length: rope.frequencies(head_dim, context, length) for length in set(lengths)}
    frequencies_B1h = torch.stack([found[length][0] for length in lengths])[:, None]
    factors_B11 = torch.tensor([found[length][1] for length in lengths])[:, None, None]
    device = positions_BT.device
    angles_BTh = positions_BT[..., None].float() * frequencies_B1h.to(device)
    return angles_BTh.cos() * factors_B11.to(device), angles_BTh.sin() * factors_B11.to(device)


def rotate(x_BNTH: Tensor, cos_BTh: Tensor, sin_BTh: Tensor) -> Tensor:
    """Turn each pair (i, i + h) of `x_BNTH` by its angle; the pairing is that of Hugging Face checkpoints."""
    first, second = x_BNTH.chunk(2, dim=-1)
    cos, sin = cos_BTh[:, None].to(x_BNTH.dtype), sin_BTh[:, None].to(x_BNTH.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def alibi(key_positions_BS: Tensor, num_heads: int) -> Tensor:
    """What ALiBi adds to scores, [B, N, 1, S]: the further on a key stands the more, by a slope for each head.

    A softmax sees only differences, so this is the same as taking away for distance. Slopes are powers of 2 from 1/2
    downwards for 8 heads, finer for more; where heads are no power of 2, every other slope of twice as many fills up
    (Press et al. 2021, arXiv:2108.12409). Slopes, positions and products are rounded to bfloat16, as Falcon and BLOOM
    were trained.
    """

    def slopes(count: int) -> Tensor:
        return 2.0 ** (-8.0 / count * torch.arange(1, count + 1, dtype=torch.float32))

    power = 2 ** (num_heads.bit_length() - 1)
    slopes_N = torch.cat((slopes(power), slopes(2 * power)[::2]))[:num_heads].to(key_positions_BS.device)
    biases_BNS = slopes_N.bfloat16()[:, None] * key_positions_BS[:, None].bfloat16()
    return biases_BNS[:, :, None].float()


def distance_buckets(distances: Tensor, num_buckets: int, max_distance: int, both_ways: bool) -> Tensor:
    """The bucket of each distance (how far right of the query a key stands), from 0 to `num_buckets` less one.

    Short distances have a bucket each, longer ones share buckets that widen up to `max_distance`; all beyond it are
    one. `both_ways`, half of the buckets are for keys to the right; else those are in bucket 0 (Raffel et al. 2019,
    arXiv:1910.10683, section 2.1).
    """
    right = torch.zeros_like(distances)
    if both_ways:
        num_buckets //= 2
        right = (distances > 0) * num_buckets
        distances = distances.abs()
    else:
        distances = -distances.clamp(max=0)
    exact = num_buckets // 2
    wide = num_buckets - exact
    # In this order, and in float32: rounding decides on which side of a border a distance falls.
    along = torch.log(distances.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (along * wide).long()).clamp(max=num_buckets - 1)
    return right + torch.where(distances < exact, distances, far)
