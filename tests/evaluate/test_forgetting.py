"""The forgetting matrix: its arithmetic against a case made by hand, and the command on tiny models."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import yunque.cli.forgetting
from yunque.data.dataset import write_dataset
from yunque.data.instructions import InstructionRow, write_instructions
from yunque.data.row import Row, Source, row_id
from yunque.errors import UserError
from yunque.evaluate.forgetting import (
    Loss,
    assembled,
    draw_matrix,
    forgetting_matrix,
    matrix_markdown,
    matrix_rows,
)
from yunque.evaluate.tasks import Prediction
from yunque.tokenizer import Tokenizer
from yunque.workspace import Artifact, Workspace

COLUMNS = [
    {"name": "genre", "kind": "accuracy", "data": "dataset/a@1", "rows": 10},
    {"name": "qa", "kind": "accuracy", "data": "dataset/a@1", "rows": 5},
    {"name": "docs", "kind": "loss", "data": "dataset/docs@1"},
]


def answers(*right: int) -> list[Prediction]:
    """Rows of which so many are right: 10 of the first column, 5 of the second."""
    found = []
    for count, (task, rows) in zip(right, (("genre", 10), ("qa", 5)), strict=True):
        found += [
            Prediction(f"{task}{n}", task, "en", "yes", "yes" if n < count else "no", None, 0)
            for n in range(rows)
        ]
    return found


def by_hand() -> dict[str, Any]:
    measured = [(answers(2, 4), [Loss(3.0)]), (answers(9, 1), [Loss(3.5)]), (answers(8, 4), [Loss(2.9)])]
    return assembled(
        ["model/base@1", "model/one@1", "model/all@1"], COLUMNS, measured, [set(), {"genre"}, {"genre", "qa"}]
    )


def test_cells_are_those_worked_out_by_hand() -> None:
    matrix = by_hand()
    base, one, both = matrix["cells"]
    assert [cell["value"] for cell in base] == [0.2, 0.8, 3.0]
    assert [cell["forgotten"] for cell in base] == [0, 0, 0]
    assert [cell["value"] for cell in one] == [0.9, 0.2, 3.5]
    assert [cell["forgotten"] for cell in one] == pytest.approx([-0.7, 0.6, 0.5])
    assert [cell["tuned"] for cell in one] == [True, False, False]
    # Three of five rows were right before and are not now: the interval is paired, and far from 0.
    assert 0 < one[1]["forgotten_low"] < 0.6 < one[1]["forgotten_high"] <= 1
    assert [cell["tuned"] for cell in both] == [True, True, False]
    assert matrix["summary"][1] == {
        "model": "model/one@1",
        "learnt": pytest.approx(0.7),
        "forgotten": pytest.approx(0.6),
        "forgotten_loss": pytest.approx(0.5),
    }
    # Tuned on both tasks: nothing that it was not tuned on is there to be forgotten, and text got better.
    assert matrix["summary"][2]["learnt"] == pytest.approx((0.6 + 0.0) / 2)
    assert matrix["summary"][2]["forgotten"] is None
    assert matrix["summary"][2]["forgotten_loss"] == pytest.approx(-0.1)


def test_a_cell_with_the_sign_turned_is_noticed() -> None:
    """The control: the same check fails where forgetting is counted the wrong way round, or of another model."""
    matrix = by_hand()
    with pytest.raises(AssertionError):
        assert [-cell["forgotten"] for cell in matrix["cells"][1]] == pytest.approx([-0.7, 0.6, 0.5])
    with pytest.raises(AssertionError):
        assert [cell["forgotten"] for cell in matrix["cells"][2]] == pytest.approx([-0.7, 0.6, 0.5])


def test_the_matrix_is_drawn_and_told() -> None:
    matrix = by_hand()
    assert draw_matrix(matrix).startswith(b"\x89PNG")
    head, rows = matrix_rows(matrix)
    assert head == ["model", "genre", "qa", "docs"]
    assert rows[0][0] == "base@1" and rows[0][3] == "3.000"
    assert rows[1][1].startswith("90 (") and rows[1][1].endswith(" +70*")
    assert rows[1][2].endswith(" -60") and rows[1][3] == "3.500 +0.500"
    assert "| one@1 | +70.0 | +60.0 | +0.500 |" in matrix_markdown(matrix)


def instruction(number: int, task: str) -> InstructionRow:
    return InstructionRow(f"{task}{number}", task, "es", "t", f"¿{task} {number}?", "", "sí", ("sí", "no"))


def text_row(number: int) -> Row:
    text = f"Cada pasajero puede llevar una maleta de {number} kg. " * 4
    return Row(row_id("a.md", text), text, "es", Source("a.md", "0" * 64, f"line {number}"), f"{number}")


@pytest.fixture
def workspace(tmp_path: Path, put_tiny_model: Callable[..., Artifact]) -> Workspace:
    made = Workspace.open(tmp_path / "ws")
    rows = [text_row(number) for number in range(12)]
    texts = write_dataset(made, "texts", {"train": rows[:8], "test": rows[8:]}, {}, [], {})
    base = put_tiny_model(made, "mini", (texts,))
    splits = {
        "train": [instruction(n, "tono") for n in range(4)],
        "heldout": [instruction(n, task) for task in ("tono", "tema") for n in range(10, 14)],
    }
    tasks = write_instructions(made, "tasks", splits)
    put_tiny_model(made, "child", (base, tasks))
    return made


def test_models_are_measured_on_every_task_and_text(workspace: Workspace) -> None:
    tasks, texts = workspace.get("tasks"), workspace.get("texts")
    made, matrix = forgetting_matrix(workspace, ["mini", "child"], [tasks], [texts])
    assert [column["name"] for column in matrix["columns"]] == ["tono", "tema", "texts"]
    assert [column["rows"] for column in matrix["columns"][:2]] == [4, 4]
    assert matrix["columns"][0]["chance"] == 0.5
    # The same weights under another name forgot nothing, and the lineage tells what they were tuned on.
    assert [cell["forgotten"] for cell in matrix["cells"][1]] == [0, 0, 0]
    assert [cell["tuned"] for cell in matrix["cells"][1]] == [True, False, False]
    assert made.ref == "report/mini-forgetting@1"
    assert set(made.files) == {"matrix.json", "matrix.md", "matrix.png", "answers.jsonl"}
    assert json.loads(workspace.file(made, "matrix.json").read_text()) == matrix
    assert len(workspace.file(made, "answers.jsonl").read_text().splitlines()) == 16
    fewer = forgetting_matrix(workspace, ["mini", "child"], [tasks], [], rows_of_each=2)[1]
    assert [column["rows"] for column in fewer["columns"]] == [2, 2]


def test_versions_of_a_dataset_and_tasks_of_one_name_stay_apart(workspace: Workspace) -> None:
    first = workspace.get("tasks")
    more = write_instructions(
        workspace, "tasks", {"heldout": [instruction(n, "tono") for n in range(20, 23)]}
    )
    last = write_instructions(
        workspace, "tasks", {"heldout": [instruction(n, "tono") for n in range(30, 35)]}
    )
    assert len({first.ref, more.ref, last.ref}) == 3
    _, matrix = forgetting_matrix(workspace, ["mini", "child"], [first, more, last, last])
    assert [(column["name"], column["rows"]) for column in matrix["columns"]] == [
        ("tono", 4),
        ("tema", 4),
        ("tono (dataset/tasks@2)", 3),
        ("tono (dataset/tasks@3)", 5),
    ]


def test_losses_of_different_tokens_are_not_compared() -> None:
    measured = [(answers(2, 4), [Loss(3.0, "a")]), (answers(2, 4), [Loss(2.0, "b")])]
    matrix = assembled(["model/base@1", "model/other@1"], COLUMNS, measured, [set(), set()])
    assert matrix["cells"][1][2] == {"value": 2.0, "forgotten": None, "tuned": False}
    assert matrix["summary"][1]["forgotten_loss"] is None
    assert matrix_rows(matrix)[1][1][3] == "2.000"
    assert draw_matrix(matrix).startswith(b"\x89PNG")
    # The same tokens are.
    measured[1] = (answers(2, 4), [Loss(2.0, "a")])
    matrix = assembled(["model/base@1", "model/other@1"], COLUMNS, measured, [set(), set()])
    assert matrix["cells"][1][2]["forgotten"] == -1.0


def test_a_model_with_another_tokenizer_has_a_loss_and_no_change(
    workspace: Workspace, tiny_model_files: Mapping[str, bytes]
) -> None:
    other = Tokenizer.train(["Otra cosa, otros trozos: mar y tierra."] * 3, vocab_size=280)
    workspace.put("model", "other", {**tiny_model_files, "tokenizer.json": other.to_json().encode()})
    _, matrix = forgetting_matrix(workspace, ["mini", "child", "other"], [], [workspace.get("texts")])
    first, child, other_cell = (cells[0] for cells in matrix["cells"])
    assert child["forgotten"] == 0.0 and first["forgotten"] == 0.0
    assert other_cell["value"] > 0 and other_cell["forgotten"] is None


def test_what_makes_no_matrix_is_told(workspace: Workspace) -> None:
    tasks = workspace.get("tasks")
    with pytest.raises(UserError, match="two models or more"):
        forgetting_matrix(workspace, ["mini"], [tasks])
    with pytest.raises(UserError, match="each once"):
        forgetting_matrix(workspace, ["mini", "child", "model/mini@1"], [tasks])
    with pytest.raises(UserError, match="nothing to measure"):
        forgetting_matrix(workspace, ["mini", "child"], [])
    with pytest.raises(UserError, match="no test or validation split"):
        forgetting_matrix(workspace, ["mini", "child"], [tasks], [tasks])


def test_the_command_shows_the_matrix(workspace: Workspace) -> None:
    app = typer.Typer()
    app.command()(yunque.cli.forgetting.forgetting)
    environment = {"YUNQUE_WORKSPACE": str(workspace.root), "COLUMNS": "200"}
    shown = CliRunner().invoke(app, ["mini", "child", "--instructions", "tasks"], env=environment)
    assert shown.exit_code == 0, shown.exception
    assert "tema" in shown.stdout and "child@1" in shown.stdout and "tuned on this task" in shown.stdout
    arguments = [
        "mini",
        "child",
        "--instructions",
        "tasks",
        "--json",
        "--picture",
        str(workspace.root / "m.png"),
    ]
    told = CliRunner().invoke(app, arguments, env=environment)
    value = json.loads(told.stdout)
    assert value["models"] == ["model/mini@1", "model/child@1"]
    assert value["picture"] == str(workspace.root / "m.png")
    assert Path(value["picture"]).read_bytes().startswith(b"\x89PNG")
