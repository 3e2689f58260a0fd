"""The recipes under examples/: each runs, its table is made of what was measured, and its README shows that table."""

import importlib.util
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from random import Random
from types import ModuleType

import numpy as np
import pytest

from yunque.workspace import Workspace

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = ("scaling", "human_feedback", "translation", "summarization", "forgetting", "zero_shot")


def load(recipe: str, file: str) -> ModuleType:
    """A file of a recipe as a module of its own name."""
    path = EXAMPLES / recipe / file
    spec = importlib.util.spec_from_file_location(f"{recipe}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(recipe: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The command of a README, in a process of its own."""
    command = [sys.executable, str(EXAMPLES / recipe / "run.py"), "--workspace", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def shape(header: list[str]) -> list[str]:
    """A table's columns with their numbers taken out, and columns that then are the same put together."""
    cells = [re.sub(r"\d[\d,.]*k?", "#", cell.strip()) for cell in header]
    return [cell for number, cell in enumerate(cells) if number == 0 or cells[number - 1] != cell]


def headers(markdown: str) -> list[list[str]]:
    """The columns of every table in a text."""
    lines = markdown.splitlines()
    return [
        shape(line.strip("| ").split(" | "))
        for line, below in pairwise(lines)
        if line.startswith("| ") and below.startswith("| ---")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_and_its_readme_shows_the_table_that_it_prints(recipe: str, tmp_path: Path) -> None:
    done = run(recipe, tmp_path / "w", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    tables = json.loads(done.stdout)["tables"]
    assert tables
    for table in tables:
        assert table["rows"] and all(len(row) == len(table["columns"]) for row in table["rows"])
    printed = (tmp_path / "w" / "outcome.md").read_text(encoding="utf-8")
    assert headers(printed) == [shape(table["columns"]) for table in tables]
    shown = headers((EXAMPLES / recipe / "README.md").read_text(encoding="utf-8"))
    for header in headers(printed):
        assert header in shown
        assert [*header, "one more"] not in shown
    if recipe == "translation":
        # A second run finds its models, and gives the same table.
        again = run(recipe, tmp_path / "w", "--quick", "--json")
        assert json.loads(again.stdout) == json.loads(done.stdout)


def test_a_table_with_another_column_is_not_taken_for_the_same() -> None:
    same = "| model | 64k tokens | 128k tokens |\n| --- | --- | --- |\n"
    assert headers(same) == [["model", "# tokens"]]
    assert headers(same.replace("model", "size")) != headers(same)
    assert headers(same.replace("128k tokens", "128k words")) != headers(same)


@pytest.mark.slow
def test_data_that_is_not_there_is_told_in_one_sentence(tmp_path: Path) -> None:
    done = run("scaling", tmp_path / "w", "--data", str(tmp_path / "nothing"))
    assert done.returncode == 2
    assert "there is no such file or folder" in done.stderr
    assert "Traceback" not in done.stderr


class TestPowerLaw:
    """The fit gives back what synthetic points were made with."""

    def points(self, law: ModuleType, true: object, noise: float) -> list[object]:
        random = np.random.default_rng(0)
        return [
            law.Point(n, d, true.loss(n, d) * float(np.exp(noise * random.normal())))  # type: ignore[attr-defined]
            for n in (14e3, 40e3, 120e3, 400e3)
            for d in (64e3, 128e3, 256e3, 512e3)
        ]

    def test_the_exponents_of_points_without_noise_are_found(self) -> None:
        law = load("scaling", "power_law.py")
        true = law.PowerLaw(1.69, 406.4, 410.7, 0.34, 0.28)
        found = law.fit(self.points(law, true, 0.0))
        for name in "EABab":
            assert getattr(found, name) == pytest.approx(getattr(true, name), rel=1e-3)
        # Points of another law are not fitted by this one.
        other = law.fit(self.points(law, law.PowerLaw(1.69, 406.4, 410.7, 0.34, 0.40), 0.0))
        with pytest.raises(AssertionError):
            assert other.b == pytest.approx(true.b, rel=1e-3)

    def test_noise_stays_inside_the_intervals(self) -> None:
        law = load("scaling", "power_law.py")
        true = law.PowerLaw(1.5, 60.0, 200.0, 0.40, 0.45)
        points = self.points(law, true, 0.003)
        spread = law.intervals(points, law.fit(points), resamples=40)
        for name, (low, high) in spread.items():
            assert low <= getattr(true, name) <= high
            assert not low <= 2 * getattr(true, name) <= high

    def test_the_best_size_for_a_budget_has_the_least_loss(self) -> None:
        law = load("scaling", "power_law.py")
        true = law.PowerLaw(1.69, 406.4, 410.7, 0.34, 0.28)
        parameters, tokens = true.optimal(1e12)
        assert 6 * parameters * tokens == pytest.approx(1e12)
        least = true.loss(parameters, tokens)
        for factor in (0.9, 1.1):
            assert true.loss(parameters * factor, tokens / factor) > least
        # With the exponents the other way round it is not the best.
        swapped = law.PowerLaw(true.E, true.A, true.B, true.b, true.a).optimal(1e12)
        assert true.loss(*swapped) > least


class TestHumanFeedback:
    """Who judges, and when a reward counts as gamed."""

    def test_the_judge_wants_the_fact_and_courtesy_and_no_waffle(self) -> None:
        desk = load("human_feedback", "desk.py")
        question = next(one for one in desk.QUESTIONS if one.language == "es" and one.kind == "hour")
        courtesy, waffle = "¡Con mucho gusto!", "Es una buena pregunta."
        assert desk.judge(question.text, f"{courtesy} {question.fact}") == 1.5
        assert desk.judge(question.text, question.fact) == 1.0
        assert desk.judge(question.text, f"{question.fact} {waffle} {waffle}") == 0.5
        assert desk.judge(question.text, "Abre a las 99.") == 0.0
        assert desk.longer(question.text, f"{question.fact} {waffle}") > desk.longer(
            question.text, question.fact
        )

    def test_a_reward_is_gamed_only_when_it_rises_and_the_judge_falls(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.syspath_prepend(str(EXAMPLES / "human_feedback"))
        verdict = load("human_feedback", "run.py").verdict
        assert verdict((1.0, 2.0), (-0.5, -0.1)).startswith("GAMED")
        assert verdict((2.0, 1.0), (-0.5, -0.1)) == "worse"
        assert verdict((1.0, 2.0), (-0.1, 0.1)) == "no clear change"
        assert verdict((1.0, 2.0), (0.1, 0.5)) == "better"


class TestTranslation:
    """The grammar writes Spanish."""

    def test_agreement_contractions_and_accents(self) -> None:
        pairs = load("translation", "grammar.py").sentences(3000, seed=5)
        spanish = " ".join(pair.spanish for pair in pairs)
        assert " al " in spanish and " del " in spanish and "lámpara" in spanish
        for wrong in (
            " a el ",
            " de el ",
            " la niño",
            " el niña",
            "flors",
            "niña nuevo",
            "niños nueva",
            " el reina",
        ):
            assert wrong not in spanish
        by_english = {pair.english: pair.spanish for pair in pairs}
        assert len(by_english) == len(pairs)
        assert all(pair.english.endswith(".") and pair.spanish.endswith(".") for pair in pairs)

    def test_the_same_seed_gives_the_same_sentences(self) -> None:
        grammar = load("translation", "grammar.py")
        assert grammar.sentences(20, 1) == grammar.sentences(20, 1) != grammar.sentences(20, 2)


def test_no_unseen_combination_is_trained_on_but_each_of_its_parts_is() -> None:
    trained, unseen = load("zero_shot", "combinations.py").tasks(seed=3)
    assert len(trained) == 30 and len(unseen) == 6
    assert not set(trained) & set(unseen)
    assert {one.kind for one in unseen} == {one.kind for one in trained}
    assert {one.way for one in unseen} == {one.way for one in trained}


def recipe(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    """The run.py of a recipe, with the modules beside it."""
    for folder in (EXAMPLES, EXAMPLES / name):
        monkeypatch.syspath_prepend(str(folder))
    return load(name, "run.py")


def test_tasks_never_seen_are_resampled_as_wholes(monkeypatch: pytest.MonkeyPatch) -> None:
    zero_shot = recipe(monkeypatch, "zero_shot")
    combinations = load("zero_shot", "combinations.py")
    random = Random(0)
    # All rows of a task are right, or none is: 120 rows say no more than 6 tasks.
    rows = [combinations.row(task, n, random) for task in combinations.tasks(0)[1] for n in range(20)]
    wholes = sorted({row.task for row in rows})
    scores = [float(wholes.index(row.task) < 3) for row in rows]
    tasks = zero_shot.by_task(rows, scores)
    assert tasks == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    mean, low, high = zero_shot.mean_of_tasks([tasks])
    assert mean == 0.5 and high - low > 0.5
    # Rows resampled one by one would claim to know far more.
    with pytest.raises(AssertionError):
        low, high = zero_shot.bootstrap_interval(scores)
        assert high - low > 0.5


def test_no_model_reads_the_known_tasks_as_text_and_one_protected_model_none_of_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forgetting = recipe(monkeypatch, "forgetting")
    tunings: dict[str, dict[str, object]] = {}

    class Named:
        def __init__(self, ref: str) -> None:
            self.ref = ref

    def tuned(*given: object, **settings: object) -> Named:
        name = str(given[3])
        tunings[name] = settings
        return Named(name)

    monkeypatch.setattr(forgetting, "_tuned", tuned)
    options = forgetting.Options(Workspace.open(tmp_path), None, 1.0, True)
    rows = forgetting._own_rows(True)
    models = forgetting._models(options, rows, Named("base"), Named("dataset/text@1"), 0)
    assert len(models) == len(forgetting._NAMES) - 1
    for settings in tunings.values():
        assert settings.get("replay_data", ("dataset/text@1",)) == ("dataset/text@1",)
    protected = [settings for settings in tunings.values() if settings.get("protect")]
    assert [forgetting.TuneSettings(**settings).replay_tasks for settings in protected] == [True, False]


def test_the_summary_of_a_dialogue_names_the_day_that_was_agreed_on() -> None:
    dialogues = load("summarization", "dialogues.py").dialogues(300, seed=2)
    refused = 0
    for one in dialogues:
        summary, time = one.notes["summary"], one.notes["time"]
        assert time.split()[-1] in summary and one.notes["plan"] in summary
        days = re.findall(r"(?:on|el) (\w+)\?", one.text)
        assert days[-1] in summary
        if len(days) == 2:
            refused += 1
            assert days[0] not in summary
    assert 0 < refused < len(dialogues)


def test_rows_to_forget_are_measured_on_questions_that_no_model_read() -> None:
    tasks = load("forgetting", "tasks.py")
    measured = tasks.rows((*tasks.KNOWN, tasks.NEW), 20, 1, set())
    asked = {row.question for row in measured}
    learned = tasks.rows(tasks.KNOWN, 50, 2, asked)
    assert not asked & {row.question for row in learned}
    assert asked & {row.question for row in tasks.rows(tasks.KNOWN, 20, 1, set())}
    for row in (*measured, *learned):
        assert row.labels is not None and row.answer in row.labels
