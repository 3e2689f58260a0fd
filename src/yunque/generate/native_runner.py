"""The runner of models of Llama's shape in C++: a whole step at a time, in float32, INT8 or INT4.

A row's scores are the same numbers whatever else is read with it and however its prompt was cut (see
`yunque.native`). Shapes: W scores of a text, V vocab_size, h half a head, O outputs, I inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from yunque.errors import UserError
from yunque.generate.block_pool import BLOCK_SIZE, BlockPool, PooledText
from yunque.generate.runner import Work
from yunque.model import LanguageModel
from yunque.model.attention import Attention
from yunque.model.blocks import Embedding, GatedFeedForward, RMSNorm
from yunque.model.decoder import DecoderLayer
from yunque.model.families.llama import Llama
from yunque.model.family import family_of
from yunque.model.positions import rotary_angles
from yunque.model.quantized_layers import Int4Matrix, Int8Matrix, QuantizedEmbedding, QuantizedLinear
from yunque.native import library as native
from yunque.native.build import native_library

_GATES = {
    "silu": native.SILU,
    "swish": native.SILU,
    "gelu": native.GELU,
    "gelu_python": native.GELU,
    "gelu_new": native.TANH_GELU,
    "gelu_fast": native.TANH_GELU,
    "gelu_accurate": native.TANH_GELU,
    "gelu_pytorch_tanh": native.TANH_GELU,
    "relu": native.RELU,
}
_FIRST_ANGLES = 2048


@dataclass(frozen=True)
class _Layer:
    """The parts of a layer that the native step knows."""

    attention: Attention
    feed_forward: GatedFeedForward
    attention_norm: RMSNorm
    feed_forward_norm: RMSNorm

    def matrices(self) -> dict[int, nn.Module]:
        """Its matrices by their places."""
        attention, feed_forward = self.attention, self.feed_forward
        return {
            native.QUERY: attention.query,
            native.KEY: attention.key,
            native.VALUE: attention.value,
            native.OUTPUT: attention.output,
            native.GATE: feed_forward.gate,
            native.UP: feed_forward.up,
            native.DOWN: feed_forward.down,
        }


def native_runner(model: LanguageModel, pool: BlockPool, threads: int | None = None) -> "NativeRunner | None":
    """The runner of a model, or None where it is not one that the native step computes, or there is no compiler.

    It has as many threads as torch has, unless it is told. INT8 and INT4 matrices are copied, packed for it.
    """
    own_class: object = family_of(model.config).model
    if not isinstance(model, Llama) or type(model) is not own_class:
        return None
    if not _is_known(model, pool):
        return None
    layers = [_known_layer(layer) for layer in model.layers]
    known = [layer for layer in layers if layer is not None]
    if len(known) < len(layers):
        return None
    library = native_library()
    if library is None:
        return None
    decoder = native.NativeDecoder(
        library, _shape(model, known[0].attention.scale), threads or torch.get_num_threads()
    )
    _fill(decoder, model, known, pool)
    return NativeRunner(model, pool, decoder)


def _is_known(model: Llama, pool: BlockPool) -> bool:
    """Whether what is around the layers is what the native step computes."""
    config = model.config
    original = config.rope.original_max_position_embeddings
    if config.rope.rope_type == "longrope" and original != config.max_position_embeddings:
        # Angles that depend on how long a text is in the end.
        return False
    floats = [*model.parameters(), *pool.keys, *pool.values]
    return (
        config.hidden_act in _GATES
        and all(one.dtype == torch.float32 and one.device.type == "cpu" for one in floats)
        and type(model.norm) is RMSNorm
        and _is_matrix(model.embedding)
        and (model.head is None or _is_matrix(model.head))
    )


def _is_matrix(layer: nn.Module) -> bool:
    # No subclasses, which compute something else: a layer with an adapter.
    return type(layer) in (nn.Linear, QuantizedLinear, Embedding, QuantizedEmbedding)


def _known_layer(layer: nn.Module) -> _Layer | None:
    """The layer, or None where it is made of other parts than the native step computes."""
    if not isinstance(layer, DecoderLayer):
        return None
    attention, feed_forward = layer.attention, layer.feed_forward
    norms = layer.attention_norm, layer.feed_forward_norm
    if type(attention) is not Attention or type(feed_forward) is not GatedFeedForward:
        return None
    if not isinstance(norms[0], RMSNorm) or not isinstance(norms[1], RMSNorm):
        return None
    known = _Layer(attention, feed_forward, norms[0], norms[1])
    return known if all(_is_matrix(matrix) for matrix in known.matrices().values()) else None


def _shape(model: Llama, scale: float) -> native.Shape:
    config = model.config
    heads, key_value_heads, head_dim = config.heads
    return native.Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=heads,
        key_value_heads=key_value_heads,
        head_dim=head_dim,
        intermediate=config.intermediate_size,
        vocabulary=config.vocab_size,
        gate=_GATES[config.hidden_act],
        eps=config.rms_norm_eps,
        scale=scale,
    )


def weights_of(layer: nn.Module) -> native.Weights:
    """The matrix and the bias of a linear layer or a table, quantized or not."""
    bias: Tensor | None = getattr(layer, "bias", None)
    if isinstance(layer, nn.Linear | Embedding):
        values = layer.weight.detach().contiguous()
        return native.Weights(native.FLOAT32, _size(values), values, bias=bias)
    assert isinstance(layer, QuantizedLinear | QuantizedEmbedding)
    return matrix_weights(layer.matrix, bias)


def matrix_weights(matrix: Int8Matrix | Int4Matrix, bias: Tensor | None = None) -> native.Weights:
    """A quantized matrix as the native step takes it."""
    if isinstance(matrix, Int8Matrix):
        return native.Weights(native.INT8, _size(matrix.values), matrix.values, matrix.scales, bias=bias)
    shape = len(matrix.packed), matrix.columns
    return native.Weights(
        native.INT4, shape, matrix.packed, matrix.scales, matrix.centers, matrix.width, bias=bias
    )


def _size(values_OI: Tensor) -> tuple[int, int]:
    rows, columns = values_OI.shape
    return rows, columns


def _fill(decoder: native.NativeDecoder, model: Llama, layers: Sequence[_Layer], pool: BlockPool) -> None:
    decoder.set_matrix(native.EMBEDDING, 0, weights_of(model.embedding))
    if model.head is not None:
        decoder.set_matrix(native.HEAD, 0, weights_of(model.head))
    assert isinstance(model.norm, RMSNorm)
    decoder.set_gain(native.LAST_NORM, 0, model.norm.weight)
    for number, layer in enumerate(layers):
        for place, matrix in layer.matrices().items():
            decoder.set_matrix(place, number, weights_of(matrix))
        decoder.set_gain(native.ATTENTION_NORM, number, layer.attention_norm.weight)
        decoder.set_gain(native.FEED_FORWARD_NORM, number, layer.feed_forward_norm.weight)
        query_norm, key_norm = layer.attention.query_norm, layer.attention.key_norm
        if isinstance(query_norm, RMSNorm) and isinstance(key_norm, RMSNorm):
            decoder.set_gain(native.QUERY_NORM, number, query_norm.weight)
            decoder.set_gain(native.KEY_NORM, number, key_norm.weight)
        decoder.set_cache(number, pool.keys[number], pool.values[number], layer.attention.window)


@dataclass
class _Plan:
    """The rows of a step, as they are put together."""

    tokens: list[int]
    positions: list[int]
    rows_of: list[int]
    blocks_of: list[int]
    blocks: list[int]
    wanted: list[int]

    def add(self, text: PooledText, ids: Sequence[int], wanted: int) -> None:
        """Tokens behind a text that has blocks for them."""
        self.tokens += ids
        self.positions += range(text.length, text.length + len(ids))
        self.rows_of.append(len(self.tokens))
        self.blocks += text.blocks
        self.blocks_of.append(len(self.blocks))
        self.wanted += range(len(self.tokens) - wanted, len(self.tokens))


class NativeRunner:
    """A `Runner` (see `yunque.generate.runner`) that computes whole steps in C++."""

    can_truncate = True
    supports_adapters = False

    def __init__(self, model: Llama, pool: BlockPool, decoder: native.NativeDecoder) -> None:
        """Made by `native_runner`."""
        self.pool = pool
        self._model = model
        self._decoder = decoder
        self._angles = 0
        self._see_to_angles(_FIRST_ANGLES)

    def open(self, prompt: Sequence[int], fresh: int, adapter: str | None = None) -> PooledText:
        """A text that begins with `prompt`, with room for `fresh` tokens after it. Raises NoRoom."""
        assert adapter is None, "adapters are computed in PyTorch"
        return self.pool.open(prompt, fresh)

    def run(self, works: Sequence[Work]) -> list[Tensor]:
        """Read the tokens of each work and give the scores that it wants: float32 [W, V].

        Raises UserError for tokens that the model does not know, and NoRoom.
        """
        vocab_size = self._model.config.vocab_size
        largest = max((id for work in works for id in work.ids), default=0)
        if largest >= vocab_size:
            raise UserError(
                f"the tokenizer has tokens (number {largest} in this text) beyond the {vocab_size} that the model "
                "knows: it is another model's"
            )
        plan = _Plan([], [], [0], [0], [], [])
        for work in works:
            text = work.text
            assert isinstance(text, PooledText)
            text.make_room(len(work.ids))
            plan.add(text, work.ids, work.wanted)
        self._see_to_angles(max(plan.positions, default=0) + 1)
        scores_WV = self._decoder.step(native.Rows(**vars(plan)))
        for work in works:
            assert isinstance(work.text, PooledText)
            work.text.advance(work.ids)
        return list(torch.split(scores_WV, [work.wanted for work in works]))

    def _see_to_angles(self, count: int) -> None:
        """Let there be angles for so many positions."""
        if count <= self._angles:
            return
        config = self._model.config
        # All that the pool has room for is seldom used, and long contexts have large tables.
        self._angles = max(count, min(2 * self._angles or _FIRST_ANGLES, config.max_position_embeddings))
        positions = torch.arange(min(self._angles, self.pool.num_blocks * BLOCK_SIZE))[None]
        self._angles = positions.shape[1]
        cosines_1Th, sines_1Th = rotary_angles(
            positions, config.rope, config.heads[2], config.max_position_embeddings
        )
        self._decoder.set_angles(cosines_1Th[0], sines_1Th[0])
