"""Learning from pairs of answers: direct preference optimization, and reward models."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from pydantic import Field
from safetensors.torch import load_file, save

from yunque.data.preferences import PreferenceRow, preference_split
from yunque.errors import UserError
from yunque.generate.conversation import encode_answer
from yunque.model import CausalModel, EncoderDecoder
from yunque.model.scored import reward_model
from yunque.progress import Progress, silent
from yunque.train.alignment import (
    Alignment,
    AlignSettings,
    Ready,
    open_alignment,
    parted,
    plan_alignment,
    tell_too_long,
)
from yunque.train.distributed import first_makes
from yunque.train.loop import Tell, autocast, fixed_threads, run_loop
from yunque.train.loss import context_of
from yunque.train.objectives.dpo import DirectPreference, DpoLoss
from yunque.train.objectives.pairs import Pair, PairOrder
from yunque.train.objectives.reward import PairwiseReward, judged_pair
from yunque.train.objectives.rollouts import RolloutPlan, Rollouts
from yunque.train.objectives.written import Writer, reference_of, writer_of
from yunque.train.schedule import TrainingPlan
from yunque.train.settings import OptimizerSettings
from yunque.train.workload import Workload
from yunque.workspace import Artifact, Workspace, atomic_write

# Answers that the divergence from the reference is measured on after DPO.
_MEASURED_ANSWERS = 32


class DpoSettings(AlignSettings):
    """Settings of `yunque align dpo`; `max_new_tokens` is for the answers that the divergence is measured on."""

    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=1e-4, weight_decay=0.0)
    loss: DpoLoss = DpoLoss()
    epochs: float = Field(default=3.0, gt=0)
    max_new_tokens: int = Field(default=48, ge=1)


class RewardSettings(AlignSettings):
    """Settings of `yunque align reward`."""

    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=3e-4, weight_decay=0.0)
    epochs: float = Field(default=3.0, gt=0)


def train_dpo(
    workspace: Workspace,
    base_ref: str,
    data: Artifact,
    settings: DpoSettings,
    progress: Progress = silent,
    tell: Tell = lambda _: None,
) -> Artifact:
    """Make the better answers of a dataset of preferences likelier, or go on with the run of the same configuration.

    The figures of the model hold its loss, margin and accuracy on the pairs held out, and the divergence from the
    reference on answers of its own. Raises UserError for data without pairs, or when none fits.
    """
    with open_alignment(workspace, "dpo", base_ref, data, settings, progress, tell) as alignment:
        if done := alignment.finished:
            return done
        ready = _ready_for_dpo(alignment, settings)
        model, objective, plan = writer_of(ready.model), ready.objective, alignment.plan(ready)
        pairs, held_out = objective.pairs, objective.held_out
        _put_reference(alignment, objective, model, plan)
        alignment.run.note_preparation()
        run_loop(alignment.run.folder, model, objective, settings, plan, progress, tell)
        model.eval()
        with fixed_threads(plan.threads):
            measured = {
                f"held_out_{name}": value for name, value in objective.held_out_figures(model).items()
            }
            measured |= {"held_out_rows": len(held_out), **_divergence(alignment, model, held_out or pairs)}
        return alignment.keep(model, objective.order.rows_seen(data.ref, pairs, plan.steps), measured)


def plan_dpo(
    workspace: Workspace,
    base_ref: str,
    data: Artifact,
    settings: DpoSettings,
    tell: Tell = lambda _: None,
) -> TrainingPlan:
    """What `train_dpo` would do and cost; measures this machine for a few seconds and keeps nothing."""
    return plan_alignment(
        workspace, base_ref, data, settings, lambda alignment: _ready_for_dpo(alignment, settings), tell
    )


def _ready_for_dpo(alignment: Alignment, settings: DpoSettings) -> Ready[DirectPreference]:
    model = alignment.open_base()
    pairs, held_out = _pairs(alignment, context_of(model), partial(_written_pair, alignment, model))
    order = PairOrder(len(pairs), settings.batch_size, settings.seed)
    objective = DirectPreference(pairs, held_out, order, settings.together, settings.loss)
    alignment.make_trainable(model)
    steps = max(1, round(settings.epochs * order.batches_per_epoch))
    return Ready(model, objective, _workload(model, pairs, settings, order), steps)


def train_reward(
    workspace: Workspace,
    base_ref: str,
    data: Artifact,
    settings: RewardSettings,
    progress: Progress = silent,
    tell: Tell = lambda _: None,
) -> Artifact:
    """Make a reward model from a dataset of preferences, or go on with the run of the same configuration.

    The figures of the model hold its loss, margin and accuracy on the pairs held out. Raises UserError for a
    base that is not decoder-only, for data without pairs, or when none fits.
    """
    with open_alignment(workspace, "reward", base_ref, data, settings, progress, tell) as alignment:
        if done := alignment.finished:
            return done
        ready = _ready_for_reward(alignment, settings)
        model, objective, plan = ready.model, ready.objective, alignment.plan(ready)
        alignment.run.note_preparation()
        run_loop(alignment.run.folder, model, objective, settings, plan, progress, tell)
        model.eval()
        with fixed_threads(plan.threads):
            measured = {
                f"held_out_{name}": value for name, value in objective.held_out_figures(model).items()
            }
        measured["held_out_rows"] = len(objective.held_out)
        seen = objective.order.rows_seen(data.ref, objective.pairs, plan.steps)
        return alignment.keep(model, seen, measured)


def plan_reward(
    workspace: Workspace,
    base_ref: str,
    data: Artifact,
    settings: RewardSettings,
    tell: Tell = lambda _: None,
) -> TrainingPlan:
    """What `train_reward` would do and cost; like `plan_dpo`."""
    return plan_alignment(
        workspace, base_ref, data, settings, lambda alignment: _ready_for_reward(alignment, settings), tell
    )


def _ready_for_reward(alignment: Alignment, settings: RewardSettings) -> Ready[PairwiseReward]:
    body = alignment.open_base()
    if not isinstance(body, CausalModel):
        raise UserError(
            f"{alignment.base.ref} is an encoder-decoder: a reward model is made of a decoder-only one"
        )
    pairs, held_out = _pairs(alignment, context_of(body), partial(_judged_pair, alignment))
    order = PairOrder(len(pairs), settings.batch_size, settings.seed)
    objective = PairwiseReward(pairs, held_out, order, settings.together)
    model = reward_model(body)
    alignment.make_trainable(body)
    steps = max(1, round(settings.epochs * order.batches_per_epoch))
    workload = replace(_workload(body, pairs, settings, order), scored=0.0)
    return Ready(model, objective, workload, steps)


def _written_pair(alignment: Alignment, model: Writer, row: PreferenceRow) -> Pair:
    answers = (
        encode_answer(alignment.tokenizer, model, row.prompt, text) for text in (row.chosen, row.rejected)
    )
    return Pair(row.id, *answers)


def _judged_pair(alignment: Alignment, row: PreferenceRow) -> Pair:
    return judged_pair(alignment.tokenizer, row.id, row.prompt, (row.chosen, row.rejected))


def _pairs(
    alignment: Alignment, context: int, encode: Callable[[PreferenceRow], Pair]
) -> tuple[list[Pair], list[Pair]]:
    """The pairs to learn from and those to measure on; rows that do not fit are told and left out."""
    learn, measure = (
        preference_split(alignment.workspace, alignment.data, split) for split in ("train", "heldout")
    )
    halves = parted(learn, measure, alignment.settings.held_out_share)
    encoded = [[encode(row) for row in rows] for rows in halves]
    long = [pair.id for pairs in encoded for pair in pairs if pair.length > context]
    tell_too_long(long, context, alignment.tell)
    pairs, held_out = ([pair for pair in pairs if pair.length <= context] for pairs in encoded)
    if not pairs:
        raise UserError(
            f"{alignment.data.ref} has no row to learn from that fits in the model's context of {context} tokens"
        )
    return pairs, held_out


def _workload(model: Writer, pairs: Sequence[Pair], settings: AlignSettings, order: PairOrder) -> Workload:
    written = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    tokens, answers = sum(row.length for row in written), sum(len(row.answer) for row in written)
    apart = isinstance(model, EncoderDecoder)  # which reads the prompt as a source
    return Workload(
        tokens / order.batches_per_epoch,
        tokens,
        rows=2 * min(settings.together, len(pairs)),
        length=max(len(row.prompt) if apart else row.length for row in written),
        packed=False,
        target_length=max(len(row.answer) for row in written) if apart else None,
        mean_length=sum(len(row.prompt) if apart else row.length for row in written) / len(written),
        scored=1.0 if apart else answers / tokens,
        accumulated=settings.batch_size > settings.together,
        rows_each=2,
    )


def _put_reference(
    alignment: Alignment, objective: DirectPreference, model: Writer, plan: TrainingPlan
) -> None:
    """Give the objective the reference's log-probabilities, worked out before the first step and kept with the
    run."""
    path = alignment.run.folder / "reference.safetensors"
    if first_makes(path.exists, bool):
        objective.reference = load_file(path)["log_probabilities"]
        return
    # No step was done yet, or none is loaded yet: what is to be trained still is the reference.
    frozen = model if alignment.settings.lora is None else None
    total = len(objective.pairs) + len(objective.held_out)
    with (
        fixed_threads(plan.threads),
        reference_of(model, frozen) as reference,
        autocast(model, plan.precision),
        alignment.progress("Reading with the reference", total=total) as task,
    ):
        objective.reference = objective.find_reference(reference, task.advance)
    first_makes(lambda: atomic_write(path, save({"log_probabilities": objective.reference})), None)


def _divergence(alignment: Alignment, model: Writer, pairs: Sequence[Pair]) -> dict[str, float]:
    """How far the model is from the reference, on answers that it writes to some of the prompts."""
    settings, context = alignment.settings, context_of(model)
    assert isinstance(settings, DpoSettings)
    prompts = [pair.chosen.prompt for pair in pairs if len(pair.chosen.prompt) < context][:_MEASURED_ANSWERS]
    if not prompts:
        return {}
    tokens = min(settings.max_new_tokens, context - max(map(len, prompts)))
    plan = RolloutPlan(len(prompts), 1, 1, len(prompts), settings.together, tokens, settings.seed)
    tokenizer = alignment.tokenizer
    rollouts = Rollouts(
        plan,
        prompts,
        lambda _, answers: [0.0] * len(answers),
        alignment.open_reference(),
        tokenizer.end_ids,
        tokenizer.mark_ids,
    )
    rollouts.parts(model, 0)
    figures = rollouts.current.figures()
    return {name: figures[name].item() for name in ("kl", "kl_k3", "answer_tokens")}
