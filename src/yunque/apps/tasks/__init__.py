"""Tasks ready to use, in Spanish and English: each is a prompt, an answer form, code that checks it, and a test set.

    from yunque.apps.tasks import summarize
    from yunque.llm import open_model

    print(summarize("...", open_model(workspace, "mini")).text)

Every function takes the text, the model, and by name the inputs of its prompt (`yunque task show NAME`) and what
`run_task` takes: `language`, `workspace` (its call log), `send_personal_data`.
"""

from typing import Any

from yunque.apps.tasks.definition import (
    Item,
    Task,
    add_task,
    find_task,
    kept_tasks,
    shipped_names,
    shipped_task,
)
from yunque.apps.tasks.labelling import Labelling, LabelReport, Rater, label_rows, read_table
from yunque.apps.tasks.running import TaskAnswer, run_task
from yunque.llm.face import LanguageModel

_OF_THE_RUN = ("language", "workspace", "send_personal_data", "attempts", "progress")


def do(name: str, text: str, model: LanguageModel, **options: Any) -> TaskAnswer:
    """Do the shipped task `name`; `options` are inputs of its prompt and options of `run_task`."""
    task = shipped_task(name)
    run = {name: options.pop(name) for name in _OF_THE_RUN if name in options}
    return run_task(task, model, {task.settings.main: text, **options}, **run)


def summarize(
    text: str, model: LanguageModel, dialogue: bool = False, paper: bool = False, **options: Any
) -> TaskAnswer:
    """A text in a few sentences; what was agreed in a dialogue; objective, method and findings of a paper."""
    name = "summarize-dialogue" if dialogue else "summarize-paper" if paper else "summarize"
    return do(name, text, model, **options)


def translate(text: str, model: LanguageModel, to: str | None = None, **options: Any) -> TaskAnswer:
    """A text in the language `to` (two letters); without it Spanish becomes English, and the rest Spanish."""
    return do("translate", text, model, **({"to": to} if to else {}), **options)


def sentiment(text: str, model: LanguageModel, **options: Any) -> TaskAnswer:
    """positive, negative, neutral or mixed: `value["label"]`."""
    return do("sentiment", text, model, **options)


def classify(text: str, labels: list[str], model: LanguageModel, **options: Any) -> TaskAnswer:
    """The one of your labels that fits best: `value["label"]`."""
    return do("classify", text, model, labels=labels, **options)


def entities(text: str, model: LanguageModel, **options: Any) -> TaskAnswer:
    """Names, dates and amounts with their offsets in the text: `value["entities"]`."""
    return do("entities", text, model, **options)


def write(notes: str, model: LanguageModel, kind: str = "email", **options: Any) -> TaskAnswer:
    """An e-mail or an article from notes: `value["title"]` and `value["body"]`."""
    return do("write", notes, model, kind=kind, **options)


def explain_code(code: str, model: LanguageModel, **options: Any) -> TaskAnswer:
    """What a program does."""
    return do("explain-code", code, model, **options)


def docstrings(code: str, model: LanguageModel, **options: Any) -> TaskAnswer:
    """Python with docstrings where there were none: `value["code"]`; nothing else in it is changed."""
    return do("docstrings", code, model, **options)


def unit_tests(code: str, model: LanguageModel, **options: Any) -> TaskAnswer:
    """Tests for Python, run in a sandbox: `value["tests"]`, `value["results"]`, and whether they are `proven`."""
    return do("unit-tests", code, model, **options)


def find_bugs(code: str, model: LanguageModel, **options: Any) -> TaskAnswer:
    """Mistakes with their lines: `value["bugs"]`."""
    return do("find-bugs", code, model, **options)


def security_review(code: str, model: LanguageModel, **options: Any) -> TaskAnswer:
    """Weaknesses with their lines and CWE numbers: `value["findings"]`."""
    return do("security-review", code, model, **options)


def translate_code(code: str, model: LanguageModel, to: str = "Python", **options: Any) -> TaskAnswer:
    """A program in another programming language: `value["code"]`."""
    return do("translate-code", code, model, to=to, **options)


def alt_text(description: str, model: LanguageModel, **options: Any) -> TaskAnswer:
    """A text for those who cannot see a figure, from its caption or a description."""
    return do("alt-text", description, model, **options)


def easy_read(text: str, model: LanguageModel, **options: Any) -> TaskAnswer:
    """A text in easy language: `value["lines"]`."""
    return do("easy-read", text, model, **options)


def ask(question: str, document: str, model: LanguageModel, **options: Any) -> TaskAnswer:
    """An answer from a document, with the words that it rests on: `value["known"]`, `value["answer"]`."""
    return do("ask", question, model, document=document, **options)


__all__ = [
    "Item",
    "LabelReport",
    "Labelling",
    "Rater",
    "Task",
    "TaskAnswer",
    "add_task",
    "alt_text",
    "ask",
    "classify",
    "do",
    "docstrings",
    "easy_read",
    "entities",
    "explain_code",
    "find_bugs",
    "find_task",
    "kept_tasks",
    "label_rows",
    "read_table",
    "run_task",
    "security_review",
    "sentiment",
    "shipped_names",
    "shipped_task",
    "summarize",
    "translate",
    "translate_code",
    "unit_tests",
    "write",
]
