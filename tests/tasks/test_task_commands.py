"""`yunque task` and `yunque prompt` as a user types them, with a scripted model behind every name."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import yunque.llm.routing
from yunque.cli import prompt as prompt_command
from yunque.cli import task as task_command
from yunque.errors import UserError
from yunque.llm import ScriptedModel

Run = Callable[..., str]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What each model says; `asked` are the models that were opened."""
    said: dict[str, Any] = {"m": lambda _: "It is closed."}
    opened: list[ScriptedModel] = []

    def open_scripted(_: Any, name: str) -> ScriptedModel:
        opened.append(ScriptedModel(said[name], name))
        return opened[-1]

    monkeypatch.setattr(yunque.llm.routing, "open_bare", open_scripted)
    said["opened"] = opened
    return said


@pytest.fixture
def yunque_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in a folder with a workspace of its own; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YUNQUE_WORKSPACE", str(tmp_path / "ws"))
    root = typer.Typer(pretty_exceptions_enable=False)
    root.add_typer(task_command.app, name="task")
    root.add_typer(prompt_command.app, name="prompt")

    def run(*arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        try:
            root(args=list(arguments))
        except SystemExit as end:
            assert (end.code or 0) == code, capsys.readouterr()
        return capsys.readouterr().out

    return run


def test_a_file_is_summarized(yunque_run: Run, answers: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The square is closed because of the works, says the council.")
    assert yunque_run("task", "summarize", "a.txt", "-m", "m") == "It is closed.\n"
    told = json.loads(yunque_run("task", "summarize", "a.txt", "-m", "m", "--json", "--sentences", "1"))
    assert (
        told["value"] == "It is closed." and told["language"] == "en" and len(told["prompt_hashes"][0]) == 64
    )
    assert "at most 1 sentences" in answers["opened"][-1].asked[0][0].content


def test_standard_input_works(
    yunque_run: Run, answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers["m"] = ['{"label": "b"}']
    monkeypatch.setattr(sys, "stdin", io.StringIO("Some text"))
    assert yunque_run("task", "classify", "--labels", "a,b", "-m", "m") == "b\n"


def test_several_files_are_done_each_for_itself_and_not_twice(
    yunque_run: Run, answers: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("It is closed because of the works.")
    (tmp_path / "b.txt").write_text("")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "out").mkdir()
    yunque_run("task", "summarize", "a.txt", "b.txt", "c.txt", "-m", "m", "-o", "out", code=2)
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["a.txt.txt"]
    yunque_run("task", "summarize", "a.txt", "-m", "m", "-o", "out")
    assert [len(model.asked) for model in answers["opened"]] == [1]
    told = json.loads(yunque_run("task", "summarize", "a.txt", "b.txt", "-m", "m", "--json", code=2))
    assert [one["file"] for one in told] == ["a.txt"]


def test_files_of_one_name_in_two_folders_have_an_answer_each(
    yunque_run: Run, answers: dict[str, Any], tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "r.txt").write_text(f"It is closed because of the works in {folder}.")
    (tmp_path / "c.txt").write_text("It is closed because of the works.")
    answers["m"] = lambda said: "It is here." if "works in b" in said[-1].content else "It is closed."
    arguments = ("task", "summarize", "a/r.txt", "b/r.txt", "c.txt", "a/r.txt", "-m", "m", "-o", "out")
    for _ in range(2):
        yunque_run(*arguments)
        told = {one.name: one.read_text() for one in (tmp_path / "out").iterdir()}
        assert told == {
            "a-r.txt.txt": "It is closed.\n", "b-r.txt.txt": "It is here.\n", "c.txt.txt": "It is closed.\n"
        }  # fmt: skip
    assert sum(len(model.asked) for model in answers["opened"]) == 3


@pytest.mark.skipif(os.name != "posix", reason="the sandbox needs a POSIX system")
def test_unit_tests_run_beside_the_file_they_are_for(
    yunque_run: Run, answers: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "mod.py").write_text("import random\n\ndef roll():\n    return random.randint(1, 6) + 1\n")
    tests = (
        "import unittest\nfrom unittest.mock import patch\nimport subject\nfrom subject import roll\n"
        "class T(unittest.TestCase):\n"
        "    @patch('subject.random.randint', return_value=4)\n"
        "    def test_roll(self, _):\n"
        "        self.assertEqual(subject.roll(), 5)\n        self.assertEqual(roll(), 5)\n"
        "        self.assertEqual({'subject': 1}['subject'], 1)\n"
    )
    answers["m"] = lambda _: json.dumps({"tests": tests})
    yunque_run("task", "unit-tests", "mod.py", "-m", "m", "-o", "test_mod.py")
    written = (tmp_path / "test_mod.py").read_text()
    assert "from mod import roll" in written and "'mod.random.randint'" in written
    run = [sys.executable, "-m", "unittest", "test_mod"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "Ran 1 test" in done.stderr, done.stderr
    (tmp_path / "my-mod.py").write_text((tmp_path / "mod.py").read_text())
    yunque_run("task", "unit-tests", "my-mod.py", "-m", "m", "-o", "test_my.py")
    assert "import subject\n" in (tmp_path / "test_my.py").read_text()


def test_a_dialogue_and_a_paper_have_prompts_of_their_own(
    yunque_run: Run, answers: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("Tom: The demo is on Thursday. Eve: I will be there.")
    yunque_run("task", "summarize", "a.txt", "--dialogue", "-m", "m")
    assert "conversations" in answers["opened"][-1].asked[0][0].content
    with pytest.raises(UserError, match="choose one"):
        yunque_run("task", "summarize", "a.txt", "--dialogue", "--paper", "-m", "m")


def test_mistakes_are_one_sentence(yunque_run: Run, answers: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    for arguments, said in [
        (("summarize", "none.txt", "-m", "m"), "none.txt: cannot be read"),
        (("write", "a.txt", "--kind", "poem", "-m", "m"), "'kind' is none of email, article"),
        (("label", "a.txt", "-c", "x", "--labels", "a", "-m", "m"), "at least two"),
        (("show", "nothing"), "no task 'nothing'"),
    ]:
        with pytest.raises(UserError, match=said):
            yunque_run("task", *arguments)
    answers["m"] = lambda _: "nonsense"
    with pytest.raises(UserError, match="no valid answer"):
        yunque_run("task", "sentiment", "a.txt", "-m", "m")


def test_tasks_are_listed_and_shown(yunque_run: Run) -> None:
    names = [one["name"] for one in json.loads(yunque_run("task", "list", "--json"))]
    assert {"summarize", "translate", "easy-read", "unit-tests", "ask"} <= set(names)
    assert "[system es]" in yunque_run("task", "show", "summarize")
    assert "unit-tests" in yunque_run("task", "--help")


def test_a_task_is_measured_and_the_result_kept(yunque_run: Run, answers: dict[str, Any]) -> None:
    answers["m"] = lambda _: '{"label": "positive"}'
    told = json.loads(yunque_run("task", "eval", "sentiment", "-m", "m", "--json"))
    assert (
        told["score"] == 0.25
        and told["metric"] == "accuracy"
        and told["ref"] == "evaluation/task-sentiment@1"
    )
    assert "0.250" in yunque_run("task", "eval", "sentiment", "-m", "m", "--limit", "4")


def test_a_column_is_labelled_and_decided(yunque_run: Run, answers: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\ngood\nbad\n")
    answers["one"] = lambda _: '{"label": "yes"}'
    answers["two"] = lambda m: '{"label": "%s"}' % ("yes" if "good" in m[-1].content else "no")
    arguments = ("task", "label", "a.csv", "-c", "text", "--labels", "yes,no", "-m", "one", "-m", "two")
    assert "1 in doubt" in yunque_run(*arguments)
    queue = tmp_path / "a.labelled.doubts.csv"
    queue.write_text(queue.read_text().replace("agree,", "agree,no"))
    assert "2 of 2 rows labelled" in yunque_run(*arguments, "--decisions", str(queue))
    with (tmp_path / "a.labelled.csv").open() as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["yes", "no"]


def test_a_task_of_ones_own_becomes_a_command(
    yunque_run: Run, answers: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "s.prompt").write_text(
        "---\nname: shout\nlanguages: [en]\ninputs: {text: string, times: {type: integer, default: 1}}\n"
        "task: {metric: rougeL}\n---\nShout {{ times }}: {{ text }}\n"
    )
    (tmp_path / "a.txt").write_text("hello")
    yunque_run("task", "add", "s.prompt")
    yunque_run("task", "shout", "a.txt", "--times", "3", "-m", "m")
    assert answers["opened"][-1].asked[0][0].content == "Shout 3: hello"


def test_an_index_is_asked_and_the_source_told(
    yunque_run: Run, answers: dict[str, Any], tmp_path: Path
) -> None:
    from yunque.apps.retrieval.index import build_index
    from yunque.data.dataset import write_dataset
    from yunque.data.row import Row, Source, row_id
    from yunque.workspace import Workspace

    texts = {
        "pets.md": "A dog in the cabin may weigh at most 8 kg.",
        "bags.md": "A checked bag may weigh 23 kg.",
    }
    rows = [Row(row_id(f, t), t, "en", Source(f, "0" * 64, "Rules"), f) for f, t in texts.items()]
    workspace = Workspace.open(tmp_path / "ws")
    write_dataset(workspace, "rules", {"rows": rows}, {"rows": 2}, [], {})
    build_index(workspace, "rules", ["rules"])
    said = {"known": True, "quote": "may weigh at most 8 kg", "answer": "At most 8 kg."}
    answers["m"] = lambda _: json.dumps(said)
    question = ("task", "ask", "--index", "rules", "--question", "How heavy may my dog be?", "-m", "m")
    told = json.loads(yunque_run(*question, "--json"))
    assert told["value"]["source"]["file"] == "pets.md"
    said["quote"] = "may weigh 99 kg"
    assert yunque_run(*question) == "The document does not say.\n"


PROMPT = "---\nname: hi\nlanguages: [en]\ninputs: [who]\n---\n[user]\nSay hi to {{ who }}.\n"


@pytest.mark.usefixtures("answers")
def test_prompts_are_kept_shown_filled_asked_and_compared(yunque_run: Run, tmp_path: Path) -> None:
    file = tmp_path / "hi.prompt"
    file.write_text(PROMPT)
    assert "is right" in yunque_run("prompt", "check", "hi.prompt")
    assert yunque_run("prompt", "add", "hi.prompt") == "prompt/hi@1\n"
    file.write_text(PROMPT.replace("Say hi", "Say hello"))
    assert yunque_run("prompt", "add", "hi.prompt") == "prompt/hi@2\n"
    assert "-Say hi to" in yunque_run("prompt", "diff", "hi@1", "hi@2")
    assert "hi" in yunque_run("prompt", "list") and yunque_run("prompt", "show", "hi@1") == PROMPT
    told = json.loads(yunque_run("prompt", "render", "hi", "who=Ana {{ x }}", "--json"))
    assert told["messages"] == [{"role": "user", "content": "Say hello to Ana {{ x }}."}]
    assert yunque_run("prompt", "run", "hi", "who=Ana", "-m", "m") == "It is closed.\n"
    with pytest.raises(UserError, match="'wo=Ana'"):
        yunque_run("prompt", "run", "hi", "wo=Ana", "-m", "m")
    file.write_text(PROMPT.replace("{{ who }}", "{{ whom }}"))
    with pytest.raises(UserError, match=r"hi\.prompt:7: there is no input 'whom'"):
        yunque_run("prompt", "check", "hi.prompt")


def test_examples_are_chosen_and_the_new_version_kept(
    yunque_run: Run, answers: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "hi.prompt").write_text(PROMPT)
    yunque_run("prompt", "add", "hi.prompt")
    for name, who in (("train", "Eva"), ("dev", "Ana"), ("held", "Leo")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"inputs": {"who": who}, "answer": "Hi!"}) + "\n")
    answers["m"] = lambda m: "Hi!" if len(m) > 1 else "Hello."
    command = (
        "prompt",
        "choose",
        "hi",
        "-m",
        "m",
        "--train",
        "train.jsonl",
        "--dev",
        "dev.jsonl",
        "--held-out",
        "held.jsonl",
    )
    assert "prompt/hi@2" in yunque_run(*command)
    assert len(json.loads(yunque_run("prompt", "render", "hi", "who=x", "--json"))["messages"]) == 3
