"""The one training loop. An objective says how a step becomes a loss; everything else is here.

A run that is killed at any moment and started again ends with the same bits: each step depends only on the weights,
the optimizer's moments, torch's generator, the step's number and the objective's state where it has one, and a
checkpoint holds all of them.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from yunque.errors import UserError
from yunque.model import LanguageModel
from yunque.processes import rank
from yunque.progress import Progress
from yunque.train.checkpoint import Position, load_checkpoint, save_checkpoint
from yunque.train.cost import Meter, spent
from yunque.train.distributed import added_up, anywhere, gathered, own_folder, peers
from yunque.train.log import Log, Speed, TokenCost, shown
from yunque.train.objective import Objective, Part, PartLoss, Stopping, group_weights
from yunque.train.optimizer import make_optimizer
from yunque.train.out_of_memory import told_when_out_of_memory
from yunque.train.parallel import Team, form_team
from yunque.train.settings import LoopSettings, OptimizerSettings, Precision

# Where a large model takes long to write, checkpoints come less often: this share of the time is for them.
_CHECKPOINT_SHARE = 0.02

Tell = Callable[[str], None]
"""Takes a sentence for whoever watches."""

_KEPT = (
    ". Checkpoints are as they were: the same command goes on from the newest one, and with other settings "
    "training starts anew"
)


class Schedule(Protocol):
    """What was fixed before the first step, so that a run that goes on does the same."""

    @property
    def steps(self) -> int: ...
    @property
    def precision(self) -> Precision: ...
    @property
    def threads(self) -> int: ...


class Plan(Schedule, TokenCost, Protocol):
    """A schedule, and what is known of its cost."""

    def as_dict(self) -> dict[str, Any]: ...


def train_step(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    settings: OptimizerSettings,
    schedule: Schedule,
    step: int,
    team: Team | None = None,
) -> dict[str, float]:
    """Do step `step` (from 0): loss before it, tokens read, learning rate, gradient norm before clipping, and the
    objective's own figures. With a `team` each process reads its share, and `model` is the team's."""
    rate = settings.learning_rate_at(step, schedule.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    done = _accumulate(model, objective, schedule, step, team)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
    if team is not None:
        norm = gathered(norm)
    if not bool(torch.isfinite(norm)):
        raise UserError(
            f"step {step + 1}: the gradient is not a number; start again with a smaller optimizer.learning_rate "
            f"(it is {settings.learning_rate:g})"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {**done, "learning_rate": rate, "gradient_norm": norm.item()}


def _accumulate(
    model: LanguageModel, objective: Objective, schedule: Schedule, step: int, team: Team | None
) -> dict[str, float]:
    """Add up the gradients of a step's parts; the loss, the tokens read and the figures of them all."""

    def compute(part: Part) -> PartLoss:
        with autocast(model, schedule.precision):
            return objective.loss(model, part)

    parts = objective.parts(model, step)
    weights = group_weights(parts)
    sums: dict[str, float] = {"loss": 0.0, "tokens": sum(part.tokens for part in parts)}
    if team is not None:
        return sums | team.accumulate(parts, compute, step)
    for part in parts:
        share = part.weight / weights[part.group]
        loss = compute(part)
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
    schedule: Plan,
    progress: Progress,
    tell: Tell,
) -> Position:
    """Train `model` to the schedule's last step, from the newest checkpoint in `folder` if there is one.

    Writes a line a step to `loss.jsonl`. Ctrl-C (or SIGTERM) ends the step under way, writes a checkpoint, says how
    to go on and raises KeyboardInterrupt. Several processes come here together, and share every step.
    """
    with peers(), own_folder(folder) as own:
        team = form_team(model, objective, settings)
        trained = team.model if team else model
        position = _run_steps(
            (folder / "checkpoints", own), trained, team, objective, settings, schedule, progress, tell
        )
        if team is not None:
            team.finish()
    return position


def _run_steps(
    folders: tuple[Path, Path],
    model: LanguageModel,
    team: Team | None,
    objective: Objective,
    settings: LoopSettings,
    schedule: Plan,
    progress: Progress,
    tell: Tell,
) -> Position:
    """`run_loop` for a model in its place; `folders` are those of checkpoints and of all else this process writes."""
    optimizer = make_optimizer(model, settings.optimizer)
    checkpoints, folder = folders
    position = load_checkpoint(checkpoints, model, optimizer, objective, tell)
    if position.step:
        tell(f"Going on from step {position.step} of {schedule.steps}.")
    stop = False
    model.train()
    with (
        told_when_out_of_memory(settings, schedule.as_dict(), _KEPT),
        fixed_threads(schedule.threads),
        _interrupts() as interrupted,
        # What the other processes write is thrown away.
        Log(folder, 0 if rank() else position.log_bytes, settings.tensorboard and not rank()) as log,
        progress("Training", total=schedule.steps) as task,
    ):
        task.advance(position.step)
        spending, pace = _Spending(position), _CheckpointPace(settings)
        while not _over(position, objective, schedule) and not stop:
            done = train_step(model, optimizer, objective, settings.optimizer, schedule, position.step, team)
            line = spending.count(position, done, schedule)
            last = position.step == schedule.steps
            if last or position.step % settings.validate_every == 0:
                line |= _validated(model, objective, schedule, position.step, team)
            position.log_bytes = log.write(line)
            task.advance(1, note=shown(line))
            # Every process has its own clock and its own Ctrl-C; what follows they do together.
            stop, due = anywhere(interrupted(), pace.is_due(position.step))
            if stop or due or _over(position, objective, schedule):
                with pace.measured():
                    log.sync()
                    save_checkpoint(checkpoints, model, optimizer, position, objective)
    if not _over(position, objective, schedule):
        tell(
            f"Stopped after step {position.step} of {schedule.steps}, with a checkpoint: "
            "the same command again goes on from there."
        )
        raise KeyboardInterrupt
    return position


class _Spending:
    """Counts what a run takes, on top of what it had taken before it was stopped."""

    def __init__(self, position: Position) -> None:
        self._begin = time.monotonic() - position.seconds
        # What the run spent before counts once, in the first process.
        self._meter = Meter(0.0 if rank() else position.cpu_seconds, position.joules)
        self._recent = Speed(position)

    def count(self, position: Position, done: Mapping[str, float], cost: TokenCost) -> dict[str, Any]:
        """Put a step that was done into `position`; its line of the log."""
        position.step += 1
        position.tokens += int(done["tokens"])
        position.seconds = time.monotonic() - self._begin
        position.cpu_seconds, position.joules = added_up([self._meter.cpu_seconds])[0], self._meter.joules
        line = {"step": position.step, **done, "tokens": position.tokens}
        line |= {**self._recent.measure(position, cost), "seconds": round(position.seconds, 3)}
        return line | spent(position.cpu_seconds, position.joules)


class _CheckpointPace:
    """When a checkpoint is to be written: every so many steps, and sooner where these take long."""

    def __init__(self, settings: LoopSettings) -> None:
        self._settings, self._pause = settings, settings.checkpoint_seconds
        self._written_at = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether one is due after so many steps."""
        waited = time.monotonic() - self._written_at
        return waited >= self._pause or step % self._settings.checkpoint_every == 0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """The block writes one: where that takes long, the next one comes later."""
        started = time.monotonic()
        yield
        self._written_at = time.monotonic()
        self._pause = max(self._settings.checkpoint_seconds, (self._written_at - started) / _CHECKPOINT_SHARE)


def _over(position: Position, objective: Objective, schedule: Schedule) -> bool:
    """Whether the last step is done: that of the schedule, or the one at which the objective ended the run."""
    return position.step >= schedule.steps or (isinstance(objective, Stopping) and objective.finished)


def _validated(
    model: LanguageModel, objective: Objective, schedule: Schedule, step: int, team: Team | None
) -> dict[str, float]:
    def measure() -> float | None:
        with autocast(model, schedule.precision):
            return objective.validation_loss(model)

    model.eval()
    if team is None:
        with torch.inference_mode():
            loss = measure()
    else:
        loss = team.measured(measure)
    model.train()
    if loss is None:
        return {}
    if isinstance(objective, Stopping):
        objective.validated(model, step, loss)
    return {"validation_loss": loss}


@contextmanager
def fixed_threads(count: int) -> Iterator[None]:
    """Sums of floats depend on how many threads share them, so a run keeps the number that it began with."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed or SIGTERM came; a second one ends the process as usual."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set  # only the main thread may handle signals
        return

    def press(number: int, _: object) -> None:
        pressed.set()
        signal.signal(number, before[number])

    before = {number: signal.signal(number, press) for number in (int(signal.SIGINT), int(signal.SIGTERM))}
    try:
        yield pressed.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
