"""`yunque align`: learn from preferences, by DPO, a reward model, PPO or GRPO."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from yunque.cli.show import JSON_OPTION, bars, emit, note, table, warn
from yunque.errors import UserError

if TYPE_CHECKING:
    from yunque.evaluate.alignment import Kept
    from yunque.train.alignment import AlignSettings
    from yunque.train.schedule import TrainingPlan
    from yunque.workspace import Artifact, Workspace

app = typer.Typer(
    no_args_is_help=True, help="Learn what people prefer: DPO, a reward model, PPO and GRPO with it."
)

_MODEL = typer.Argument(help="The model to start from: NAME or model/NAME@VERSION.")
_OVERRIDES = typer.Argument(
    None, metavar="[FIELD=VALUE]...", help="Settings, such as optimizer.learning_rate=0.0001 lora.rank=16."
)
_DATA = typer.Option(
    None,
    help="Rows of prompt, chosen and rejected: a file (JSON Lines) or a dataset. (default: the shipped ones)",
    show_default=False,
)
_PROMPTS = typer.Option(
    None,
    help="Rows with a prompt: a file (JSON Lines) or a dataset. (default: the shipped ones)",
    show_default=False,
)
_HELD_OUT = typer.Option(None, help="A file of rows to measure on. (default: a tenth)", show_default=False)
_NAME = typer.Option(
    None, help="The name of the new model. (default: MODEL and the method)", show_default=False
)
_EPOCHS = typer.Option(None, help="How often each row is read. (default: 3)", show_default=False)
_LORA = typer.Option(False, "--lora", help="Train an adapter beside the frozen model.")
_CONFIG = typer.Option(None, help="A YAML file of settings.")
_GENERAL = typer.Option(
    [],
    help="Dataset of text to measure forgetting on. (default: what the model was trained on)",
    show_default=False,
)
_OTHER = typer.Option(
    [],
    "--other",
    help="Instruction rows, to measure what is forgotten. (default: what the model was tuned on)",
    show_default=False,
)
_PARALLEL = typer.Option(
    None,
    help="How several processes (torchrun) share a model: ddp or fsdp. (default: ddp)",
    show_default=False,
)
_TENSORBOARD = typer.Option(False, "--tensorboard", help="Write TensorBoard files in the run's folder too.")
_PLAN = typer.Option(False, "--plan", help="Only tell what it would take.")
_SKIP_BAD = typer.Option(False, "--skip-bad", help="Leave bad lines of the files out.")
_REWARD = typer.Option(
    None,
    help="What judges answers: a reward model, brief, language, or a Python function of yours "
    "(module:function or file.py:function), which is run.",
)
_ROLLOUTS = typer.Option(
    None, help="How often the model writes answers to learn from. (default: 20)", show_default=False
)


@app.command()
def dpo(
    model: str = _MODEL,
    overrides: list[str] | None = _OVERRIDES,
    data: str | None = _DATA,
    held_out: Path | None = _HELD_OUT,
    general: list[str] = _GENERAL,
    other: list[str] = _OTHER,
    name: str | None = _NAME,
    epochs: float | None = _EPOCHS,
    lora: bool = _LORA,
    parallel: str | None = _PARALLEL,
    config: Path | None = _CONFIG,
    skip_bad: bool = _SKIP_BAD,
    tensorboard: bool = _TENSORBOARD,
    plan: bool = _PLAN,
    as_json: bool = JSON_OPTION,
) -> None:
    """Make preferred answers likelier than the others (direct preference optimization)."""
    from yunque.train.align import DpoSettings, plan_dpo, train_dpo

    options = _options(name, lora, parallel, tensorboard)
    options["epochs"] = epochs
    does = train_dpo, plan_dpo if plan else None
    _run(
        does,
        DpoSettings,
        model,
        options,
        (config, overrides),
        (data, held_out, skip_bad),
        as_json,
        (general, other),
    )


@app.command()
def reward(
    model: str = _MODEL,
    overrides: list[str] | None = _OVERRIDES,
    data: str | None = _DATA,
    held_out: Path | None = _HELD_OUT,
    name: str | None = _NAME,
    epochs: float | None = _EPOCHS,
    lora: bool = _LORA,
    parallel: str | None = _PARALLEL,
    config: Path | None = _CONFIG,
    skip_bad: bool = _SKIP_BAD,
    tensorboard: bool = _TENSORBOARD,
    plan: bool = _PLAN,
    as_json: bool = JSON_OPTION,
) -> None:
    """Make a reward model, which tells how good an answer is."""
    from yunque.train.align import RewardSettings, plan_reward, train_reward

    options = _options(name, lora, parallel, tensorboard)
    options["epochs"] = epochs
    does = train_reward, plan_reward if plan else None
    _run(does, RewardSettings, model, options, (config, overrides), (data, held_out, skip_bad), as_json)


@app.command()
def ppo(
    model: str = _MODEL,
    overrides: list[str] | None = _OVERRIDES,
    reward: str | None = _REWARD,
    data: str | None = _PROMPTS,
    held_out: Path | None = _HELD_OUT,
    general: list[str] = _GENERAL,
    other: list[str] = _OTHER,
    name: str | None = _NAME,
    rollouts: int | None = _ROLLOUTS,
    lora: bool = _LORA,
    parallel: str | None = _PARALLEL,
    config: Path | None = _CONFIG,
    skip_bad: bool = _SKIP_BAD,
    tensorboard: bool = _TENSORBOARD,
    plan: bool = _PLAN,
    as_json: bool = JSON_OPTION,
) -> None:
    """Let the model answer, and learn from what its answers earn (proximal policy optimization)."""
    from yunque.train.align_rollouts import PpoSettings, plan_rollouts, train_ppo

    options = _options(name, lora, parallel, tensorboard)
    options |= {"reward": reward, "rollouts": rollouts}
    does = train_ppo, plan_rollouts if plan else None
    _run(
        does,
        PpoSettings,
        model,
        options,
        (config, overrides),
        (data, held_out, skip_bad),
        as_json,
        (general, other),
    )


@app.command()
def grpo(
    model: str = _MODEL,
    overrides: list[str] | None = _OVERRIDES,
    reward: str | None = _REWARD,
    data: str | None = _PROMPTS,
    held_out: Path | None = _HELD_OUT,
    general: list[str] = _GENERAL,
    other: list[str] = _OTHER,
    name: str | None = _NAME,
    rollouts: int | None = _ROLLOUTS,
    lora: bool = _LORA,
    parallel: str | None = _PARALLEL,
    config: Path | None = _CONFIG,
    skip_bad: bool = _SKIP_BAD,
    tensorboard: bool = _TENSORBOARD,
    plan: bool = _PLAN,
    as_json: bool = JSON_OPTION,
) -> None:
    """Let the model answer each prompt several times, and prefer the better answers (group relative policy
    optimization)."""
    from yunque.train.align_rollouts import GrpoSettings, plan_rollouts, train_grpo

    options = _options(name, lora, parallel, tensorboard)
    options |= {"reward": reward, "rollouts": rollouts}
    does = train_grpo, plan_rollouts if plan else None
    _run(
        does,
        GrpoSettings,
        model,
        options,
        (config, overrides),
        (data, held_out, skip_bad),
        as_json,
        (general, other),
    )


def _options(name: str | None, lora: bool, parallel: str | None, tensorboard: bool) -> dict[str, Any]:
    """The options that all of these commands have, as settings."""
    return {
        "name": name,
        "lora": {} if lora else None,
        "parallel": parallel,
        "tensorboard": tensorboard or None,
    }


def _run(
    does: "tuple[Callable[..., Artifact], Callable[..., TrainingPlan] | None]",
    kind: "type[AlignSettings]",
    model: str,
    options: dict[str, Any],
    told: tuple[Path | None, list[str] | None],
    rows: tuple[str | None, Path | None, bool],
    as_json: bool,
    to_keep: tuple[list[str], list[str]] | None = None,
) -> None:
    """Resolve the settings, find the rows, train (or only plan), and show what came out; with `to_keep`, names of
    text and of instructions, what was forgotten of these too."""
    from yunque.configuration import resolve
    from yunque.workspace import Workspace

    config, overrides = told
    prompts_only = "reward" in kind.model_fields
    named = options.get("reward") or any(text.startswith("reward=") for text in overrides or ())
    if prompts_only and not named and config is None:
        raise UserError(
            "say what judges answers with --reward: a reward model, brief, language, or module:function"
        )
    settings = resolve(kind, config, overrides or (), **options)
    workspace = Workspace.open()
    workspace.get(model, "model")
    data, held_out, skip_bad = rows
    skipped: list[str] = []
    dataset = _dataset(workspace, data, held_out, skipped.append if skip_bad else None, prompts_only)
    for sentence in skipped:
        warn(f"left out: {sentence}")
    train, plan = does
    if plan is not None:
        planned = plan(workspace, model, dataset, settings, note)
        emit(planned.as_dict(), as_json, lambda console: console.print("\n".join(planned.sentences())))
        return
    # Wrong names are told before the training, not after it.
    kept = _kept(workspace, model, to_keep) if to_keep else None
    made = train(workspace, model, dataset, settings, bars, note)
    value, report = {**made.as_dict(), "skipped": len(skipped)}, None
    if kept is not None:
        from yunque.evaluate.alignment import report_on_alignment

        kept_as, report = report_on_alignment(workspace, model, made, kept, settings, bars)
        value |= {"report": kept_as.ref, **{name: report[name] for name in _REPORTED}}
        note(f"the report is {kept_as.ref}")
    emit(value, as_json, lambda console: _render(console, made, report))
    note(f"Curves: {workspace.runs / made.config['run'] / 'curves.png'}")


_REPORTED = ("aligned", "others", "general", "general_not_measured", "cost", "lineage")


def _kept(workspace: "Workspace", model: str, names: tuple[list[str], list[str]]) -> "Kept":
    """The text and the instructions that the model is to keep."""
    from yunque.evaluate.alignment import Kept
    from yunque.evaluate.evaluation import instruction_dataset

    general, other = names
    return Kept.of(
        workspace,
        model,
        [workspace.get(ref, "dataset") for ref in general],
        [instruction_dataset(workspace, name) for name in other],
    )


def _dataset(
    workspace: "Workspace",
    data: str | None,
    held_out: Path | None,
    on_bad: Callable[[str], None] | None,
    prompts_only: bool,
) -> "Artifact":
    """The rows that are named: a file becomes a dataset."""
    from yunque.data.preferences import add_preferences, shipped_preferences

    if data is None and held_out is None:
        return shipped_preferences(workspace)
    if data is None or not Path(data).is_file():
        if held_out is not None:
            raise UserError(
                "--held-out is a file beside a file of --data: a dataset has its own split 'heldout'"
            )
        if data is not None and (data.endswith(".jsonl") or data.startswith((".", "/"))):
            raise UserError(f"{data}: no such file")
        return workspace.get(str(data), "dataset")
    letters = "".join(char if char.isascii() and char.isalnum() else "-" for char in Path(data).stem.lower())
    paths = {"train": Path(data)} | ({"heldout": held_out} if held_out else {})
    return add_preferences(workspace, letters.strip("-")[:64] or "preferences", paths, on_bad, prompts_only)


_SHOWN = {
    "held_out_accuracy": "accuracy on held-out pairs",
    "held_out_margin": "margin on held-out pairs",
    "held_out_loss": "loss on held-out pairs",
    "held_out_rows": "held-out pairs",
    "reward_before": "mean reward before",
    "reward_after": "mean reward after",
    "measured_on": "measured on",
    "measured_answers": "answers measured",
    "answer_tokens": "tokens of an answer",
    "kl": "KL to the reference, nats an answer (k1)",
    "kl_k3": "KL to the reference, nats an answer (k3)",
    "steps": "steps",
    "seconds": "seconds",
}


def _render(console: Console, made: "Artifact", report: dict[str, Any] | None) -> None:
    from yunque.cli.tune import render

    figures = made.figures
    lines = [
        (words, f"{value:.3f}" if isinstance(value, float) else f"{value}")
        for name, words in _SHOWN.items()
        if (value := figures.get(name)) is not None
    ]
    console.print(table(made.ref, ("figure", "value"), lines, right=("value",)))
    if report is not None:
        render(console, report)
