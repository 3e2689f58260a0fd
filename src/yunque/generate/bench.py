"""How fast this machine runs a model, and how far that is from what its memory and its processor allow.

A step reads every weight once and multiplies it by every row: it cannot take less than the bytes of the weights at
the speed of the memory, nor than its products at the speed of the processor. The larger of the two is the floor.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from yunque.errors import UserError
from yunque.generate.native_runner import native_runner, weights_of
from yunque.generate.runner import Runner, Text, Work
from yunque.generate.torch_runner import TorchRunner, torch_runner
from yunque.model import Llama, LlamaConfig, quantize_model
from yunque.model.decoder import Decoder
from yunque.model.quantized_layers import QuantizedLinear
from yunque.native import native_library
from yunque.native.library import bandwidth, instructions, integer_speed
from yunque.progress import Progress, silent

KINDS = ("float32", "int8", "int4")
_PROMPT, _READ_BEFORE, _MOST_STEPS = 512, 32, 48
# A task is measured for so many seconds, and at least so many times.
_SECONDS, _LEAST_TIMES = 3.0, 5


def _llama(
    hidden: int, inner: int, layers: int, heads: tuple[int, int], vocabulary: int
) -> Mapping[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    }


SHAPES: Mapping[str, Mapping[str, Any]] = {
    "smollm2-135m": _llama(576, 1536, 30, (9, 3), 49152),
    "smollm2-360m": _llama(960, 2560, 32, (15, 5), 49152),
    "llama-3.2-1b": _llama(2048, 8192, 16, (32, 8), 128256),
    "tiny": _llama(64, 160, 2, (4, 2), 512),
}
"""Shapes of models that people run; with random weights they take as long."""


@dataclass(frozen=True)
class Machine:
    """What this machine does at most with `threads`: bytes read and products added a second. `instructions` are those
    of the native step; without it models run in PyTorch."""

    threads: int
    instructions: str | None
    bytes_per_second: float
    integer_products_per_second: float
    float_products_per_second: float


@dataclass(frozen=True)
class Measured:
    """A task done by a model of one kind: the median of its times, and the least that it could take."""

    kind: str
    task: str
    tokens: int
    seconds: float
    floor_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens read or written."""
        return self.tokens / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {
            "tokens_per_second": self.tokens_per_second,
            "of_the_floor": self.floor_seconds / self.seconds,
        }


def model_of_shape(name: str) -> Llama:
    """A model of one of the `SHAPES`, with random weights. Raises UserError."""
    if name not in SHAPES:
        raise UserError(f"there is no shape {name!r} (there are {', '.join(SHAPES)})")
    config = LlamaConfig.model_validate(SHAPES[name])
    return Llama(config, torch.Generator().manual_seed(0)).eval().requires_grad_(False)


def measure_machine(threads: int) -> Machine:
    """Some seconds of nothing but reading, and nothing but multiplying."""
    library = native_library()
    floats = torch.ones(768, 768)
    float_speed = 768**3 / _least_seconds(lambda: floats @ floats)
    if library is not None:
        speeds = bandwidth(library, threads), integer_speed(library, threads)
        return Machine(threads, instructions(library), *speeds, float_speed)
    memory, whole = torch.ones(1 << 26), torch.ones(768, 768, dtype=torch.int8)
    return Machine(
        threads,
        None,
        memory.nbytes / _least_seconds(memory.sum),
        768**3 / _least_seconds(lambda: torch._int_mm(whole, whole)),
        float_speed,
    )


def _least_seconds(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(8):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def measure(model: nn.Module, machine: Machine, progress: Progress = silent) -> Iterator[Measured]:
    """Time a decoder-only model, in float32, INT8 and INT4, or as it is where it is quantized already.

    Raises UserError for a model that is none.
    """
    if not isinstance(model, Decoder):
        raise UserError("only decoder-only Transformers are measured")
    quantized = model.config.quantization_config
    kinds = KINDS if quantized is None else (quantized.kind,)
    with progress("Measuring", total=len(kinds) * 3) as task:
        for kind in kinds:
            small = model if quantized or kind == "float32" else quantize_model(model, kind)
            for measured in _measure_kind(small, kind, machine):
                task.advance(note=f"{kind} {measured.task}")
                yield measured
            del small


def _measure_kind(model: Decoder, kind: str, machine: Machine) -> Iterator[Measured]:
    in_torch = torch_runner(model, pool_bytes=None)
    assert isinstance(in_torch, TorchRunner)
    runner: Runner = native_runner(model, in_torch.pool, machine.threads) or in_torch
    context = model.config.context or _PROMPT + _MOST_STEPS
    before = min(_READ_BEFORE, context // 4)
    prompts = _prompts(model.config.vocab_size)
    for sequences in (1, 16):
        seconds = _decode(runner, [prompts(before) for _ in range(sequences)], context - before)
        floor = _floor(model, kind, machine, sequences, sequences)
        yield Measured(kind, f"decode {sequences}", sequences, seconds, floor)
    length = min(_PROMPT, context)
    seconds = _median(lambda: _read(runner, prompts(length)))
    yield Measured(kind, f"prefill {length}", length, seconds, _floor(model, kind, machine, length, 1))


def _prompts(vocab_size: int) -> Callable[[int], list[int]]:
    """Gives random prompts: none begins as another does, so that nothing is in the cache."""
    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> list[int]:
        drawn: list[int] = torch.randint(vocab_size, (length,), generator=generator).tolist()
        return drawn

    return draw


def _decode(runner: Runner, prompts: list[list[int]], room: int) -> float:
    """Seconds of a step in which each of some texts reads a token."""
    steps = min(_MOST_STEPS, room)
    texts = [runner.open(prompt, steps) for prompt in prompts]
    for text in texts:
        runner.run([Work(text, text.unread[:])])
    seconds = _median(lambda: runner.run([Work(text, [1]) for text in texts]), steps)
    for text in texts:
        text.close()
    return seconds


def _read(runner: Runner, prompt: list[int]) -> None:
    text: Text = runner.open(prompt, 0)
    runner.run([Work(text, text.unread[:])])
    text.close()


def _median(work: Callable[[], object], most: int = _MOST_STEPS) -> float:
    """Seconds of `work`, which is done at most so many times, the first of which does not count."""
    seconds = list[float]()
    end = time.perf_counter() + _SECONDS
    with torch.inference_mode():
        for number in range(most):
            begin = time.perf_counter()
            work()
            if number or most == 1:
                seconds.append(time.perf_counter() - begin)
            if len(seconds) >= _LEAST_TIMES and time.perf_counter() > end:
                break
    return statistics.median(seconds)


def _floor(model: Decoder, kind: str, machine: Machine, rows: int, scored: int) -> float:
    """The seconds that a step of so many rows takes at least, of which so many are scored."""
    size, products = 0, 0
    for name, layer in model.named_modules():
        is_table = name == "embedding"
        # A table that does not score tokens is not read, but for some rows.
        if (is_table and model.head is None) or isinstance(layer, nn.Linear | QuantizedLinear):
            weights = weights_of(layer)
            size += sum(one.nbytes for one in weights.tensors())
            products += math.prod(weights.shape) * (scored if is_table or name == "head" else rows)
    speed = machine.float_products_per_second if kind == "float32" else machine.integer_products_per_second
    return max(size / machine.bytes_per_second, products / speed)
