"""Structured answers: whatever a model writes, what comes out fits the schema, or nothing comes out."""

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from datetime import date
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator

from yunque.apps.json_reading import MOST_LEVELS, NotJson, read_json
from yunque.apps.structured import NoValidAnswer, ask_for, shortened
from yunque.data.personal import find_personal_data
from yunque.errors import UserError
from yunque.generate.config import GenerationConfig, JsonFormat
from yunque.llm import Completion, ContextOverflow, Cost, Message, ModelUnavailable, ScriptedModel, Usage

ASKED = [Message("user", "How old is Ana?")]
AGE = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["age"],
    "additionalProperties": False,
}


class _Recorded:
    """A model that gives completions or raises, and keeps what it was asked with."""

    name, local = "recorded", False

    def __init__(self, *replies: Completion | Exception | str) -> None:
        self.replies = list(replies)
        self.asked: list[tuple[list[Message], GenerationConfig]] = []

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        self.asked.append((list(messages), config))
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, str):
            return Completion(reply, self.name, "stop", Usage(10, 5), cost=Cost(0.25, "2026-01-01"))
        return reply

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


@pytest.mark.parametrize(
    "text",
    [
        '{"age": 30}',
        '\ufeff  {"age": 30}\n',
        '```json\n{"age": 30}\n```',
        'Here you are:\n```\n{"age": 30}\n```\nAnything else?',
        'The answer [as asked] is {"age": 30}. Bye.',
        '<think>{"age": 12}? no</think>{"age": 30}',
        '~~~json\n{"age": 30}\n~~~',
        '```python\nx = 1\n```\n{"age": 30}',
    ],
)
def test_json_is_found_alone_fenced_and_in_prose(text: str) -> None:
    assert read_json(text) == {"age": 30}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("He is thirty.", "not JSON"),
        ("{'age': 30}", "not JSON"),
        ('{"age": 30,}', "not JSON"),
        ('{"age": NaN}', "NaN"),
        ('{"age": -Infinity}', "Infinity"),
        ('{"age": 1e999}', "too large"),
        ('{"age": 1, "age": 2}', "twice"),
        ('Sure: {"age": 1, "age": 2}', "twice"),
        ('{"age": 1} {"age": 2}', "2 JSON values"),
        ('```json\n{"age": 1}\n```\n```json\n{"age": 2}\n```', "2 JSON values"),
        ('{"age": 30}}', "not JSON"),
        ('[{"age": 1}, {"age": 2}, {"ag', "not JSON"),
        ('{"people": [{"age": 1}], "n', "not JSON"),
        ("[" * 100_000, "nested|not JSON"),
        ("[" * (MOST_LEVELS + 1) + "]" * (MOST_LEVELS + 1), "levels"),
        ("[" * 50_000 + "]" * 50_000, "nested|levels"),
        ('{"a": "\\ud800"}', "UTF-8"),
        ("1" * 5000, "not JSON"),
        ("__import__('os').system('true')", "not JSON"),
        ("```json\n{nope}\n```", "code fence"),
        ('"' + "x" * 4_000_001 + '"', "more than 4,000,000"),
    ],
)
def test_what_is_not_surely_meant_is_refused(text: str, said: str) -> None:
    with pytest.raises(NotJson, match=said):
        read_json(text)


def test_an_answer_that_broke_off_is_no_number() -> None:
    assert read_json("12") == 12
    with pytest.raises(NotJson, match="broke off"):
        read_json("12", cut=True)
    assert read_json('{"a": 12}', cut=True) == {"a": 12}


def test_a_valid_answer_comes_at_once_with_the_form_asked_for() -> None:
    model = _Recorded('{"age": 30}')
    made = ask_for(model, ASKED, AGE)
    assert made.value == {"age": 30} and made.attempts == 1 and made.cost == Cost(0.25, "2026-01-01")
    ((messages, config),) = model.asked
    assert messages == ASKED and config.format == JsonFormat(json_schema=AGE)


def test_a_wrong_answer_is_asked_for_again_with_what_was_wrong() -> None:
    model = _Recorded('{"age": "thirty"}', '{"age": 300}', '{"age": 30}')
    made = ask_for(model, ASKED, AGE, attempts=3)
    assert made.value == {"age": 30} and made.attempts == 3 and made.usage == Usage(30, 15)
    second, third = model.asked[1][0], model.asked[2][0]
    assert [m.role for m in second] == ["user", "assistant", "user"]
    assert (
        second[1].content == '{"age": "thirty"}'
        and "age" in second[2].content
        and "integer" in second[2].content
    )
    assert "150" in third[2].content


def test_what_does_not_fit_never_comes_out_and_its_price_is_told() -> None:
    with pytest.raises(NoValidAnswer, match="recorded was asked 2 times") as told:
        ask_for(_Recorded('{"age": -1}', "no idea"), ASKED, AGE, attempts=2)
    assert len(told.value.errors) == 2 and told.value.usage == Usage(20, 10)
    assert told.value.cost == Cost(0.5, "2026-01-01")


def test_a_cost_that_is_not_known_is_not_guessed() -> None:
    unknown = Completion("x", "m", "stop", Usage(1, 1), cost=None)
    assert ask_for(_Recorded(unknown, '{"age": 1}'), ASKED, AGE).cost is None


def test_a_cut_answer_gets_more_room() -> None:
    cut = Completion('{"age": 3', "m", "length", Usage(1, 1))
    model = _Recorded(cut, '{"age": 30}')
    assert ask_for(model, ASKED, AGE, GenerationConfig(max_new_tokens=8)).value == {"age": 30}
    assert model.asked[1][1].max_new_tokens == 16 and "briefly" in model.asked[1][0][-1].content


def test_a_server_that_refuses_the_form_is_told_it_in_words() -> None:
    model = _Recorded(ModelUnavailable("m: answered with status 400"), "x", '{"age": 30}')
    assert ask_for(model, ASKED, AGE).value == {"age": 30}
    assert model.asked[0][1].format and not model.asked[1][1].format and not model.asked[2][1].format
    assert [m.role for m in model.asked[1][0]] == ["user"] and '"maximum": 150' in model.asked[1][0][
        0
    ].content


def test_a_form_that_no_grammar_promises_is_asked_for_in_words() -> None:
    model = _Recorded(UserError("format: this form cannot be followed"), '{"age": 30}')
    assert ask_for(model, ASKED, AGE).value == {"age": 30}


@pytest.mark.parametrize(
    "failure",
    [
        ModelUnavailable("m: cannot be reached"),
        ModelUnavailable("m: refused the API key (status 401)"),
        ModelUnavailable("m: answered with status 503", again=True),
        ContextOverflow("too long", 3),
        UserError("the model does not take n"),
    ],
)
def test_other_failures_go_through_as_they_are(failure: Exception) -> None:
    with pytest.raises(type(failure)) as told:
        ask_for(_Recorded(failure, '{"age": 30}'), ASKED, AGE)
    assert told.value is failure


def test_without_room_to_ask_again_the_wrong_answer_is_left_out() -> None:
    model = _Recorded("x", ContextOverflow("too long", 20), '{"age": 30}')
    assert ask_for(model, ASKED, AGE).value == {"age": 30}
    assert [m.role for m in model.asked[2][0]] == ["user"]
    no_room = _Recorded("x", ContextOverflow("too long", 0), ContextOverflow("too long", 0))
    with pytest.raises(NoValidAnswer, match="no room"):
        ask_for(no_room, ASKED, AGE)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "objet"},
        {"$ref": "https://example.com/s.json"},
        {"minimum": "a"},
        {"type": "string", "pattern": "("},
    ],
)
def test_a_schema_that_is_none_is_told_before_anything_is_asked(schema: dict[str, Any]) -> None:
    model = _Recorded()
    with pytest.raises(UserError, match="JSON Schema"):
        ask_for(model, ASKED, schema)
    assert not model.asked


@pytest.fixture
def asked_of_a_server() -> Iterator[tuple[str, list[str]]]:
    """The address of a server with a meta-schema, and the paths that it was asked for."""
    asked: list[str] = []
    content = b'{"$schema": "https://json-schema.org/draft/2020-12/schema"}'

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "schema",
    [
        {"$schema": "URL/m", "type": "string"},
        {"$schema": "file:///etc/hostname", "type": "string"},
        {"$schema": "mine", "type": "string"},
        {"$ref": "URL/r"},
        {"$ref": "file:///etc/hostname"},
        {"$id": "URL/id", "$ref": "r"},
        {"properties": {"a": {"$ref": "URL/a#/b"}}, "type": "object"},
        {"type": "string", "$defs": {"a": {"$ref": "URL/unused"}}},
    ],
)
def test_nothing_that_a_schema_names_is_fetched(
    schema: dict[str, Any], asked_of_a_server: tuple[str, list[str]]
) -> None:
    url, fetched = asked_of_a_server
    model = _Recorded()
    with pytest.raises(UserError, match="JSON Schema"):
        ask_for(model, ASKED, json.loads(json.dumps(schema).replace("URL", url)))
    assert not fetched and not model.asked


@pytest.mark.parametrize(
    "draft",
    [
        "http://json-schema.org/draft-04/schema#",
        "http://json-schema.org/draft-07/schema#",
        "https://json-schema.org/draft/2019-09/schema",
        "https://json-schema.org/draft/2020-12/schema",
    ],
)
def test_a_schema_may_say_its_draft_and_hold_all_it_refers_to(draft: str) -> None:
    schema = {"$schema": draft, "definitions": {"age": AGE}, "$ref": "#/definitions/age"}
    assert ask_for(_Recorded('{"age": 30}'), ASKED, schema).value == {"age": 30}
    assert ask_for(_Recorded('"x"'), ASKED, {"const": "x", "$schema": draft}).value == "x"


def test_what_is_shortened_is_found_as_it_was() -> None:
    for most in range(80):
        text = "The account ES91 2100 0418 4502 0005 1332 of ana.perez@example.com, call +34 600 123 456 now."
        cut = shortened(text, most)
        assert text.startswith(cut) and len(cut) <= most
        assert {one.value for one in find_personal_data(cut)} <= {
            one.value for one in find_personal_data(text)
        }
        assert "ES91" not in cut or "1332" in cut
        assert "ana" not in cut or "example.com" in cut
    assert shortened(text, 200) == text and shortened("a" * 20, 7) == "a" * 7


class Person(BaseModel):
    model_config = ConfigDict(strict=True)
    name: str = Field(min_length=2)
    born: date

    @field_validator("name")
    @classmethod
    def _capital(cls, name: str) -> str:
        if not name[0].isupper():
            raise ValueError("a name begins with a capital")
        return name


def test_a_pydantic_model_gives_an_instance_and_its_own_validators_decide() -> None:
    model = _Recorded('{"name": "ana", "born": "1990-02-03"}', '{"name": "Ana", "born": "1990-02-03"}')
    made = ask_for(model, ASKED, Person)
    assert made.value == Person(name="Ana", born=date(1990, 2, 3))
    assert "begins with a capital" in model.asked[1][0][-1].content
    with pytest.raises(NoValidAnswer):
        ask_for(_Recorded('{"name": "ana", "born": "1990-02-03"}'), ASKED, Person, attempts=1)


def test_a_class_that_has_no_schema_is_told() -> None:
    class Odd(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        thing: _Recorded

    with pytest.raises(UserError, match="Odd has no JSON Schema"):
        ask_for(_Recorded(), ASKED, Odd)


def test_texts_are_put_back_before_they_are_validated() -> None:
    schema = {
        "type": "object",
        "properties": {"mail": {"type": "string", "pattern": "@"}},
        "required": ["mail"],
    }
    back = {"[EMAIL-1]": 'a"b@x.example'}
    made = ask_for(_Recorded('{"mail": "[EMAIL-1]"}'), ASKED, schema, restore=lambda t: back.get(t, t))
    assert made.value == {"mail": 'a"b@x.example'}
    with pytest.raises(NoValidAnswer):
        ask_for(_Recorded('{"mail": "[EMAIL-1]"}'), ASKED, schema, attempts=1)


_scalars = st.none() | st.booleans() | st.integers(-50, 50) | st.floats(allow_nan=False) | st.text(max_size=6)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


def _schemas() -> st.SearchStrategy[dict[str, Any]]:
    leaf = st.one_of(
        st.fixed_dictionaries({"type": st.sampled_from(["string", "number", "boolean", "null"])}),
        st.builds(
            lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
            st.integers(-9, 9),
            st.integers(0, 9),
        ),
        st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 5)),
        st.builds(lambda options: {"enum": options}, st.lists(_scalars, min_size=1, max_size=3)),
    )
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.builds(
                lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 3)
            ),
            st.builds(
                lambda named, closed: {
                    "type": "object", "properties": named, "required": sorted(named)[:1],
                    "additionalProperties": not closed,
                },
                st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
                st.booleans(),
            ),
            st.builds(lambda one, two: {"anyOf": [one, two]}, inner, inner),
        ),
        max_leaves=5,
    )  # fmt: skip


def _same(one: Any, other: Any) -> bool:
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _fits(value: Any, schema: dict[str, Any]) -> bool:
    """JSON Schema as its standard has it, for the words that `_schemas` uses: written apart from what is tested."""
    if "anyOf" in schema:
        return any(_fits(value, one) for one in schema["anyOf"])
    if "enum" in schema:
        return any(_same(value, one) for one in schema["enum"])
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match schema["type"]:
        case "string":
            return isinstance(value, str) and len(value) <= schema.get("maxLength", 99)
        case "integer":
            return number and value == int(value) and schema["minimum"] <= value <= schema["maximum"]
        case "array":
            inside = isinstance(value, list) and all(_fits(one, schema["items"]) for one in value)
            return inside and len(value) <= schema["maxItems"]
        case "object":
            named = schema["properties"]
            return (
                isinstance(value, dict)
                and set(schema["required"]) <= set(value)
                and (schema["additionalProperties"] is not False or set(value) <= set(named))
                and all(_fits(value[name], one) for name, one in named.items() if name in value)
            )
    return {"number": number, "boolean": isinstance(value, bool), "null": value is None}[schema["type"]]


def _dressed(value: Any, dress: int, junk: str) -> str:
    text = json.dumps(value)
    return [text, f"```json\n{text}\n```", f"Here: {text} {junk}", text[: len(text) // 2], text + junk, junk][
        dress
    ]


@settings(max_examples=300, deadline=None)
@given(
    _schemas(),
    st.lists(st.tuples(_values, st.integers(0, 5), st.text(max_size=8)), min_size=1, max_size=3),
    st.booleans(),
)
def test_what_comes_out_always_fits(
    schema: dict[str, Any], replies: list[tuple[Any, int, str]], cut: bool
) -> None:
    written = [_dressed(*reply) for reply in replies]
    reason: Any = "length" if cut else "stop"
    model = _Recorded(*(Completion(text, "m", reason, Usage(1, 1)) for text in written))
    try:
        made = ask_for(model, ASKED, schema, attempts=len(written))
    except NoValidAnswer as none:
        assert len(none.completions) == len(none.errors) == len(written)
        # ... and it was not refused for nothing: a plain, whole, fitting reply is always taken.
        plain = [value for value, dress, _ in replies if dress == 0 and not cut]
        assert not any(jsonschema_rs.is_valid(schema, value) for value in plain)
        return
    assert jsonschema_rs.is_valid(schema, made.value)
    assert _fits(made.value, schema)


@pytest.mark.parametrize(
    "value", [{"age": "x"}, {"age": -1}, {"age": True}, {"age": 1, "b": 2}, {}, [], None]
)
def test_the_oracle_of_the_property_sees_a_wrong_value(value: Any) -> None:
    assert _fits({"age": 30}, AGE)
    assert not _fits(value, AGE)


def test_a_scripted_model_serves_as_well() -> None:
    assert ask_for(ScriptedModel(["no", '{"age": 4}']), ASKED, AGE).value == {"age": 4}
