"""Reading task collections: every mistake is told with its file and line."""

import importlib.util
import json
import re
import tempfile
import unicodedata
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yunque.data.task_collections import read_task, read_tasks, shipped_tasks
from yunque.errors import UserError

YAML = """task: opposites
cluster: words
language: en
fields: [word, opposite]
answer: "{opposite}"
labels: null
templates:
  - What is the opposite of {word}?
  - instruction: "Not {word}, but"
inverted:
  - {instruction: "Whose opposite is {opposite}?", answer: "{word}"}
"""
ROWS = [{"word": "hot", "opposite": "cold"}, {"word": "año", "opposite": "{word} {"}]


def put(folder: Path, yaml: str | bytes = YAML, *lines: object, name: str = "opposites") -> Path:
    content = yaml if isinstance(yaml, bytes) else yaml.encode()
    (folder / f"{name}.yaml").write_bytes(content)
    encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines or ROWS]
    (folder / f"{name}.jsonl").write_bytes(b"\n".join(encoded) + b"\n")
    return folder


def test_a_task_is_read(tmp_path: Path) -> None:
    (task,) = read_tasks(put(tmp_path))
    assert (task.name, task.cluster, task.language, task.fields) == (
        "opposites",
        "words",
        "en",
        ("word", "opposite"),
    )
    assert [template.name for template in (*task.templates, *task.inverted)] == ["1", "2", "inverted-1"]
    asked = task.templates[0].ask(task.rows[0].values)
    assert (asked.instruction, asked.answer) == ("What is the opposite of hot?", "cold")
    assert task.templates[0].ask(task.rows[1].values).answer == "{word} {"


def test_accents_typed_in_two_ways_are_one_text(tmp_path: Path) -> None:
    def apart(text: str) -> str:
        return unicodedata.normalize("NFD", text)

    yaml = YAML.replace("words", "c").replace("word", "término")
    rows = [{"término": row["word"], "opposite": row["opposite"]} for row in ROWS]
    typed = [{apart(key): apart(value) for key, value in row.items()} for row in rows]
    assert typed != rows and apart(yaml) != yaml
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert read_tasks(put(tmp_path / "a", yaml, *rows)) == read_tasks(
        put(tmp_path / "b", apart(yaml), *typed)
    )


def test_yes_and_no_are_words_in_yaml(tmp_path: Path) -> None:
    """YAML 1.1 makes truth values of them, and numbers of digits: a label would be lost."""
    changed = YAML.replace("labels: null", "labels: [yes, no, 1, on]")
    changed = changed.replace('answer: "{word}"', 'answer: "{word}", labels: null')
    (task,) = read_tasks(put(tmp_path, changed, {"word": "x", "opposite": "yes"}))
    assert task.templates[0].ask(task.rows[0].values).labels == ("yes", "no", "1", "on")


@pytest.mark.parametrize(
    ("old", "new", "line", "told"),
    [
        ("cluster: words\n", "", 1, "the field 'cluster' is missing"),
        ("language: en", "language:", 3, "'language' is empty"),
        ("language: en", "language: [en]", 3, "'language' must be text"),
        ("language: en", "lenguaje: en", 3, "unknown field 'lenguaje'"),
        ("language: en", "language: en\nlanguage: es", 4, "has the field 'language' twice"),
        ("cluster: words", "cluster: Mis palabras", 2, "'cluster': use lower-case"),
        ("task: opposites", "task: others", 1, "must be called as its file is, 'opposites'"),
        ("fields: [word, opposite]", "fields: []", 4, "'fields' must be a list with something in it"),
        ("fields: [word, opposite]", "fields: [word, word]", 4, "'fields' must be names, each once"),
        ("fields: [word, opposite]", "fields: [word, labels]", 4, "none of them 'labels'"),
        ("fields: [word, opposite]", "fields: [word, a-b]", 4, "'fields' must be names"),
        ('"{opposite}"\nlabels', '"{nada}"\nlabels', 5, "the place '{nada}', which is no field"),
        ('answer: "{opposite}"\nlabels', "labels", 7, "template 1 has no 'answer'"),
        ("labels: null", "labels: [one]", 6, "'labels' must hold at least two labels"),
        ("labels: null", "labels: [one, one]", 6, "each once"),
        ("labels: null", "labels: one", 6, "'labels' must be a list"),
        ("of {word}?", "of {word?", 8, "the instruction of template 1 has a lone '{'"),
        ("of {word}?", "of a word?", 8, "template 1 has no {field} in it"),
        ("of {word}?", "of {labels}?", 8, "template 1 lists the labels, and there are none"),
        ("  - What is the opposite of {word}?", '  - ""', 8, "the instruction of template 1 is empty"),
        (
            '"Not {word}, but"',
            '"Not {word}, but"\n    anser: x',
            10,
            "template 2 has the unknown field 'anser'",
        ),
        (', answer: "{word}"', "", 11, "template inverted-1 has no 'answer'"),
        ("labels: null", "labels: [a", 7, "is not valid YAML"),
        ("labels: null", "labels: &x [a, b]\nmore: *x", 7, "aliases (*name) are not read here"),
    ],
)
def test_a_mistake_in_the_yaml_is_told_with_its_line(tmp_path, old, new, line, told) -> None:
    assert old in YAML
    put(tmp_path, YAML.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        read_tasks(tmp_path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{tmp_path / 'opposites.yaml'}:{line}: "), sentence
    assert told in sentence and "\n" not in sentence


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"word": "hot"}, "the field 'opposite' is missing"),
        ({"word": "hot", "opposite": " "}, "the field 'opposite' is empty"),
        ({"word": "hot", "opposite": 3}, "the field 'opposite' must be text, not int"),
        ({"word": "hot", "opposite": "x", "more": "y"}, "unknown field 'more'"),
        ({"word": "hot", "opposite": "\ud800"}, "half a character"),
        (ROWS[0], "says the same as a row above it"),
        ([], "must be a JSON object"),
        (b"{", "is not valid JSON"),
        (b'{"word": "a\xf1o"}', "is not UTF-8 text"),
    ],
)
def test_a_wrong_row_is_told_with_its_line_or_left_out(tmp_path, row, told) -> None:
    path = put(tmp_path, YAML, ROWS[0], row) / "opposites.jsonl"
    with pytest.raises(UserError) as caught:
        read_tasks(tmp_path)
    assert str(caught.value).startswith(f"{path}:2: ") and told in str(caught.value)
    left_out: list[str] = []
    (task,) = read_tasks(tmp_path, left_out.append)
    assert len(task.rows) == 1 and len(left_out) == 1 and told in left_out[0]


def test_an_answer_that_is_no_label_is_told_with_its_line(tmp_path: Path) -> None:
    put(
        tmp_path, YAML.replace("labels: null", "labels: [cold, dry]"), ROWS[0], {"word": "a", "opposite": "b"}
    )
    with pytest.raises(UserError, match=r"jsonl:2: template 1: the answer 'b' is not one of the labels"):
        read_tasks(tmp_path)


def test_a_yaml_that_is_not_utf8_is_told_with_its_line(tmp_path: Path) -> None:
    put(tmp_path, YAML.replace("words", "año").encode("latin-1"))
    with pytest.raises(UserError, match=r"opposites.yaml:2: is not UTF-8 text"):
        read_tasks(tmp_path)


def test_files_that_lack_their_other_half_are_told(tmp_path: Path) -> None:
    put(tmp_path)
    (tmp_path / "alone.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"alone.yaml: cannot be read"):
        read_tasks(tmp_path)
    left_out: list[str] = []
    assert [task.name for task in read_tasks(tmp_path, left_out.append)] == ["opposites"]
    assert len(left_out) == 1
    (tmp_path / "opposites.jsonl").unlink()
    with pytest.raises(UserError, match=r"opposites.jsonl: cannot be read"):
        read_task(tmp_path / "opposites.yaml")


def test_a_folder_without_tasks_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no task"):
        read_tasks(tmp_path)
    with pytest.raises(UserError, match="there is no such folder"):
        read_tasks(tmp_path / "nada")


def test_the_id_of_a_row_stays_when_rows_are_added_before_it(tmp_path: Path) -> None:
    before = read_tasks(put(tmp_path))[0].rows
    after = read_tasks(put(tmp_path, YAML, {"word": "new", "opposite": "old"}, *ROWS))[0].rows
    assert after[1:] == before


def test_the_shipped_collection_is_what_its_readme_says() -> None:
    tasks = shipped_tasks()
    assert len(tasks) >= 12 and len({task.cluster for task in tasks}) >= 5
    for task in tasks:
        assert len(task.templates) >= 4 and len(task.inverted) >= 1, task.name
        assert 40 <= len(task.rows) <= 120, task.name
        wordings = [template.instruction.wording for template in (*task.templates, *task.inverted)]
        assert len(set(wordings)) == len(wordings), task.name
        labels = task.templates[0].labels
        if labels and not any(label.places for label in labels):
            answers = [task.templates[0].ask(row.values).answer for row in task.rows]
            shares = [answers.count(label.literals[0]) / len(answers) for label in labels]
            assert max(shares) < 2 / len(labels), task.name


def asks_yes_or_no(template: str) -> bool:
    """Whether a question can be answered by yes or no alone: it begins with a verb and names no choice."""
    return bool(re.match(r"¿?(Is|Are|Does|Do|Can|Es|Son|Hay|Está) ", template)) and not re.search(
        r" (or|o|u) ", template
    )


def test_a_shipped_question_that_asks_yes_or_no_takes_no_other_answer() -> None:
    asked = [
        template.ask(task.rows[0].values)
        for task in read_tasks(Path(str(files("yunque") / "samples" / "tasks")))
        for template in task.templates
    ]
    asking = [each for each in asked if asks_yes_or_no(each.instruction)]
    assert asking
    assert not [each for each in asking if each.answer not in ("yes", "no", "sí")]
    assert asks_yes_or_no("¿Es perro una de estas cosas: animal, fruta?")
    assert not asks_yes_or_no("¿Cuál de estas cosas es perro: animal, fruta?")
    assert not asks_yes_or_no("Is this text positive or negative? No.")


def test_the_shipped_rows_are_what_their_sources_make() -> None:
    script = Path(__file__).parents[2] / "tools" / "build_tasks.py"
    spec = importlib.util.spec_from_file_location("build_tasks", script)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = Path(str(files("yunque") / "samples" / "tasks"))
    for path in sorted(folder.glob("*.jsonl")):
        assert module.build(path.stem) == path.read_text(encoding="utf-8").splitlines(), path.name


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The YAML of a good task with a piece of it put elsewhere, lost, or replaced by something else."""
    content = YAML.encode()
    start, end = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    piece = draw(
        st.binary(max_size=6) | st.sampled_from([b"{", b"}", b"[", b"- ", b": ", b"&a", b"!!set", b"\n"])
    )
    return content[:start] + piece + content[draw(st.sampled_from([start, end])) :]


@given(damaged() | st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_file_is_a_task_or_one_sentence(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        put(Path(folder), content)
        try:
            read_tasks(Path(folder))
        except UserError as error:
            assert "\n" not in str(error) and "opposites." in str(error)
