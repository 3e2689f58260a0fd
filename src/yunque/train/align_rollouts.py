"""Learning from answers that the model writes itself and that somebody judges: PPO and GRPO."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import Field

from yunque.data.preferences import PromptRow, prompt_split
from yunque.errors import UserError
from yunque.generate.conversation import encode_prompt
from yunque.model import EncoderDecoder, LanguageModel
from yunque.model.scored import ScoredModel
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
from yunque.train.loop import Tell, fixed_threads, run_loop
from yunque.train.loss import context_of
from yunque.train.objectives.grpo import GroupRelativePolicy, GrpoLoss
from yunque.train.objectives.ppo import PpoLoss, ProximalPolicy
from yunque.train.objectives.rollouts import RolloutPlan, Rollouts
from yunque.train.objectives.written import Writer, reference_of, writer_of
from yunque.train.rewards import Reward, open_reward
from yunque.train.schedule import TrainingPlan
from yunque.train.settings import OptimizerSettings
from yunque.train.workload import Workload
from yunque.workspace import Artifact, Workspace

# Answers that the reward before and after is measured on.
_MEASURED_ANSWERS = 64
# So that the answers of a measurement are none that a rollout drew.
_MEASURED_NUMBER = 2**31


class RolloutSettings(AlignSettings):
    """What PPO and GRPO both need to know.

    `reward` names what judges answers (see `yunque.train.rewards`). `rollouts` times the model writes
    `answers_per_prompt` answers to each of `prompts_per_rollout` prompts, of at most `max_new_tokens`, and
    learns from them `epochs_per_rollout` times, `batch_size` answers a step.
    """

    reward: str
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=1e-4, weight_decay=0.0)
    batch_size: int = Field(default=16, ge=1)
    rollouts: int = Field(default=20, ge=1)
    prompts_per_rollout: int = Field(default=32, ge=1)
    answers_per_prompt: int = Field(default=1, ge=1)
    epochs_per_rollout: int = Field(default=1, ge=1)
    max_new_tokens: int = Field(default=48, ge=1)

    @property
    def plan(self) -> RolloutPlan:
        """How answers are made and read."""
        return RolloutPlan(
            self.prompts_per_rollout,
            self.answers_per_prompt,
            self.epochs_per_rollout,
            self.batch_size,
            self.together,
            self.max_new_tokens,
            self.seed,
        )


class PpoSettings(RolloutSettings):
    """Settings of `yunque align ppo`."""

    loss: PpoLoss = PpoLoss()
    epochs_per_rollout: int = Field(default=4, ge=1)


class GrpoSettings(RolloutSettings):
    """Settings of `yunque align grpo`."""

    loss: GrpoLoss = GrpoLoss()
    prompts_per_rollout: int = Field(default=8, ge=1)
    answers_per_prompt: int = Field(default=8, ge=2)
    batch_size: int = Field(default=64, ge=1)


def train_ppo(
    workspace: Workspace,
    base_ref: str,
    data: Artifact,
    settings: PpoSettings,
    progress: Progress = silent,
    tell: Tell = lambda _: None,
) -> Artifact:
    """Train a model by PPO on the prompts of a dataset, or go on with the run of the same configuration.

    The figures of the model hold the mean reward before and after, and the divergence from the reference. Raises
    UserError for a reward that does not exist or fails, and for data without prompts that fit.
    """
    return _train(workspace, "ppo", base_ref, data, settings, progress, tell)


def train_grpo(
    workspace: Workspace,
    base_ref: str,
    data: Artifact,
    settings: GrpoSettings,
    progress: Progress = silent,
    tell: Tell = lambda _: None,
) -> Artifact:
    """Train a model by GRPO; like `train_ppo`."""
    return _train(workspace, "grpo", base_ref, data, settings, progress, tell)


def _train(
    workspace: Workspace,
    objective_name: str,
    base_ref: str,
    data: Artifact,
    settings: PpoSettings | GrpoSettings,
    progress: Progress,
    tell: Tell,
) -> Artifact:
    reward = open_reward(workspace, settings.reward)
    judged_by: dict[str, Any] = {"judged_by": dict(reward.identity)}
    with open_alignment(
        workspace, objective_name, base_ref, data, settings, progress, tell, **judged_by
    ) as alignment:
        if done := alignment.finished:
            return done
        prompts, reference, ready = _ready(alignment, reward, settings)
        learn, measure = prompts
        model, objective, plan = ready.model, ready.objective, alignment.plan(ready)
        rollouts = objective.rollouts
        objective.restore({})  # the plan was measured with rollouts of its own
        rollouts.precision = plan.precision
        alignment.run.note_preparation()
        run_loop(alignment.run.folder, model, objective, settings, plan, progress, tell)
        model.eval()
        with fixed_threads(plan.threads):
            measured = _measured(alignment, model, reward, reference, measure or learn)
        measured["measured_on"] = "held-out prompts" if measure else "training prompts"
        ids = [prompt.id for prompt in learn]
        return alignment.keep(model, rollouts.rows_seen(data.ref, ids, plan.steps), measured, reward.parents)


def plan_rollouts(
    workspace: Workspace,
    base_ref: str,
    data: Artifact,
    settings: PpoSettings | GrpoSettings,
    tell: Tell = lambda _: None,
) -> TrainingPlan:
    """What `train_ppo` or `train_grpo` would do and cost; measures this machine for a few seconds, with answers that
    are written and judged, and keeps nothing."""
    reward = open_reward(workspace, settings.reward)
    return plan_alignment(
        workspace, base_ref, data, settings, lambda alignment: _ready(alignment, reward, settings)[2], tell
    )


def _ready(
    alignment: Alignment, reward: Reward, settings: PpoSettings | GrpoSettings
) -> tuple["tuple[list[_Prompt], list[_Prompt]]", Writer | None, Ready[ProximalPolicy | GroupRelativePolicy]]:
    """The prompts to learn from and to measure on, the reference, and what the run will do."""
    writer = alignment.open_base()
    learn, measure = _prompts(alignment, writer, settings)
    model: LanguageModel = ScoredModel(writer) if isinstance(settings, PpoSettings) else writer
    alignment.make_trainable(writer)
    reference = alignment.open_reference()
    rollouts = _rollouts(alignment, learn, reward, reference, settings.plan)
    objective: ProximalPolicy | GroupRelativePolicy = (
        ProximalPolicy(rollouts, settings.loss)
        if isinstance(settings, PpoSettings)
        else GroupRelativePolicy(rollouts, settings.loss)
    )
    workload = _workload(writer, reference, learn, settings)
    return (
        (learn, measure),
        reference,
        Ready(model, objective, workload, settings.rollouts * settings.plan.steps),
    )


@dataclass(frozen=True)
class _Prompt:
    """A prompt as messages and as ids."""

    row: PromptRow
    ids: list[int]

    @property
    def id(self) -> str:
        """That of its row."""
        return self.row.id


def _prompts(
    alignment: Alignment, model: Writer, settings: RolloutSettings
) -> tuple[list[_Prompt], list[_Prompt]]:
    """The prompts to learn from and those to measure on; those that leave no room for an answer are left out."""
    learn, measure = (
        prompt_split(alignment.workspace, alignment.data, split) for split in ("train", "heldout")
    )
    halves = parted(learn, measure, settings.held_out_share)
    room = context_of(model) - settings.max_new_tokens
    encoded = [
        [_Prompt(row, encode_prompt(alignment.tokenizer, model, row.prompt)) for row in rows]
        for rows in halves
    ]
    long = [prompt.id for prompts in encoded for prompt in prompts if len(prompt.ids) > room]
    tell_too_long(long, context_of(model), alignment.tell)
    kept, held_out = ([prompt for prompt in prompts if len(prompt.ids) <= room] for prompts in encoded)
    if not kept:
        raise UserError(
            f"{alignment.data.ref} has no prompt that leaves room for max_new_tokens={settings.max_new_tokens} in "
            f"the model's context of {context_of(model)} tokens"
        )
    return kept, held_out


def _rollouts(
    alignment: Alignment,
    prompts: Sequence[_Prompt],
    reward: Reward,
    reference: Writer | None,
    plan: RolloutPlan,
) -> Rollouts:
    tokenizer = alignment.tokenizer

    def judge(numbers: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        asked = [prompts[number].row.prompt for number in numbers]
        return reward.judge(asked, [tokenizer.decode(ids) for ids in answers])

    ids = [prompt.ids for prompt in prompts]
    return Rollouts(plan, ids, judge, reference, tokenizer.end_ids, tokenizer.mark_ids)


def _workload(
    model: Writer, reference: Writer | None, prompts: Sequence[_Prompt], settings: RolloutSettings
) -> Workload:
    """As if every answer were as long as it may be."""
    lengths, plan = [len(prompt.ids) for prompt in prompts], settings.plan
    a_prompt, answer = sum(lengths) / len(lengths), settings.max_new_tokens
    a_row, apart = a_prompt + answer, isinstance(model, EncoderDecoder)
    held = [] if reference is None else [*reference.parameters(), *reference.buffers()]
    return Workload(
        a_row * min(settings.batch_size, plan.rows),
        a_row * len(prompts) * plan.answers * plan.epochs,
        rows=min(settings.together, plan.rows),
        length=max(lengths) + (0 if apart else answer),
        packed=False,
        target_length=answer if apart else None,
        mean_length=a_prompt if apart else a_row,
        scored=1.0 if apart else answer / a_row,
        accumulated=min(settings.batch_size, plan.rows) > settings.together,
        held_bytes=sum(tensor.nbytes for tensor in held),
        rollout_steps=plan.steps,
    )


@torch.no_grad()
def _measured(
    alignment: Alignment,
    model: LanguageModel,
    reward: Reward,
    reference: Writer | None,
    prompts: Sequence[_Prompt],
) -> dict[str, Any]:
    """The mean reward of the reference's answers and of the model's, and the divergence of the model from it."""
    settings = alignment.settings
    assert isinstance(settings, RolloutSettings)
    some = list(prompts[:_MEASURED_ANSWERS])
    plan = replace(
        settings.plan,
        prompts=len(some),
        answers=max(1, _MEASURED_ANSWERS // len(some)),
        epochs=1,
        seed=settings.seed + _MEASURED_NUMBER,
    )
    rollouts = _rollouts(alignment, some, reward, reference, plan)
    rollouts.parts(model, 0)
    after = rollouts.current.figures()
    rollouts.restore({})
    with reference_of(writer_of(model), reference) as before_model:
        rollouts.parts(before_model, 0)
    return {
        "reward_before": rollouts.current.figures()["reward"].item(),
        "reward_after": after["reward"].item(),
        **{name: after[name].item() for name in ("kl", "kl_k3", "answer_tokens")},
        "measured_answers": plan.rows,
    }
