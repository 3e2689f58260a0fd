"""Templates are data: what a row says is put in as it is."""

from string import ascii_lowercase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yunque.data.task_templates import Pattern, Template, parse_pattern

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
HOSTILE = st.sampled_from(["{word}", "{{", "}", "{0}", "{word.__class__}", "%s", "{labels}", "${x}", "\\{"])
NAMES = st.text(ascii_lowercase, min_size=1, max_size=5)


def escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


@given(st.lists(TEXTS | HOSTILE, min_size=2, max_size=5), st.data())
def test_a_filled_template_is_its_literals_and_the_values_and_nothing_else(literals, data) -> None:
    places = [data.draw(NAMES) for _ in literals[1:]]
    values = {place: data.draw(TEXTS | HOSTILE) for place in places}
    written = escaped(literals[0])
    wanted = literals[0]
    for place, literal in zip(places, literals[1:], strict=True):
        written += f"{{{place}}}{escaped(literal)}"
        wanted += values[place] + literal
    assert parse_pattern(written, set(places)).fill(values) == wanted


def test_the_usual_way_of_filling_would_fail_that_law() -> None:
    """Negative control: two passes read what a row says as a template, and attributes can be reached."""
    values = {"a": "{b}", "b": "secret"}
    naive = "{a}"
    for name, value in values.items():
        naive = naive.replace(f"{{{name}}}", value)
    assert naive == "secret"
    assert parse_pattern("{a}", values).fill(values) == "{b}"
    assert "class" in "{a.__class__}".format(a="x")
    with pytest.raises(ValueError, match="is no field"):
        parse_pattern("{a.__class__}", {"a"})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("¿{palabra}? {nada}", "the place '{nada}', which is no field (palabra)"),
        ("{}", "the place '{}'"),
        ("{0}", "the place '{0}'"),
        ("{palabra!r}", "the place '{palabra!r}'"),
        ("{palabra:>10}", "the place '{palabra:>10}'"),
        ("{palabra", "a lone '{': write '{{'"),
        ("palabra}", "a lone '}': write '}}'"),
        ("{{palabra}", "a lone '}'"),
    ],
)
def test_a_wrong_place_is_told(text, told) -> None:
    with pytest.raises(ValueError) as caught:
        parse_pattern(text, {"palabra"})
    assert told in str(caught.value)


def test_double_braces_are_braces() -> None:
    assert parse_pattern('{{"w": "{w}"}}', {"w"}).fill({"w": "sí"}) == '{"w": "sí"}'


def pattern(text: str) -> Pattern:
    return parse_pattern(text, {"first", "second", "right", "labels"})


def test_labels_may_be_those_of_the_row_and_are_listed_where_wanted() -> None:
    labels = (pattern("{first}"), pattern("{second}"))
    template = Template("1", pattern("Which: {labels}?"), pattern("{right}"), labels)
    asked = template.ask({"first": "ant", "second": "cow", "right": "cow"})
    assert (asked.instruction, asked.answer, asked.labels) == ("Which: ant, cow?", "cow", ("ant", "cow"))
    with pytest.raises(ValueError, match="'dog' is not one of the labels"):
        template.ask({"first": "ant", "second": "cow", "right": "dog"})
    with pytest.raises(ValueError, match="two of the labels are the same"):
        template.ask({"first": "cow", "second": "cow", "right": "cow"})


def test_the_same_wording_is_known_whatever_its_places_are_called() -> None:
    first, second = (parse_pattern(text, {"a", "b"}) for text in ("Opposite of  {a}?", "opposite OF {b}?"))
    assert first.wording == second.wording
    assert first.wording != parse_pattern("Opposite to {a}?", {"a"}).wording
