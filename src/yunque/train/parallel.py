"""Parallelism applied to a model from outside: each process reads its share of a step, and gradients are added up.

`ddp`: every process holds the whole model (torch's DistributedDataParallel; Li et al. 2020, arXiv:2006.15704).
`fsdp`: each holds a slice of it (see sharded.py). Both do the steps that one process does, but for the order of sums.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from yunque.errors import UserError
from yunque.model import LanguageModel
from yunque.model.simulation import stacks_of
from yunque.processes import local_rank, rank, world_size
from yunque.train.distributed import added_up, first_found, meet
from yunque.train.objective import Objective, Part, PartLoss, Stateful, group_weights
from yunque.train.settings import LoopSettings


def training_device(settings: LoopSettings) -> torch.device:
    """Where this process trains. Raises UserError for a GPU that is not there."""
    if settings.device == "cpu" or (settings.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("device: this machine has no GPU that torch can use; set device=cpu or leave it out")
    place, there = local_rank(), torch.cuda.device_count()
    if place >= there:
        raise UserError(f"device: this machine has {there} GPUs: start no more than {there} processes on it")
    torch.cuda.set_device(place)
    return torch.device("cuda", place)


def share_out(parts: Sequence[Part], number: int, size: int) -> list[tuple[int, Part]]:
    """What process `number` of `size` reads of a step: parts, with their places in the step.

    Every process gets as many of each group, so that all of them do the same things at the same time; where parts do
    not go round, some read one of the others' with weight 0.
    """
    groups = dict[str, list[tuple[int, Part]]]()
    for place, part in enumerate(parts):
        groups.setdefault(part.group, []).append((place, part))
    mine = list[tuple[int, Part]]()
    for group in groups.values():
        place, smallest = min(group, key=lambda each: each[1].tokens)
        fillers = [(place, replace(smallest, weight=0.0))] * (-len(group) % size)
        mine += [*group, *fillers][number::size]
    return mine


def own_share(objective: Objective) -> Objective:
    """An objective as this process alone reads it, to measure how long a step takes."""
    return objective if world_size() == 1 else _OwnShare(objective)


@dataclass(frozen=True)
class _OwnShare:
    objective: Objective

    def parts(self, model: LanguageModel, step: int) -> Sequence[Part]:
        """The parts of a step that are this process's."""
        parts = self.objective.parts(model, step)
        share = share_out(parts, rank(), world_size())
        # Alone, no group may weigh nothing.
        return [replace(part, weight=part.weight or 1.0) for _, part in share]

    def loss(self, model: LanguageModel, part: Part) -> PartLoss:
        """That of the objective."""
        return self.objective.loss(model, part)

    def validation_loss(self, model: LanguageModel) -> float | None:
        """That of the objective."""
        return self.objective.validation_loss(model)


class Work(nn.Module):
    """Any work with a model, as a forward pass: torch's wrappers act around `forward`, and models are entered by
    `hidden`, `encode` or `logits`."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], Tensor]) -> Tensor:
        """What `work` gives."""
        return work()


class Team(ABC):
    """This process among those of a run; `model` is what objectives are given here."""

    model: LanguageModel

    def __init__(self, seed: int) -> None:
        self._seed = seed

    @abstractmethod
    def _work(self, work: Callable[[], Tensor], last: bool) -> Tensor:
        """Do some work with the model, whose gradients are exchanged, if need be, after the `last` part."""

    @abstractmethod
    def measured(self, measure: Callable[[], float | None]) -> float | None:
        """What `measure` finds with the model, without gradients; the same number in every process."""

    @abstractmethod
    def finish(self) -> None:
        """Put what was learned into the model that the team was made of."""

    def accumulate(
        self, parts: Sequence[Part], compute: Callable[[Part], PartLoss], step: int
    ) -> dict[str, float]:
        """Add up the gradients of a step's parts over all processes.

        Returns the mean loss and figures of them all, the same in every process.
        """
        weights, mine = group_weights(parts), share_out(parts, rank(), world_size())
        sums = {"loss": 0.0}
        for number, (place, part) in enumerate(mine):
            # Chance (dropout) follows from the place in the run: no process has a generator of its own to keep.
            torch.manual_seed(int(np.random.SeedSequence([self._seed, step, place]).generate_state(1)[0]))
            share, figures = part.weight / weights[part.group], dict[str, Tensor]()
            last = number == len(mine) - 1

            def loss(part: Part = part, figures: dict[str, Tensor] = figures) -> Tensor:
                done = compute(part)
                figures |= {"loss": done.mean.detach(), **done.figures}
                return done.mean

            with self._exchanging(last):
                # Gradients are averaged over the processes, and are to be added up.
                (self._work(loss, last) * (share * world_size())).backward()  # type: ignore[no-untyped-call]
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + value.item() * share
        names = sorted(sums)
        return dict(zip(names, added_up([sums[name] for name in names]), strict=True))

    def _exchanging(self, last: bool) -> Any:
        del last
        return nullcontext()


class Replicas(Team):
    """Every process holds the whole model (DDP)."""

    def __init__(self, model: LanguageModel, seed: int) -> None:
        super().__init__(seed)
        self.model = model
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # the newer name of an option is not in every torch
            # Which weights a part uses depends on the objective. Buffers are constants.
            self._wrapped = DistributedDataParallel(
                Work(model),
                broadcast_buffers=False,
                find_unused_parameters=True,
                gradient_as_bucket_view=True,
            )

    def _exchanging(self, last: bool) -> Any:
        return nullcontext() if last else self._wrapped.no_sync()

    def _work(self, work: Callable[[], Tensor], last: bool) -> Tensor:
        del last
        result: Tensor = self._wrapped(work)
        return result

    def measured(self, measure: Callable[[], float | None]) -> float | None:
        """Each process measures all of it; the first one's number counts."""
        with torch.inference_mode():
            return first_found(measure())

    def finish(self) -> None:
        """Nothing: the model itself was trained."""


def form_team(model: LanguageModel, objective: Objective, settings: LoopSettings) -> Team | None:
    """Put `model` where it is trained: on its device, and shared out among the processes of the run (None for one).

    Raises UserError for what cannot be cut in slices.
    """
    device, several = training_device(settings), world_size() > 1
    if several:
        meet()
    team: Team | None = None
    if several and settings.parallel == "fsdp":
        team = _sliced(model, objective, settings, device)
    else:
        model.to(device)
        team = Replicas(model, settings.seed) if several else None
    if settings.compile:
        for layer in (layer for stack in stacks_of(team.model if team else model) for layer in stack):
            layer.compile()
    return team


def _sliced(model: LanguageModel, objective: Objective, settings: LoopSettings, device: torch.device) -> Team:
    if isinstance(objective, Stateful):
        raise UserError(
            "parallel: early stopping, PPO and GRPO need the whole model between steps, and fsdp cuts it in slices; "
            "set parallel=ddp"
        )
    from yunque.train.sharded import Shards  # nearly a second to load, which most runs need not wait

    # The whole stays in the machine's memory.
    model.to("cpu")
    return Shards(model, settings.seed, device)
