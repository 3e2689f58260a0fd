import json
import unicodedata

import pytest

from yunque.data.language import detect_language
from yunque.data.preferences import (
    add_preferences,
    parse_preference,
    preference_split,
    prompt_split,
    read_preferences,
    read_prompts,
    shipped_preferences,
    write_preferences,
)
from yunque.errors import UserError
from yunque.workspace import Workspace

GOOD = {"id": "a", "prompt": "¿Qué tal?", "chosen": "Muy bien, gracias.", "rejected": "Regular."}


def lines(path, *rows) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def test_a_prompt_is_a_text_or_a_conversation() -> None:
    assert parse_preference(GOOD).prompt == (("user", "¿Qué tal?"),)
    said = [{"role": "system", "content": "Sé amable."}, {"role": "user", "content": "Hola"}]
    row = parse_preference({**GOOD, "prompt": said})
    assert row.prompt == (("system", "Sé amable."), ("user", "Hola"))
    assert parse_preference(row.as_dict()) == row


def test_a_row_without_an_id_is_called_after_its_content() -> None:
    bare = {name: value for name, value in GOOD.items() if name != "id"}
    name = parse_preference(bare).id
    assert name == parse_preference(dict(reversed(bare.items()))).id
    assert name != parse_preference({**bare, "chosen": "Bien."}).id


def test_accents_typed_in_two_ways_are_one_text() -> None:
    apart = unicodedata.normalize("NFD", GOOD["prompt"])
    assert apart != GOOD["prompt"]
    assert parse_preference({**GOOD, "prompt": apart}) == parse_preference(GOOD)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"chosen": None}, "'chosen' must be text, not NoneType"),
        ({"rejected": " "}, "'rejected' is empty"),
        ({"rejected": GOOD["chosen"]}, "the same text"),
        ({"prompt": 3}, "'prompt' must be text, not int"),
        ({"prompt": []}, "the last message of 'prompt' must be the user's"),
        ({"prompt": [{"role": "assistant", "content": "Hola"}]}, "must be the user's"),
        ({"prompt": [{"role": "boss", "content": "Hola"}]}, "message 1 of 'prompt': 'role' must be one of"),
        (
            {"prompt": [{"role": "user", "content": ""}]},
            "message 1 of 'prompt': the field 'content' is empty",
        ),
        ({"prompt": ["Hola"]}, "message 1 of 'prompt' must be an object"),
        ({"id": 7}, "'id' must be text"),
    ],
)
def test_a_wrong_field_is_told_with_file_and_line(tmp_path, change, told) -> None:
    path = tmp_path / "p.jsonl"
    lines(path, GOOD, "", {**GOOD, "id": "b", **change})
    with pytest.raises(UserError) as caught:
        read_preferences(path)
    assert f"{path}:3: " in str(caught.value) and told in str(caught.value)
    assert "--skip-bad" in str(caught.value)


def test_bad_lines_are_left_out_and_told_where_that_is_wanted(tmp_path) -> None:
    path = tmp_path / "p.jsonl"
    missing = {"id": "c", "prompt": "x", "chosen": "y"}
    lines(path, "{", missing, [1], GOOD, GOOD)
    told: list[str] = []
    assert [row.id for row in read_preferences(path, told.append)] == ["a"]
    assert [sentence.removeprefix(f"{path}:").split(":")[0] for sentence in told] == ["1", "2", "3", "5"]
    assert "not valid JSON" in told[0] and "'rejected' is missing" in told[1] and "that of line 4" in told[3]
    path.write_bytes(b"\xff\n")
    with pytest.raises(UserError, match="holds no preference row"):
        read_preferences(path, told.append)
    assert "not UTF-8" in told[-1]


def test_a_byte_order_mark_and_blank_lines_are_no_rows(tmp_path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n")
    assert len(read_preferences(path)) == 1


def test_prompts_need_no_answers_and_absent_files_are_told(tmp_path) -> None:
    path = tmp_path / "p.jsonl"
    lines(path, {"prompt": "Hola"}, {"prompt": "Adiós", "chosen": ""})
    assert [row.prompt[0][1] for row in read_prompts(path)] == ["Hola", "Adiós"]
    with pytest.raises(UserError, match="'chosen' is missing"):
        read_preferences(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path / "none.jsonl")


def test_a_dataset_of_preferences_gives_its_rows_back(tmp_path) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    path = tmp_path / "p.jsonl"
    lines(path, GOOD)
    made = add_preferences(workspace, "mine", {"train": path, "heldout": path})
    assert preference_split(workspace, made, "train") == read_preferences(path)
    assert made.figures == {"train_rows": 1, "heldout_rows": 1}
    assert preference_split(workspace, made, "test") == []
    prompts = write_preferences(workspace, "asked", {"train": read_prompts(path)})
    assert prompt_split(workspace, prompts, "train")[0].id == "a"
    with pytest.raises(UserError, match="holds no preference rows"):
        preference_split(workspace, prompts, "train")
    other = workspace.put("dataset", "other", {"train.jsonl": b"{}"})
    with pytest.raises(UserError, match="holds no prompts"):
        prompt_split(workspace, other, "train")


def test_the_shipped_rows_are_in_both_languages_and_the_better_answers_say_more(tmp_path) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    rows = preference_split(workspace, shipped_preferences(workspace), "train")
    assert len(rows) >= 60
    by_language = [[row for row in rows if row.id.startswith(language)] for language in ("es", "en")]
    assert len(by_language[0]) == len(by_language[1]) == len(rows) // 2
    assert sum(detect_language(row.prompt[0][1]) == row.id[:2] for row in rows) > 0.9 * len(rows)
    assert len({row.prompt for row in rows}) == len(rows)
