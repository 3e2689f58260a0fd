"""Memory that does not suffice: refused before the start where the plan says so, explained where it happens all the
same."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from yunque.errors import UserError
from yunque.model import LanguageModel
from yunque.model.memory import TrainingMemory
from yunque.train.settings import LoopSettings
from yunque.train.workload import Workload

# How torch's allocators say it, where they raise a plain RuntimeError.
_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


def check_fits(
    workload: Workload,
    model: LanguageModel,
    memory: TrainingMemory,
    settings: LoopSettings,
    available: int | None,
) -> None:
    """Raise UserError for a step that takes more than the `available` bytes, with the largest `micro_batch_size` that
    would do."""
    wanted = memory.peak_bytes + workload.held_bytes
    if available is None or wanted <= available:
        return
    rows = workload.largest_micro_batch(model, "float32", available)
    less = [] if rows is None else [f"micro_batch_size={rows}"]
    if rows is None and (smaller := _smaller(settings)):
        less.append(f"{smaller} smaller: a single row at once does not fit either")
    raise UserError(
        f"training this model takes about {_size(wanted)} of memory ({_parts(_counted(workload, memory))}), and the "
        f"machine has {_size(available)}: {_change([*less, *_ways(settings)])}"
    )


@contextmanager
def told_when_out_of_memory(
    settings: LoopSettings, plan: Mapping[str, Any], kept: str = ""
) -> Iterator[None]:
    """Turn an error that says that memory ran out into a UserError with the figures of the `plan` and what to change.

    `kept` says what is not lost.
    """
    try:
        yield
        return
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    # Out here the error is gone, and with it the frames that held the tensors.
    machine = plan.get("machine_bytes")
    has = f", and the machine has {_size(machine)}" if machine else ""
    at_once: int = settings.micro_batch_size or vars(settings).get("batch_size", 1)
    less = [f"micro_batch_size={max(1, at_once // 2)} (it is {at_once})"] if at_once > 1 else []
    if smaller := _smaller(settings):
        less.append(f"a smaller {smaller}")
    raise UserError(
        f"memory ran out: the plan counts {_size(plan['memory_bytes'])} for tensors ({_parts(plan)}){has}, of which "
        f"other programs may take a part or a limit be set: {_change([*less, *_ways(settings)])}{kept}"
    )


def _counted(workload: Workload, memory: TrainingMemory) -> dict[str, int]:
    return {
        "weight_bytes": memory.weight_bytes,
        "gradient_bytes": memory.gradient_bytes,
        "optimizer_bytes": memory.optimizer_bytes,
        "activation_bytes": memory.activation_bytes,
        "held_bytes": workload.held_bytes,
        "rows": workload.rows,
        "length": workload.length,
    }


def _parts(plan: Mapping[str, Any]) -> str:
    """The parts of what is planned, the largest first."""
    names = {
        "weights": "weight_bytes",
        "gradients": "gradient_bytes",
        "optimizer": "optimizer_bytes",
        "activations": "activation_bytes",
        "other models": "held_bytes",
    }
    sizes = sorted(((plan[field], name) for name, field in names.items() if plan[field]), reverse=True)
    told = [f"{name} {_size(count)}" for count, name in sizes]
    if scores := plan.get("score_bytes"):
        told.append(f"one table of scores {_size(scores)}")
    return ", ".join(told) + f"; {plan['rows']} x {plan['length']} positions at once"


def _smaller(settings: LoopSettings) -> str:
    """The settings that make a row or the model smaller."""
    if hasattr(settings, "model"):
        return "model.context, model.hidden_size or model.layers"
    return "max_new_tokens" if hasattr(settings, "rollouts") else ""


def _ways(settings: LoopSettings) -> list[str]:
    """What saves memory whatever the batch is."""
    return ["--lora"] if getattr(settings, "lora", "is no setting") is None else []


def _change(ways: list[str]) -> str:
    if not ways:
        return "choose a smaller model, or leave the longest rows out"
    return "try " + ", or ".join(ways)


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
