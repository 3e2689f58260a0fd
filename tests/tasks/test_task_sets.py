"""Every shipped task, end to end on its own test set: by a model that knows the answers, and one that does not."""

import json
import os
import random
from collections.abc import Sequence
from typing import Any

import pytest

from yunque.apps.tasks import Item, Task, shipped_names, shipped_task
from yunque.apps.tasks.steps import easy_fault
from yunque.evaluate.task_sets import (
    ANSWER_METRICS,
    evaluate_item,
    evaluate_task,
    f1,
    keep_report,
    open_task,
    says,
    task_items,
)
from yunque.llm import Message, ModelUnavailable, ScriptedModel, open_model
from yunque.workspace import Artifact, Workspace

NAMES = shipped_names()
_SMALL = {"unit-tests": 1, "translate-code": 2}
_TRANSLATED = {
    "add": "def add(a, b):\n    return a + b\n",
    "isPalindrome": "def is_palindrome(s):\n    return s == s[::-1]\n",
    "cuentaVocales": "def cuenta_vocales(s):\n    return sum(c in 'aeiou' for c in s)\n",
    "unicos": "def unicos(lista):\n    return list(dict.fromkeys(lista))\n",
}
_TESTS = {
    "median": "    def test_x(self):\n        self.assertEqual(subject.median([3, 1, 2]), 2)\n",
    "top": "    def test_x(self):\n        self.assertEqual(subject.top(['a', 'b', 'a'], 1), ['a'])\n",
}


def _right(task: Task, item: Item) -> str:
    """What somebody who knows the answer would write."""
    expected: Any = item.expected
    facts = (
        ", ".join(ways[0] for ways in expected["facts"])
        if isinstance(expected, dict) and "facts" in expected
        else ""
    )
    match task.name:
        case "summarize" | "summarize-dialogue" | "translate":
            return str(expected)
        case "summarize-paper":
            parts = [one + "." for one in str(expected).removesuffix(".").split(". ")]
            return json.dumps(dict(zip(("objective", "method", "findings"), parts, strict=True)))
        case "sentiment" | "classify" | "entities":
            return json.dumps(expected)
        case "find-bugs" | "security-review":
            noun = "bugs" if task.name == "find-bugs" else "findings"
            cwe = {} if noun == "bugs" else {"cwe": "CWE-1"}
            told = {"severity": "high", "problem": "p", "fix": "f", **cwe}
            return json.dumps({noun: [{"line": line, **told} for line in expected["lines"]]})
        case "write":
            return json.dumps({"title": "x", "body": facts})
        case "docstrings":
            return json.dumps({"docstring": facts})
        case "easy-read":
            return json.dumps({"lines": [ways[0] for ways in expected["facts"]]})
        case "ask":
            quote = item.inputs["document"].split(". ")[0]
            return json.dumps({"known": expected["known"], "quote": quote, "answer": facts})
        case "unit-tests":
            test = next(test for name, test in _TESTS.items() if f"def {name}(" in item.inputs["code"])
            return json.dumps(
                {"tests": f"import unittest\nimport subject\nclass T(unittest.TestCase):\n{test}"}
            )
        case "translate-code":
            code = next(code for name, code in _TRANSLATED.items() if f" {name}(" in item.inputs["code"])
            return json.dumps({"code": code})
    return facts


@pytest.mark.parametrize("name", NAMES)
def test_who_knows_the_answers_scores_high_and_who_does_not_scores_low(
    name: str, workspace: Workspace
) -> None:
    if name in _SMALL and os.name != "posix":
        pytest.skip("the sandbox needs a POSIX system")
    task = shipped_task(name)
    limit = _SMALL.get(name)
    items = task_items(task, limit)
    texts = [str(item.inputs[task.settings.main]).split("\n")[0] for item in items]

    def knows(messages: Sequence[Message]) -> str:
        found = max(
            (
                place
                for place, text in enumerate(texts)
                if text in str(messages) or _of(messages, items[place])
            ),
            key=lambda place: len(texts[place]),
        )
        return _right(task, items[found])

    good = evaluate_task(workspace, task, ScriptedModel(knows, "wise"), limit)
    assert [(one.id, one.error) for one in good.items if one.error] == []
    assert good.score > 0.95, [(one.id, one.score, one.answer) for one in good.items if one.score < 0.95]
    poor = evaluate_task(workspace, task, ScriptedModel(lambda _: "Blue.", "dull"), limit)
    assert poor.score < 0.4 and poor.low <= poor.score <= poor.high
    kept = keep_report(workspace, task, good, f"task-{name}")
    assert kept.kind == "evaluation" and kept.figures[good.metric] == good.score


def _of(messages: Sequence[Message], item: Item) -> bool:
    """Code may be shown with numbers before its lines, or one function of it alone."""
    code = item.inputs.get("code", "")
    functions = [line for line in code.splitlines() if "def " in line]
    return bool(functions) and all(line in str(messages) for line in functions)


@pytest.mark.parametrize("name", NAMES)
def test_every_test_set_is_in_both_languages_and_new_in_every_item(name: str) -> None:
    items = shipped_task(name).items()
    languages = [item.language for item in items]
    assert 8 <= len(items) <= 20 and set(languages) == {"es", "en"}
    assert abs(languages.count("es") - languages.count("en")) <= 2
    assert len({json.dumps(item.inputs, sort_keys=True) for item in items}) == len(items)
    shown = {json.dumps(example.inputs.get("text")) for example in shipped_task(name).prompt.examples}
    assert not shown & {json.dumps(item.inputs.get("text")) for item in items}


def test_the_easy_texts_wanted_are_not_easy_yet() -> None:
    for item in shipped_task("easy-read").items():
        assert easy_fault(item.inputs["text"]), item.id


def test_an_item_that_gets_no_answer_scores_nothing_and_a_lost_model_is_told(workspace: Workspace) -> None:
    task = open_task(workspace, "sentiment")
    item = task_items(task, 1)[0]
    result = evaluate_item(workspace, task, item, ScriptedModel(["no"] * 3))
    assert result.score == 0 and "no valid answer" in result.error and result.usage.completion_tokens == 3
    with pytest.raises(ModelUnavailable):
        evaluate_item(workspace, task, item, ScriptedModel([]))


def test_facts_may_be_in_several_wordings_and_too_many_words_cost(workspace: Workspace) -> None:
    task = open_task(workspace, "alt-text")
    item = Item(
        "x",
        "en",
        {"text": "A dog on the red sledge."},
        {"facts": [["dog"], ["sledge", "sled"]], "max_words": 5},
    )
    both = evaluate_item(workspace, task, item, ScriptedModel(["A dog on a sled."]))
    half = evaluate_item(workspace, task, item, ScriptedModel(["A dog on a bench."]))
    long = evaluate_item(workspace, task, item, ScriptedModel(["The dog that is on the sledge is here."]))
    assert (both.score, half.score) == (1.0, 0.5) and 0.5 < long.score < 1


def test_f1_counts_what_was_found_and_what_was_missed() -> None:
    assert f1(set(), set()) == 1 and f1({1}, set()) == 0 and f1({1, 2}, {2, 3}) == 0.5


def test_answers_of_any_form_can_be_compared() -> None:
    exact = ANSWER_METRICS["exact"]
    assert exact("Sí ", "sí") == 1 and exact({"a": 1}, {"a": 1}) == 1 and exact({"a": 1}, {"a": 2}) == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_real_model_that_knows_nothing_ends_in_an_answer_or_one_sentence(
    name: str, workspace: Workspace, roomy: Artifact
) -> None:
    """Random weights: no quality, but every form is compiled to a grammar, kept to, and every limit met."""
    task = shipped_task(name)
    result = evaluate_item(workspace, task, task_items(task, 1)[0], open_model(workspace, roomy.ref))
    assert result.error or result.answer
    assert 0 <= result.score <= 1 and "\n" not in result.error and result.usage.prompt_tokens > 0


_PIECES = (
    *('{"label":', '"positive"', "}", "[", "]", "null", "```json", "```", "\x00", "😀", "2.0", "{}"),
    '{"entities":[{"text":"(","kind":"person"},{"text":" ","kind":"date"}]}',
    '{"docstring":"\\u0000\\\\ \\"\\"\\" x"}',
    '{"docstring":"a\\r\\nb\\t\\"\\\\"}',
    '{"bugs":[{"line":1.0,"severity":"low","problem":"p","fix":"f"}]}',
    '{"findings":[{"line":1e0,"severity":"low","cwe":"CWE-1","problem":"p","fix":"f"}]}',
    '{"known":true,"quote":"\\ud83d","answer":"x"}',
    '{"code":"\\u0000"}',
    '{"tests":"import subject\\ndef test_x():\\n    pass\\n\\u0000"}',
    '{"objective":"a.","method":"b.","findings":"c."}',
    '{"lines":["a b c."]}',
)


@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_model_writes_there_is_an_answer_of_its_form_or_a_sentence(name: str) -> None:
    draw = random.Random(name)
    task = shipped_task(name)
    for item in task_items(task, 1):
        for _ in range(20):
            model = ScriptedModel(lambda _: "".join(draw.choices(_PIECES, k=draw.choice([1, 1, 2, 4]))))
            result = evaluate_item(None, task, item, model)
            assert 0 <= result.score <= 1 and (
                result.error or task.name in ("docstrings", "ask") or result.answer
            )


@pytest.mark.parametrize(
    ("text", "wording", "is_there"),
    [
        ("Abierto hasta la noche", "no", False),
        ("Dogs may come inside now", "no", False),
        ("Es gratis", "rat", False),
        ("Son 21 euros", "1", False),
        ("No, it is not", "no", True),
        ("En el balco\u0301n.", "balcón", True),
        ("niño", "ni", False),
        ("The two  days", "two days", True),
        ("two of the days", "two days", False),
        ("Las vacunas", "vacuna*", True),
        ("revacunas", "vacuna*", False),
        ("holds 1.200 people", "1200", True),
        ("holds 1,200 people", "1.200", True),
        ("holds 1.2 people", "1200", False),
        ("3,80 m", "3.8", True),
        ("at 09:30", "9:30", True),
        ("hasta las 14:00", "14", True),
        ("hasta las 14:30", "14", False),
        ("at 8:15pm", "8:15", True),
        ("10%", "10 %", True),
        ("10 people", "10 %", False),
        ("with '-' in it", "'-'", True),
    ],
)
def test_a_fact_is_there_as_words_and_numbers(text: str, wording: str, is_there: bool) -> None:
    assert says(text, wording) is is_there


def test_half_a_word_is_no_answer(workspace: Workspace) -> None:
    task = open_task(workspace, "ask")
    item = next(one for one in task.items() if one.id == "ask-en-08")
    said = {"known": True, "quote": "Dogs are allowed on the open deck only"}
    for answer, score in (("Yes, dogs may come inside now", 0.0), ("No, not inside.", 1.0)):
        model = ScriptedModel([json.dumps({**said, "answer": answer})])
        assert evaluate_item(workspace, task, item, model).score == score
