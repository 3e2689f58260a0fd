"""Checkpoints of a run: everything the next step depends on, written atomically, as safetensors and JSON.

A checkpoint is a folder `checkpoints/step-00000100`. It gets that name only when it is whole and on disk, so a
process that dies while writing leaves nothing that could be taken for one.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from yunque.errors import UserError
from yunque.model.formats.files import TensorEntry
from yunque.model.formats.safetensors_writer import file_order, write_file
from yunque.processes import rank
from yunque.train.distributed import first_makes, gathered, placed_like
from yunque.train.objective import Stateful
from yunque.workspace import atomic_folder

_NAME = re.compile(r"step-\d{8}")
_KEPT = 2


@dataclass
class Position:
    """How far a run is: steps and tokens done, what was spent (see cost.py), and the length of loss.jsonl.

    The place in the data follows from `step` (see corpus.py), so it is not kept a second time.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    joules: float | None = 0.0
    log_bytes: int = 0


def _checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: Position,
    objective: object = None,
) -> None:
    """Write a checkpoint, with the objective's state if it has one, and remove all but the newest two.

    Of several processes the first one writes, and what it writes does not show how many there were. Where weights are
    in slices all come here and put them together, one at a time: no process holds more than one whole.
    """
    files = {
        "model.safetensors": _trained(model),
        "optimizer.safetensors": _optimizer_tensors(model, optimizer),
    }
    if rank():
        for tensors in files.values():
            for name in file_order(_entries(tensors)):
                gathered(tensors[name])
        return
    with atomic_folder(folder / f"step-{position.step:08d}") as temporary:
        for file, tensors in files.items():
            write_file(temporary / file, _entries(tensors), partial(_whole, tensors))
        save_file(_random_states(), temporary / "random.safetensors")
        if isinstance(objective, Stateful):
            save_file(dict(objective.state()), temporary / "objective.safetensors")
        (temporary / "position.json").write_text(json.dumps(asdict(position)) + "\n", encoding="utf-8")
    for old in _checkpoints(folder)[:-_KEPT]:
        shutil.rmtree(old)


def load_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: object = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Position:
    """Put the newest checkpoint into `model`, `optimizer`, torch's generator and the objective, if it has a state.

    Gives the start where there is none. One that was damaged on disk is told, and the one before it taken. Raises
    UserError where none of them can be read.
    """
    if rank() == 0:
        for leftover in folder.glob(".step-*"):
            shutil.rmtree(leftover)  # of a process that died while writing; the run's lock is ours
    found, checkpoints = Position(), _checkpoints(folder)
    for checkpoint in reversed(checkpoints):
        try:
            contents = _read(checkpoint, model, objective)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            if checkpoint == checkpoints[0]:
                raise UserError(
                    f"{folder}: no checkpoint can be read ({error}); delete the folder to start this run anew"
                ) from None
            tell(f"The checkpoint {checkpoint.name} is damaged ({error}): the one before it is taken.")
            continue
        found = contents.position
        _put_in_place(contents, model, optimizer, objective)
        break
    if found.step != first_makes(lambda: found.step, int):
        raise UserError(
            f"{folder}: the processes of this run do not see the same files; give them one workspace"
        )
    return found


@dataclass(frozen=True)
class _Contents:
    """What a checkpoint holds, read and checked."""

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    random: Mapping[str, Tensor]
    objective: Mapping[str, Tensor]
    position: Position


def _read(checkpoint: Path, model: nn.Module, objective: object) -> _Contents:
    """Everything of one checkpoint. Raises ValueError and the like where it is not this model's, or damaged."""
    state = load_file(checkpoint / "objective.safetensors") if isinstance(objective, Stateful) else {}
    contents = _Contents(
        load_file(checkpoint / "model.safetensors"),
        load_file(checkpoint / "optimizer.safetensors"),
        load_file(checkpoint / "random.safetensors"),
        state,
        Position(**json.loads((checkpoint / "position.json").read_text(encoding="utf-8"))),
    )
    if "torch" not in contents.random:
        raise ValueError("it has no state of torch's generator")
    shapes = {name: tensor.shape for name, tensor in contents.weights.items()}
    if shapes != {name: weight.shape for name, weight in _trained(model).items()}:
        raise ValueError("it has other weights than the model")
    return contents


def _put_in_place(
    contents: _Contents, model: nn.Module, optimizer: torch.optim.Optimizer, objective: object
) -> None:
    for name, parameter in model.named_parameters():
        if name not in contents.weights:
            continue
        with torch.no_grad():
            parameter.copy_(placed_like(contents.weights[name], parameter))
        prefix = f"{name}:"
        optimizer.state[parameter] = {
            key.removeprefix(prefix): placed_like(tensor, parameter)
            for key, tensor in contents.moments.items()
            if key.startswith(prefix)
        }
    torch.set_rng_state(contents.random["torch"])
    if "cuda" in contents.random and torch.cuda.is_available():
        torch.cuda.set_rng_state(contents.random["cuda"])
    if isinstance(objective, Stateful):
        objective.restore(contents.objective)


def _random_states() -> dict[str, Tensor]:
    """Torch's generators: that of the processor, and that of this process's GPU if it uses one."""
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _entries(tensors: Mapping[str, Tensor]) -> dict[str, TensorEntry]:
    return {name: TensorEntry(tuple(each.shape), each.dtype, "") for name, each in tensors.items()}


def _whole(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    return gathered(tensors[name]).cpu()


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """The weights that training changes: under an adapter, those of the adapter only."""
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}:{key}": tensor
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for key, tensor in optimizer.state[parameter].items()
    }
