"""Checkpoints of a run: everything the next step depends on, written atomically, as safetensors and JSON.

A checkpoint is a folder `checkpoints/step-00000100`. It gets that name only when it is whole and on disk, so a
process that dies while writing leaves nothing that could be taken for one.
"""

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from yunque.train.objective import Stateful
from yunque.workspace import atomic_folder

_NAME = re.compile(r"step-\d{8}")
_KEPT = 2


@dataclass
class Position:
    """How far a run is: steps and tokens done, seconds spent, and the length of loss.jsonl at that moment.

    The place in the data follows from `step` (see corpus.py), so it is not kept a second time.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
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
    """Write a checkpoint, with the objective's state if it has one, and remove all but the newest two."""
    with atomic_folder(folder / f"step-{position.step:08d}") as temporary:
        save_file(_trained(model), temporary / "model.safetensors")
        save_file(_optimizer_tensors(model, optimizer), temporary / "optimizer.safetensors")
        save_file({"torch": torch.get_rng_state()}, temporary / "random.safetensors")
        if isinstance(objective, Stateful):
            save_file(dict(objective.state()), temporary / "objective.safetensors")
        (temporary / "position.json").write_text(json.dumps(asdict(position)) + "\n", encoding="utf-8")
    for old in _checkpoints(folder)[:-_KEPT]:
        shutil.rmtree(old)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, objective: object = None
) -> Position:
    """Put the newest checkpoint into `model`, `optimizer`, torch's generator and the objective, if it has a state.

    Gives the start where there is none.
    """
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover)  # of a process that died while writing; the run's lock is ours
    for checkpoint in reversed(_checkpoints(folder)):
        try:
            return _restore(checkpoint, model, optimizer, objective)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError):
            continue  # damaged on disk after it was written: the one before it is a little older, and as good
    return Position()


def _restore(
    checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer, objective: object
) -> Position:
    """Everything of one checkpoint, all read before any of it is put in place."""
    weights = load_file(checkpoint / "model.safetensors")
    moments = load_file(checkpoint / "optimizer.safetensors")
    random = load_file(checkpoint / "random.safetensors")["torch"]
    position = Position(**json.loads((checkpoint / "position.json").read_text(encoding="utf-8")))
    state = load_file(checkpoint / "objective.safetensors") if isinstance(objective, Stateful) else {}
    if weights.keys() != _trained(model).keys():
        raise KeyError("the checkpoint has other weights than the model")
    model.load_state_dict(weights, strict=False)
    for name, parameter in model.named_parameters():
        if name not in weights:
            continue
        prefix = f"{name}:"
        optimizer.state[parameter] = {
            key.removeprefix(prefix): tensor for key, tensor in moments.items() if key.startswith(prefix)
        }
    torch.set_rng_state(random)
    if isinstance(objective, Stateful):
        objective.restore(state)
    return position


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
