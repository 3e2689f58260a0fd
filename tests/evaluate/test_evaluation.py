"""Evaluations of a real, tiny model: the figures, and what is kept."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import yunque.cli.evaluate
from yunque.data.dataset import write_dataset
from yunque.data.instructions import InstructionRow, write_instructions
from yunque.data.row import Row, Source, row_id
from yunque.errors import UserError
from yunque.evaluate.evaluation import (
    EvaluationSettings,
    compare_files,
    evaluate_model,
    first_of_each,
    instruction_dataset,
)
from yunque.evaluate.loss import text_loss
from yunque.generate.engine import Engine
from yunque.workspace import Artifact, Workspace

TEXTS = ["El niño lleva una maleta.", "One suitcase of 23 kg.", "¿Qué opina? Es positivo."]


def text_row(text: str) -> Row:
    return Row(row_id("a.md", text), text, "es", Source("a.md", "0" * 64, "line 1"), "a.md")


def instruction(number: int, task: str, answer: str, labels: tuple[str, ...] | None) -> InstructionRow:
    return InstructionRow(f"r{number}", task, "es", "t", f"¿Qué opina el texto {number}?", "", answer, labels)


ROWS = [
    instruction(1, "sentiment", "positivo", ("positivo", "negativo")),
    instruction(2, "sentiment", "negativo", ("positivo", "negativo")),
    instruction(3, "qa", "una maleta", None),
]


@pytest.fixture
def workspace(tmp_path: Path, put_tiny_model: Callable[..., Artifact]) -> Workspace:
    made = Workspace.open(tmp_path / "ws")
    put_tiny_model(made)
    splits = {"train": [text_row("train")], "validation": [], "test": [text_row(text) for text in TEXTS]}
    write_dataset(made, "texts", splits, {}, [], {})
    write_instructions(made, "tasks", {"heldout": ROWS})
    return made


def evaluated(workspace: Workspace, **settings: Any) -> tuple[Artifact, dict[str, Any]]:
    return evaluate_model(
        workspace, "mini", workspace.get("texts"), workspace.get("tasks"), EvaluationSettings(**settings)
    )


def test_the_loss_on_text_is_that_of_a_plain_forward_pass(workspace: Workspace) -> None:
    engine = Engine.open(workspace, "mini")
    measured = text_loss(engine, [text_row(text) for text in TEXTS], 10_000)
    nats, tokens = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([engine.tokenizer.end_id, *engine.tokenizer.encode(text), engine.tokenizer.end_id])
        logits = engine.model(ids[None, :-1])[0]
        nats += float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum"))
        tokens += len(ids) - 1
    assert (measured.rows, measured.tokens) == (3, tokens)
    assert measured.loss == pytest.approx(nats / tokens, rel=1e-5)
    assert measured.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert measured.bits_per_byte == pytest.approx(
        nats / math.log(2) / sum(len(t.encode()) for t in TEXTS), rel=1e-5
    )
    # Whole rows only, and no more of them than are needed.
    assert text_loss(engine, [text_row(text) for text in TEXTS], 1).rows == 1


def test_an_evaluation_is_kept_with_its_lineage_and_every_answer(workspace: Workspace) -> None:
    made, results = evaluated(workspace, max_new_tokens=3)
    assert made.ref == "evaluation/mini@1"
    assert made.parents == ("model/mini@1", "dataset/texts@1", "dataset/tasks@1")
    assert json.loads(workspace.file(made, "results.json").read_text()) == results
    lines = workspace.file(made, "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["r1", "r2", "r3"]
    assert results["text"]["data"] == "dataset/texts@1" and results["text"]["split"] == "test"
    assert {line["task"]: line["rows"] for line in results["tasks"]} == {"qa": 1, "sentiment": 2}
    sentiment = next(line for line in results["tasks"] if line["task"] == "sentiment")
    # A model that does not look at the question says the same label twice, and is right once.
    assert sentiment["chance"] == 0.5 and sentiment["accuracy"] in (0, 0.5, 1)
    assert evaluated(workspace, max_new_tokens=3)[0] == made


def test_a_row_that_is_too_long_is_wrong_and_counted(workspace: Workspace) -> None:
    long = InstructionRow("long", "qa", "es", "t", "palabra " * 200, "", "sí")
    tasks = write_instructions(workspace, "long", {"heldout": [long]})
    _, results = evaluate_model(workspace, "mini", None, tasks, EvaluationSettings())
    assert (results["tasks"][0]["too_long"], results["tasks"][0]["accuracy"]) == (1, 0)


def test_rows_of_each_keeps_the_first_of_each_task() -> None:
    assert [row.id for row in first_of_each(ROWS, 1)] == ["r1", "r3"]
    assert first_of_each(ROWS, None) == ROWS


def test_what_cannot_be_measured_is_said(workspace: Workspace) -> None:
    with pytest.raises(UserError, match="has no split 'nada'"):
        evaluated(workspace, split="nada")
    with pytest.raises(UserError, match="does not tell the likelihood"):
        evaluate_model(
            workspace, "http://127.0.0.1:9/v1#m", workspace.get("texts"), None, EvaluationSettings()
        )


def test_a_file_of_instructions_becomes_a_dataset(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "Mis Tareas.jsonl"
    file.write_text("".join(json.dumps(row.as_dict()) + "\n" for row in ROWS))
    assert instruction_dataset(workspace, str(file), "heldout").ref == "dataset/mis-tareas@1"
    assert instruction_dataset(workspace, "tasks", "heldout").ref == "dataset/tasks@1"
    with pytest.raises(UserError, match=r"nada\.jsonl: no such file"):
        instruction_dataset(workspace, "nada.jsonl", "heldout")


def test_two_files_are_compared_line_by_line(tmp_path: Path) -> None:
    predictions, references = tmp_path / "p.txt", tmp_path / "r.txt"
    predictions.write_bytes("un ano\r\nan\u0303o nuevo\u2028feliz".encode())
    references.write_text("un año\naño nuevo\u2028feliz\n")
    assert compare_files(predictions, references)["exact_match"] == 0.5
    references.write_text("una línea\n")
    with pytest.raises(UserError, match="2 predictions cannot be compared with 1 references"):
        compare_files(predictions, references)
    references.write_bytes(b"\xff")
    with pytest.raises(UserError, match="is not UTF-8"):
        compare_files(predictions, references)


def run(workspace: Workspace, *arguments: str) -> Any:
    import typer

    app = typer.Typer()
    app.command()(yunque.cli.evaluate.evaluate)
    return CliRunner().invoke(
        app, list(arguments), env={"YUNQUE_WORKSPACE": str(workspace.root), "COLUMNS": "200"}
    )


def test_the_command_prints_a_table_or_json(workspace: Workspace, tmp_path: Path) -> None:
    shown = run(workspace, "mini", "--data", "texts", "--instructions", "tasks")
    assert shown.exit_code == 0, shown.exception
    assert "perplexity" in shown.stdout and "sentiment" in shown.stdout and "ROUGE 1/2/L" in shown.stdout
    value = json.loads(run(workspace, "mini", "--instructions", "tasks", "--json").stdout)
    assert value["model"] == "model/mini@1" and value["text"] is None
    file = tmp_path / "a.txt"
    file.write_text("el niño\n")
    plain = json.loads(run(workspace, "--predictions", str(file), "--references", str(file), "--json").stdout)
    assert plain["exact_match"] == 1
    for wrong in (
        [],
        ["--predictions", str(file)],
        ["mini", "--predictions", str(file), "--references", str(file)],
    ):
        assert isinstance(run(workspace, *wrong).exception, UserError)


def test_bad_lines_of_a_file_are_left_out_when_asked(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROWS[0].as_dict()) + "\nno\n")
    refused = run(workspace, "mini", "--instructions", str(file))
    assert isinstance(refused.exception, UserError) and "rows.jsonl:2" in str(refused.exception)
    kept = run(workspace, "mini", "--instructions", str(file), "--skip-bad", "--json")
    assert json.loads(kept.stdout)["skipped"] == 1 and "rows.jsonl:2" in kept.stderr
