"""A training step played without its numbers: what would be alive in memory, and how much would be computed.

torch runs the model's own code on tensors that have a shape and no content, so that this holds for any family, and
nothing here knows one. A model of many layers that are alike is played with three of them; what the others would add
is added at the moment when it would come.

Shapes: B batch, T positions, D hidden_size, V vocab_size, G an LSTM's gates, H its state, I its inputs.
"""

import copy
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from yunque.errors import UserError
from yunque.model.language_model import CausalModel, Encoder, EncoderDecoder, LanguageModel

_MOST_LAYERS = 1000
_aten = torch.ops.aten
_LSTM = _aten.mkldnn_rnn_layer.default
_LSTM_BACKWARD = _aten.mkldnn_rnn_layer_backward.default
_ATTENTION = _aten._scaled_dot_product_flash_attention_for_cpu.default
_ATTENTION_BACKWARD = _aten._scaled_dot_product_flash_attention_for_cpu_backward.default


@dataclass(frozen=True)
class Step:
    """What a forward and a backward pass take.

    `activation_bytes` are what the forward pass keeps for the backward one, numbers that were cast for it included;
    `peak_bytes` is the most that is alive at once, weights and gradients included; `forward_flops` counts a
    multiplication and an addition as two.
    """

    activation_bytes: int
    peak_bytes: int
    forward_flops: int


class Outline:
    """A model without numbers, of whose layers that are alike three stay and stand for the others.

    `model` lies on the meta device; what is put in the place of its modules, or beside them, counts for the layers
    that were left out as well.
    """

    def __init__(self, model: LanguageModel) -> None:
        """Takes `model`, which is on the meta device."""
        self.model = model
        self.left_out = [_shorten(stack) for stack in stacks_of(model)]

    def total(self, count: Callable[[nn.Module], int]) -> int:
        """What `count` gives for the whole model."""
        others = zip(stacks_of(self.model), self.left_out, strict=True)
        return count(self.model) + sum(left_out * count(stack[1]) for stack, left_out in others if left_out)


@contextmanager
def on_meta() -> Iterator[None]:
    """Inside, tensors have a shape and no content. Raises UserError where the shape is beyond what one can have."""
    try:
        with torch.device("meta"):
            yield
    except RuntimeError as error:
        if not any(words in str(error).lower() for words in ("overflow", "too large", "too big")):
            raise
        raise UserError("the sizes of this model are beyond what a tensor can have") from None


def without_numbers(model: LanguageModel) -> LanguageModel:
    """A copy of a model as it is (adapters, quantized layers, what is frozen), on the meta device: it takes no
    memory."""
    empty: dict[int, Any] = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), weight.requires_grad)
        for weight in model.parameters()
    }
    empty |= {id(tensor): torch.empty_like(tensor, device="meta") for tensor in model.buffers()}
    return copy.deepcopy(model, empty)


@contextmanager
def _played() -> Iterator[None]:
    with warnings.catch_warnings(), FakeTensorMode(), _Answers():  # type: ignore[no-untyped-call]
        # Nothing is multiplied here: which kernel would have been quicker does not matter.
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        yield


@torch.no_grad()
def replace_tensors(model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Put `change` of each weight and buffer in its place; weights that are shared stay so."""
    made: dict[int, nn.Parameter] = {}
    for part in model.modules():
        for name, weight in part.named_parameters(recurse=False):
            if id(weight) not in made:
                made[id(weight)] = nn.Parameter(change(weight), weight.requires_grad)
            setattr(part, name, made[id(weight)])
        for name, tensor in part.named_buffers(recurse=False):
            setattr(part, name, change(tensor))


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing here is compiled; to make sure of that for every call costs more than the call.
        return False


class _Answers(_Mode):  # type: ignore[no-untyped-call]
    """Where a model asks for a number ("is the mask all ones?"), says no: the case that takes more memory."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        if func is _aten._local_scalar_dense.default:
            return False
        return func(*args, **(kwargs or {}))


def check_layers(count: int) -> None:
    """Raise UserError for more layers than one would wait for."""
    if count > _MOST_LAYERS:
        raise UserError(f"a model of {count:,} layers is not planned: {_MOST_LAYERS:,} are the most")


def tensor_bytes(tensors: Iterator[Tensor] | Sequence[Tensor]) -> int:
    """Bytes of these tensors; memory that several share counts once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def stacks_of(model: nn.Module) -> list[nn.ModuleList]:
    """The lists of layers in a model, those inside of others left out."""
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    inner = {id(part) for whole in lists for part in whole.modules() if part is not whole}
    return [part for part in lists if id(part) not in inner]


def training_loss(model: LanguageModel, batch_size: int, length: int, masked: bool) -> Tensor:
    """The loss of a batch of rows of `length` positions (source and target, for an encoder-decoder).

    With `masked` the rows hold several documents, or, where a source is read as a whole, padding. A model whose
    shapes then depend on where they are (a recurrent one) reads them as plain rows.
    """
    return first_playable(
        lambda: _loss(model, batch_size, length, masked),
        lambda: _loss(model, batch_size, length, masked=False),
    )


def first_playable(*ways: Callable[[], Tensor]) -> Tensor:
    """What the first of several ways gives whose shapes do not depend on numbers, which a play has not."""
    for way in ways[:-1]:
        try:
            return way()
        except (DynamicOutputShapeException, DataDependentOutputException):
            continue
    return ways[-1]()


def _loss(model: LanguageModel, batch_size: int, length: int, masked: bool) -> Tensor:
    ids_BT = torch.zeros(batch_size, length, dtype=torch.int64)
    mask_BT = torch.ones_like(ids_BT) if masked else None
    if isinstance(model, CausalModel):
        logits_BTV = model.logits(model.hidden(ids_BT, segment_ids_BT=mask_BT))
    elif isinstance(model, EncoderDecoder):
        logits_BTV = model(ids_BT, ids_BT, mask_BT)
    else:
        assert isinstance(model, Encoder)
        vectors_BD = model.embed(ids_BT, mask_BT)
        # Each text has to find its pair among the others of the batch.
        return F.cross_entropy(vectors_BD @ vectors_BD.T, torch.arange(batch_size))
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), ids_BT.flatten())


def play_step(
    outline: Outline,
    loss: Callable[[], Tensor],
    cast: torch.dtype | None = None,
    recompute: bool = False,
    accumulated: bool = False,
) -> Step:
    """Play the forward and backward pass of `loss`, which uses the outline's model; the outline is spent.

    With `cast` products are made in that type (torch.autocast). With `recompute` a layer keeps its input only
    (gradient checkpointing, Chen et al. 2016, arXiv:1604.06174). With `accumulated` gradients of another part of
    the batch are there already.
    """

    def forward() -> Tensor:
        with torch.autocast("cpu", cast or torch.bfloat16, enabled=cast is not None):
            return loss()

    with _played():
        repeats = _prepare(outline)
        weights = [*outline.model.parameters(), *outline.model.buffers()]
        for layer in (layer for stack in stacks_of(outline.model) for layer in stack if recompute):
            _recompute(layer)
        if accumulated:
            weights += [
                _with_gradient(weight) for weight in outline.model.parameters() if weight.requires_grad
            ]
            for repeat in repeats:
                repeat.keep_gradients()
        # Once to learn what a layer keeps, and once more to add it where it would come.
        with _Alive(weights, repeats) as alive:
            kept = forward()
            for repeat in repeats:
                repeat.learn()
            activations = alive.now - alive.weights - kept.untyped_storage().nbytes()
            flops = alive.flops + sum(repeat.flops for repeat in repeats)
            del kept
        with _Alive(weights, repeats) as alive:
            value = forward()
            if value.requires_grad:
                value.backward()  # type: ignore[no-untyped-call]
    return Step(activations + sum(repeat.kept for repeat in repeats), alive.peak, flops)


def play_forward(outline: Outline, compute: Callable[[], Tensor]) -> int:
    """The FLOPs of what `compute` does with the outline's model; the outline is spent."""
    with torch.no_grad(), _played():
        repeats = _prepare(outline)
        with _Alive([], repeats) as alive:
            compute()
    flops: int = alive.flops + sum(repeat.flops for repeat in repeats)
    return flops


def play_training_flops(model: LanguageModel, loss: Callable[[LanguageModel], Tensor]) -> int:
    """The FLOPs of `loss` and of its gradients, for what of `model` is trained: no gradient is made of what is
    frozen, nor of what stands before all that learns.

    Attention counts its whole window, and nothing that is made twice (to save memory) counts twice.
    """
    short = _training_flops(model, loss)
    others = enumerate(Outline(without_numbers(model)).left_out)
    return short + sum(
        left_out * (short - _training_flops(model, loss, number)) for number, left_out in others if left_out
    )


def _training_flops(
    model: LanguageModel, loss: Callable[[LanguageModel], Tensor], shorter: int | None = None
) -> int:
    """Those of the outline, or of the outline without the layer of a stack that stands for those left out."""
    outline = Outline(without_numbers(model))
    if shorter is not None:
        del stacks_of(outline.model)[shorter][1]
    with _played():
        replace_tensors(outline.model, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        with _Alive([], []) as alive:
            value = loss(outline.model)
            if value.requires_grad:
                value.backward()  # type: ignore[no-untyped-call]
    flops: int = alive.flops
    return flops


def _with_gradient(weight: Tensor) -> Tensor:
    weight.grad = torch.empty_like(weight)
    return weight.grad


def _prepare(outline: Outline) -> list["_Repeat"]:
    replace_tensors(outline.model, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
    pairs = zip(stacks_of(outline.model), outline.left_out, strict=True)
    return [_Repeat(stack, left_out) for stack, left_out in pairs if left_out]


def _shorten(stack: nn.ModuleList) -> int:
    """Leave three layers (what lies between two others is the one to multiply), if all but the first are alike;
    says how many went."""
    if len(stack) < 5 or len({_signature(layer) for layer in list(stack)[1:]}) > 1:
        return 0
    left_out = len(stack) - 3
    del stack[3:]
    return left_out


class _Alive(_Mode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are alive (`now`), the most there were (`peak`), and FLOPs."""

    def __init__(self, weights: Sequence[Tensor], repeats: Sequence["_Repeat"]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        for repeat in repeats:
            repeat.alive = self
        self.now = self.peak = self.flops = 0
        self.tag: object = None
        self.tags: dict[int, object] = {}
        self._seen: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for weight in weights:
            self._add(weight)
        # Those of the layers that were left out are as many bytes as if they were here.
        self.weights = self.now = self.now + sum(repeat.weights for repeat in repeats)

    def more(self, count: int) -> None:
        """Count bytes that no tensor here stands for."""
        self.now += count
        self.peak = max(self.peak, self.now)

    def bytes_of(self, tag: object) -> int:
        """Bytes alive that were made while `tag` was set."""
        storages = [self._seen[key]() for key, one in self.tags.items() if one is tag]
        return sum(storage.nbytes() for storage in storages if storage is not None)

    def _add(self, tensor: Tensor, hidden_bytes: int = 0) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() + hidden_bytes
        if key in self._seen:
            return

        def gone(_: object) -> None:
            self.now -= size
            del self._seen[key]
            self.tags.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        if self.tag is not None:
            self.tags[key] = self.tag
        self.more(size)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        made = func(*args, **(kwargs or {}))
        self.flops += _flops(func, args, kwargs or {}, made)
        if func is _LSTM:
            self._add(made[3], _lstm_workspace_bytes(args[0], args[2]))
        for part in tree_leaves(made):
            if isinstance(part, Tensor):
                self._add(part)
        return made


def _lstm_workspace_bytes(x_TBI: Tensor, weight_GH: Tensor) -> int:
    """What oneDNN's LSTM keeps for its backward pass and tells nobody, within some 3 % (fitted to its figures)."""
    (T, B, inputs), size = x_TBI.shape, weight_GH.shape[1]
    gates_and_states = (9, 6) if x_TBI.dtype == torch.float32 else (6.3, 4.5)
    numbers = gates_and_states[0] * size + gates_and_states[1] * max(inputs, size)
    return round(4 * B * (T + 1) * numbers)


def _flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> int:
    if func is _ATTENTION:
        # torch counts the kernels of graphics cards only. The whole window counts, as kernels with a mask do.
        return int(sdpa_flop_count(*(part.shape for part in args[:3])))  # type: ignore[no-untyped-call]
    if func is _ATTENTION_BACKWARD:
        # Its fifth product makes the scores a second time.
        return int(2 * sdpa_flop_count(*(part.shape for part in args[1:4])))  # type: ignore[no-untyped-call]
    if func in (_LSTM, _LSTM_BACKWARD):
        tokens = args[0].shape[0] * args[0].shape[1]
        forward = 2 * tokens * sum(matrix.numel() for matrix in args[1:3])
        return int(forward if func is _LSTM else 2 * forward)
    count = flop_registry.get(func._overloadpacket)
    return int(count(*args, **kwargs, out_val=made)) if count is not None else 0


class _Repeat:
    """A list of layers of which three stayed: the second one stands for those that were left out."""

    def __init__(self, stack: nn.ModuleList, left_out: int) -> None:
        self.alive: _Alive
        self.kept = self.flops = 0
        self._left_out = left_out
        layer = stack[1]
        self.weights = left_out * tensor_bytes([*layer.parameters(), *layer.buffers()])
        trained = [weight for weight in layer.parameters() if weight.requires_grad]
        self._gradients = left_out * sum(weight.nbytes for weight in trained)
        self._begun, self._missing = 0, len(trained)
        layer.register_forward_pre_hook(self._enter)
        layer.register_forward_hook(self._leave)
        for weight in trained:
            weight.register_post_accumulate_grad_hook(self._trained)  # type: ignore[no-untyped-call]

    def keep_gradients(self) -> None:
        """Count the gradients of the layers left out from the start, as weights are."""
        self.weights, self._gradients = self.weights + self._gradients, 0

    def learn(self) -> None:
        """After a first forward pass: how much the layers left out keep and compute."""
        self.kept = self._left_out * self.alive.bytes_of(self)

    def _enter(self, *_: object) -> None:
        if self.kept:
            # The layers before the last have kept theirs by now.
            self.alive.more(self.kept)
        else:
            self.alive.tag, self._begun = self, self.alive.flops

    def _leave(self, *_: object) -> None:
        if self.alive.tag is self:
            self.alive.tag = None
            self.flops = self._left_out * (self.alive.flops - self._begun)

    def _trained(self, _: Tensor) -> None:
        self._missing -= 1
        if not self._missing:
            # Layers between this one and the first have given back what they kept, and have their gradients.
            self.alive.more(self._gradients - self.kept)


def _recompute(layer: nn.Module) -> None:
    inner = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(inner, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    layer.forward = forward


def _signature(layer: nn.Module) -> str:
    """What decides how much memory a layer takes: its parts, their sizes and settings (not which layer it is)."""
    parts = []
    for name, part in layer.named_modules():
        settings = {
            key: value
            for key, value in vars(part).items()
            if key != "layer" and isinstance(value, bool | int | str | tuple | None)
        }
        shapes = [
            (tuple(weight.shape), weight.dtype, weight.requires_grad)
            for weight in part.parameters(recurse=False)
        ]
        parts.append((name, type(part).__name__, settings, shapes))
    return repr(parts)
