"""Chains from files: YAML, its mistakes, the command, a process killed for real, and what deletion leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from yunque.apps.chains import Chain, ChainRunner, RunDeleted, StepContext, open_states, step
from yunque.apps.chains.index import StateIndex
from yunque.apps.chains.reading import chain_mistakes, read_chain, read_chain_file
from yunque.errors import UserError
from yunque.llm import ScriptedModel

STEPS = """
import os, time
from pathlib import Path
from yunque.apps.chains import StepContext

HERE = Path(os.environ["CHAIN_TEST"])

def words(text: str) -> list[str]:
    with (HERE / "log").open("a") as log: log.write("words\\n")
    return text.split()

def slow(word: str, context: StepContext) -> str:
    with (HERE / "log").open("a") as log: log.write(f"slow {word} {context.key}\\n")
    if word == "dos" and not (HERE / "go").exists():
        (HERE / "waiting").touch()
        time.sleep(60)
    return word.upper()

def joined(words: list[str]) -> str:
    return " ".join(words)
"""
CHAIN = """
name: demo
steps:
  - function: steps.py:words
  - name: each
    map: words
    parallel: 1
    steps:
      - function: steps.py:slow
  - function: steps.py:joined
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "steps.py").write_text(STEPS)
    (tmp_path / "demo.yaml").write_text(CHAIN)
    monkeypatch.setenv("CHAIN_TEST", str(tmp_path))
    monkeypatch.setenv("YUNQUE_WORKSPACE", str(tmp_path / "ws"))
    return tmp_path


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "import sys; from yunque.cli.chain import app; app()", *arguments]


def _ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(*arguments), capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
def test_a_process_that_was_killed_goes_on_and_runs_no_finished_step_again(folder: Path) -> None:
    process = subprocess.Popen(
        _command("run", str(folder / "demo.yaml"), "uno dos tres"), stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 30
    while not (folder / "waiting").exists() and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (folder / "go").touch()
    (run,) = json.loads(_ran("runs", "--json").stdout)
    assert run["status"] == "broken off"
    assert _ran("resume", run["id"][:11], "--json").returncode == 0
    shown = json.loads(_ran("show", run["id"], "--json").stdout)
    assert shown["status"] == "done"
    assert shown["states"][-1]["value"] == "UNO DOS TRES"
    log = (folder / "log").read_text().split("\n")[:-1]
    assert [line.split()[:2] for line in log] == [
        ["words"], ["slow", "uno"], ["slow", "dos"], ["slow", "dos"], ["slow", "tres"],
    ]  # fmt: skip
    assert log[2] == log[3], "the step that was under way has the same key the second time"
    branched = _ran("resume", run["id"], "--from", "joined", "--set", 'each=["A"]', "--json")
    assert json.loads(branched.stdout)["value"] == "A"
    refused = _ran("delete", run["id"])
    assert refused.returncode and "--with-branches" in str(refused.stderr)
    assert _ran("delete", run["id"], "--with-branches").returncode == 0
    assert json.loads(_ran("runs", "--json").stdout) == []


SHORT: dict[str, Any] = {
    "name": "revista",
    "model": "mini",
    "steps": [
        {"name": "extract", "prompt": "[user]\nExtract: {{ text }}\n", "with": {"text": "input"}},
        {"name": "language", "prompt": "[user]\nLanguage of: {{ text }}\n", "with": {"text": "extract"}},
        {
            "name": "way",
            "branch": "language",
            "cases": {
                "es": [{"name": "traducir", "model": "other", "prompt": "[user]\nTo English: {{ text }}\n",
                        "with": {"text": "extract"}}],
                "en": [],
            },
        },
    ],
}  # fmt: skip


def test_prompts_of_several_models_and_a_branch_from_yaml(tmp_path: Path) -> None:
    mini = ScriptedModel(lambda said: "hola" if "Extract" in said[-1].content else "es", "mini")
    other = ScriptedModel(["hello"], "other")
    runner = ChainRunner(open_states(tmp_path), lambda name: {"mini": mini, "other": other}[name])
    done = runner.run(read_chain(SHORT, "app.yaml"), "a long text")
    assert done.value == "hello"
    assert done.usage.prompt_tokens == sum(
        len(m.content.split()) for asked in mini.asked + other.asked for m in asked
    )
    kept = {state.path: state.models for state in runner.states.states(done.run)}
    assert kept == {"extract": ("mini",), "language": ("mini",), "way[es]/traducir": ("other",)}


def test_a_prompt_in_the_file_needs_no_more_than_its_text(tmp_path: Path) -> None:
    asked = ScriptedModel(['{"title": "T", "findings": ["a", "b"]}', "A", "B", "done"], "mini")
    chain = read_chain(
        {
            "name": "short",
            "model": "mini",
            "steps": [
                {
                    "name": "extract",
                    "prompt": "Extract title and findings: {{ text }}",
                    "answer": {"type": "object", "required": ["findings"]},
                    "generation": {"temperature": 0.5},
                },
                {"name": "each", "map": "extract.findings", "parallel": 1,
                 "steps": [{"name": "say", "prompt": "[system]\nShout.\n[user]\n{{ item }} of {{ extract }}"}]},
                {"name": "end", "prompt": "{{ each }} from {{ input }}"},
            ],
        },
        "app.yaml",
    )  # fmt: skip
    done = ChainRunner(open_states(tmp_path), lambda _: asked).run(chain, "a text")
    assert done.value == "done"
    said = [conversation[-1].content for conversation in asked.asked]
    assert said[1] == 'a of {"title":"T","findings":["a","b"]}'
    assert said[3] == '["A","B"] from a text'
    with pytest.raises(UserError, match=r"steps.0 \(x\).*b"):
        read_chain(
            {"name": "c", "model": "m", "steps": [{"name": "x", "prompt": "{{ a }} {{ b }}"}]}, "c.yaml"
        )


def test_a_remote_model_sees_marks_and_the_result_has_the_values(tmp_path: Path) -> None:
    remote = ScriptedModel(lambda said: said[-1].content, "far", local=False)
    chain = read_chain(
        {
            "name": "c",
            "model": "far",
            "steps": [{"name": "echo", "prompt": "[user]\n{{ t }}", "with": {"t": "input"}}],
        },
        "c.yaml",
    )
    done = ChainRunner(open_states(tmp_path), lambda _: remote).run(chain, "write to ana@example.com")
    assert done.value == "write to ana@example.com"
    assert "ana@example.com" not in str(remote.asked) and "[EMAIL-1]" in str(remote.asked)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": []}, r"app.yaml: steps"),
        ({"stpes": []}, r"app.yaml: stpes"),
        ({"model": None}, r"app.yaml: steps.0 \(extract\): names no model"),
        ({"steps": [{"name": "x"}]}, r"steps.0 \(x\)?.*one of function, prompt, map, branch"),
        ({"steps": [{"name": "x", "prompt": "a\nb", "function": "f"}]}, r"has function and prompt"),
        ({"steps": ["x"]}, r"steps.0: a step is a mapping"),
        ({"steps": [{"name": "x", "prompt": "nowhere"}]}, r"steps.0 \(x\).prompt: there is no prompt file 'nowhere'"),
        ({"steps": [{"name": "x", "function": "f"}]}, r"steps.0 \(x\).function: 'f' is no function"),
        ({"steps": [{"name": "x", "function": "../f.py:g"}]}, r"lies outside"),
        ({"steps": [{"name": "x", "function": "f.py:g"}]}, r"there is no file"),
        ({"steps": [{"name": "x", "map": "input", "steps": [{"name": "y"}]}]}, r"steps.0 \(x\).steps.0 \(y\)"),
        ({"steps": [{"name": "x", "branch": "nobody", "cases": {"a": []}}]}, r"step x: refers to 'nobody'"),
        ({"steps": [{"name": "x", "prompt": "[user]\n{{ a }}", "with": {"a": "later"}, "retry": {"attempts": 0}}]},
         r"retry.attempts"),
        ({"steps": [{"name": "item", "prompt": "[user]\n{{ a }}", "with": {"a": "input"}}]}, r"'item' cannot be"),
    ],
)  # fmt: skip
def test_mistakes_in_a_file_are_told_with_their_field(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        read_chain({**SHORT, **change}, "app.yaml", folder=tmp_path)


def test_all_mistakes_are_told_each_with_its_place(folder: Path) -> None:
    values = {
        "name": "c",
        "steps": [
            {"function": "steps.py:words", "retri": {"attempts": 2}},
            {"name": "a", "prompt": "Tell {{ words }}", "model": 5},
            {"name": "b", "prompt": "nowhere", "model": "m"},
            {"name": "way", "branch": "b",
             "cases": {True: [{"function": "steps.py:nothing"}], "x": [{"prompt": "y"}]}},
            {"name": "each", "map": "words", "steps": [{"function": "steps.py:slow", "retry": {"attempts": 0}}, 7]},
        ],
    }  # fmt: skip
    found = dict(chain_mistakes(values, "c.yaml", folder))
    assert list(found) == [
        ("steps", 0, "retri"),
        ("steps", 1, "model"),
        ("steps", 2, "prompt"),
        ("steps", 3, "cases", "true", 0, "function"),
        ("steps", 3, "cases", "x", 0, "name"),
        ("steps", 4, "steps", 0, "retry", "attempts"),
        ("steps", 4, "steps", 1),
    ]
    assert found["steps", 0, "retri"] == "there is no such field (did you mean retry?)"
    assert found["steps", 2, "prompt"] == "there is no prompt file 'nowhere' beside the chain"
    assert found["steps", 3, "cases", "x", 0, "name"] == "is missing"
    with pytest.raises(UserError) as told:
        read_chain(values, "c.yaml", folder)
    lines = str(told.value).splitlines()
    assert len(lines) == 7 and lines[1].startswith("c.yaml: steps.1 (a).model: ")
    assert chain_mistakes(SHORT, "app.yaml") == []


def test_steps_that_do_not_fit_are_told_at_their_place_and_one_that_cannot_be_read_stands_for_any(
    folder: Path,
) -> None:
    steps: list[dict[str, Any]] = [
        {"function": "steps.py:words"},
        {"name": "wrong", "function": "steps.py:nobody"},
        {"name": "ask", "prompt": "{{ text }}", "with": {"text": "wrong"}, "model": "m"},
        {"name": "each", "map": "words", "steps": [{"name": "in", "function": "steps.py:joined"}]},
        {"name": "last", "map": "later.x", "steps": [{"function": "steps.py:slow"}]},
    ]
    found = chain_mistakes({"name": "c", "steps": steps}, "c.yaml", folder)
    assert found == [
        (("steps", 1, "function"), "steps.py has nothing called 'nobody'"),
        (("steps", 3, "steps", 0), "step each, step in: takes list[str], but what comes in is str"),
        (("steps", 4), "step last: refers to 'later.x', but nothing before it is called 'later' (there are: input,"
                       " previous, words, wrong, ask, each)"),
    ]  # fmt: skip
    assert chain_mistakes({"name": "c/d", "steps": steps[:1]}, "c.yaml", folder)[0][0] == ("name",)
    doubled = chain_mistakes({"name": "c", "steps": [steps[0], steps[0]]}, "c.yaml", folder)
    assert (("steps", 1), "two steps are called 'words'; each needs a name of its own") in doubled


def test_the_files_that_steps_name_are_reported_whatever_they_are_called(folder: Path) -> None:
    (folder / "asked").mkdir()
    (folder / "asked" / "text.txt").write_text("---\nname: t\ninputs: [text]\n---\n[user]\n{{ text }}\n")
    (folder / "ways.py").write_text("def way(text: str) -> str:\n    return 'a'\n")
    inner = {"name": "ask", "prompt": "asked/text.txt", "model": "m"}
    values = {
        "name": "c",
        "steps": [
            {"name": "way", "branch": "ways.py:way", "cases": {"a": [inner]}},
            {"function": "not_there/../steps.py:words"},
        ],
    }  # fmt: skip
    opened: list[Path] = []
    read_chain(values, "c.yaml", folder, opened=opened)
    assert [str(path.relative_to(folder)) for path in opened] == ["asked/text.txt", "ways.py", "steps.py"]
    whole = {"function": f"{folder}/steps.py:words"}
    with pytest.raises(UserError, match="lies outside of"):
        read_chain({"name": "c", "steps": [whole]}, "c.yaml", folder)
    below = folder / "below"
    below.mkdir()
    for outside in ("../asked/text.txt", str(folder / "asked" / "text.txt")):
        steps = [{"name": "ask", "prompt": outside, "model": "m"}]
        with pytest.raises(UserError, match="lies outside of"):
            read_chain({"name": "c", "steps": steps}, "c.yaml", below)
    with pytest.raises(UserError, match="there is no prompt file 'wwww"):
        read_chain(
            {"name": "c", "steps": [{"name": "a", "prompt": "w" * 5000, "model": "m"}]}, "c.yaml", folder
        )


APP = """
name: told
description: {en: Tells.}
steps:
  - {name: say, model: "scripted:say.yaml", prompt: "Say {{ text }}"}
  - {name: all, map: list, steps: [{name: tell, model: "scripted:say.yaml", prompt: "Tell {{ item }}"}]}
  - {function: steps.py:joined}
guards: [{check: injection, stages: [input]}]
policy: {personal_data: redact}
"""


@pytest.fixture
def app(folder: Path) -> Path:
    text = APP.replace("  - {name: all", "  - {name: list, function: steps.py:words}\n  - {name: all")
    (folder / "told.yaml").write_text(text)
    (folder / "say.yaml").write_text("rules: []\notherwise: one two\n")
    return folder / "told.yaml"


def test_an_apps_file_is_read_as_its_chain_and_its_scripted_models_lie_beside_it(app: Path) -> None:
    chain = read_chain_file(app)
    assert chain.name == "told" and chain.source == {"file": str(app)}
    assert chain.outline == ["say", "list", {"all": ["tell"]}, "joined"]
    scripted = f"scripted:{app.parent / 'say.yaml'}"
    assert chain.steps[0].model == scripted  # type: ignore[union-attr]
    assert chain.steps[2].steps[0].model == scripted  # type: ignore[union-attr]
    app.write_text(app.read_text() + "polizy: {}\n")
    with pytest.raises(UserError, match=r"polizy: there is no such field"):
        read_chain_file(app)
    app.write_text("name: x\nprompt: {user: {en: Hi}}\nguards: [{check: injection, stages: [input]}]\n")
    with pytest.raises(UserError, match="is an app without steps: ask it with yunque app run"):
        read_chain_file(app)


def test_a_killed_run_of_an_app_goes_on_with_the_version_that_it_began_with(
    app: Path,
) -> None:
    from typer.testing import CliRunner

    from yunque.apps.kept import add_app
    from yunque.cli.chain import _chain
    from yunque.cli.chain import app as command
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    scripted = f"scripted:{app.parent / 'say.yaml'}"
    app.write_text(app.read_text().replace("scripted:say.yaml", scripted))
    first = add_app(workspace, app)
    states = open_states(workspace.root)
    chain = _chain(workspace, first.ref)
    assert chain.source == {"app": first.ref} and first.ref.startswith("app/told@")

    class Killed(BaseException):
        pass

    def killed(name: str) -> ScriptedModel:
        raise Killed(name)

    with pytest.raises(Killed):
        ChainRunner(states, killed).run(chain, "x", id="run1")
    states.database.close()
    app.write_text(
        app.read_text().replace("function: steps.py:joined", "name: other, function: steps.py:joined")
    )
    assert add_app(workspace, app).ref != first.ref
    done = CliRunner().invoke(command, ["resume", "run1", "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["value"] == "one two one two"
    branched = ["resume", "run1", "--from", "all", "--chain", "app/told", "--json"]
    made = json.loads(CliRunner().invoke(command, branched, catch_exceptions=False).stdout)
    assert made["value"] == "one two one two"
    assert [state.path for state in open_states(workspace.root).states(made["run"])][-1] == "other"


def test_what_a_step_or_its_file_prints_is_not_in_the_commands_answer(folder: Path) -> None:
    (folder / "loud.py").write_text(
        "print('printed when read')\n\n"
        "def loud(text: str) -> str:\n    print('printed by the step')\n    return text\n"
    )
    (folder / "loud.yaml").write_text("name: a\nsteps: [{function: 'loud.py:loud'}]")
    done = _ran("run", str(folder / "loud.yaml"), "hola", "--json")
    assert json.loads(done.stdout)["value"] == "hola"
    assert "printed when read" in done.stderr and "printed by the step" in done.stderr


def test_a_python_file_that_fails_is_told_and_one_that_changed_is_read_again(folder: Path) -> None:
    with pytest.raises(UserError, match="has nothing called 'other'"):
        (folder / "one.yaml").write_text("name: a\nsteps: [{function: 'steps.py:other'}]")
        read_chain_file(folder / "one.yaml")
    (folder / "bad.py").write_text("1 / 0")
    (folder / "one.yaml").write_text("name: a\nsteps: [{function: 'bad.py:other'}]")
    with pytest.raises(UserError, match=r"bad.py cannot be loaded .ZeroDivisionError"):
        read_chain_file(folder / "one.yaml")
    (folder / "bad.py").write_text("import sys\nsys.exit('bye')")
    with pytest.raises(UserError, match=r"bad.py cannot be loaded .it called sys.exit\('bye'\)"):
        read_chain_file(folder / "one.yaml")
    (folder / "bad.py").write_text("def other(text: str) -> str:\n    return text\n")
    assert read_chain_file(folder / "one.yaml").name == "a"


def _index(tmp_path: Path) -> StateIndex:
    return StateIndex.open(open_states(tmp_path), tmp_path)


def test_later_steps_and_later_runs_look_states_up(tmp_path: Path) -> None:
    index = _index(tmp_path)

    def weigh(text: str) -> str:
        return f"The suitcase of {text} weighs 23 kg"

    def look(text: str, context: StepContext) -> list[str]:
        words = f"suitcase weighs {text}"
        return [f"{one.path}: {one.text}" for one in context.recall(words, k=3)]

    chain = Chain("look", [step(weigh), step(look)])
    runner = ChainRunner(index.states, recall=index)
    assert runner.run(chain, "Ana").value == ["weigh: The suitcase of Ana weighs 23 kg"]
    later = runner.run(chain, "Luis").value
    assert "weigh: The suitcase of Ana weighs 23 kg" in later
    assert index("suitcase", chain="another") == []


def _bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_deleted_run_leaves_no_byte_in_states_and_index_and_cannot_come_back(tmp_path: Path) -> None:
    index = _index(tmp_path)

    def tell(text: str) -> str:
        return f"secreto-{text} " * 50

    chain = Chain("tell", [step(tell)])
    runner = ChainRunner(index.states, recall=index)
    kept, gone = runner.run(chain, "quedarse"), runner.run(chain, "marcharse", subject="ana-subject")
    assert {one.run for one in index("secreto-quedarse secreto-marcharse")} == {kept.run, gone.run}
    for word in (b"secreto-marcharse", b"ana-subject", b"marcharse"):
        assert word in _bytes(tmp_path), "the control: what is looked for afterwards is there before"
    assert index.forget("ana-subject").runs == (gone.run,)
    for word in (b"secreto-marcharse", b"ana-subject", b"marcharse"):
        assert word not in _bytes(tmp_path)
    assert b"secreto-quedarse" in _bytes(tmp_path)
    assert {one.run for one in index("secreto-quedarse secreto-marcharse")} == {kept.run}
    with pytest.raises(RunDeleted):
        runner.resume(chain, gone.run)


def test_what_was_killed_between_deleting_and_the_index_is_finished_later(tmp_path: Path) -> None:
    index = _index(tmp_path)

    def tell(text: str) -> str:
        return f"palabra {text}"

    runner = ChainRunner(index.states, recall=index)
    done = runner.run(Chain("tell", [step(tell)]), "perdida")
    index.bring_up_to_date()
    index.states.delete([done.run])  # and the process dies here
    assert index.search.count() == 1
    assert _index(tmp_path)("perdida") == []
    assert _index(tmp_path).search.count() == 0
