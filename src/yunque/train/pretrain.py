"""Pre-training: the next token for models that go on with a text, span corruption for encoder-decoders."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, model_validator

from yunque.errors import UserError
from yunque.model import ModelConfig, new_model, save_model
from yunque.progress import Progress, silent
from yunque.tokenizer import Tokenizer, tokenizer_of
from yunque.train.corpus import (
    RowKey,
    held_out_documents,
    training_corpus,
    training_documents,
    validation_windows,
)
from yunque.train.corruption import CorruptionSettings
from yunque.train.finish import keep_files, settled_plan
from yunque.train.loop import Tell, run_loop
from yunque.train.objectives.next_token import NextToken
from yunque.train.objectives.span_corruption import Corruption, Documents, Pieces, SpanCorruption
from yunque.train.run import open_run
from yunque.train.schedule import TrainingPlan, Workload, plan_run
from yunque.train.settings import LoopSettings
from yunque.train.shapes import ModelSettings, find_tokenizer
from yunque.workspace import Artifact, Workspace


class PretrainSettings(LoopSettings):
    """Settings of `yunque train`.

    `data` and `tokenizer` are refs; without `data` it is what the tokenizer was learned from, without `tokenizer`
    the only one in the workspace. With `steps` the number of steps is that, else as many as fit in `seconds`.
    A model that goes on with a text learns the next token, an encoder-decoder to write what `corruption` took out.
    `validation_windows` are as many windows, or pieces of documents, that no step sees.
    """

    name: str = "mini"
    data: tuple[str, ...] = ()
    tokenizer: str | None = None
    model: ModelSettings = ModelSettings()
    batch_size: int = Field(default=2, ge=1)
    steps: int | None = Field(default=None, ge=1)
    seconds: float = Field(default=90.0, gt=0)
    validation_windows: int = Field(default=16, ge=1)
    corruption: CorruptionSettings = CorruptionSettings()

    @model_validator(mode="after")
    def _check_corruption(self) -> "PretrainSettings":
        if self.corruption != CorruptionSettings() and not self.model.reads_a_source:
            raise ValueError(
                f"corruption is for encoder-decoders, and {self.model.family} is none: leave it out, or choose "
                "model.family=t5"
            )
        return self


@dataclass(frozen=True)
class _Inputs:
    """What the settings name, found."""

    tokenizer: Artifact
    datasets: Sequence[Artifact]

    def identity(self, settings: PretrainSettings) -> dict[str, Any]:
        """All that shapes the result: settings with exact versions, and the hashes of what they name."""
        resolved = settings.model_copy(
            update={"data": tuple(each.ref for each in self.datasets), "tokenizer": self.tokenizer.ref}
        )
        hashes = {each.ref: each.hash for each in (self.tokenizer, *self.datasets)}
        return {"objective": "pretrain", **resolved.model_dump(mode="json"), "hashes": hashes}


def _find_inputs(workspace: Workspace, settings: PretrainSettings) -> _Inputs:
    tokenizer = find_tokenizer(workspace, settings.tokenizer)
    refs = settings.data or tokenizer.parents
    missing = [ref for ref in refs if workspace.find(ref, "dataset") is None]
    if missing or not refs:
        what = f"no dataset {missing[0]!r} in the workspace" if missing else "no data to train on"
        raise UserError(f"{what}: make one with `yunque data add PATH...` (`yunque list dataset` shows them)")
    return _Inputs(tokenizer, [workspace.get(ref, "dataset") for ref in refs])


@dataclass(frozen=True)
class _Prepared:
    """What a run needs: the tokenizer that the model will be kept with, and the data as an objective."""

    config: ModelConfig
    tokenizer: Tokenizer
    objective: NextToken | SpanCorruption
    workload: Workload


def _prepare(
    workspace: Workspace, settings: PretrainSettings, inputs: _Inputs, progress: Progress
) -> _Prepared:
    tokenizer = tokenizer_of(workspace, inputs.tokenizer)
    # A shape that cannot be is told before the data is read.
    settings.model.configuration(tokenizer)
    if settings.model.reads_a_source:
        return _prepare_spans(workspace, settings, inputs, tokenizer, progress)
    context = settings.model.context
    corpus = training_corpus(workspace, inputs.datasets, tokenizer, context, settings.seed, progress)
    validation = validation_windows(
        workspace, inputs.datasets, tokenizer, context, settings.validation_windows, settings.seed
    )
    together = settings.rows_at_once(settings.batch_size)
    workload = Workload(
        settings.batch_size * context,
        corpus.windows_per_epoch * context,
        rows=min(together, settings.batch_size),
        length=context,
        packed=True,
        accumulated=together < settings.batch_size,
    )
    objective = NextToken(corpus, validation, settings.batch_size, together)
    return _Prepared(settings.model.configuration(tokenizer), tokenizer, objective, workload)


def _prepare_spans(
    workspace: Workspace,
    settings: PretrainSettings,
    inputs: _Inputs,
    tokenizer: Tokenizer,
    progress: Progress,
) -> _Prepared:
    corruption = Corruption(tokenizer, settings.model.context, settings.corruption)
    keys, documents = training_documents(workspace, inputs.datasets, tokenizer, progress)
    corruption.check(keys, documents)
    held_out = held_out_documents(workspace, inputs.datasets, tokenizer)

    def pieces(keys: Sequence[RowKey], documents: Documents) -> Pieces:
        return Pieces(documents, keys, corruption.longest, settings.batch_size, settings.seed)

    objective = SpanCorruption(
        corruption,
        pieces(keys, documents),
        pieces(*held_out),
        settings.validation_windows,
        settings.rows_at_once(settings.batch_size),
    )
    if not objective.pieces.batches_per_epoch:
        raise UserError("the data has no text of two tokens or more: add data")
    config = settings.model.configuration(corruption.tokenizer)
    return _Prepared(config, corruption.tokenizer, objective, objective.workload())


def _plan(settings: PretrainSettings, prepared: _Prepared) -> TrainingPlan:
    seconds = None if settings.steps else settings.seconds
    return plan_run(prepared.config, prepared.objective, settings, prepared.workload, settings.steps, seconds)


def plan_pretraining(
    workspace: Workspace, settings: PretrainSettings, progress: Progress = silent
) -> TrainingPlan:
    """What `pretrain` would do and cost; measures this machine for a few seconds and keeps nothing."""
    return _plan(settings, _prepare(workspace, settings, _find_inputs(workspace, settings), progress))


def pretrain(
    workspace: Workspace,
    settings: PretrainSettings,
    progress: Progress = silent,
    tell: Tell = lambda _: None,
) -> Artifact:
    """Train a new model, or go on with the run of the same configuration; a finished one gives its model at once.

    `tell` hears the plan before the start. Raises UserError for absent data, or a run that another process is at.
    """
    inputs = _find_inputs(workspace, settings)
    with open_run(workspace, settings.name, inputs.identity(settings)) as run:
        if "artifact" in run.record:
            tell(f"The run {run.name} is finished: this is its model.")
            return workspace.get(run.record["artifact"])
        prepared = _prepare(workspace, settings, inputs, progress)
        plan = settled_plan(run, lambda: _plan(settings, prepared), tell)
        model = new_model(prepared.config, torch.Generator().manual_seed(settings.seed))
        # Dropout draws from torch's own generator, which the measurements of the plan have used.
        torch.manual_seed(settings.seed)
        run.note_preparation()
        run_loop(run.folder, model, prepared.objective, settings, plan, progress, tell)
        return keep_files(
            workspace,
            run,
            settings.name,
            {**save_model(model), **prepared.tokenizer.to_files()},
            [inputs.tokenizer, *inputs.datasets],
            prepared.objective.rows_seen(plan.steps),
        )
