"""Pre-training: the next token, on windows packed with documents that do not see one another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, model_validator

from yunque.configuration import Settings
from yunque.errors import UserError
from yunque.model import Llama, LlamaConfig
from yunque.progress import Progress, silent
from yunque.tokenizer import Tokenizer, tokenizer_of
from yunque.train.corpus import training_corpus, validation_windows
from yunque.train.finish import keep_model, settled_plan
from yunque.train.loop import Tell, run_loop
from yunque.train.objectives.next_token import NextToken
from yunque.train.run import open_run
from yunque.train.schedule import TrainingPlan, Workload, plan_run
from yunque.train.settings import LoopSettings
from yunque.workspace import Artifact, Workspace


class ModelSettings(Settings):
    """The shape of the model to make; `intermediate_size` is that of the feed-forward layers."""

    hidden_size: int = Field(default=256, ge=1)
    intermediate_size: int = Field(default=688, ge=1)
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    key_value_heads: int = Field(default=2, ge=1)
    context: int = Field(default=512, ge=2)

    @model_validator(mode="after")
    def _check_heads(self) -> "ModelSettings":
        if self.hidden_size % (2 * self.heads):
            raise ValueError("hidden_size must be a multiple of twice heads")
        if self.heads % self.key_value_heads:
            raise ValueError("heads must be a multiple of key_value_heads")
        return self

    def configuration(self, tokenizer: Tokenizer) -> LlamaConfig:
        """The model's config.json, for this vocabulary."""
        return LlamaConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            head_dim=self.hidden_size // self.heads,
            max_position_embeddings=self.context,
            # Measured (docs/notebook.md): at this size 1/sqrt(hidden_size) learns far quicker than GPT-2's 0.02.
            initializer_range=self.hidden_size**-0.5,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.end_id,
            eos_token_id=tokenizer.end_id,
            pad_token_id=tokenizer.pad_id,
        )


class PretrainSettings(LoopSettings):
    """Settings of `yunque train`.

    `data` and `tokenizer` are refs; without `data` it is what the tokenizer was learned from, without `tokenizer`
    the only one in the workspace. With `steps` the number of steps is that, else as many as fit in `seconds`.
    """

    name: str = "mini"
    data: tuple[str, ...] = ()
    tokenizer: str | None = None
    model: ModelSettings = ModelSettings()
    batch_size: int = Field(default=2, ge=1)
    steps: int | None = Field(default=None, ge=1)
    seconds: float = Field(default=90.0, gt=0)
    validation_windows: int = Field(default=16, ge=1)


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
    if settings.tokenizer is None:
        known = workspace.list("tokenizer")
        if not known:
            raise UserError(
                "there is no tokenizer yet: make one with `yunque tokenizer train --data DATASET --name NAME`"
            )
        if len(known) > 1:
            names = ", ".join(artifact.ref for artifact in known)
            raise UserError(f"there are several tokenizers: choose one with --tokenizer ({names})")
        tokenizer = known[0]
    else:
        tokenizer = workspace.get(settings.tokenizer, "tokenizer")
    refs = settings.data or tokenizer.parents
    missing = [ref for ref in refs if workspace.find(ref, "dataset") is None]
    if missing or not refs:
        what = f"no dataset {missing[0]!r} in the workspace" if missing else "no data to train on"
        raise UserError(f"{what}: make one with `yunque data add PATH...` (`yunque list dataset` shows them)")
    return _Inputs(tokenizer, [workspace.get(ref, "dataset") for ref in refs])


def _objective(
    workspace: Workspace, settings: PretrainSettings, inputs: _Inputs, progress: Progress
) -> tuple[LlamaConfig, NextToken]:
    tokenizer = tokenizer_of(workspace, inputs.tokenizer)
    context = settings.model.context
    corpus = training_corpus(workspace, inputs.datasets, tokenizer, context, settings.seed, progress)
    validation = validation_windows(
        workspace, inputs.datasets, tokenizer, context, settings.validation_windows, settings.seed
    )
    together = settings.micro_batch_size or settings.batch_size
    return settings.model.configuration(tokenizer), NextToken(
        corpus, validation, settings.batch_size, together
    )


def _plan(settings: PretrainSettings, config: LlamaConfig, objective: NextToken) -> TrainingPlan:
    tokens = settings.batch_size * settings.model.context
    workload = Workload(
        tokens,
        objective.corpus.windows_per_epoch * settings.model.context,
        rows=settings.batch_size,
        length=settings.model.context,
        packed=True,
    )
    seconds = None if settings.steps else settings.seconds
    return plan_run(config, objective, settings, workload, settings.steps, seconds)


def plan_pretraining(
    workspace: Workspace, settings: PretrainSettings, progress: Progress = silent
) -> TrainingPlan:
    """What `pretrain` would do and cost; measures this machine for a few seconds and keeps nothing."""
    return _plan(settings, *_objective(workspace, settings, _find_inputs(workspace, settings), progress))


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
        config, objective = _objective(workspace, settings, inputs, progress)
        plan = settled_plan(run, lambda: _plan(settings, config, objective), tell)
        model = Llama(config, torch.Generator().manual_seed(settings.seed))
        run_loop(run.folder, model, objective, settings, plan, progress, tell)
        return keep_model(
            workspace,
            run,
            settings.name,
            model,
            tokenizer_of(workspace, inputs.tokenizer).to_files(),
            [inputs.tokenizer, *inputs.datasets],
            objective.corpus.rows_seen(plan.steps * settings.batch_size),
        )
