"""Labelling a column: agreement, doubts, people, bad rows, and a run that is killed."""

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from yunque.apps.tasks import Labelling, Rater, find_task, label_rows, read_table
from yunque.apps.tasks.agreement import cohen_kappa, krippendorff_alpha
from yunque.apps.tasks.labelling import LabelReport, majority
from yunque.errors import UserError
from yunque.llm import Message, ModelUnavailable, ScriptedModel

TEXTS = ["refund my coat", "where is my parcel", "refund the parcel", "hello"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=40))
def test_kappa_is_that_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    one, other = [a for a, _ in pairs], [b for _, b in pairs]
    ours = cohen_kappa(one, other)
    if ours is None:
        assert len(set(one + other)) == 1
    else:
        assert ours == pytest.approx(cohen_kappa_score(one, other))


def test_alpha_is_that_of_its_author() -> None:
    """The nominal example with missing labels of Krippendorff (2011), section C: alpha is 0.743."""
    data = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    units = [[None if row[n] is None else str(row[n]) for row in data] for n in range(12)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=0.0005)
    assert krippendorff_alpha([["a", "b"], ["b", "a"]]) < 0  # type: ignore[operator]
    assert krippendorff_alpha([["a", "a"], ["b", "b"]]) == 1
    assert krippendorff_alpha([["a", "a"]]) is None


@given(st.lists(st.sampled_from(["a", "b", None]), max_size=6))
def test_a_majority_is_more_than_half(given: list[str | None]) -> None:
    chosen = majority(given)
    count = sum(one is not None for one in given)
    assert (chosen is None) == (not any(2 * given.count(label) > count for label in ("a", "b")))


def _said(rule: Callable[[str], str]) -> Callable[[Sequence[Message]], str]:
    return lambda messages: json.dumps({"label": rule(messages[-1].content)})


FIRST = _said(lambda text: "refund" if "refund" in text else "delivery")
SECOND = _said(lambda text: "delivery" if "parcel" in text or "hello" in text else "refund")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "mails.csv"
    path.write_text("id;text\n" + "".join(f"{n};{text}\n" for n, text in enumerate(TEXTS)), encoding="utf-8")
    return path


def _label(table: Path, *models: ScriptedModel, **options: Any) -> LabelReport:
    people = options.pop("people", ())
    work = Labelling(
        read_table(table), "text", ["refund", "delivery"], table.with_suffix(".out.csv"), None, people
    )
    return label_rows(find_task(None, "classify"), work, [Rater(model) for model in models], **options)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=";"))


def test_models_vote_and_doubts_go_to_a_person_and_come_back(table: Path) -> None:
    one, two = ScriptedModel(FIRST, "one"), ScriptedModel(SECOND, "two")
    report = _label(table, one, two)
    assert report.rows == 4 and report.labelled == 3 and report.doubts == 1
    assert report.kappa["one / two"] == pytest.approx(
        cohen_kappa_score(["r", "d", "r", "d"], ["r", "d", "d", "d"])
    )
    out, queue = table.with_suffix(".out.csv"), table.with_suffix(".out.doubts.csv")
    assert [row["label"] for row in _rows(out)] == ["refund", "delivery", "", "delivery"]
    assert [(row["row"], row["text"]) for row in _rows(queue)] == [("3", "refund the parcel")]
    queue.write_text(queue.read_text().replace("they do not agree;", "they do not agree;refund"))
    asked = len(one.asked) + len(two.asked)
    again = _label(table, one, two, decisions=queue)
    assert again.decided == 1 and again.doubts == 0 and not queue.exists()
    assert [row["label"] for row in _rows(out)] == ["refund", "delivery", "refund", "delivery"]
    assert _rows(out)[2]["label_by"] == "person" and len(one.asked) + len(two.asked) == asked


def test_a_run_that_stops_goes_on_where_it_was(table: Path) -> None:
    replies: list[Any] = ['{"label": "refund"}', '{"label": "delivery"}', ModelUnavailable("gone")]
    with pytest.raises(ModelUnavailable):
        _label(table, ScriptedModel(replies, "one"))
    kept = table.with_suffix(".out.labels.jsonl")
    kept.write_bytes(kept.read_bytes() + b'{"row": 3, "key": "cu')  # a kill in the middle of a line
    rest = ScriptedModel(FIRST, "one")
    assert _label(table, rest).labelled == 4 and len(rest.asked) == 2
    assert not any(text in kept.read_text() for text in TEXTS)
    another = ScriptedModel(FIRST, "another")
    _label(table, another)
    assert len(another.asked) == 4


_SLOW = """
import json, sys, time
from pathlib import Path
from yunque.apps.tasks import Labelling, Rater, find_task, label_rows, read_table
from yunque.llm import ScriptedModel

def slow(messages):
    time.sleep(0.03)
    return json.dumps({"label": "refund"})

path = Path(sys.argv[1])
work = Labelling(read_table(path), "text", ["refund", "delivery"], path.with_suffix(".out.csv"))
label_rows(find_task(None, "classify"), work, [Rater(ScriptedModel(slow, "one"))])
"""


@pytest.mark.slow
def test_a_run_that_is_killed_loses_no_label(tmp_path: Path) -> None:
    path = tmp_path / "many.csv"
    path.write_text("text\n" + "".join(f"mail {n}\n" for n in range(300)), encoding="utf-8")
    kept = path.with_suffix(".out.labels.jsonl")
    process = subprocess.Popen([sys.executable, "-c", _SLOW, str(path)])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (kept.exists() and kept.read_bytes().count(b"\n") >= 5):
        time.sleep(0.02)
    process.kill()
    process.wait()
    labelled = kept.read_bytes().count(b"\n")
    assert 5 <= labelled < 300 and not path.with_suffix(".out.csv").exists()
    rest = ScriptedModel(lambda _: '{"label": "refund"}', "one")
    assert _label(path, rest).labelled == 300 and len(rest.asked) == 300 - labelled


def test_one_bad_row_does_not_stop_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(
        'id;text\n0;refund it\n1;a;b;c\n2;\n3;"two\nlines; refund"\n4;impossible\n', encoding="utf-8"
    )
    model = ScriptedModel(lambda m: "no idea" if "impossible" in str(m) else '{"label": "refund"}')
    report = _label(path, model)
    assert report.counts == {"refund": 2} and set(report.failed) == {2, 3, 5} and report.rows == 5
    assert (
        "4 cells" in report.failed[2]
        and "empty" in report.failed[3]
        and "no valid answer" in report.failed[5]
    )
    assert _rows(path.with_suffix(".out.csv"))[2]["text"] == "two\nlines; refund"


def test_people_vote_too_and_agree_or_not(table: Path) -> None:
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0] + ";ana", *(f"{line};refund" for line in lines[1:])]) + "\n")
    report = _label(table, ScriptedModel(FIRST, "one"), people=["ana"])
    assert set(report.kappa) == {"one / ana"} and report.alpha is not None and report.doubts == 2


def test_a_label_of_a_person_that_is_none_is_told(table: Path) -> None:
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0] + ";ana", *(f"{line};Refund" for line in lines[1:])]) + "\n")
    report = _label(table, ScriptedModel(FIRST, "one"), people=["ana"])
    assert "'Refund' is none of the labels" in report.failed[1] and report.labelled == 4


def test_the_order_of_labels_can_be_tried(table: Path) -> None:
    def first_offered(messages: Sequence[Message]) -> str:
        return json.dumps(
            {
                "label": "refund"
                if messages[0].content.index("refund") < messages[0].content.index("delivery")
                else "delivery"
            }
        )

    model = ScriptedModel(first_offered, "one")
    work = Labelling(read_table(table), "text", ["refund", "delivery"], table.with_suffix(".o.csv"))
    report = label_rows(find_task(None, "classify"), work, [Rater(model), Rater(model, reversed=True)])
    assert report.doubts == 4 and report.labelled == 0


def test_a_doubt_is_no_formula_of_a_spreadsheet(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text('id;text\n0;"=HYPERLINK(""http://x"")"\n', encoding="utf-8")
    _label(path, ScriptedModel(["no"] * 3))
    assert _rows(path.with_suffix(".out.doubts.csv"))[0]["text"].startswith("'=")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "name the columns"),
        (b"a;a\n1;2\n", "same name"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"id;body\n1;x\n", "no column 'text'"),
    ],
)
def test_a_file_that_is_no_table_is_told(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        _label(path, ScriptedModel([]))


def test_a_decision_that_is_no_label_is_told_with_its_line(table: Path) -> None:
    decisions = table.with_name("d.csv")
    decisions.write_text("row,text,decision\n3,refund the parcel,refnd\n")
    with pytest.raises(UserError, match=r"d\.csv:2: 'refnd'"):
        _label(table, ScriptedModel(FIRST), decisions=decisions)


def _fill(queue: Path, text: str, label: str) -> None:
    rows = _rows(queue)
    for row in rows:
        row["decision"] = label if row["text"] == text else row["decision"]
    with queue.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def test_decisions_stay_when_the_doubts_are_decided_one_after_the_other(table: Path) -> None:
    one = ScriptedModel(lambda _: '{"label": "refund"}', "one")
    two = ScriptedModel(lambda _: '{"label": "delivery"}', "two")
    out, queue = table.with_suffix(".out.csv"), table.with_suffix(".out.doubts.csv")
    assert _label(table, one, two).doubts == 4
    for done, text in enumerate(TEXTS, 1):
        _fill(queue, text, "delivery")
        assert _label(table, one, two, decisions=queue).decided == done
    assert [row["label"] for row in _rows(out)] == ["delivery"] * 4 and not queue.exists()
    assert _label(table, one, two).decided == 4
    assert TEXTS[0] not in table.with_suffix(".out.labels.jsonl").read_text()


def test_a_decision_is_for_its_text_and_no_other(table: Path) -> None:
    one, two = ScriptedModel(FIRST, "one"), ScriptedModel(SECOND, "two")
    queue = table.with_suffix(".out.doubts.csv")
    _label(table, one, two)
    _fill(queue, "refund the parcel", "refund")
    wrong = table.with_name("wrong.csv")
    wrong.write_text(queue.read_text().replace("3;refund the parcel", "1;refund the parcel"))
    with pytest.raises(UserError, match=r"wrong\.csv:2: row 1 has another text"):
        _label(table, one, two, decisions=wrong)
    assert _label(table, one, two, decisions=queue).decided == 1
    head, rest = table.read_text().split("\n", 1)
    table.write_text(f"{head}\n9;refund first\n{rest}")
    assert _label(table, one, two).decided == 1  # in a row further down
    table.write_text(table.read_text().replace("refund the parcel", "refund that parcel"))
    assert _label(table, one, two).decided == 0


def test_a_cell_that_was_filled_in_is_never_dropped(table: Path) -> None:
    one, two = ScriptedModel(FIRST, "one"), ScriptedModel(SECOND, "two")
    queue = table.with_suffix(".out.doubts.csv")
    _label(table, one, two)
    _fill(queue, "refund the parcel", "refund")
    _label(table, one, two)  # without --decisions
    assert [(row["row"], row["decision"]) for row in _rows(queue)] == [("3", "refund")]
    assert _label(table, one).doubts == 0  # nobody disagrees
    assert [(row["row"], row["decision"]) for row in _rows(queue)] == [("3", "refund")]
    queue.write_text(queue.read_text().rstrip("\n") + ";too many\n")
    before = queue.read_bytes()
    with pytest.raises(UserError, match=r"doubts\.csv:2: "):
        _label(table, one, two)
    assert queue.read_bytes() == before
