"""Models on one test set: what is measured, what a failing model does to the others, and going on after a stop."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from yunque.errors import UserError
from yunque.evaluate.compare import METRICS, compare_models, file_test_set
from yunque.evaluate.compare_chart import draw_comparison
from yunque.evaluate.model_list import list_models
from yunque.llm import (
    Completion,
    ContextOverflow,
    Cost,
    LanguageModel,
    ModelUnavailable,
    ScriptedModel,
    Usage,
)
from yunque.workspace import Workspace
from yunque.workspace.measurements import Measurements

QUESTIONS = [{"input": f"¿Cuánto es {n} más 1?", "expected": str(n + 1)} for n in range(10)]


class Priced(ScriptedModel):
    """A remote model that costs a cent for each answer."""

    def chat(self, *asked: object) -> Completion:  # type: ignore[override]
        told = super().chat(*asked)  # type: ignore[arg-type]
        return Completion(told.text, told.model, "stop", Usage(10, 5), cost=Cost(0.01, "2026-11-01"))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "w")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "sumas.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS), encoding="utf-8")
    return path


def right(name: str = "openai/gpt-4o-mini", wrong: tuple[int, ...] = ()) -> Priced:
    def answer(messages: object) -> str:
        number = int(messages[-1].content.split()[2])  # type: ignore[index]
        return "nada" if number in wrong else str(number + 1)

    return Priced(answer, name, local=False)


def down(name: str) -> ScriptedModel:
    return ScriptedModel([ModelUnavailable(f"{name} cannot be reached", True)] * 99, name, local=False)


def opened(*models: ScriptedModel) -> object:
    named = {model.name: model for model in models}

    def open_one(name: str) -> LanguageModel:
        if name not in named:
            raise UserError(f"no model {name!r}")
        return named[name]

    return open_one


def test_quality_cost_and_privacy_of_each_best_first(workspace: Workspace, questions: Path) -> None:
    models = (right(wrong=(1, 2)), right("anthropic/claude-sonnet-4-5"))
    names = [model.name for model in models]
    made, compared = compare_models(
        workspace,
        names,
        file_test_set(questions, "exact_match"),
        opened(*models),  # type: ignore[arg-type]
    )
    best, second = compared
    assert (best.model, best.score, second.score) == ("anthropic/claude-sonnet-4-5", 1.0, 0.8)
    assert second.low is not None and second.high is not None and second.low < 0.8 < second.high
    assert best.usd == pytest.approx(0.1) and best.usd_for_1000 == pytest.approx(10) and best.tokens == 150
    assert best.prices_of == "2026-11-01" and best.privacy == "is kept for a while"
    assert second.behind_best["change"] == pytest.approx(-0.2) and second.behind_best["high"] <= 0
    assert made and made.ref == "evaluation/compare-sumas-jsonl@1"
    kept = workspace.file(made, "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(kept) == 20 and not list(workspace.runs.glob("compare-*"))


def test_a_model_that_is_not_there_does_not_stop_the_others(workspace: Workspace, questions: Path) -> None:
    models = (down("openai/down"), right())
    made, compared = compare_models(
        workspace,
        ["openai/down", "nobody", "openai/gpt-4o-mini"],
        file_test_set(questions, "exact_match"),
        opened(*models),  # type: ignore[arg-type]
    )
    assert made and compared[0].model == "openai/gpt-4o-mini" and compared[0].score == 1.0
    assert {each.model: each.error for each in compared[1:]} == {
        "openai/down": "openai/down cannot be reached",
        "nobody": "no model 'nobody'",
    }
    # Three in a row are enough to know.
    assert len(models[0].asked) == 3
    assert made.figures["scores"] == {"openai/gpt-4o-mini": 1.0}


def test_where_no_model_answers_nothing_is_kept(workspace: Workspace, questions: Path) -> None:
    made, compared = compare_models(
        workspace,
        ["openai/down"],
        file_test_set(questions),
        opened(down("openai/down")),  # type: ignore[arg-type]
    )
    assert made is None and compared[0].score is None and workspace.list("evaluation") == []


def test_an_answer_that_cannot_be_given_counts_as_wrong(workspace: Workspace, questions: Path) -> None:
    model = ScriptedModel([ContextOverflow("too long", 0), *[str(n + 1) for n in range(1, 10)]], "mini")
    _, [only] = compare_models(workspace, ["mini"], file_test_set(questions, "exact_match"), lambda _: model)
    assert (only.score, only.answered, only.without_answer, only.error) == (0.9, 10, 1, "")


def test_after_a_stop_it_goes_on_where_it_was(workspace: Workspace, questions: Path) -> None:
    first = right()
    count = 0

    def stopping(messages: object) -> str:
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        return str(int(messages[-1].content.split()[2]) + 1)  # type: ignore[index]

    tests = file_test_set(questions, "exact_match")
    second = Priced(stopping, "openai/other", local=False)
    names = [first.name, second.name]
    with pytest.raises(KeyboardInterrupt):
        compare_models(workspace, names, tests, opened(first, second))  # type: ignore[arg-type]
    [folder] = workspace.runs.glob("compare-*")
    for path in folder.iterdir():
        # As if the machine had stopped in the middle of a line.
        path.write_bytes(path.read_bytes() + b'{"id": "1", "sco')
    made, compared = compare_models(workspace, names, tests, opened(first, second))  # type: ignore[arg-type]
    assert made and [each.score for each in compared] == [1.0, 1.0]
    assert len(first.asked) == 10 and len(second.asked) == 5 + 6


def test_other_questions_are_another_comparison(workspace: Workspace, questions: Path) -> None:
    bad = down("openai/down")
    model = right()
    for metric in ("exact_match", "chrf"):
        tests = file_test_set(questions, metric)
        compare_models(workspace, [bad.name, model.name], tests, opened(bad, model))  # type: ignore[arg-type]
    assert len(list(workspace.runs.glob("compare-*"))) == 2 and len(model.asked) == 20


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_gives_1_for_the_right_answer_and_less_for_a_wrong_one(
    workspace: Workspace, tmp_path: Path, metric: str
) -> None:
    text = "la maleta puede pesar hasta veintitrés kilos en total"
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"input": "¿?", "expected": text}) + "\n", encoding="utf-8")
    tests = file_test_set(path, metric)
    said = {"openai/good": text, "openai/bad": "no se sabe nada de eso aquí"}
    models = [ScriptedModel([said[name]], name, local=False) for name in said]
    _, compared = compare_models(workspace, list(said), tests, opened(*models))  # type: ignore[arg-type]
    scores = {each.model: each.score for each in compared}
    assert scores["openai/good"] == pytest.approx(1.0)
    assert scores["openai/bad"] is not None and scores["openai/bad"] < 0.4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no question"),
        ('{"input": "a"}\n', r":1: expected must be a text"),
        ('{"input": "a", "expected": "b"}\nno\n', r":2: is not JSON"),
        ("[1]\n", r":1: must be an object"),
        ('{"input": "a", "expected": "b", "id": 1}\n{"input": "a", "expected": "b", "id": 1}', "there twice"),
    ],
)
def test_a_bad_file_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        file_test_set(path)
    with pytest.raises(UserError, match="cannot be read"):
        file_test_set(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="not a metric"):
        file_test_set(path, "elegance")


def test_a_comparison_is_drawn(workspace: Workspace, questions: Path, tmp_path: Path) -> None:
    models = (right(wrong=(1,)), down("openai/down"))
    _, compared = compare_models(
        workspace,
        [model.name for model in models],
        file_test_set(questions, "exact_match"),
        opened(*models),  # type: ignore[arg-type]
    )
    draw_comparison(tmp_path / "c.png", compared, "sumas", "exact_match")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="picture"):
        draw_comparison(tmp_path / "c.txt", compared, "sumas", "exact_match")
    with pytest.raises(UserError, match="nothing to draw"):
        draw_comparison(tmp_path / "d.png", compared[1:], "sumas", "exact_match")


def test_models_are_ranked_on_each_figure_and_the_unknown_comes_last(
    workspace: Workspace, questions: Path
) -> None:
    pytest.importorskip("genai_prices")
    models = (right(wrong=(1, 2, 3)), right("anthropic/claude-sonnet-4-5"))
    compare_models(
        workspace,
        [m.name for m in models],
        file_test_set(questions, "exact_match"),
        opened(*models),  # type: ignore[arg-type]
    )
    slow, quick = Measurements.of(workspace.root), Measurements.of(workspace.root)
    slow.add("openai/gpt-4o-mini", 10, 21, 1.0, 3.0)
    quick.add("anthropic/claude-sonnet-4-5", 10, 21, 0.1, 0.3)
    extra = ["http://example.com/v1#x", "ollama/llama3.2"]

    def names(by: str) -> list[str]:
        return [each.name.partition("/")[0] for each in list_models(workspace, extra, by).models]

    assert names("privacy")[0] == "ollama" and names("privacy")[-1] == "http:"
    assert names("quality")[:2] == ["anthropic", "openai"]
    assert names("cost") == ["ollama", "openai", "anthropic", "http:"]
    assert names("latency")[:2] == ["anthropic", "openai"]
    listed = list_models(workspace, extra)
    assert (listed.task, listed.metric) == ("sumas.jsonl", "exact_match")
    [openai] = [each for each in listed.models if each.provider == "openai"]
    assert openai.ranks["quality"] == 2 and openai.ranks["latency"] == 2
    assert openai.speed and openai.speed.tokens_a_second == pytest.approx(10) and openai.latency == 21
    [unknown] = [each for each in listed.models if each.name.startswith("http:")]
    assert set(unknown.ranks) == {"privacy"} and unknown.privacy == "not known"
    with pytest.raises(UserError, match="ranked by"):
        list_models(workspace, by="beauty")
    with pytest.raises(UserError, match="no evaluation"):
        list_models(workspace, task="nothing")


def test_speeds_are_medians_and_old_answers_are_dropped(tmp_path: Path) -> None:
    measurements = Measurements(tmp_path / "m.db")
    assert measurements.speed("x") is None
    measurements.add("x", 1, 1, None, 1.0)
    speed = measurements.speed("x")
    assert speed and (speed.first_token, speed.tokens_a_second) == (None, None)
    for seconds in (1.0, 2.0, 90.0):
        measurements.add("x", 1, 11, seconds / 2, seconds)
    speed = measurements.speed("x")
    assert speed and (speed.first_token, speed.tokens_a_second, speed.answers) == (1.0, 10.0, 4)
    for _ in range(700):
        measurements.add("x", 1, 1, None, 1.0)
    kept = measurements._file.connection().execute("SELECT count(*) FROM answers").fetchone()[0]
    assert kept <= 550


def test_the_commands(workspace: Workspace, questions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    from yunque.cli import budget, compare, models

    monkeypatch.setenv("YUNQUE_WORKSPACE", str(workspace.root))
    script = questions.with_name("script.yaml")
    script.write_text("rules: []\notherwise: '2'\n", encoding="utf-8")
    app = typer.Typer()
    app.command("models")(models.models)
    app.command("compare")(compare.compare)
    app.add_typer(budget.app, name="budget")
    run = CliRunner().invoke
    told = run(
        app, ["compare", f"scripted:{script}", "--data", str(questions), "--metric", "exact_match", "--json"]
    )
    assert told.exit_code == 0, told.output
    result = json.loads(told.stdout)
    assert result["models"][0]["score"] == pytest.approx(0.1)
    told = run(app, ["models", "--json", "openai/gpt-4o-mini"])
    assert told.exit_code == 0, told.output
    assert f"scripted:{script}" in {each["model"] for each in json.loads(told.stdout)["models"]}
    told = run(app, ["compare", "nobody", "--data", str(questions)])
    assert isinstance(told.exception, UserError) and "no model 'nobody'" in told.stderr
    told = run(app, ["budget", "set", "all", "--tokens", "5", "--json"])
    assert json.loads(told.stdout)["tokens"] == 5
    told = run(app, ["compare", f"scripted:{script}", "--data", str(questions), "--metric", "chrf"])
    assert isinstance(told.exception, UserError) and "no model answered" in str(told.exception)


def test_a_question_that_was_never_sent_costs_nothing_and_leaves_the_cost_known(
    workspace: Workspace, questions: Path
) -> None:
    class Short(Priced):
        def chat(self, *asked: object) -> Completion:  # type: ignore[override]
            if "3 más" in str(asked):
                raise ContextOverflow("too long a text", 3)
            return super().chat(*asked)

    model = Short(lambda _: "1", "openai/gpt-4o-mini", local=False)
    _, [told] = compare_models(workspace, [model.name], file_test_set(questions), lambda _: model)
    assert told.without_answer == 1 and told.usd == pytest.approx(0.09)
