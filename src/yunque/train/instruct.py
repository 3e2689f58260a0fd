"""Instruction tuning: the loss of the answer alone, in the chat format that serving uses."""

import copy
import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field

from yunque.data.instructions import InstructionRow
from yunque.errors import UserError
from yunque.model import CausalModel, load_model
from yunque.model.lora import LoraSettings
from yunque.progress import Progress, silent
from yunque.tokenizer import Tokenizer, tokenizer_of
from yunque.train.adapter import keep_adapter, make_trainable
from yunque.train.corpus import Corpus, training_corpus
from yunque.train.finish import keep_model, settled_plan
from yunque.train.loop import Tell, run_loop
from yunque.train.loss import context_of
from yunque.train.objectives.answers import Answers, Example, encode_example
from yunque.train.run import open_run
from yunque.train.schedule import TrainingPlan, Workload, plan_run
from yunque.train.settings import LoopSettings, OptimizerSettings
from yunque.workspace import Artifact, Workspace


class TuneSettings(LoopSettings):
    """Settings of `yunque tune`.

    With `seconds` the run has at most as many steps as fit. `replay` windows of what the base model was trained on
    are read in each step as well, so that less of it is forgotten. With `lora` an adapter is trained and the base is
    not; it is kept, and merged into the tuned model.
    """

    name: str | None = None
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=3e-3)
    epochs: float = Field(default=10.0, gt=0)
    seconds: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=32, ge=1)
    replay: int = Field(default=1, ge=0)
    lora: LoraSettings | None = None


def _encode_rows(
    tokenizer: Tokenizer, rows: Sequence[InstructionRow], context: int, tell: Tell
) -> list[Example]:
    examples, too_long = [], []
    for row in rows:
        input_ids, targets = encode_example(tokenizer, row)
        if len(input_ids) <= context:
            examples.append(Example(row.id, input_ids, targets))
        else:
            too_long.append(row.id)
    if too_long:
        shown = ", ".join(too_long[:10]) + (f" and {len(too_long) - 10} more" if len(too_long) > 10 else "")
        tell(
            f"{len(too_long)} rows are longer than the model's context of {context} tokens, left out: {shown}"
        )
    if not examples:
        raise UserError(f"there is no row to tune on that fits in the model's context of {context} tokens")
    return examples


def _replayed(
    workspace: Workspace, base: Artifact, tokenizer: Tokenizer, context: int, settings: TuneSettings
) -> Corpus | None:
    """The data that the base model was trained on, as windows."""
    if not settings.replay:
        return None
    datasets = [workspace.get(ref) for ref in base.parents if ref.startswith("dataset/")]
    if not datasets:
        return None
    return training_corpus(workspace, datasets, tokenizer, context, settings.seed)


def _identity(
    base: Artifact, dataset: Artifact | None, rows: Sequence[InstructionRow], settings: TuneSettings
) -> dict[str, Any]:
    texts = json.dumps([row.as_dict() for row in rows], ensure_ascii=False, sort_keys=True)
    return {
        "objective": "instruct",
        **settings.model_dump(mode="json"),
        "base": base.ref,
        "data": dataset.ref if dataset else None,
        "hashes": {base.ref: base.hash, "rows": hashlib.sha256(texts.encode()).hexdigest()},
    }


def _plan(settings: TuneSettings, model: CausalModel, objective: Answers) -> TrainingPlan:
    lengths = [len(example.input_ids) for example in objective.examples]
    replayed = settings.replay * context_of(model) if objective.replayed else 0
    step_tokens = sum(lengths) / objective.batches_per_epoch + replayed
    # Replayed windows count as so many rows more.
    rows = min(settings.batch_size, len(lengths)) + math.ceil(replayed / max(lengths))
    workload = Workload(
        step_tokens,
        step_tokens * objective.batches_per_epoch,
        rows=rows,
        length=max(lengths),
        packed=bool(replayed),
    )
    steps = max(1, round(settings.epochs * objective.batches_per_epoch))
    # Measured on a copy: what is trained, and in which numbers, does not follow from the shape alone.
    trial = copy.deepcopy(model)
    return plan_run(model.config, objective, settings, workload, steps, settings.seconds, lambda: trial)


def tune(
    workspace: Workspace,
    base_ref: str,
    rows: Sequence[InstructionRow],
    settings: TuneSettings,
    progress: Progress = silent,
    tell: Tell = lambda _: None,
    dataset: Artifact | None = None,
) -> Artifact:
    """Tune a model on instruction rows, or go on with the run of the same configuration.

    `dataset` is the artifact that the rows are from: it becomes a parent of the tuned model. Rows that do not fit
    in the model's context are told by their ids. Raises UserError when no row fits, and for a quantized base that no
    adapter is trained on.
    """
    base = workspace.get(base_ref, "model")
    name = settings.name or f"{base.name}-tuned"
    with open_run(workspace, name, _identity(base, dataset, rows, settings)) as run:
        if "artifact" in run.record:
            tell(f"The run {run.name} is finished: this is its model.")
            return workspace.get(run.record["artifact"])
        tokenizer = tokenizer_of(workspace, base)
        model = load_model(workspace.files(base), torch.float32, CausalModel)
        if model.config.quantization_config and settings.lora is None:
            raise UserError(
                f"{base.ref} is quantized: train an adapter on it (--lora), or tune the model that it was made of"
            )
        make_trainable(model, settings.lora, settings.seed)
        context = context_of(model)
        objective = Answers(
            _encode_rows(tokenizer, rows, context, tell),
            tokenizer.pad_id,
            settings.batch_size,
            settings.seed,
            _replayed(workspace, base, tokenizer, context, settings),
            settings.replay,
            settings.micro_batch_size or settings.batch_size,
        )
        plan = settled_plan(run, lambda: _plan(settings, model, objective), tell)
        run_loop(run.folder, model, objective, settings, plan, progress, tell)
        origin = [base, *([dataset] if dataset else [])]
        if settings.lora is not None:
            config = {**run.record["configuration"], "run": run.name}
            origin.append(keep_adapter(workspace, name, model, origin, config))
        return keep_model(
            workspace,
            run,
            name,
            model,
            tokenizer.to_files(),
            origin,
            objective.rows_seen(dataset.ref if dataset else "rows", plan.steps),
        )
