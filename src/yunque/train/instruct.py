"""Instruction tuning: the loss of the answer alone, in the chat format that serving uses."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor

from yunque.data.instructions import InstructionRow
from yunque.errors import UserError
from yunque.model import Llama, load_model
from yunque.progress import Progress, silent
from yunque.tokenizer import Tokenizer
from yunque.train.corpus import Corpus, RowKey, training_corpus
from yunque.train.finish import keep_model, settled_plan
from yunque.train.loop import Tell, run_loop
from yunque.train.loss import IGNORED, next_token_loss, padded, summed_loss
from yunque.train.run import open_run
from yunque.train.schedule import TrainingPlan, Workload, plan_run
from yunque.train.settings import LoopSettings, OptimizerSettings
from yunque.workspace import Artifact, Workspace

# Rows are sorted by length inside pools of this many batches: little padding, and still a new mixture each epoch.
_POOL = 8


class TuneSettings(LoopSettings):
    """Settings of `yunque tune`.

    With `seconds` the run has at most as many steps as fit. `replay` windows of what the base model was trained on
    are read in each step as well, so that less of it is forgotten.
    """

    name: str | None = None
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=3e-3)
    epochs: float = Field(default=10.0, gt=0)
    seconds: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=32, ge=1)
    replay: int = Field(default=1, ge=0)


@dataclass(frozen=True)
class _Example:
    """A row as ids; the target of each position is the next id where that is the model's to write."""

    id: str
    input_ids: list[int]
    targets: list[int]


def encode_example(tokenizer: Tokenizer, row: InstructionRow) -> tuple[list[int], list[int]]:
    """Ids and targets of a row: only the answer and its end token are targets."""
    ids, written = tokenizer.encode_chat([("user", row.question), ("assistant", row.answer)], False)
    targets = [next_id if mine else IGNORED for next_id, mine in zip(ids[1:], written[1:], strict=True)]
    return ids[:-1], targets


@dataclass
class Answers:
    """The objective of tuning: the mean over rows of each row's mean loss on its answer, and replayed windows.

    A row counts the same whether its answer is one word or three sentences.
    """

    examples: Sequence[_Example]
    pad_id: int
    batch_size: int
    seed: int
    replayed: Corpus | None
    replay: int

    def __post_init__(self) -> None:
        self.batches_per_epoch = -(-len(self.examples) // self.batch_size)
        self._epoch = -1
        self._batches: list[list[int]] = []

    def batch(self, step: int) -> list[_Example]:
        """The rows of a step, about equally long; a function of seed and step only."""
        epoch, position = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch])
            order = [int(number) for number in random.permutation(len(self.examples))]
            batches = []
            for start in range(0, len(order), pool := self.batch_size * _POOL):
                by_length = sorted(
                    order[start : start + pool], key=lambda number: len(self.examples[number].input_ids)
                )
                batches += [
                    by_length[i : i + self.batch_size] for i in range(0, len(by_length), self.batch_size)
                ]
            self._batches = [batches[int(number)] for number in random.permutation(len(batches))]
            self._epoch = epoch
        return [self.examples[number] for number in self._batches[position]]

    def loss(self, model: Llama, step: int) -> tuple[Tensor, int]:
        """Loss of a step's rows (plus that of its replayed windows), and the tokens read."""
        rows = [(example.input_ids, example.targets) for example in self.batch(step)]
        input_ids_BT, targets_BT = padded(rows, self.pad_id)
        summed_B, count_B = summed_loss(model, input_ids_BT, targets_BT)
        loss, tokens = (summed_B / count_B).mean(), input_ids_BT.numel()
        if self.replayed is not None:
            windows = self.replayed.windows(step * self.replay, self.replay)
            loss, tokens = loss + next_token_loss(model, windows), tokens + windows.input_ids.numel()
        return loss, tokens

    def validation_loss(self, model: Llama) -> float | None:
        """None: held-out answers are for the evaluation, not for choosing when to stop."""
        del model
        return None

    def rows_seen(self, dataset: str, steps: int) -> Counter[RowKey]:
        """How many times each row was in a batch of the first `steps`, and in how many windows it was replayed."""
        seen = Counter((dataset, example.id) for step in range(steps) for example in self.batch(step))
        if self.replayed is not None:
            seen.update(self.replayed.rows_seen(steps * self.replay))
        return seen


def _encode_rows(
    tokenizer: Tokenizer, rows: Sequence[InstructionRow], context: int, tell: Tell
) -> list[_Example]:
    examples, too_long = [], []
    for row in rows:
        input_ids, targets = encode_example(tokenizer, row)
        if len(input_ids) <= context:
            examples.append(_Example(row.id, input_ids, targets))
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


def _plan(settings: TuneSettings, model: Llama, objective: Answers) -> TrainingPlan:
    lengths = [len(example.input_ids) for example in objective.examples]
    replayed = settings.replay * model.config.max_position_embeddings if objective.replayed else 0
    step_tokens = sum(lengths) / objective.batches_per_epoch + replayed
    workload = Workload(
        step_tokens,
        max(lengths) * min(settings.batch_size, len(lengths)) + replayed,
        step_tokens * objective.batches_per_epoch,
    )
    steps = max(1, round(settings.epochs * objective.batches_per_epoch))
    return plan_run(model.config, objective, settings, workload, steps, settings.seconds)


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
    in the model's context are told by their ids. Raises UserError for a quantized base, or when no row fits.
    """
    base = workspace.get(base_ref, "model")
    name = settings.name or f"{base.name}-tuned"
    with open_run(workspace, name, _identity(base, dataset, rows, settings)) as run:
        if "artifact" in run.record:
            tell(f"The run {run.name} is finished: this is its model.")
            return workspace.get(run.record["artifact"])
        tokenizer = Tokenizer.load(workspace.file(base, "tokenizer.json"))
        model = load_model({path: workspace.file(base, path) for path in base.files})
        if model.config.quantization_config:
            raise UserError(f"{base.ref} is quantized: tune the model that it was made of")
        model.requires_grad_(True)
        context = model.config.max_position_embeddings
        objective = Answers(
            _encode_rows(tokenizer, rows, context, tell),
            tokenizer.pad_id,
            settings.batch_size,
            settings.seed,
            _replayed(workspace, base, tokenizer, context, settings),
            settings.replay,
        )
        plan = settled_plan(run, lambda: _plan(settings, model, objective), tell)
        run_loop(run.folder, model, objective, settings, plan, progress, tell)
        return keep_model(
            workspace,
            run,
            name,
            model,
            workspace.file(base, "tokenizer.json").read_bytes(),
            [base, *([dataset] if dataset else [])],
            objective.rows_seen(dataset.ref if dataset else "rows", plan.steps),
        )
