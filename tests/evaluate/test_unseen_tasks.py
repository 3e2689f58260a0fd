"""Tuning on some tasks and measuring on others: the split `unseen` of a dataset made of a task collection."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from yunque.cli.main import app
from yunque.data.task_rendering import TaskSettings, add_tasks
from yunque.errors import UserError
from yunque.evaluate.evaluation import EvaluationSettings, evaluate_model
from yunque.evaluate.tuning import HeldOut, tune_with_report
from yunque.train import TuneSettings
from yunque.workspace import Artifact, Workspace

TUNING = TuneSettings(epochs=1, batch_size=8, replay=0, precision="float32")


@pytest.fixture
def workspace(tmp_path: Path, put_tiny_model: Callable[..., Artifact]) -> Workspace:
    folder = tmp_path / "collection"
    folder.mkdir()
    for name, question in (("first", "Which comes first?"), ("last", "Which comes last?")):
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ncluster: copy\nlanguage: en\nfields: [a, b]\nanswer: '{{{'ab'[name == 'last']}}}'\n"
            f"labels: ['{{a}}', '{{b}}']\ntemplates:\n  - '{question} {{a}} {{b}}'\n"
        )
        pairs = [{"a": f"x{number}", "b": f"y{number}"} for number in range(12)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    made = Workspace.open(tmp_path / "ws")
    put_tiny_model(made, "mini")
    add_tasks(made, "tasks", folder, TaskSettings(held_out_tasks=("last",), shots=(0,)))
    return made


def test_an_evaluation_answers_the_split_that_is_named(workspace: Workspace) -> None:
    tasks = workspace.get("tasks")
    for split, wanted in (("unseen", "last"), ("heldout", "first")):
        settings = EvaluationSettings(instruction_split=split)
        made, results = evaluate_model(workspace, "mini", None, tasks, settings)
        assert [line["task"] for line in results["tasks"]] == [wanted]
        assert made.config["instruction_split"] == split
    with pytest.raises(UserError, match=r"no file 'nada.jsonl' \(it has: card.json"):
        evaluate_model(workspace, "mini", None, tasks, EvaluationSettings(instruction_split="nada"))


def test_a_tuning_is_measured_on_the_split_that_is_named(workspace: Workspace) -> None:
    tasks = workspace.get("tasks")
    tuned, _, report = tune_with_report(workspace, "mini", [tasks], HeldOut([tasks], split="unseen"), TUNING)
    assert [line["task"] for line in report["tasks"]] == ["last"] and report["held_out_split"] == "unseen"
    again, _, other = tune_with_report(workspace, "mini", [tasks], HeldOut([tasks]), TUNING)
    assert again.ref == tuned.ref and [line["task"] for line in other["tasks"]] == ["first"]


def test_the_commands_take_the_split(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YUNQUE_WORKSPACE", str(workspace.root))
    runner = CliRunner()
    evaluated = runner.invoke(
        app, ["eval", "mini", "--instructions", "tasks", "--instruction-split", "unseen", "--json"]
    )
    assert evaluated.exit_code == 0, evaluated.output
    assert [line["task"] for line in json.loads(evaluated.stdout)["tasks"]] == ["last"]
    options = [
        "--data",
        "tasks",
        "--held-out",
        "tasks",
        "--held-out-split",
        "unseen",
        "--epochs",
        "1",
        "--json",
    ]
    tuned = runner.invoke(app, ["tune", "mini", *options, "replay=0"])
    assert tuned.exit_code == 0, tuned.output
    assert [line["task"] for line in json.loads(tuned.stdout)["tasks"]] == ["last"]
