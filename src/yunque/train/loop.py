"""The one training loop. An objective says how a step becomes a loss; everything else is here.

A run that is killed at any moment and started again ends with the same bits: each step depends only on the weights,
the optimizer's moments, torch's generator, the step's number and the objective's state where it has one, and a
checkpoint holds all of them.
"""

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from yunque.errors import UserError
from yunque.model import LanguageModel
from yunque.progress import Progress
from yunque.train.checkpoint import Position, load_checkpoint, save_checkpoint
from yunque.train.objective import Objective
from yunque.train.optimizer import make_optimizer
from yunque.train.settings import LoopSettings, OptimizerSettings, Precision

Tell = Callable[[str], None]
"""Takes a sentence for whoever watches."""


class Schedule(Protocol):
    """What was fixed before the first step, so that a run that goes on does the same."""

    @property
    def steps(self) -> int: ...
    @property
    def precision(self) -> Precision: ...
    @property
    def threads(self) -> int: ...


def train_step(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    settings: OptimizerSettings,
    schedule: Schedule,
    step: int,
) -> dict[str, float]:
    """Do step `step` (from 0): loss before it, tokens read, learning rate, gradient norm before clipping, and the
    objective's own figures."""
    rate = settings.learning_rate_at(step, schedule.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    done = _accumulate(model, objective, schedule, step)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
    if not bool(torch.isfinite(norm)):
        raise UserError(
            f"step {step + 1}: the gradient is not a number; start again with a smaller optimizer.learning_rate "
            f"(it is {settings.learning_rate:g})"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {**done, "learning_rate": rate, "gradient_norm": norm.item()}


def _accumulate(
    model: LanguageModel, objective: Objective, schedule: Schedule, step: int
) -> dict[str, float]:
    """Add up the gradients of a step's parts; the loss, the tokens read and the figures of them all."""
    parts = objective.parts(model, step)
    weights: Counter[str] = Counter()
    for part in parts:
        weights[part.group] += part.weight  # type: ignore[assignment]
    sums: dict[str, float] = {"loss": 0.0, "tokens": sum(part.tokens for part in parts)}
    for part in parts:
        share = part.weight / weights[part.group]
        with autocast(model, schedule.precision):
            loss = objective.loss(model, part)
        (loss.mean * share).backward()  # type: ignore[no-untyped-call]
        for name, value in {"loss": loss.mean, **loss.figures}.items():
            sums[name] = sums.get(name, 0.0) + value.item() * share
    return sums


def autocast(model: LanguageModel, precision: Precision) -> torch.autocast:
    """Matrix products in this precision, on the device where the model is."""
    device = next(model.parameters()).device.type
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")


def run_loop(
    folder: Path,
    model: LanguageModel,
    objective: Objective,
    settings: LoopSettings,
    schedule: Schedule,
    progress: Progress,
    tell: Tell,
) -> Position:
    """Train `model` to the schedule's last step, from the newest checkpoint in `folder` if there is one.

    Writes a line a step to `loss.jsonl`. Ctrl-C ends the step under way, writes a checkpoint, says how to go on
    and raises KeyboardInterrupt.
    """
    optimizer = make_optimizer(model, settings.optimizer)
    checkpoints = folder / "checkpoints"
    position = load_checkpoint(checkpoints, model, optimizer, objective)
    if position.step:
        tell(f"Going on from step {position.step} of {schedule.steps}.")
    saved, saved_at = position.step, time.monotonic()
    model.train()
    with (
        _threads(schedule.threads),
        _interrupts() as interrupted,
        _Log(folder / "loss.jsonl", position.log_bytes) as log,
        progress("Training", total=schedule.steps) as task,
    ):
        task.advance(position.step)
        begin = time.monotonic() - position.seconds
        recent = _Speed(position)
        while position.step < schedule.steps and not interrupted():
            done = train_step(model, optimizer, objective, settings.optimizer, schedule, position.step)
            position.step += 1
            position.tokens += int(done["tokens"])
            position.seconds = time.monotonic() - begin
            line = {"step": position.step, **done, "tokens": position.tokens}
            line |= {"tokens_per_second": recent.measure(position), "seconds": round(position.seconds, 3)}
            last = position.step == schedule.steps
            if last or position.step % settings.validate_every == 0:
                line |= _validated(model, objective, schedule)
            position.log_bytes = log.write(line)
            task.advance(1, note=f"loss {done['loss']:.3f} · {line['tokens_per_second']:,.0f} tokens/s")
            due = time.monotonic() - saved_at >= settings.checkpoint_seconds
            if last or due or position.step % settings.checkpoint_every == 0:
                log.sync()
                save_checkpoint(checkpoints, model, optimizer, position, objective)
                saved, saved_at = position.step, time.monotonic()
        if position.step < schedule.steps:
            log.sync()
            if saved < position.step:
                save_checkpoint(checkpoints, model, optimizer, position, objective)
    if position.step < schedule.steps:
        tell(
            f"Stopped after step {position.step} of {schedule.steps}, with a checkpoint: "
            "the same command again goes on from there."
        )
        raise KeyboardInterrupt
    return position


def _validated(model: LanguageModel, objective: Objective, schedule: Schedule) -> dict[str, float]:
    model.eval()
    with torch.inference_mode(), autocast(model, schedule.precision):
        loss = objective.validation_loss(model)
    model.train()
    return {} if loss is None else {"validation_loss": loss}


class _Log:
    """loss.jsonl, cut back to what the checkpoint knows of, so that no step stands in it twice."""

    def __init__(self, path: Path, length: int) -> None:
        self._path, self._length = path, length

    def __enter__(self) -> "_Log":
        self._file = self._path.open("ab")
        self._file.truncate(self._length)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, line: dict[str, Any]) -> int:
        """Append a line; returns the file's length."""
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        return self._file.seek(0, 2)

    def sync(self) -> None:
        """Put what was written on disk, before a checkpoint counts on it."""
        os.fsync(self._file.fileno())


class _Speed:
    """Tokens a second over the last steps of this process."""

    _STEPS = 20

    def __init__(self, position: Position) -> None:
        self._marks = [(position.seconds, position.tokens)]

    def measure(self, position: Position) -> float:
        """The speed up to `position`."""
        self._marks = [*self._marks[-self._STEPS :], (position.seconds, position.tokens)]
        (begin, before), (end, after) = self._marks[0], self._marks[-1]
        return round((after - before) / max(end - begin, 1e-9), 1)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Sums of floats depend on how many threads share them, so a run keeps the number that it began with."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed; a second press ends the process as usual."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set  # only the main thread may handle signals
        return

    def press(*_: object) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
