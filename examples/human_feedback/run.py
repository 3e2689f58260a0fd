"""Human feedback: preferences, a reward model, DPO and PPO; and a reward that is gamed, shown as such.

python examples/human_feedback/run.py
"""

import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import desk
from recipe import Options, Outcome, Table, run_recipe

from yunque.cli.show import bars, note
from yunque.data.instructions import InstructionRow, write_instructions
from yunque.data.preferences import PreferenceRow, preference_split, read_preferences, write_preferences
from yunque.errors import UserError
from yunque.evaluate.metrics import bootstrap_interval, chrf
from yunque.generate.config import GenerationConfig
from yunque.generate.conversation import spoken
from yunque.llm.face import Message
from yunque.llm.local import LocalModel
from yunque.tokenizer.training import train_tokenizer
from yunque.train import PretrainSettings, TuneSettings, pretrain, tune, tuning_rows
from yunque.train.align import DpoSettings, RewardSettings, train_dpo, train_reward
from yunque.train.align_rollouts import PpoSettings, train_ppo
from yunque.train.objectives.dpo import DpoLoss
from yunque.train.objectives.ppo import PpoLoss
from yunque.train.settings import OptimizerSettings
from yunque.train.shapes import ModelSettings
from yunque.workspace import Artifact, Workspace

Judge = Callable[[str, str], float]
LONGER = f"{Path(desk.__file__)}:longer"
MOST_TOKENS = 48
# Of a file of the user's: pairs of at most so many characters, question and longer answer together.
_LONGEST, _FEWEST = 1500, 20
_CONTEXT, _LONG_CONTEXT = 128, 1024


@dataclass(frozen=True)
class Feedback:
    """Pairs to learn from, rows for the model before any feedback, questions to measure on, and the judge of them."""

    rows: Sequence[InstructionRow]
    pairs: Artifact
    questions: Sequence[str]
    judge: Judge


def _row(number: int, question: str, answer: str) -> InstructionRow:
    return InstructionRow(f"row-{number}", "desk", "und", "plain", question, "", answer)


def _own_feedback(options: Options) -> Feedback:
    """The information desk: a fifth of the questions are held out to measure on."""
    generator = random.Random(1)
    questions = list(desk.QUESTIONS)
    generator.shuffle(questions)
    cut = len(questions) // 5
    held_out, learned = questions[:cut], questions[cut:]
    # Before feedback the model has seen every question; what it lacks is a sense of which answer is better.
    rows = [
        _row(10 * number + turn, question.text, desk.written(question, generator))
        for number, question in enumerate(questions)
        for turn in range(6)
    ]

    def pairs(some: Sequence[desk.Question], turns: int) -> list[PreferenceRow]:
        found = [(question, desk.preference(question, generator)) for question in some for _ in range(turns)]
        return [
            PreferenceRow(f"{len(some)}-{number}", (("user", question.text),), *pair)
            for number, (question, pair) in enumerate(found)
            if pair is not None
        ]

    splits = {"train": pairs(learned, 1 if options.quick else 5), "heldout": pairs(held_out, 2)}
    data = write_preferences(options.workspace, "desk-pairs", splits)
    return Feedback(rows, data, [question.text for question in held_out], desk.judge)


def _given_feedback(options: Options, path: Path) -> Feedback:
    """A file of preference rows. The judge compares an answer with the two of its row, which the model never saw."""
    pairs = [row for row in read_preferences(path) if _characters(row) <= _LONGEST]
    if len(pairs) < _FEWEST:
        raise UserError(
            f"--data: {path} has {len(pairs)} pairs of at most {_LONGEST:,} characters: too few to learn from"
        )
    random.Random(1).shuffle(pairs)
    cut = max(1, len(pairs) // 5)
    held_out, learned = pairs[:cut], pairs[cut:]
    by_question = {spoken(row.prompt): row for row in held_out}

    def judge(prompt: str, answer: str) -> float:
        row = by_question[prompt]
        return (chrf([answer], [row.chosen]) - chrf([answer], [row.rejected])) / 100

    rows = [
        _row(2 * number + turn, spoken(row.prompt), answer)
        for number, row in enumerate(learned)
        for turn, answer in enumerate((row.chosen, row.rejected))
    ]
    data = write_preferences(options.workspace, "given-pairs", {"train": learned, "heldout": held_out})
    questions = [spoken(row.prompt) for row in held_out if len(row.prompt) == 1]
    if not questions:
        raise UserError(f"--data: {path} has no prompt of one message among the pairs held out: add some")
    return Feedback(rows, data, questions, judge)


def _characters(row: PreferenceRow) -> int:
    return len(spoken(row.prompt)) + max(len(row.chosen), len(row.rejected))


def _base(options: Options, feedback: Feedback) -> Artifact:
    """A small model that answers as it was shown, good and bad alike."""
    workspace = options.workspace
    data = write_instructions(workspace, "answers", {"train": feedback.rows})
    tokenizer = train_tokenizer(workspace, "pieces", [data.ref], 512)
    pretrained = pretrain(
        workspace,
        PretrainSettings(
            name="reader",
            data=(data.ref,),
            tokenizer=tokenizer.ref,
            model=ModelSettings(
                hidden_size=96,
                intermediate_size=256,
                layers=2,
                context=_LONG_CONTEXT if options.data else _CONTEXT,
            ),
            batch_size=8,
            steps=options.steps(300),
            precision="float32",
        ),
        bars,
    )
    settings = TuneSettings(
        name="desk", epochs=0.1 if options.quick else 10 * options.scale, replay=0, precision="float32"
    )
    return tune(workspace, pretrained.ref, [tuning_rows(workspace, data)], settings, bars, on_bad=note)


def _aligned(options: Options, base: Artifact, pairs: Artifact) -> dict[str, Artifact]:
    """The models that feedback makes of the base, by what the table calls them."""
    workspace, short = options.workspace, options.quick
    epochs = 0.1 if short else 3 * options.scale
    judge = train_reward(
        workspace,
        base.ref,
        pairs,
        RewardSettings(name="reward-model", epochs=epochs, precision="float32"),
        bars,
    )

    def ppo(name: str, reward: str, kl: float) -> Artifact:
        settings = PpoSettings(
            name=name,
            reward=reward,
            loss=PpoLoss(kl_coefficient=kl),
            optimizer=OptimizerSettings(learning_rate=3e-4, weight_decay=0.0),
            rollouts=options.steps(25, 1),
            prompts_per_rollout=4 if short else 64,
            batch_size=4 if short else 32,
            max_new_tokens=8 if short else MOST_TOKENS,
            precision="float32",
        )
        return train_ppo(workspace, base.ref, pairs, settings, bars)

    dpo = DpoSettings(
        name="dpo",
        loss=DpoLoss(beta=0.1),
        optimizer=OptimizerSettings(learning_rate=1e-4, weight_decay=0.0),
        epochs=epochs,
        precision="float32",
    )
    return {
        "DPO on the pairs": train_dpo(workspace, base.ref, pairs, dpo, bars),
        "PPO, reward model of the pairs": ppo("ppo-pairs", judge.ref, 0.05),
        "PPO, longer is better": ppo("ppo-longer", LONGER, 0.01),
        "PPO, longer is better, held by KL": ppo("ppo-longer-held", LONGER, 0.3),
    }


def _answers(workspace: Workspace, model: Artifact, questions: Sequence[str], most: int) -> list[str]:
    """One answer to each question, drawn as the model finds it likely."""
    opened = LocalModel.open(workspace, model.ref)
    return [
        opened.chat(
            [Message("user", question)], GenerationConfig(max_new_tokens=most, temperature=1.0, seed=number)
        ).text.strip()
        for number, question in enumerate(questions)
    ]


def verdict(reward: tuple[float, float] | None, change: tuple[float, float]) -> str:
    """What to call a model whose reward went from one number to another, and whose judgement changed by this
    interval."""
    low, high = change
    if reward is not None and reward[1] > reward[0] and high < 0:
        return "GAMED: reward up, judge down"
    if low > 0:
        return "better"
    return "worse" if high < 0 else "no clear change"


def _line(
    name: str,
    model: Artifact,
    base: Sequence[float],
    scores: Sequence[float],
    words: float,
    log: Sequence[dict[str, float]],
) -> list[str]:
    figures = model.figures
    reward = None
    if "reward_after" in figures:
        reward = figures["reward_before"], figures["reward_after"]
    changes = [after - before for before, after in zip(base, scores, strict=True)]
    low, high = bootstrap_interval(changes)
    most = max((line["kl"] for line in log if "kl" in line), default=figures["kl"])
    return [
        name,
        f"{reward[0]:.2f} → {reward[1]:.2f}" if reward else "",
        f"{sum(scores) / len(scores):.2f}",
        f"{sum(changes) / len(changes):+.2f} ({low:+.2f} to {high:+.2f})",
        f"{figures['kl']:.1f} (most {max(most, figures['kl']):.1f})",
        f"{words:.1f}",
        verdict(reward, (low, high)),
    ]


def experiment(options: Options) -> Outcome:
    """Tune a base, give it feedback in four ways, and let the judge compare."""
    workspace = options.workspace
    feedback = _own_feedback(options) if options.data is None else _given_feedback(options, options.data)
    base = _base(options, feedback)
    models = _aligned(options, base, feedback.pairs)
    questions = feedback.questions[:4] if options.quick else feedback.questions
    most = 8 if options.quick else MOST_TOKENS
    answers = {
        name: _answers(workspace, model, questions, most) for name, model in {"": base, **models}.items()
    }
    scores = {
        name: [feedback.judge(*pair) for pair in zip(questions, given, strict=True)]
        for name, given in answers.items()
    }
    words = {name: sum(len(text.split()) for text in given) / len(given) for name, given in answers.items()}
    mean = sum(scores[""]) / len(scores[""])
    rows = [["before feedback", "", f"{mean:.2f}", "", "0", f"{words['']:.1f}", ""]]
    for name, model in models.items():
        text = (workspace.file(model, "loss.jsonl")).read_text(encoding="utf-8")
        log = [json.loads(line) for line in text.splitlines()]
        rows.append(_line(name, model, scores[""], scores[name], words[name], log))
    columns = (
        "model",
        "its own reward",
        "judge",
        "change (95 % interval)",
        "KL, nats an answer",
        "words an answer",
        "verdict",
    )
    measured = workspace.get("reward-model", "model").figures
    findings = [
        f"The reward model puts {measured['held_out_accuracy']:.0%} of {measured['held_out_rows']} held-out pairs in "
        "the right order.",
        *(f"“{questions[0]}” {name or 'before feedback'}: “{given[0]}”" for name, given in answers.items()),
    ]
    pairs = len(preference_split(workspace, feedback.pairs, "train"))
    title = (
        f"Feedback from {pairs:,} pairs; the judge, whom no model learns from, reads {len(questions)} answers"
    )
    return Outcome([Table(title, columns, rows)], findings)


if __name__ == "__main__":
    run_recipe(
        "human-feedback", __doc__, experiment, "preference rows, JSON Lines of prompt, chosen and rejected"
    )
