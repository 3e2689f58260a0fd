"""What code does with a task's answer: check it, finish it, put pieces together, and show it.

A check says what is wrong in a sentence, and the model is asked again. What a check promises holds for every answer
that comes out.
"""

import ast
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yunque.apps.tasks.sentences import sentences_of, words_of
from yunque.data.language import detect_language

Values = Mapping[str, Any]

MOST_WORDS_OF_A_LINE = 15
_LEAST_WORDS = 6
MOST_CHARACTERS_OF_ALT_TEXT = 150


@dataclass(frozen=True)
class Finished:
    """An answer as it goes out, and what a user should know of it."""

    value: Any
    notes: tuple[str, ...] = ()


def _right(value: Any, values: Values, language: str) -> str | None:
    del value, values, language
    return None


def _as_it_is(value: Any, values: Values) -> Finished:
    del values
    return Finished(value)


def _text(value: Any, values: Values) -> str:
    del values
    return str(value)


def _put_together(answers: Sequence[Any]) -> Any:
    return "\n\n".join(str(answer).strip() for answer in answers)


@dataclass(frozen=True)
class Step:
    """The code of a task. `check` is asked with the answer, the inputs and the language that is wanted: what fails it
    never comes out. `wish` is asked for again too, but a last answer that fails it comes out with a note."""

    check: Callable[[Any, Values, str], str | None] = _right
    finish: Callable[[Any, Values], Finished] = _as_it_is
    show: Callable[[Any, Values], str] = _text
    together: Callable[[Sequence[Any]], Any] = _put_together
    wish: Callable[[Any, Values, str], str | None] = _right


def _not_empty(value: Any, values: Values, language: str) -> str | None:
    del values
    if not str(value).strip():
        return "the answer is empty"
    return _other_language(str(value), language)


def _other_language(text: str, wanted: str) -> str | None:
    # A few words tell no language: "median" looks Spanish.
    found = detect_language(text) if len(words_of(text)) >= _LEAST_WORDS else "und"
    if found in ("es", "en") and wanted in ("es", "en") and found != wanted:
        return f"it must be written in {'Spanish' if wanted == 'es' else 'English'}"
    return None


def _few_sentences(value: Any, values: Values, language: str) -> str | None:
    del language
    most = values.get("sentences") or 3
    count = len(sentences_of(str(value)))
    return f"the summary has {count} sentences, and {most} are allowed" if count > most else None


_PAPER = ("objective", "method", "findings")


def _check_paper(value: Any, values: Values, language: str) -> str | None:
    for part in _PAPER:
        count = len(sentences_of(value[part]))
        if count != 1:
            return f"{part}: has {count} sentences, and must have one"
    return _not_empty(" ".join(value[part] for part in _PAPER), values, language)


def _show_paper(value: Any, values: Values) -> str:
    del values
    return " ".join(value[part].strip() for part in _PAPER)


def _check_translation(value: Any, values: Values, language: str) -> str | None:
    del language
    if not str(value).strip():
        return "the answer is empty"
    same = " ".join(str(value).split()).casefold() == " ".join(str(values["text"]).split()).casefold()
    if same and len(words_of(str(value))) > 3:
        return "it is the text itself and no translation"
    return _other_language(str(value), str(values["to"]))


def most_frequent(answers: Sequence[Any]) -> Any:
    """The label that most pieces have; of equals the one that came first."""
    counts = Counter(answer["label"] for answer in answers)
    return {**answers[0], "label": counts.most_common(1)[0][0]}


def _show_label(value: Any, values: Values) -> str:
    del values
    return str(value["label"])


def _lists_together(answers: Sequence[Any]) -> Any:
    name = next(iter(answers[0]))
    return {name: [one for answer in answers for one in answer[name]]}


def _find_entities(value: Any, values: Values) -> Finished:
    """Every place where an entity stands in the text; one that is nowhere was made up, and is dropped."""
    text = str(values["text"])
    found: dict[tuple[int, int], dict[str, Any]] = {}
    dropped = 0
    for entity in sorted(value["entities"], key=lambda one: -len(one["text"])):
        places = places_of(entity["text"], text)
        dropped += not places
        for start, end in places:
            if all(end <= first or last <= start for first, last in found):
                found[start, end] = {
                    "text": text[start:end],
                    "kind": entity["kind"],
                    "start": start,
                    "end": end,
                }
    notes = (f"{dropped} dropped: not in the text",) if dropped else ()
    return Finished({"entities": [found[place] for place in sorted(found)]}, notes)


def places_of(wanted: str, text: str) -> list[tuple[int, int]]:
    """Where a text stands in another as whole words; case, accents' encoding and white space do not matter."""
    words = unicodedata.normalize("NFC", wanted).split()
    if not words:
        return []
    forms = [{word, unicodedata.normalize("NFD", word)} for word in words]
    pattern = r"\s+".join("(?:" + "|".join(map(re.escape, sorted(form))) + ")" for form in forms)
    exact = [match.span() for match in re.finditer(rf"(?<!\w){pattern}(?!\w)", text)]
    return exact or [match.span() for match in re.finditer(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE)]


def _show_entities(value: Any, values: Values) -> str:
    del values
    lines = [f"{one['start']}-{one['end']}\t{one['kind']}\t{one['text']}" for one in value["entities"]]
    return "\n".join(lines) or "-"


def _check_written(value: Any, values: Values, language: str) -> str | None:
    return _not_empty(value["body"], values, language)


def _about_as_long(value: Any, values: Values, language: str) -> str | None:
    del language
    most = values.get("words")
    count = len(words_of(value["body"]))
    return f"the body has {count} words, and about {most} are wanted" if most and count > 1.2 * most else None


def _show_written(value: Any, values: Values) -> str:
    body = str(value["body"]).strip()
    return f"{value['title']}\n\n{body}" if values.get("kind") == "email" else f"# {value['title']}\n\n{body}"


def _check_places(name: str) -> Callable[[Any, Values, str], str | None]:
    def check(value: Any, values: Values, language: str) -> str | None:
        count = len(str(values["code"]).splitlines())
        beyond = [one["line"] for one in value[name] if not 1 <= one["line"] <= count]
        del language
        return f"line {beyond[0]} does not exist: the code has {count} lines" if beyond else None

    return check


def _by_line(name: str) -> Callable[[Any, Values], Finished]:
    def finish(value: Any, values: Values) -> Finished:
        lines = str(values["code"]).splitlines()
        # To JSON Schema 2.0 is an integer; to Python it is not.
        ordered = sorted(
            ({**one, "line": int(one["line"])} for one in value[name]), key=lambda one: one["line"]
        )
        return Finished({name: [{**one, "code": lines[one["line"] - 1].strip()} for one in ordered]})

    return finish


def _show_places(name: str) -> Callable[[Any, Values], str]:
    def show(value: Any, values: Values) -> str:
        del values
        lines = [
            f"{one['line']}: {one['severity']}{' ' + one['cwe'] if one.get('cwe') else ''}: {one['problem']}\n"
            f"    {one['code']}\n    -> {one['fix']}"
            for one in value[name]
        ]
        return "\n".join(lines) or "-"

    return show


def _check_code(value: Any, values: Values, language: str) -> str | None:
    del language
    if not value["code"].strip():
        return "code: is empty"
    return python_fault(value["code"]) if str(values["to"]).lower() in ("python", "python3", "py") else None


def python_fault(code: str) -> str | None:
    """What keeps a text from being Python; None where nothing does. It is parsed, not run."""
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        place = f"line {error.lineno}: " if isinstance(error, SyntaxError) else ""
        return f"the code is not Python ({place}{getattr(error, 'msg', None) or error})"
    return None


def _finish_code(value: Any, values: Values) -> Finished:
    known = str(values["to"]).lower() in ("python", "python3", "py")
    return Finished(
        value, () if known else (f"only read by the model: Yunque does not check {values['to']}",)
    )


_LOOKS_AT = re.compile(
    r"\s*(?:an?\s+|una?\s+|la\s+)?(?:image|picture|photo|imagen|foto|fotografía)\b\s+(?:of|de|showing|que)",
    re.I,
)


def _check_alt_text(value: Any, values: Values, language: str) -> str | None:
    most = values.get("characters") or MOST_CHARACTERS_OF_ALT_TEXT
    if len(value) > most:
        return f"it has {len(value)} characters, and {most} are allowed"
    if _LOOKS_AT.match(value):
        return "a screen reader says already that it is an image: begin with what is shown"
    if "\n" in value.strip():
        return "it must be one line"
    return _not_empty(value, values, language)


def _check_easy(value: Any, values: Values, language: str) -> str | None:
    most = values.get("words") or MOST_WORDS_OF_A_LINE
    for number, line in enumerate(value["lines"], 1):
        if fault := easy_fault(line, most):
            return f"line {number} {fault}"
    return _not_empty(" ".join(value["lines"]), values, language)


def easy_fault(line: str, most: int = MOST_WORDS_OF_A_LINE) -> str | None:
    """What makes a line hard to read (after the European rules of Inclusion Europe): it must be one short sentence
    with one idea."""
    count = len(words_of(line))
    if not count:
        return "is empty"
    if count > most:
        return f"has {count} words, and at most {most} are easy to read"
    if len(sentences_of(line)) > 1:
        return "has more than one sentence: one idea in each line"
    if ";" in line or "(" in line:
        return "has a semicolon or brackets: write two lines"
    if len(re.findall(r",", line)) > 2:
        return "has more than two commas: write two lines, or a list"
    return None


def _show_lines(value: Any, values: Values) -> str:
    del values
    return "\n".join(line.strip() for line in value["lines"])


def _check_tests(value: Any, values: Values, language: str) -> str | None:
    # Here and not above: the sandbox is for this one task.
    from yunque.apps.tasks.testing import check_tests

    return check_tests(value, values, language)


def _check_docstring(value: Any, values: Values, language: str) -> str | None:
    return _not_empty(value["docstring"], values, language)


_LABEL = Step(show=_show_label, together=most_frequent)
STEPS: dict[str, Step] = {
    "plain": Step(_not_empty),
    "summary": Step(_not_empty, wish=_few_sentences),
    "paper": Step(_check_paper, show=_show_paper),
    "translation": Step(_check_translation),
    "label": _LABEL,
    "entities": Step(finish=_find_entities, show=_show_entities, together=_lists_together),
    "written": Step(_check_written, show=_show_written, wish=_about_as_long),
    "bugs": Step(_check_places("bugs"), _by_line("bugs"), _show_places("bugs"), _lists_together),
    "findings": Step(
        _check_places("findings"), _by_line("findings"), _show_places("findings"), _lists_together
    ),
    "code": Step(_check_code, _finish_code, lambda value, _: str(value["code"])),
    "alt-text": Step(_check_alt_text),
    "easy-read": Step(_check_easy, show=_show_lines, together=_lists_together),
    # These have a way of their own to run; see `yunque.apps.tasks.running`.
    "docstrings": Step(_check_docstring),
    "unit-tests": Step(_check_tests),
    "ask": Step(),
}
