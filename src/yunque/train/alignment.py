"""What learning from preferences has in common: opening the base, in full or under an adapter; the identity of a run;
rows that fit and rows to measure on; what is kept."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, Self, TypeVar

from pydantic import Field, model_validator
from torch import nn

from yunque.data.json_lines import Identified
from yunque.model import LanguageModel, save_model
from yunque.model.lora import LoraSettings
from yunque.model.scored import ScoredModel, save_reward_model
from yunque.progress import Progress, silent
from yunque.tokenizer import Tokenizer, tokenizer_of
from yunque.train.adapter import keep_adapter, make_trainable, open_base
from yunque.train.corpus import RowKey
from yunque.train.finish import keep_files, settled_plan
from yunque.train.loop import Tell
from yunque.train.objective import Objective
from yunque.train.objectives.written import Writer, writer_of
from yunque.train.parallel import training_device
from yunque.train.run import Run, open_run
from yunque.train.schedule import TrainingPlan, plan_run
from yunque.train.settings import LoopSettings
from yunque.train.workload import Workload
from yunque.workspace import Artifact, Workspace

_ROWS_TOLD = 10

ObjectiveT = TypeVar("ObjectiveT", bound=Objective)


class AlignSettings(LoopSettings):
    """What learning from preferences needs to know beside the loop's settings.

    With `lora` an adapter is trained and the base is not: it is the reference too. `held_out_share` of the rows are
    for measuring, where the data has no split `heldout`.
    """

    name: str | None = None
    lora: LoraSettings | None = None
    batch_size: int = Field(default=8, ge=1)
    held_out_share: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_dropout(self) -> Self:
        if self.lora is not None and self.lora.dropout:
            raise ValueError("lora.dropout must be 0: likelihoods are compared with those of the reference")
        return self

    @property
    def together(self) -> int:
        """Rows that the model reads at once."""
        return self.rows_at_once(self.batch_size)


@dataclass(frozen=True)
class Alignment:
    """A run under way: what it starts from, what it learns from, and who is told of it."""

    workspace: Workspace
    run: Run
    name: str
    base: Artifact
    data: Artifact
    tokenizer: Tokenizer
    settings: AlignSettings
    progress: Progress
    tell: Tell

    @property
    def finished(self) -> Artifact | None:
        """The model of a run that is over already."""
        if "artifact" not in self.run.record:
            return None
        self.tell(f"The run {self.run.name} is finished: this is its model.")
        return self.workspace.get(self.run.record["artifact"])

    def open_base(self) -> Writer:
        """A copy of the base, frozen: what a run starts from, and its reference.

        Raises UserError for a model that does not write.
        """
        model = open_base(self.workspace, self.base, adapted=self.settings.lora is not None)
        for layer in model.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0  # likelihoods are compared with those of the reference
        return model.to(training_device(self.settings))

    def make_trainable(self, model: Writer) -> None:
        """Free the weights of a model, or put a fresh adapter on it."""
        make_trainable(model, self.settings.lora, self.settings.seed)

    def open_reference(self) -> Writer | None:
        """The reference of a model that is trained in full; None where it is the model without its adapter."""
        return None if self.settings.lora is not None else self.open_base()

    def plan(self, ready: "Ready[Any]") -> TrainingPlan:
        """The plan of the run: the one it began with, or a new one."""
        return settled_plan(self.run, lambda: ready.plan(self.settings), self.tell)

    def keep(
        self,
        model: LanguageModel,
        seen: Counter[RowKey],
        measured: Mapping[str, Any],
        parents: Sequence[Artifact] = (),
    ) -> Artifact:
        """Make the artifact of the run. An adapter is kept as one, and the model with the adapter merged into it."""
        origin, body = [self.base, self.data, *parents], writer_of(model)
        if self.settings.lora is not None:
            config = {**self.run.record["configuration"], "run": self.run.name}
            origin.append(keep_adapter(self.workspace, self.name, body, origin, config))
        gives_rewards = self.run.record["configuration"]["objective"] == "reward"
        if isinstance(model, ScoredModel) and gives_rewards:
            files = save_reward_model(model, self.tokenizer.pad_id)
        else:
            files = save_model(body)
        files |= self.tokenizer.to_files()
        return keep_files(self.workspace, self.run, self.name, files, origin, seen, measured)


@dataclass(frozen=True)
class Ready(Generic[ObjectiveT]):
    """What a run is about to do: train `model` by an objective for so many steps."""

    model: LanguageModel
    objective: ObjectiveT
    workload: Workload
    steps: int

    def plan(self, settings: AlignSettings) -> TrainingPlan:
        """What it takes, measured on a few steps that change nothing."""
        objective, model = self.objective, self.model
        return plan_run(model.config, objective, settings, self.workload, self.steps, None, lambda: model)


def plan_alignment(
    workspace: Workspace,
    base_ref: str,
    data: Artifact,
    settings: AlignSettings,
    prepare: Callable[[Alignment], Ready[Any]],
    tell: Tell,
) -> TrainingPlan:
    """What a run would do and cost; keeps nothing."""
    base = workspace.get(base_ref, "model")
    with TemporaryDirectory() as folder:
        run, tokenizer = Run(Path(folder), {}), tokenizer_of(workspace, base)
        alignment = Alignment(workspace, run, "", base, data, tokenizer, settings, silent, tell)
        return prepare(alignment).plan(settings)


@contextmanager
def open_alignment(
    workspace: Workspace,
    objective: str,
    base_ref: str,
    data: Artifact,
    settings: AlignSettings,
    progress: Progress,
    tell: Tell,
    **more: Any,
) -> Iterator[Alignment]:
    """The run of this configuration, new or found again, locked until the block ends.

    `more` is what else shapes its result. Raises UserError when another process is at it.
    """
    base = workspace.get(base_ref, "model")
    identity = {
        "objective": objective,
        **settings.model_dump(mode="json"),
        "base": base.ref,
        "data": data.ref,
        "hashes": {base.ref: base.hash, data.ref: data.hash},
        **more,
    }
    name = settings.name or f"{base.name}-{objective}"
    with open_run(workspace, name, identity) as run:
        tokenizer = tokenizer_of(workspace, base)
        yield Alignment(workspace, run, name, base, data, tokenizer, settings, progress, tell)


RowT = TypeVar("RowT", bound=Identified)


def _itself(row: Identified) -> Sequence[str]:
    return (row.id,)


def parted(
    rows: Sequence[RowT],
    held_out: Sequence[RowT],
    share: float,
    shown_in: Callable[[RowT], Sequence[str]] = _itself,
) -> tuple[list[RowT], list[RowT]]:
    """Rows to learn from and rows to measure on: those held out, or a share that follows from the rows' ids.

    `shown_in` gives the ids of what a row is made of, what it asks first: of one id all rows are on one side, and a
    row to learn from that shows what is held out is on neither.
    """
    if held_out or not share:
        return list(rows), list(held_out)
    made_of = [shown_in(row) for row in rows]
    counts, wanted = Counter(ids[0] for ids in made_of), max(1, round(share * len(rows)))
    chosen, count = set[str](), 0
    order = sorted(counts, key=lambda id: hashlib.sha256(id.encode()).hexdigest())
    for id in order[:-1]:  # one at least is left to learn from
        if count >= wanted:
            break
        chosen.add(id)
        count += counts[id]
    pairs = list(zip(rows, made_of, strict=True))
    return (
        [row for row, ids in pairs if chosen.isdisjoint(ids)],
        [row for row, ids in pairs if ids[0] in chosen],
    )


def tell_too_long(ids: Sequence[str], context: int, tell: Tell) -> None:
    """Tell of the rows that are left out because the model cannot read them."""
    if ids:
        more = f" and {len(ids) - _ROWS_TOLD} more" if len(ids) > _ROWS_TOLD else ""
        tell(
            f"{len(ids)} rows are longer than the model's context of {context} tokens, left out: "
            f"{', '.join(ids[:_ROWS_TOLD])}{more}"
        )
