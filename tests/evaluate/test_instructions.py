"""Reading instruction rows: a mistake in a file is named with its line and field."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from yunque.data.instructions import (
    add_instructions,
    read_instruction_split,
    read_instructions,
    shipped_instructions,
    write_instructions,
)
from yunque.errors import UserError
from yunque.workspace import Workspace

GOOD: dict[str, Any] = {
    "id": "es-1",
    "task": "sentiment",
    "language": "es",
    "template": "es-a",
    "instruction": "¿Qué opina?",
    "input": "Me encantó.",
    "answer": "positivo",
    "labels": ["positivo", "negativo"],
}


def written(path: Path, *lines: dict[str, Any] | bytes) -> Path:
    file = path / "rows.jsonl"
    encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    file.write_bytes(b"\n".join(encoded) + b"\n")
    return file


def without(field: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name != field}


def test_a_good_file_is_read_in_nfc(tmp_path: Path) -> None:
    decomposed = {**GOOD, "id": "es-2", "input": "an\u0303o", "labels": None}
    first, second = read_instructions(written(tmp_path, GOOD, b"", decomposed))
    assert first.question == "¿Qué opina?\n\nMe encantó."
    assert first.labels == ("positivo", "negativo")
    assert (second.input, second.labels) == ("año", None)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (without("answer"), "the field 'answer' is missing"),
        ({**GOOD, "answer": ""}, "the field 'answer' is empty"),
        ({**GOOD, "answer": "  \n"}, "the field 'answer' is empty"),
        ({**GOOD, "answer": 3}, "the field 'answer' must be text, not int"),
        ({**GOOD, "instruction": None}, "the field 'instruction' must be text"),
        ({**GOOD, "labels": "positivo"}, "'labels' must be a list"),
        ({**GOOD, "labels": ["positivo"]}, "at least two labels"),
        ({**GOOD, "labels": ["a", "b"]}, "is not one of the labels"),
        ({**GOOD, "anser": "x"}, "unknown field 'anser'"),
        (b"{nope", "is not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b'{"id": "\xff"}', "is not UTF-8 text"),
        ({**GOOD, "id": "first"}, "the id 'first' is that of line 1 too"),
    ],
)
def test_a_bad_line_is_named_or_left_out_and_counted(
    tmp_path: Path, line: dict[str, Any] | bytes, words: str
) -> None:
    file = written(tmp_path, {**GOOD, "id": "first"}, line, {**GOOD, "id": "last"})
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: .*{words}"):
        read_instructions(file)
    skipped: list[str] = []
    assert [row.id for row in read_instructions(file, skipped.append)] == ["first", "last"]
    assert len(skipped) == 1 and "rows.jsonl:2:" in skipped[0]


def test_a_text_that_stands_in_the_instruction_is_not_said_twice(tmp_path: Path) -> None:
    inside = {**GOOD, "instruction": "¿Qué opina? «Me encantó.»"}
    empty = {**GOOD, "id": "es-2", "input": ""}
    rows = read_instructions(written(tmp_path, inside, empty))
    assert [row.question for row in rows] == ["¿Qué opina? «Me encantó.»", "¿Qué opina?"]


def test_a_file_without_a_good_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no instruction row"):
        read_instructions(written(tmp_path, b"nope"), lambda _: None)
    with pytest.raises(UserError, match="cannot be read"):
        read_instructions(tmp_path / "absent.jsonl")


def test_rows_become_a_dataset_and_come_back_the_same(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    rows = read_instructions(written(tmp_path, GOOD, {**GOOD, "id": "es-2", "labels": None}))
    made = write_instructions(workspace, "instructions", {"train": rows[:1], "heldout": rows[1:]})
    assert made.ref == "dataset/instructions@1"
    assert made.figures == {"train_rows": 1, "heldout_rows": 1}
    assert read_instruction_split(workspace, made, "train") == rows[:1]
    assert read_instruction_split(workspace, made, "heldout") == rows[1:]
    assert write_instructions(workspace, "instructions", {"train": rows[:1], "heldout": rows[1:]}) == made
    other = workspace.put("dataset", "texts", {"rows.jsonl": b""})
    with pytest.raises(UserError, match="holds no instruction rows"):
        read_instruction_split(workspace, other, "train")


def test_a_dataset_of_files_keeps_where_they_came_from(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    file = written(tmp_path, GOOD)
    made = add_instructions(workspace, "mine", {"heldout": file})
    assert made.config["sources"] == [
        {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    ]


def test_the_shipped_set_is_large_balanced_and_shares_no_template_between_its_splits(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    made = shipped_instructions(workspace)
    train, held_out = (read_instruction_split(workspace, made, split) for split in ("train", "heldout"))
    assert len(train) >= 600 and len(held_out) >= 200
    assert not {row.template for row in train} & {row.template for row in held_out}
    assert not {row.input for row in train} & {row.input for row in held_out}
    kinds = {"sentiment", "genre", "qa", "summary"}
    assert {(row.task, row.language) for row in held_out} == {
        (kind, to) for kind in kinds for to in ("es", "en")
    }
    # No path of the machine on which it was installed.
    assert [source["file"] for source in made.config["sources"]] == [
        "samples/instructions/train.jsonl",
        "samples/instructions/heldout.jsonl",
    ]
