"""Instruction tuning: the loss of the answer alone, as the model is asked and answers when it serves."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from yunque.data.task_rendering import rows_in
from yunque.errors import UserError
from yunque.generate.conversation import encode_prompt
from yunque.model import EncoderDecoder, save_model
from yunque.model.adapter_files import save_adapter
from yunque.progress import Progress, silent
from yunque.tokenizer import Tokenizer, tokenizer_of
from yunque.train.adapter import keep_adapter, make_trainable, open_base, prompted
from yunque.train.alignment import parted
from yunque.train.corpus import training_documents
from yunque.train.corruption import CorruptionSettings
from yunque.train.early_stopping import EarlyStopping
from yunque.train.finish import keep_files, settled_plan
from yunque.train.loop import Tell, fixed_threads, run_loop
from yunque.train.loss import context_of
from yunque.train.mixture import Batches
from yunque.train.objectives.answers import Answers, Example, PromptDivergence
from yunque.train.objectives.next_token import NextToken
from yunque.train.objectives.replay import Replay
from yunque.train.objectives.span_corruption import Corruption, Pieces, SpanCorruption
from yunque.train.objectives.written import Writer
from yunque.train.own_text import OWN
from yunque.train.parallel import training_device
from yunque.train.replayed import learned_datasets, replayed_corpus
from yunque.train.run import Run, open_run
from yunque.train.schedule import TrainingPlan, Workload, plan_run
from yunque.train.tune_settings import TuneSettings
from yunque.train.tuning_rows import OnBad, TuningRows, encode_rows, is_asked_as_taught
from yunque.workspace import Artifact, Workspace

_TASKS_TOLD = 12


@dataclass(frozen=True)
class _Tuning:
    """A run made ready: what learns, what it learns from, and how many rows were left out."""

    base: Artifact
    tokenizer: Tokenizer
    model: Writer
    objective: Answers
    frozen: Writer | None
    left_out: int


def _examples(
    data: Sequence[TuningRows],
    settings: TuneSettings,
    tokenizer: Tokenizer,
    model: Writer,
    tell: Tell,
    on_bad: OnBad | None,
) -> tuple[list[Example], list[Example], int]:
    """Examples to learn from, those held out to measure how far learning is, and how many rows were left out."""
    # A tokenizer that cannot write a conversation is no fault of the rows.
    encode_prompt(tokenizer, model, [("user", "?")])
    context, given = context_of(model), 0
    learn, held_out = list[Example](), list[Example]()
    for each in data:
        share = settings.early_stopping.share if settings.early_stopping else 0.0
        given += len(each.rows) + len(each.validation)
        halves = parted(each.rows, each.validation, share, rows_in)
        if on_neither := len(each.rows) + len(each.validation) - sum(map(len, halves)):
            tell(
                f"{on_neither} rows of {each.ref} are left out: they show rows that are held out as examples."
            )
        for rows, examples in zip(halves, (learn, held_out), strict=True):
            examples += encode_rows(tokenizer, model, rows, each.dataset, context, on_bad)
    if not learn:
        raise UserError(f"there is no row to tune on that fits in the model's context of {context} tokens")
    if settings.early_stopping and not held_out:
        raise UserError(
            "early_stopping: no row is left to hold out: give more rows, or a split called validation"
        )
    return learn, held_out, given - len(learn) - len(held_out)


def _replay(
    workspace: Workspace,
    base: Artifact,
    settings: TuneSettings,
    tokenizer: Tokenizer,
    model: Writer,
    frozen: Writer | None,
    folder: Path | None,
    progress: Progress,
    tell: Tell,
) -> Replay | None:
    """General text to read again; none where the base is not known to have learned from any, or cannot change."""
    if not settings.replay or settings.prompt is not None:
        return None
    datasets, tasks = _replayed(workspace, base, settings)
    if not datasets and not tasks and not settings.own_text:
        if settings.kl.replayed:
            raise UserError(
                f"kl.replayed: no text that {base.ref} was trained on is known here: name a dataset with replay_data"
            )
        return None
    context, count = context_of(model), settings.replay
    together = min(settings.together, count)
    text: NextToken | SpanCorruption
    if isinstance(model, EncoderDecoder):
        if not datasets:
            raise UserError(
                f"{base.ref} is an encoder-decoder, which does not write text of its own to replay: "
                "name a dataset with replay_data"
            )
        spans = CorruptionSettings.model_validate(base.config.get("corruption") or {})
        corruption = Corruption(tokenizer, context, spans)
        if corruption.tokenizer.vocab_size > model.config.vocab_size:
            tell(f"Nothing is replayed: {base.ref} has no sentinels, so it did not learn from spans.")
            return None
        keys, whole = training_documents(workspace, datasets, tokenizer)
        corruption.check(keys, whole)
        pieces = Pieces(whole, keys, corruption.longest, count, settings.seed)
        text = SpanCorruption(corruption, pieces, pieces, 0, together)
    else:
        corpus = replayed_corpus(
            workspace, datasets, tasks, settings, tokenizer, model, context, folder, progress
        )
        assert corpus is not None
        text = NextToken(corpus, None, count, together)
    return Replay(text, settings.replay_weight, settings.kl.replayed, frozen)


def _replayed(
    workspace: Workspace, base: Artifact, settings: TuneSettings
) -> tuple[list[Artifact], list[Artifact]]:
    """The text to replay, and the instructions of earlier tunings."""
    text, tasks = learned_datasets(workspace, base)
    if settings.replay_data:
        text = [workspace.get(ref, "dataset") for ref in settings.replay_data]
    return text, tasks if settings.replay_tasks else []


def _prepare(
    workspace: Workspace,
    base: Artifact,
    data: Sequence[TuningRows],
    settings: TuneSettings,
    tell: Tell,
    on_bad: OnBad | None,
    folder: Path | None = None,
    progress: Progress = silent,
) -> _Tuning:
    adapted = settings.lora is not None or settings.prompt is not None
    model = open_base(workspace, base, adapted)
    tokenizer = tokenizer_of(workspace, base)
    if settings.kl.prompts and isinstance(model, EncoderDecoder):
        raise UserError(f"kl.prompts: {base.ref} is an encoder-decoder, which does not write its prompts")
    frozen = None
    if not adapted and (settings.kl.replayed or settings.kl.prompts):
        frozen = open_base(workspace, base, adapted).to(training_device(settings))
    if settings.prompt is None:
        make_trainable(model, settings.lora, settings.seed)
    else:
        model = prompted(model, settings.prompt, tokenizer, settings.seed)
    learn, held_out, left_out = _examples(data, settings, tokenizer, model, tell, on_bad)
    taught = next(row for each in data for row in each.rows if row.id == learn[0].key[1])
    if not is_asked_as_taught(tokenizer, model, taught):
        tell(
            "The chat template lets the end of a question and the beginning of its answer become one token: what is "
            "learned after it will not be asked. Let answers begin on a line of their own."
        )
    batches = Batches(
        [example.task for example in learn],
        [example.written.length for example in learn],
        settings.batch_size,
        settings.seed,
        settings.mixture,
    )
    near = PromptDivergence(settings.kl.prompts, frozen) if settings.kl.prompts else None
    replay = _replay(workspace, base, settings, tokenizer, model, frozen, folder, progress, tell)
    objective = Answers(learn, held_out, batches, settings.together, replay, near)
    return _Tuning(base, tokenizer, model, objective, frozen, left_out)


def _identity(
    workspace: Workspace, base: Artifact, data: Sequence[TuningRows], settings: TuneSettings
) -> dict[str, Any]:
    """All that shapes the result; rows are part of it as they are, whatever dataset they are from."""
    texts = json.dumps(
        [[row.as_dict() for row in (*each.rows, *each.validation)] for each in data],
        ensure_ascii=False,
        sort_keys=True,
    )
    hashes = {base.ref: base.hash, "rows": hashlib.sha256(texts.encode()).hexdigest()}
    hashes |= {
        each.ref: each.hash for each in _replayed(workspace, base, settings)[0] if settings.replay_data
    }
    return {
        "objective": "instruct",
        **settings.model_dump(mode="json"),
        "base": base.ref,
        "data": [each.ref for each in data if each.dataset],
        "hashes": hashes,
    }


def _plan(tuning: _Tuning, settings: TuneSettings) -> TrainingPlan:
    objective, batches = tuning.objective, tuning.objective.batches
    rows = [example.written for example in objective.examples]
    reads_a_source = isinstance(tuning.model, EncoderDecoder)
    sources = [len(row.prompt) if reads_a_source else row.length for row in rows]
    targets = [len(row.answer) if reads_a_source else 0 for row in rows]
    step_tokens = batches.rows_per_step * batches.mean([a + b for a, b in zip(sources, targets, strict=True)])
    together, longest = min(settings.together, len(rows)), max(sources)
    frozen_tokens = step_tokens if settings.kl.prompts else 0.0
    if objective.replay is not None:
        replayed = sum(part.tokens for part in objective.replay.parts(tuning.model, 0))
        step_tokens += replayed
        frozen_tokens += replayed if settings.kl.replayed else 0
        # A part of replayed text is read alone: so many rows as long as the longest.
        windows = min(settings.replay, settings.together) * context_of(tuning.model)
        together = max(together, -(-windows // longest))
    workload = Workload(
        step_tokens,
        step_tokens * batches.batches_per_epoch,
        rows=together,
        length=longest,
        packed=objective.replay is not None and not reads_a_source,
        target_length=max(targets) or None,
        mean_length=batches.mean(sources),
        scored=1.0
        if reads_a_source
        else batches.mean([len(row.answer) for row in rows]) / batches.mean(sources),
        accumulated=settings.together < settings.batch_size or objective.replay is not None,
        held_bytes=_bytes_of(tuning.frozen)
        + (_learned_bytes(tuning.model) if settings.early_stopping else 0),
        frozen_share=frozen_tokens / step_tokens,
    )
    steps = max(1, round(settings.epochs * batches.batches_per_epoch))
    return plan_run(
        tuning.model.config, objective, settings, workload, steps, settings.seconds, lambda: tuning.model
    )


def _bytes_of(model: Writer | None) -> int:
    return sum(weight.nbytes for weight in model.parameters()) if model is not None else 0


def _learned_bytes(model: Writer) -> int:
    """Those of the weights that early stopping keeps the best of."""
    return sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)


def _told_mixture(batches: Batches) -> str:
    """How many rows of each task a step reads on average."""
    rates = sorted(batches.rates.items(), key=lambda pair: (-pair[1], str(pair[0])))
    shown = ", ".join(f"{task} {rate * batches.rows_per_step:.1f}" for task, rate in rates[:_TASKS_TOLD])
    if rest := rates[_TASKS_TOLD:]:
        shown += f", and {len(rest)} more with {sum(r for _, r in rest) * batches.rows_per_step:.1f} together"
    return f"Rows of each task in a step, on average: {shown}."


def plan_tuning(
    workspace: Workspace,
    base_ref: str,
    data: Sequence[TuningRows],
    settings: TuneSettings,
    tell: Tell = lambda _: None,
    on_bad: OnBad | None = None,
) -> TrainingPlan:
    """What `tune` would do and cost; measures this machine for a few seconds and keeps nothing."""
    tuning = _prepare(workspace, workspace.get(base_ref, "model"), data, settings, tell, on_bad)
    return _plan(tuning, _evenly(settings, tuning.objective.batches))


def _evenly(settings: TuneSettings, batches: Batches) -> TuneSettings:
    """With early stopping the held-out rows are measured once an epoch or more often."""
    if settings.early_stopping is None:
        return settings
    return settings.model_copy(
        update={"validate_every": min(settings.validate_every, batches.batches_per_epoch)}
    )


def tune(
    workspace: Workspace,
    base_ref: str,
    data: Sequence[TuningRows],
    settings: TuneSettings,
    progress: Progress = silent,
    tell: Tell = lambda _: None,
    on_bad: OnBad | None = None,
) -> Artifact:
    """Tune a model on instruction rows, or go on with the run of the same configuration.

    Gives the tuned model, or with `prompt` the adapter. The datasets of `data` become its parents. Raises UserError
    for a row that does not fit in the model's context, unless `on_bad` is there to be told of it; when no row fits;
    and for a quantized base that no adapter is trained on.
    """
    base = workspace.get(base_ref, "model")
    name = settings.name or f"{base.name}-tuned"
    with open_run(workspace, name, _identity(workspace, base, data, settings)) as run:
        if "artifact" in run.record:
            tell(f"The run {run.name} is finished: this is what it made.")
            return workspace.get(run.record["artifact"])
        with fixed_threads(_threads_of(run)):
            tuning = _prepare(workspace, base, data, settings, tell, on_bad, run.folder, progress)
            objective = tuning.objective
            if len(objective.batches.rates) > 1:
                tell(_told_mixture(objective.batches))
            settings = _evenly(settings, objective.batches)
            plan = settled_plan(run, lambda: _plan(tuning, settings), tell)
        stopping = EarlyStopping(objective, settings.early_stopping) if settings.early_stopping else None
        # Dropout draws from torch's own generator, which the measurements of the plan have used.
        torch.manual_seed(settings.seed)
        run.note_preparation()
        done = run_loop(run.folder, tuning.model, stopping or objective, settings, plan, progress, tell)
        measured: dict[str, Any] = {"left_out": tuning.left_out} if tuning.left_out else {}
        if stopping:
            stopping.put_best(tuning.model)
            measured |= {"best_step": stopping.best_step, "validation_loss": stopping.best_loss}
            tell(
                f"The weights of step {stopping.best_step} of {done.step} are kept: "
                f"loss {stopping.best_loss:.3f} on {len(objective.held_out)} held-out rows."
            )
        parents = [base, *(each.dataset for each in data if each.dataset)]
        return _keep(workspace, run, name, tuning, settings, parents, done.step, measured)


def _threads_of(run: Run) -> int:
    """How many threads a run has, from its beginning: text of its own is written before there is a plan."""
    if "threads" not in run.record:
        threads: int = run.record.get("plan", {}).get("threads", torch.get_num_threads())
        run.keep(threads=threads)
        return threads
    kept: int = run.record["threads"]
    return kept


def _keep(
    workspace: Workspace,
    run: Run,
    name: str,
    tuning: _Tuning,
    settings: TuneSettings,
    parents: list[Artifact],
    steps: int,
    measured: dict[str, Any],
) -> Artifact:
    """The artifact of a run that is over: a model, or a prompt, which cannot be merged into one."""
    found = tuning.objective.rows_seen(steps)
    # What the model wrote itself is in no dataset.
    seen = Counter({key: count for key, count in found.items() if key[0] != OWN})
    if settings.prompt is not None:
        files = save_adapter(tuning.model)
        return keep_files(workspace, run, name, files, parents, seen, measured, "adapter")
    if settings.lora is not None:
        config = {**run.record["configuration"], "run": run.name}
        parents.append(keep_adapter(workspace, name, tuning.model, parents, config))
    files = {**save_model(tuning.model), **tuning.tokenizer.to_files()}
    return keep_files(workspace, run, name, files, parents, seen, measured)
