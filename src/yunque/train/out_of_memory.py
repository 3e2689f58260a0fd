"""Memory that does not suffice: refused before the start where the plan says so, explained where it happens all the
same."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from yunque.errors import UserError
from yunque.machine import machine_memory
from yunque.model import LanguageModel
from yunque.model.memory import TrainingMemory
from yunque.processes import local_world_size
from yunque.train.settings import LoopSettings, Precision
from yunque.train.workload import Workload

# How torch's allocators say it, where they raise a plain RuntimeError.
_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


@dataclass(frozen=True)
class Room:
    """The bytes that this process may take where it trains (None where the system does not tell), and whose they
    are."""

    available: int | None
    owner: str


def room_of(device: torch.device) -> Room:
    """Its GPU's, or its share of the machine's among the processes there."""
    if device.type == "cuda":
        # What this process has taken already is its own.
        return Room(
            torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device), "the GPU of this process"
        )
    machine, processes = machine_memory(), local_world_size()
    if processes == 1:
        return Room(machine, "the machine")
    return Room(
        None if machine is None else machine // processes, f"each of the {processes} processes on the machine"
    )


def check_fits(
    workload: Workload,
    model: LanguageModel,
    memory: TrainingMemory,
    settings: LoopSettings,
    room: Room,
) -> None:
    """Raise UserError for a step that takes more than there is, with the largest `micro_batch_size` that would do."""
    wanted, available = memory.peak_bytes + workload.held_bytes, room.available
    if available is None or wanted <= available:
        return
    # What memory is counted for, the largest part is too.
    precision: Precision = "bfloat16" if memory.training.dtype == "bfloat16" else "float32"
    rows = workload.largest_micro_batch(model, precision, available)
    less = [] if rows is None else [f"micro_batch_size={rows}"]
    if rows is None and (smaller := _smaller(settings)):
        less.append(f"{smaller} smaller: a single row at once does not fit either")
    raise UserError(
        f"training this model takes about {told_bytes(wanted)} of memory ({_parts(_counted(workload, memory))}), and "
        f"{room.owner} has {told_bytes(available)}: {_change([*less, *_ways(settings)])}"
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
    has = f", and there are {told_bytes(machine)} for it" if machine else ""
    at_once: int = settings.micro_batch_size or vars(settings).get("batch_size", 1)
    less = [f"micro_batch_size={max(1, at_once // 2)} (it is {at_once})"] if at_once > 1 else []
    if smaller := _smaller(settings):
        less.append(f"a smaller {smaller}")
    raise UserError(
        f"memory ran out: the plan counts {told_bytes(plan['memory_bytes'])} for tensors ({_parts(plan)}){has}, of "
        f"which other programs may take a part or a limit be set: {_change([*less, *_ways(settings)])}{kept}"
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
        "other weights": "held_bytes",
    }
    sizes = sorted(((plan[field], name) for name, field in names.items() if plan[field]), reverse=True)
    told = [f"{name} {told_bytes(count)}" for count, name in sizes]
    if scores := plan.get("score_bytes"):
        told.append(f"one table of scores {told_bytes(scores)}")
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


def told_bytes(count: float) -> str:
    """A number of bytes in a sentence."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
