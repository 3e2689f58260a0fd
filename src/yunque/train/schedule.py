"""What is known and fixed before the first step: the number of steps, and what they will cost.

A run that is given seconds gets its number of steps here, once, from a short measurement; the learning rate of each
step then depends on nothing that could differ when the run goes on after a stop.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from yunque.model import LanguageModel, ModelConfig, new_model
from yunque.model.memory import TrainingMemory, outline_of
from yunque.model.simulation import check_layers, on_meta
from yunque.processes import world_size
from yunque.train.loop import autocast, train_step
from yunque.train.objective import Objective
from yunque.train.optimizer import make_optimizer
from yunque.train.out_of_memory import check_fits, room_of, told_bytes, told_when_out_of_memory
from yunque.train.parallel import own_share, training_device
from yunque.train.settings import LoopSettings, Precision
from yunque.train.workload import Workload as Workload

_MATMUL_SIZE = 1024
_MATMUL_SECONDS = 0.2
# bfloat16 has to be this much quicker at plain products: casts and small operations around them eat the rest.
_WORTHWHILE = 1.3
_TIMED_STEPS = 8
_TIMED_SECONDS = 4.0
# Share of the time that goes to checkpoints, the log and the machine's other work.
_MARGIN = 0.04


@dataclass(frozen=True)
class TrainingPlan:
    """The plan of a run, kept in run.json. FLOPs and bytes follow from the model as it is; the rest was measured.

    `tokens` are those the model will read, `epochs` how often it will see the data. `flops_per_token` are those of
    what is really trained. `memory_bytes` is the most at once: not the sum of weights, gradients, optimizer,
    activations (with the scores) and `held_bytes` (a reference, a reward model, the best weights so far), for
    gradients come while activations go. It is for `rows` rows of `length` positions read at once. `machine_bytes` is
    what there is for each process: of its GPU, or of the machine.
    """

    steps: int
    precision: Precision
    threads: int
    parameters: int
    trained_parameters: int
    tokens: int
    epochs: float
    flops: int
    flops_per_token: int
    rows: int
    length: int
    memory_bytes: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    score_bytes: int
    held_bytes: int
    machine_bytes: int | None
    matmul_gflops: float
    step_seconds: float
    expected_seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def sentences(self) -> list[str]:
        """The plan in words, a line each."""
        learns = "" if self.trained_parameters == self.parameters else f"; {self.trained_parameters:,} learn"
        of = f" of {told_bytes(self.machine_bytes)}" if self.machine_bytes is not None else ""
        held = f", other weights {told_bytes(self.held_bytes)}" if self.held_bytes else ""
        reached = self.flops / max(self.steps * self.step_seconds, 1e-9) / (self.matmul_gflops * 1e9)
        return [
            f"Model: {self.parameters / 1e6:.2f} million parameters{learns}.",
            f"Memory: about {told_bytes(self.memory_bytes)}{of} (weights {told_bytes(self.weight_bytes)}, gradients "
            f"{told_bytes(self.gradient_bytes)}, optimizer {told_bytes(self.optimizer_bytes)}, activations "
            f"{told_bytes(self.activation_bytes)} for {self.rows} x {self.length} positions at once{held}).",
            f"Work: {self.steps:,} steps, {self.tokens:,} tokens ({self.epochs:.2f} times through the data), "
            f"{self.flops / 1e12:.2f} TFLOP in {self.precision}.",
            f"Machine: {self.matmul_gflops:.0f} GFLOP/s in matrix products with {self.threads} threads, "
            f"{self.step_seconds:.3f} s a step (MFU {reached:.0%}).",
            f"Expected time: about {self.expected_seconds:.0f} s.",
        ]


@dataclass(frozen=True)
class _Trial:
    """A schedule for the measured steps alone."""

    steps: int
    precision: Precision
    threads: int
    flops_per_token: int = 0
    matmul_gflops: float = 0.0


@dataclass(frozen=True)
class _Measured:
    """Seconds of a step, of a validation, and of what comes before the first step of a rollout."""

    step: float
    validation: float
    rollout: float


def measure_matmul(precision: Precision, device: torch.device | str = "cpu") -> float:
    """The speed that a large matrix product reaches, in GFLOP/s (thousand million operations a second): that of the
    quickest of several, for other work of the machine only makes one slower."""
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    accelerated = torch.device(device).type == "cuda"
    size = _MATMUL_SIZE * (8 if accelerated else 1)
    a = torch.ones(size, size, dtype=dtype, device=device)
    begin, best = time.perf_counter(), float("inf")
    while time.perf_counter() - begin < _MATMUL_SECONDS or best == float("inf"):
        start = time.perf_counter()
        a @ a
        if accelerated:
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def plan_run(
    config: ModelConfig,
    objective: Objective,
    settings: LoopSettings,
    workload: Workload,
    steps: int | None,
    seconds: float | None,
    make: Callable[[], LanguageModel] | None = None,
) -> TrainingPlan:
    """Measure this machine on a few steps and fix the schedule: `steps`, or as many as fit in `seconds`.

    Where both are given the smaller number of steps holds. The steps are done with a fresh model, or with what
    `make` gives, whose weights stay as they are. Raises UserError for a model that does not fit in memory, with what
    to change, before anything of its size is made.
    """
    shape = make() if make is not None else _without_numbers(config)
    device = training_device(settings)
    precision, speed = _settled_precision(settings, device)
    memory, room = workload.memory(shape, precision), room_of(device)
    workload = _with_whole_model(workload, memory, settings, device)
    check_fits(workload, shape, memory, settings, room)
    threads = torch.get_num_threads()
    model = shape if make is not None else new_model(config, torch.Generator().manual_seed(settings.seed))
    with told_when_out_of_memory(settings, _figures(workload, shape, memory, room.available)):
        trial = _Trial(_TIMED_STEPS, precision, threads)
        measured = _measure(model.to(device), own_share(objective), settings, trial, workload.rollout_steps)
    rollout = measured.rollout / workload.rollout_steps if workload.rollout_steps else 0.0
    a_step = (measured.step + rollout + measured.validation / settings.validate_every) * (1 + _MARGIN)
    if seconds is not None:
        fitting = max(1, int((seconds - measured.validation) / a_step))
        steps = fitting if steps is None else min(steps, fitting)
    assert steps is not None, "a run has a number of steps or of seconds"
    tokens, flops_per_token = round(steps * workload.step_tokens), workload.flops_per_token(shape)
    return TrainingPlan(
        steps=steps,
        precision=precision,
        threads=threads,
        tokens=tokens,
        epochs=tokens / workload.epoch_tokens,
        flops=tokens * flops_per_token,
        flops_per_token=flops_per_token,
        **_figures(workload, shape, memory, room.available),
        matmul_gflops=round(speed, 1),
        step_seconds=round(measured.step, 4),
        expected_seconds=round(steps * a_step + measured.validation, 2),
    )


def _settled_precision(settings: LoopSettings, device: torch.device) -> tuple[Precision, float]:
    """The precision of a run and the speed that large products reach in it."""
    if settings.precision != "auto":
        return settings.precision, measure_matmul(settings.precision, device)
    single, half = measure_matmul("float32", device), measure_matmul("bfloat16", device)
    return ("bfloat16", half) if half > _WORTHWHILE * single else ("float32", single)


def _with_whole_model(
    workload: Workload, memory: TrainingMemory, settings: LoopSettings, device: torch.device
) -> Workload:
    """With fsdp the whole model stays in the machine's memory beside the slices.

    The speed is measured on the whole model, so what that takes is needed in any case; of the slices only what is
    more than that counts. On a GPU the whole is not where the slices are.
    """
    if settings.parallel != "fsdp" or world_size() == 1 or device.type == "cuda":
        return workload
    slices = (memory.weight_bytes + memory.optimizer_bytes) // world_size()
    more = max(0, slices - memory.optimizer_bytes)
    return replace(workload, held_bytes=workload.held_bytes + more)


def _without_numbers(config: ModelConfig) -> LanguageModel:
    check_layers(config.num_layers)
    with on_meta():
        return new_model(config)


def _figures(
    workload: Workload, model: LanguageModel, memory: TrainingMemory, machine: int | None
) -> dict[str, Any]:
    """What a plan tells of memory."""
    return {
        # Those of the model itself: without an adapter, and also where a quantized one keeps other numbers.
        "parameters": outline_of(model.config)[1],
        "trained_parameters": memory.trained_parameters,
        "rows": workload.rows,
        "length": workload.length,
        "memory_bytes": memory.peak_bytes + workload.held_bytes,
        "weight_bytes": memory.weight_bytes,
        "gradient_bytes": memory.gradient_bytes,
        "optimizer_bytes": memory.optimizer_bytes,
        "activation_bytes": memory.activation_bytes,
        "score_bytes": workload.score_bytes(model),
        "held_bytes": workload.held_bytes,
        "machine_bytes": machine,
    }


def _measure(
    model: LanguageModel,
    objective: Objective,
    settings: LoopSettings,
    trial: _Trial,
    rollout_steps: int | None,
) -> _Measured:
    """Time a few steps, after one that does not count. They have a learning rate of 0: the weights stay as they are,
    and no second model is needed to find out how quick the first is."""
    standing = settings.optimizer.model_copy(update={"learning_rate": 0.0})
    was_training = model.training
    model.train()
    optimizer = make_optimizer(model, standing)
    begin = time.perf_counter()
    objective.parts(model, 0)  # where the model writes what it learns from, this is where it does
    rollout_seconds = time.perf_counter() - begin
    train_step(model, optimizer, objective, standing, trial, 0)
    begin, spent = time.perf_counter(), list[float]()
    while len(spent) < _TIMED_STEPS and (not spent or time.perf_counter() - begin < _TIMED_SECONDS):
        start, step = time.perf_counter(), len(spent) % (rollout_steps or _TIMED_STEPS)
        train_step(model, optimizer, objective, standing, trial, step)
        spent.append(time.perf_counter() - start)
    # The median: other work of the machine makes a step or two much slower, and must not shorten the whole run.
    step_seconds = statistics.median(spent)
    begin = time.perf_counter()
    model.eval()
    with torch.inference_mode(), autocast(model, trial.precision):
        objective.validation_loss(model)
    model.train(was_training)
    return _Measured(step_seconds, time.perf_counter() - begin, rollout_seconds)
