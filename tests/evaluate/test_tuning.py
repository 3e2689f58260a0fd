"""Tuning with its report, on a tiny model and a task that it can learn in a few steps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import yunque.cli.tune
from yunque.data.dataset import write_dataset
from yunque.data.instructions import InstructionRow, write_instructions
from yunque.data.row import Row, Source, row_id
from yunque.errors import UserError
from yunque.evaluate.answers import compared_tasks
from yunque.evaluate.tasks import Prediction
from yunque.evaluate.tuning import HeldOut, compared, general_datasets, tune_with_report
from yunque.model.lora import LoraSettings
from yunque.train import TuneSettings
from yunque.workspace import Artifact, Workspace

SETTINGS = TuneSettings(epochs=6, batch_size=4, precision="float32")


def text_row(number: int) -> Row:
    text = f"Cada pasajero puede llevar una maleta de {number} kg y un bolso de mano. " * 4
    return Row(row_id("a.md", text), text, "es", Source("a.md", "0" * 64, f"line {number}"), f"{number}")


def instruction(number: int) -> InstructionRow:
    labels = ("positivo", "negativo")
    return InstructionRow(
        f"r{number}", "sentiment", "es", "t", f"¿Qué opina el texto {number}?", "", "positivo", labels
    )


@pytest.fixture
def workspace(tmp_path: Path, put_tiny_model: Callable[..., Artifact]) -> Workspace:
    made = Workspace.open(tmp_path / "ws")
    rows = [text_row(number) for number in range(30)]
    texts = write_dataset(
        made, "texts", {"train": rows[:20], "validation": [], "test": rows[20:]}, {}, [], {}
    )
    put_tiny_model(made, "mini", (texts,))
    instructions = [instruction(number) for number in range(40)]
    write_instructions(made, "tasks", {"train": instructions[:32], "heldout": instructions[32:]})
    return made


def test_the_report_tells_what_was_learnt_and_what_was_forgotten(workspace: Workspace) -> None:
    tasks, texts = workspace.get("tasks"), workspace.get("texts")
    tuned, made, report = tune_with_report(workspace, "mini", [tasks], HeldOut([tasks], [texts]), SETTINGS)
    assert tuned.ref == "model/mini-tuned@1" and set(tuned.parents) == {"model/mini@1", "dataset/tasks@1"}
    assert made.ref == "report/mini-tuned-tuning@1"
    assert made.parents == ("model/mini-tuned@1", "dataset/tasks@1", "dataset/texts@1")
    assert report["accuracy"]["after"] == 1 and report["accuracy"]["rows"] == 8
    (line,) = report["tasks"]
    assert (line["task"], line["language"], line["chance"], line["after"]["accuracy"]) == (
        "sentiment",
        "es",
        0.5,
        1,
    )
    (general,) = report["general"]
    assert (general["data"], general["split"]) == ("dataset/texts@1", "test")
    assert general["forgotten"] == general["after"] - general["before"]
    # The training text is read again while tuning, so an untrained model gets better at it, not worse.
    assert general["forgotten"] < 0
    assert json.loads(workspace.file(made, "report.json").read_text()) == report
    assert len(workspace.file(made, "before.jsonl").read_text().splitlines()) == 8
    again = tune_with_report(workspace, "mini", [tasks], HeldOut([tasks], [texts]), SETTINGS)
    assert again == (tuned, made, report)


def test_forgetting_is_seen(workspace: Workspace) -> None:
    """The control: without reading text again, and with far too high a rate, the loss on text goes up."""
    tasks, texts = workspace.get("tasks"), workspace.get("texts")
    base, _, _ = tune_with_report(workspace, "mini", [tasks], HeldOut([tasks], [texts]), SETTINGS)
    values = {**SETTINGS.model_dump(), "name": "forgetful", "replay": 0}
    values["optimizer"]["learning_rate"] = 0.03
    _, _, report = tune_with_report(
        workspace, base.ref, [tasks], HeldOut([tasks], [texts]), TuneSettings(**values)
    )
    assert report["general"][0]["forgotten"] > 0.1


def test_wrong_data_is_refused_before_any_training(workspace: Workspace) -> None:
    tasks, texts = workspace.get("tasks"), workspace.get("texts")
    with pytest.raises(UserError, match=r"no file 'heldout.jsonl'"):
        only = write_instructions(workspace, "only", {"train": [instruction(1)]})
        tune_with_report(workspace, "mini", [only], HeldOut([only], [texts]), SETTINGS)
    with pytest.raises(UserError, match="1 held-out rows are among the training rows"):
        both = write_instructions(workspace, "both", {"train": [instruction(1)], "heldout": [instruction(1)]})
        tune_with_report(workspace, "mini", [both], HeldOut([both], [texts]), SETTINGS)
    with pytest.raises(UserError, match="no test or validation split"):
        tune_with_report(workspace, "mini", [tasks], HeldOut([tasks], [tasks]), SETTINGS)
    assert workspace.find("mini-tuned") is None


def test_general_text_is_found_in_the_lineage(
    workspace: Workspace, put_tiny_model: Callable[..., Artifact]
) -> None:
    child = put_tiny_model(workspace, "child", (workspace.get("mini", "model"), workspace.get("tasks")))
    assert [dataset.ref for dataset in general_datasets(workspace, child.ref)] == ["dataset/texts@1"]


def other(number: int, task: str = "topic") -> InstructionRow:
    return InstructionRow(
        f"{task}{number}", task, "es", "t", f"¿De qué va {number}?", "", "mar", ("mar", "tierra")
    )


def test_the_report_tells_what_it_cost_and_where_it_comes_from(workspace: Workspace) -> None:
    tasks, texts = workspace.get("tasks"), workspace.get("texts")
    tuned, made, report = tune_with_report(workspace, "mini", [tasks], HeldOut([tasks], [texts]), SETTINGS)
    cost, lineage = report["cost"], report["lineage"]
    assert min(cost[name] for name in ("seconds", "cpu_seconds", "tokens", "flops", "energy_wh")) > 0
    assert cost["measuring_seconds"] > 0
    if cost["energy_method"] == "estimated":
        assert cost["energy_wh"] == pytest.approx(cost["cpu_seconds"] * cost["watts_per_core"] / 3600)
    for name in ("seconds", "tokens", "energy_wh", "flops"):
        assert tuned.figures[name] == cost[name]
    for what, ref in (("base", "model/mini@1"), ("model", tuned.ref)):
        assert lineage[what] == {"ref": ref, "hash": workspace.get(ref).hash}
    assert [each["ref"] for each in lineage["data"]] == [tasks.ref]
    assert [each["ref"] for each in lineage["measured_on"]] == [tasks.ref, texts.ref]
    assert lineage["adapter"] is None and (workspace.runs / lineage["run"] / "run.json").exists()
    assert report["settings"]["epochs"] == 6
    told = workspace.file(made, "report.md").read_text()
    for part in ("Learnt: accuracy", "## Forgotten", "not measured", "## Cost", "Wh", tuned.hash, texts.hash):
        assert part in told
    adapted = SETTINGS.model_copy(update={"name": "adapted", "epochs": 1, "lora": LoraSettings(rank=2)})
    _, _, report = tune_with_report(workspace, "mini", [tasks], HeldOut([tasks], [texts]), adapted)
    assert report["lineage"]["adapter"]["ref"] == "adapter/adapted@1"


def test_tasks_of_an_earlier_tuning_are_found_in_the_lineage(workspace: Workspace) -> None:
    tasks, texts = workspace.get("tasks"), workspace.get("texts")
    first, _, report = tune_with_report(workspace, "mini", [tasks], HeldOut([tasks], [texts]), SETTINGS)
    assert report["others"] is None and report["other"] == []
    rows = [other(number) for number in range(40)]
    topics = write_instructions(workspace, "topics", {"train": rows[:32], "heldout": rows[32:]})
    again = SETTINGS.model_copy(update={"name": "again"})
    _, made, report = tune_with_report(workspace, first.ref, [topics], HeldOut([topics], [texts]), again)
    assert report["accuracy"]["rows"] == 8 and [line["task"] for line in report["tasks"]] == ["topic"]
    assert report["other"] == [tasks.ref]
    (line,) = report["others"]["tasks"]
    assert (line["task"], line["rows"], line["before"]["accuracy"]) == ("sentiment", 8, 1)
    assert line["change"] == line["after"]["accuracy"] - 1 == report["others"]["accuracy"]["change"]
    assert len(workspace.file(made, "after.jsonl").read_text().splitlines()) == 16
    assert made.figures["other_accuracy_before"] == 1
    assert "Other tasks: accuracy 100.0% before" in workspace.file(made, "report.md").read_text()


def test_other_tasks_are_named_and_must_not_be_trained_on(workspace: Workspace) -> None:
    tasks, texts = workspace.get("tasks"), workspace.get("texts")
    topics = write_instructions(workspace, "topics", {"heldout": [other(number) for number in range(3)]})
    short = SETTINGS.model_copy(update={"epochs": 1})
    _, _, report = tune_with_report(
        workspace, "mini", [tasks], HeldOut([tasks], [texts], other=[topics]), short
    )
    assert report["others"]["accuracy"]["rows"] == 3 and report["accuracy"]["rows"] == 8
    leaked = write_instructions(workspace, "leaked", {"heldout": [instruction(0)]})
    with pytest.raises(UserError, match="1 rows of dataset/leaked@1 are among the training rows"):
        tune_with_report(workspace, "mini", [tasks], HeldOut([tasks], [texts], other=[leaked]), short)


def test_held_out_tasks_that_are_not_trained_are_reported_apart(workspace: Workspace) -> None:
    tasks, texts = workspace.get("tasks"), workspace.get("texts")
    mixed = write_instructions(workspace, "mixed", {"heldout": [instruction(90), other(1), other(2)]})
    _, _, report = tune_with_report(
        workspace, "mini", [tasks], HeldOut([mixed], [texts]), SETTINGS.model_copy(update={"epochs": 1})
    )
    assert report["accuracy"]["rows"] == 1 and report["others"]["accuracy"]["rows"] == 2


def test_rows_of_no_task_that_is_tuned_on_are_not_called_learnt(workspace: Workspace) -> None:
    tasks, texts = workspace.get("tasks"), workspace.get("texts")
    apart = write_instructions(
        workspace, "apart", {"heldout": [other(1), other(2)], "unseen": [other(3), other(4)]}
    )
    short = SETTINGS.model_copy(update={"epochs": 1})
    _, made, report = tune_with_report(workspace, "mini", [tasks], HeldOut([apart], [texts]), short)
    assert report["accuracy"] is None and report["tasks"] == []
    assert report["others"]["accuracy"]["rows"] == 2
    told = workspace.file(made, "report.md").read_text()
    assert "Learnt: not measured" in told and "Learnt: accuracy" not in told
    assert "accuracy_after" not in made.figures and "other_accuracy_after" in made.figures
    # A split that is named is what such a tuning is to be good at.
    _, _, report = tune_with_report(workspace, "mini", [tasks], HeldOut([apart], split="unseen"), short)
    assert report["accuracy"]["rows"] == 2 and report["others"] is None


def test_every_dataset_that_is_tuned_on_is_measured(workspace: Workspace) -> None:
    rows = [other(number) for number in range(12)]
    write_instructions(workspace, "topics", {"train": rows[:8], "heldout": rows[8:]})
    write_instructions(workspace, "bare", {"train": [other(90, "genre")]})
    arguments = ["mini", "--epochs", "1", "batch_size=4", "precision=float32", "--json"]
    for name in ("tasks", "topics", "bare"):
        arguments += ["--data", name]
    done = run(workspace, *arguments)
    assert done.exit_code == 0, done.exception
    report = json.loads(done.stdout)
    assert [(line["task"], line["rows"]) for line in report["tasks"]] == [("sentiment", 8), ("topic", 4)]
    assert report["held_out"] == ["dataset/tasks@1", "dataset/topics@1"]
    assert "dataset/bare@1: no rows are held out" in done.stderr


def test_a_file_without_held_out_rows_is_not_measured_on_other_tasks_as_if_learnt(
    workspace: Workspace, tmp_path: Path
) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps(instruction(number).as_dict()) for number in range(100, 108)))
    shipped = write_instructions(workspace, "instructions", {"train": [other(1)], "heldout": [other(2)]})
    done = run(workspace, "mini", "--data", str(file), "--epochs", "1", "--held-out", shipped.ref)
    assert done.exit_code == 0, done.exception
    assert "Learnt: not measured" in done.stdout and "Other tasks: accuracy" in done.stdout


def test_a_prompt_cannot_be_protected_and_the_default_of_epochs_is_told(workspace: Workspace) -> None:
    refused = run(workspace, "mini", "--data", "tasks", "--prompt", "--protect")
    assert isinstance(refused.exception, UserError)
    assert "drop protect" in str(refused.exception) and "kl" not in str(refused.exception)
    (epochs,) = [line for line in run(workspace, "--help").stdout.splitlines() if "--epochs" in line]
    assert f"(default: {TuneSettings().epochs:g})" in epochs


def prediction(right: bool) -> Prediction:
    return Prediction("x", "qa", "es", "sí", "sí" if right else "no", None, 0)


def test_the_change_is_paired_row_by_row() -> None:
    before, after = [True] * 50 + [False] * 50, [True] * 60 + [False] * 40
    total = compared(([prediction(b) for b in before], []), ([prediction(a) for a in after], []))["accuracy"]
    assert (total["before"], total["after"], total["change"]) == (0.5, 0.6, pytest.approx(0.1))
    # Ten rows changed, all for the better: sure to be a gain. Unpaired, 0.5 and 0.6 of 100 would not differ.
    assert 0.03 < total["low"] < 0.1 < total["high"] < 0.18


def test_texts_are_compared_by_rouge_row_by_row() -> None:
    def written(*texts: str) -> list[Prediction]:
        return [Prediction("x", "summary", "es", "la casa roja", text, None, 0) for text in texts]

    (line,) = compared_tasks(written("el mar", "la casa"), written("la casa roja", "la casa"))
    # The first row went from nothing in common to all of it, the second stayed at 0.8.
    assert (line["metric"], line["change"]) == ("rougeL", pytest.approx(0.5))
    assert line["before"]["rougeL"] == pytest.approx(0.4) and line["after"]["rougeL"] == pytest.approx(0.9)
    assert 0 <= line["low"] <= 0.5 <= line["high"] <= 1


def run(workspace: Workspace, *arguments: str) -> Any:
    app = typer.Typer()
    app.command()(yunque.cli.tune.tune)
    return CliRunner().invoke(
        app, list(arguments), env={"YUNQUE_WORKSPACE": str(workspace.root), "COLUMNS": "200"}
    )


def test_the_command_prints_the_report(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    lines = [json.dumps(instruction(number).as_dict()) for number in range(100, 108)]
    file.write_text("\n".join([*lines, "nope"]))
    arguments = ("mini", "--data", str(file), "--held-out", "tasks", "--epochs", "1", "batch_size=4")
    refused = run(workspace, *arguments)
    assert isinstance(refused.exception, UserError) and "mine.jsonl:9" in str(refused.exception)
    done = run(workspace, *arguments, "--skip-bad", "--name", "tuned")
    assert done.exit_code == 0, done.exception
    assert "Learnt: accuracy" in done.stdout and "Forgotten: loss on dataset/texts@1 (test" in done.stdout
    assert "left out" in done.stderr and "model/tuned@1" in done.stderr
    assert workspace.get("tuned", "model").parents == ("model/mini@1", "dataset/mine@1")
    assert isinstance(run(workspace, "mini", "batchsize=4").exception, UserError)
