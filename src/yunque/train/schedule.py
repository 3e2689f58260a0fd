"""What is known and fixed before the first step: the number of steps, and what they will cost.

A run that is given seconds gets its number of steps here, once, from a short measurement; the learning rate of each
step then depends on nothing that could differ when the run goes on after a stop.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from yunque.errors import UserError
from yunque.machine import machine_memory
from yunque.model import LanguageModel, ModelConfig, new_model, plan_model
from yunque.model.memory import Training, TrainingMemory, plan_training
from yunque.train.loop import train_step
from yunque.train.objective import Objective
from yunque.train.optimizer import make_optimizer
from yunque.train.settings import LoopSettings, Precision

_MATMUL_SIZE = 1024
_MATMUL_SECONDS = 0.1
# bfloat16 has to be this much quicker at plain products: casts and small operations around them eat the rest.
_WORTHWHILE = 1.3
_TIMED_STEPS = 8
_TIMED_SECONDS = 4.0
# Share of the time that goes to checkpoints, the log and the machine's other work.
_MARGIN = 0.04


@dataclass(frozen=True)
class TrainingPlan:
    """The plan of a run, kept in run.json. FLOPs and bytes follow from the model's shape; the rest was measured.

    `tokens` are those the model will read, `epochs` how often it will see the data.
    """

    steps: int
    precision: Precision
    threads: int
    parameters: int
    tokens: int
    epochs: float
    flops: int
    memory_bytes: int
    matmul_gflops: float
    step_seconds: float
    expected_seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def sentences(self) -> list[str]:
        """The plan in words, a line each."""
        return [
            f"Model: {self.parameters / 1e6:.2f} million parameters; "
            f"memory for training: about {self.memory_bytes / 1e6:.0f} MB.",
            f"Work: {self.steps:,} steps, {self.tokens:,} tokens ({self.epochs:.2f} times through the data), "
            f"{self.flops / 1e12:.2f} TFLOP in {self.precision}.",
            f"Machine: {self.matmul_gflops:.0f} GFLOP/s in matrix products with {self.threads} threads, "
            f"{self.step_seconds:.3f} s a step.",
            f"Expected time: about {self.expected_seconds:.0f} s.",
        ]


@dataclass(frozen=True)
class _Trial:
    """A schedule for the measured steps alone."""

    steps: int
    precision: Precision
    threads: int


@dataclass(frozen=True)
class Workload:
    """What an objective asks of the machine: tokens of a step and of an epoch; of its largest batch the rows, and the
    positions of the longest; whether rows hold several documents."""

    step_tokens: float
    epoch_tokens: float
    rows: int
    length: int
    packed: bool

    def memory(self, config: ModelConfig, precision: Precision) -> TrainingMemory:
        """What the largest batch takes."""
        return plan_training(config, Training(self.rows, self.length, dtype=precision, masked=self.packed))


def measure_matmul(precision: Precision) -> float:
    """Speed of a large matrix product, in GFLOP/s (thousand million operations a second)."""
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    a = torch.ones(_MATMUL_SIZE, _MATMUL_SIZE, dtype=dtype)
    a @ a
    begin, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - begin) < _MATMUL_SECONDS:
        a @ a
        done += 1
    return done * 2 * _MATMUL_SIZE**3 / spent / 1e9


def plan_run(
    config: ModelConfig,
    objective: Objective,
    settings: LoopSettings,
    workload: Workload,
    steps: int | None,
    seconds: float | None,
    make: Callable[[], LanguageModel] | None = None,
) -> TrainingPlan:
    """Measure this machine on a throwaway model and fix the schedule: `steps`, or as many as fit in `seconds`.

    Where both are given the smaller number of steps holds. The throwaway model is a fresh one, or what `make` gives.
    """
    _check_memory(workload.memory(config, "float32").peak_bytes)
    speeds: dict[Precision, float] = {"float32": measure_matmul("float32")}
    precision: Precision = "float32" if settings.precision == "auto" else settings.precision
    if settings.precision != "float32":
        speeds["bfloat16"] = measure_matmul("bfloat16")
    if settings.precision == "auto" and speeds["bfloat16"] > _WORTHWHILE * speeds["float32"]:
        precision = "bfloat16"
    threads = torch.get_num_threads()
    step_seconds, validation_seconds = _measure(
        make or (lambda: new_model(config, torch.Generator().manual_seed(settings.seed))),
        objective,
        settings,
        _Trial(_TIMED_STEPS, precision, threads),
    )
    a_step = (step_seconds + validation_seconds / settings.validate_every) * (1 + _MARGIN)
    if seconds is not None:
        fitting = max(1, int((seconds - validation_seconds) / a_step))
        steps = fitting if steps is None else min(steps, fitting)
    assert steps is not None, "a run has a number of steps or of seconds"
    tokens = round(steps * workload.step_tokens)
    model = plan_model(config)
    return TrainingPlan(
        steps=steps,
        precision=precision,
        threads=threads,
        parameters=model.parameters,
        tokens=tokens,
        epochs=tokens / workload.epoch_tokens,
        flops=tokens * model.training_flops_per_token,
        memory_bytes=workload.memory(config, precision).peak_bytes,
        matmul_gflops=round(speeds[precision], 1),
        step_seconds=round(step_seconds, 4),
        expected_seconds=round(steps * a_step + validation_seconds, 2),
    )


def _check_memory(wanted: int) -> None:
    """Raise UserError where a model would not fit, before any of it is made."""
    total = machine_memory()
    if total is not None and wanted > total:
        raise UserError(
            f"training this model takes about {wanted / 1e9:.1f} GB of memory, and the machine has "
            f"{total / 1e9:.1f} GB: make model.hidden_size, model.layers, model.context or batch_size smaller"
        )


def _measure(
    make: Callable[[], LanguageModel], objective: Objective, settings: LoopSettings, trial: _Trial
) -> tuple[float, float]:
    """Seconds of a step (the median of a few, after one that does not count) and of a validation."""
    model = make()
    optimizer = make_optimizer(model, settings.optimizer)
    train_step(model, optimizer, objective, settings.optimizer, trial, 0)
    begin, spent = time.perf_counter(), list[float]()
    while len(spent) < _TIMED_STEPS and (not spent or time.perf_counter() - begin < _TIMED_SECONDS):
        start = time.perf_counter()
        train_step(model, optimizer, objective, settings.optimizer, trial, len(spent))
        spent.append(time.perf_counter() - start)
    # The median: other work of the machine makes a step or two much slower, and must not shorten the whole run.
    step_seconds = statistics.median(spent)
    begin = time.perf_counter()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, trial.precision == "bfloat16"):
        objective.validation_loss(model)
    return step_seconds, time.perf_counter() - begin
