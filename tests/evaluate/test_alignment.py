"""What the alignment commands say was forgotten, on a tiny model that has read text and was tuned on a task."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from yunque.cli.main import app
from yunque.data.dataset import write_dataset
from yunque.data.instructions import InstructionRow, write_instructions
from yunque.data.preferences import PreferenceRow, write_preferences
from yunque.data.row import Row, Source, row_id
from yunque.errors import UserError
from yunque.workspace import Artifact, Workspace

FAST = ("precision=float32", "batch_size=4")
ROLLOUTS = ("--reward", "brief", "--rollouts", "1", "prompts_per_rollout=2", "max_new_tokens=4", *FAST)


def text_row(number: int) -> Row:
    text = f"Cada pasajero puede llevar una maleta de {number} kg. " * 4
    return Row(row_id("a.md", text), text, "es", Source("a.md", "0" * 64, f"line {number}"), f"{number}")


def instruction(number: int, task: str = "tono") -> InstructionRow:
    return InstructionRow(f"{task}{number}", task, "es", "t", f"¿{task} {number}?", "", "sí", ("sí", "no"))


@pytest.fixture
def workspace(
    tmp_path: Path, put_tiny_model: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> Workspace:
    made = Workspace.open(tmp_path / "ws")
    monkeypatch.setenv("YUNQUE_WORKSPACE", str(made.root))
    rows = [text_row(number) for number in range(12)]
    texts = write_dataset(made, "texts", {"train": rows[:8], "test": rows[8:]}, {}, [], {})
    tasks = write_instructions(
        made,
        "tasks",
        {
            "train": [instruction(n) for n in range(4)],
            # More than are asked after an alignment.
            "heldout": [instruction(n) for n in range(10, 50)],
        },
    )
    put_tiny_model(made, "bare")
    put_tiny_model(made, "chat", (texts, tasks))
    pairs = [PreferenceRow(f"p{n}", (("user", f"¿Cuál es el {n}?"),), "maleta", "bolso") for n in range(12)]
    write_preferences(made, "pairs", {"train": pairs})
    return made


def align(*arguments: str) -> Any:
    done = CliRunner().invoke(app, ["align", *arguments], env={"COLUMNS": "200"})
    if isinstance(done.exception, UserError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def test_dpo_ends_with_what_was_forgotten_of_text_and_tasks(workspace: Workspace) -> None:
    arguments = ("dpo", "chat", "--data", "pairs", "--epochs", "2", "optimizer.learning_rate=0.03", *FAST)
    told = json.loads(align(*arguments, "--json").stdout)
    assert told["ref"] == "model/chat-dpo@1" and told["report"] == "report/chat-dpo-alignment@1"
    (general,) = told["general"]
    assert general["data"] == "dataset/texts@1" and general["tokens"] > 0
    # A rate that is far too high: the model is pushed away from what it was.
    assert general["forgotten"] == general["after"] - general["before"] != 0
    assert told["others"]["accuracy"]["rows"] == 25
    assert told["cost"]["seconds"] > 0 and told["cost"]["measuring_seconds"] > 0
    lineage = told["lineage"]
    assert (lineage["base"]["ref"], lineage["model"]["ref"]) == ("model/chat@1", "model/chat-dpo@1")
    assert [each["ref"] for each in lineage["data"]] == ["dataset/pairs@1"]
    assert [each["ref"] for each in lineage["measured_on"]] == ["dataset/tasks@1", "dataset/texts@1"]
    report = workspace.get(told["report"], "report")
    assert len(workspace.file(report, "after.jsonl").read_text().splitlines()) == 25
    written = workspace.file(report, "report.md").read_text()
    assert written.startswith("# DPO of model/chat@1: model/chat-dpo@1\n") and "held-out pairs" in written
    assert {"general_loss_before", "other_accuracy_after", "energy_wh"} <= report.figures.keys()
    # Once more: the run is found again, and so is its report.
    shown = align(*arguments)
    assert workspace.find("chat-dpo-alignment", "report") == report
    for part in ("Forgotten: loss on dataset/texts@1", "Other tasks: accuracy", "Cost:", "From: base"):
        assert part in shown.stdout


@pytest.mark.usefixtures("workspace")
def test_a_model_that_did_not_change_forgot_nothing() -> None:
    """The control: at a rate of next to nothing both measurements are the same."""
    arguments = ("--epochs", "1", "optimizer.learning_rate=1e-12", *FAST)
    told = json.loads(align("dpo", "chat", "--data", "pairs", *arguments, "--json").stdout)
    assert told["general"][0]["forgotten"] == pytest.approx(0, abs=1e-6)
    assert told["others"]["accuracy"]["change"] == 0


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_rollouts_end_with_a_report_too(workspace: Workspace, method: str) -> None:
    told = json.loads(align(method, "chat", "--data", "pairs", *ROLLOUTS, "--json").stdout)
    assert told["report"] == f"report/chat-{method}-alignment@1" and len(told["general"]) == 1
    written = workspace.file(workspace.get(told["report"]), "report.md").read_text()
    assert "Learnt: mean reward" in written and "nats an answer from the reference" in written


def test_what_cannot_be_measured_is_said_and_what_is_named_is_measured(workspace: Workspace) -> None:
    arguments = ("dpo", "bare", "--data", "pairs", "--epochs", "1", *FAST)
    shown = align(*arguments).stdout
    assert "Other tasks: not measured" in shown and "Forgotten: not measured on text" in shown
    told = json.loads(align(*arguments, "--general", "texts", "--other", "tasks", "--json").stdout)
    assert told["general"] and told["others"]["accuracy"]["rows"] == 25
    with pytest.raises(UserError, match="no test or validation split"):
        align(*arguments, "--general", "pairs", "--name", "other")
    assert workspace.find("other") is None


def test_a_reward_model_writes_nothing_that_could_be_forgotten(workspace: Workspace) -> None:
    told = json.loads(align("reward", "chat", "--data", "pairs", "--epochs", "1", *FAST, "--json").stdout)
    assert "report" not in told and workspace.find("chat-reward-alignment") is None


@pytest.mark.usefixtures("workspace")
def test_the_reward_model_stands_in_the_lineage() -> None:
    align("reward", "chat", "--data", "pairs", "--epochs", "1", "--name", "judge", *FAST)
    arguments = [each if each != "brief" else "judge" for each in ROLLOUTS]
    told = json.loads(align("ppo", "chat", "--data", "pairs", *arguments, "--json").stdout)
    assert [each["ref"] for each in told["lineage"]["judges"]] == ["model/judge@1"]


@pytest.mark.usefixtures("workspace")
def test_every_alignment_takes_the_way_processes_share_a_model() -> None:
    for method in ("dpo", "reward"):
        with pytest.raises(UserError, match="parallel"):
            align(method, "chat", "--data", "pairs", "--parallel", "none")
        align(method, "chat", "--data", "pairs", "--parallel", "ddp", "--plan", *FAST)
    for method in ("ppo", "grpo"):
        with pytest.raises(UserError, match="parallel"):
            align(method, "chat", "--data", "pairs", "--parallel", "none", *ROLLOUTS)


def test_the_help_tells_the_defaults() -> None:
    shown = " ".join(align("dpo", "--help").stdout.replace("│", " ").split())
    for told in ("(default: ddp)", "(default: 3)", "(default: the shipped ones)"):
        assert told in shown
