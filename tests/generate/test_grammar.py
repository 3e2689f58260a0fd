"""Answers that have a form: what is let through, what is refused, and that they are whole when they must end."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch

from yunque.errors import UserError
from yunque.generate.config import (
    ChoiceFormat,
    Format,
    GenerationConfig,
    JsonFormat,
    RegexFormat,
    Tool,
    ToolFormat,
)
from yunque.generate.grammar import Grammar
from yunque.generate.grammar_closing import Place
from yunque.generate.grammar_compiling import grammar_of, validate
from yunque.generate.grammar_schema import shortest_match, without_controls
from yunque.generate.sampler import Sampler
from yunque.generate.tool_calls import parse_tool_calls
from yunque.tokenizer import Tokenizer
from yunque.tokenizer.read import read_tokenizer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PERSON = {
    "type": "object",
    "properties": {
        "nombre": {"type": "string"},
        "año": {"type": "integer", "minimum": 1900, "maximum": 2100},
    },
    "required": ["nombre", "año"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(['{"nombre": "José", "año": 1999} sí, <tool_call>'] * 3, 300)


@pytest.fixture(scope="module")
def structured(module_patch):
    module_patch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("structured")


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def fed(form: Format, tokenizer: Tokenizer, text: str) -> Grammar:
    """A grammar after a text, each token of which it allowed."""
    grammar = grammar_of(form, tokenizer, tokenizer.vocab_size + 3)
    data = text.encode()
    while data:
        # The longest token that may come.
        ids = [
            id
            for id in grammar.allowed().tolist()
            if (piece := tokenizer.token_bytes(id)) and data.startswith(piece)
        ]
        assert ids, f"nothing of {data!r} may come"
        best = max(ids, key=lambda id: len(tokenizer.token_bytes(id)))
        grammar.accept(best)
        data = data[len(tokenizer.token_bytes(best)) :]
    return grammar


def takes(form: Format, tokenizer: Tokenizer, text: str) -> bool:
    """Whether a whole text is let through."""
    try:
        return fed(form, tokenizer, text).complete
    except AssertionError:
        return False


def written(
    form: Format, tokenizer: Tokenizer, seed: int, tokens: int, width: float = 2.0
) -> tuple[str, Grammar]:
    """A text of a model that knows nothing."""
    size = tokenizer.vocab_size + 3
    grammar, ids = grammar_of(form, tokenizer, size), list[int]()
    sampler = Sampler(GenerationConfig(temperature=1.0, seed=seed), [], size)
    generator = torch.Generator().manual_seed(seed)
    for left in range(tokens, 0, -1):
        ids.append(grammar.choose(sampler, torch.randn(size, generator=generator) * width, left).token_id)
        if grammar.finished or ids[-1] in tokenizer.end_ids:
            break
    return tokenizer.decode(ids), grammar


def names_of(structured) -> list[str]:
    return list(structured.SCHEMAS)


@pytest.mark.parametrize("place", range(20))
def test_all_that_a_model_of_random_weights_writes_is_valid(structured, place: int) -> None:
    torch.set_num_threads(1)
    assert len(structured.SCHEMAS) == 20
    schema = list(structured.SCHEMAS.values())[place]
    found = structured.write(*structured.random_model(place), schema, texts=4, tokens=160)
    assert found.faults == [] and len(found.texts) == 4


def test_without_the_grammar_hardly_anything_would_be_valid(tokenizer) -> None:
    drawn = torch.randint(5, tokenizer.vocab_size, (50, 60), generator=torch.Generator().manual_seed(0))
    assert all(validate(JsonFormat(json_schema=PERSON), tokenizer.decode(ids.tolist())) for ids in drawn)


@pytest.mark.parametrize("tokens", [23, 25, 40])
def test_an_answer_is_whole_in_as_few_tokens_as_the_shortest_one_needs(tokenizer, tokens: int) -> None:
    form = JsonFormat(json_schema=PERSON)
    shortest = b'{"nombre":"","a\xc3\xb1o":1900}'
    for seed in range(10):
        text, grammar = written(form, tokenizer, seed, tokens)
        assert grammar.complete and validate(form, text) is None
    assert validate(form, shortest.decode()) is None


def test_without_watching_the_end_answers_would_be_cut_off(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(Grammar, "watches", lambda *_: False)
    form = JsonFormat(json_schema=PERSON)
    assert any(validate(form, written(form, tokenizer, seed, 40)[0]) for seed in range(10))


def test_nothing_is_begun_that_could_not_be_ended(tokenizer) -> None:
    big = {f"a property of number {number}": {"type": "integer"} for number in range(12)}
    item = {"type": "object", "properties": big, "required": list(big), "additionalProperties": False}
    form = JsonFormat(json_schema={"type": "array", "items": item})
    lengths = set()
    for seed in range(12):
        text, _ = written(form, tokenizer, seed, 700, width=1.0)
        assert validate(form, text) is None
        lengths.add(len(json.loads(text)))
    # An object takes some 300 tokens.
    assert max(lengths) <= 2 and len(lengths) > 1


def test_in_too_few_tokens_it_is_cut_off_and_says_so(tokenizer) -> None:
    text, grammar = written(JsonFormat(json_schema=PERSON), tokenizer, 0, 6)
    assert not grammar.complete and not grammar.finished
    assert "not JSON" in (validate(JsonFormat(json_schema=PERSON), text) or "")


def test_a_whole_answer_is_over(tokenizer) -> None:
    grammar = fed(JsonFormat(json_schema=PERSON), tokenizer, '{"nombre": "Ñandú", "año": 1999}')
    assert grammar.finished and grammar.complete
    assert grammar.allowed().tolist() == [tokenizer.end_id]
    number = fed(JsonFormat(json_schema={"type": "integer"}), tokenizer, "12")
    assert number.complete and number.whole and not number.finished
    calls = ToolFormat(tools=TOOLS)
    talk, called = fed(calls, tokenizer, "Hola"), fed(calls, tokenizer, CALL)
    assert talk.complete and not talk.whole
    assert called.whole and not called.finished
    assert tokenizer.end_id in number.allowed()


JSON_CASES = [
    (PERSON, '{"nombre":"a","año":1900}', True),
    (PERSON, '{"nombre": "\\"\\\\\\n", "año": 2100}', True),
    (PERSON, '{"año":1900,"nombre":"a"}', False),
    (PERSON, '{"nombre":"a","año":1899}', False),
    (PERSON, '{"nombre":"a"}', False),
    (PERSON, '{"nombre":"a","año":1900,"b":1}', False),
    (PERSON, '{ "nombre":"a","año":1900}', False),
    (None, '{"a": [1, {"b": null}]}', True),
    (None, "[1]", False),
    (True, "[1, true]", True),
    ({"type": "number"}, "-1.5e+99", True),
    ({"type": "number"}, "1e100", False),
    ({"type": "number"}, "0.1E-123", False),
    ({"type": "array", "items": {"type": "number"}}, '[1, 2.5e10, 3e9, 4e12]', True),
    ({"type": "string"}, '"1e100"', True),
    ({"type": "string", "pattern": '^[^"]+$'}, '"a b"', True),
    ({"type": "string", "pattern": '^[^"]+$'}, '"a\\"b"', False),
    ({"type": "string", "format": "date"}, '"2024-02-29"', True),
    ({"type": "string", "format": "date"}, '"2023-02-29"', False),
    ({"type": "string", "format": "date"}, '"1900-02-29"', False),
    ({"type": "string", "format": "date", "pattern": "^19"}, '"2024-02-29"', False),
    ({"type": "string", "format": "time"}, '"23:59:59.25+02:00"', True),
    ({"type": "string", "format": "email"}, '"ana.gil@correo-1.es"', True),
    ({"type": "string", "format": "password"}, '"x"', True),
    ({"properties": {"format": {"const": {"format": "date"}}}}, '{"format":{"format":"date"}}', True),
    ({"type": "array", "uniqueItems": False}, "[1,1]", True),
    ({"type": "string", "description": "x", "x-kind": {"format": "iri"}}, '"a"', True),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "text", "good"), JSON_CASES)
def test_json_of_a_schema_and_nothing_else(tokenizer, schema, text: str, good: bool) -> None:
    assert takes(JsonFormat(json_schema=schema), tokenizer, text) is good


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"[0-9]{4}-[A-Z]{3}", "1234-ABC", "1234-abc"),
        (r"^(sí|no)$", "sí", "si"),
        (r"\w+ñ\w+", "señora", "senora"),
        ("a*", "", "b"),
    ],
)
def test_a_pattern_holds_for_the_whole_answer(tokenizer, pattern: str, good: str, bad: str) -> None:
    form = RegexFormat(pattern=pattern)
    assert takes(form, tokenizer, good) and validate(form, good) is None
    assert not takes(form, tokenizer, bad) and "does not match" in (validate(form, bad) or "")
    assert not takes(form, tokenizer, f"{good}!")
    text, grammar = written(form, tokenizer, 1, 30)
    assert grammar.complete and re.fullmatch(pattern, text)


def test_one_of_some_texts(tokenizer) -> None:
    form = ChoiceFormat(options=("sí", "no", "no lo sé", 'con "comillas"\n', "漢"))
    assert {written(form, tokenizer, seed, 30)[0] for seed in range(60)} == set(form.options)
    assert not takes(form, tokenizer, "no lo") and takes(form, tokenizer, "no")
    assert all(validate(form, option) is None for option in form.options)
    assert validate(form, "quizá") == "'quizá' is none of the choices"


TOOLS = (
    Tool(name="tiempo", parameters=PERSON),
    Tool(
        name="hora",
        parameters={"properties": {"z": {"$ref": "#/$defs/z"}}, "$defs": {"z": {"enum": ["Z", "CET"]}}},
    ),
)
CALL = '<tool_call>{"name": "tiempo", "arguments": {"nombre": "Olé", "año": 1999}}</tool_call>'
OTHER = '<tool_call>\n{"name": "hora", "arguments": {"z": "CET"}}\n</tool_call>'
TOOL_CASES = [
    # text, and whether it is let through: required, required and one at most, free, free and one at most
    ("", (False, False, True, True)),
    ("Hola, ¿qué <tal>?", (False, False, True, True)),
    (CALL, (True, True, True, True)),
    (CALL + OTHER, (True, False, True, False)),
    (f"{OTHER}\n{CALL}", (True, False, True, False)),
    (f"Miro: {OTHER}", (False, False, True, True)),
    (f"{CALL} y ya", (False, False, False, False)),
    ("<tool_call> no", (False, False, False, False)),
    (CALL[:-3], (False, False, False, False)),
    (CALL.replace("tiempo", "nada"), (False, False, False, False)),
    (CALL.replace("1999", "3"), (False, False, False, False)),
    (OTHER.replace("CET", "CEST"), (False, False, False, False)),
]


@pytest.mark.parametrize(("text", "good"), TOOL_CASES)
def test_calls_of_tools_and_text_that_is_none(tokenizer, text: str, good: tuple[bool, ...]) -> None:
    modes = [(True, True), (True, False), (False, True), (False, False)]
    forms = [ToolFormat(tools=TOOLS, required=required, parallel=parallel) for required, parallel in modes]
    assert tuple(takes(form, tokenizer, text) for form in forms) == good
    assert tuple(validate(form, text) is None for form in forms) == good or text == f"{CALL} y ya"


def test_arguments_are_an_object_where_they_could_be_something_else(tokenizer) -> None:
    form = ToolFormat(tools=(Tool(name="f", parameters={"type": ["object", "null"]}),))
    for arguments, good in (("{}", True), ("null", False)):
        text = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>'
        assert takes(form, tokenizer, text) is good
        assert (validate(form, text) is None) is good


@pytest.mark.parametrize("required", [True, False])
def test_calls_are_whole_when_the_answer_must_end(tokenizer, required: bool) -> None:
    form = ToolFormat(tools=TOOLS, required=required)
    for seed in range(12):
        text, grammar = written(form, tokenizer, seed, 90)
        assert grammar.complete and validate(form, text) is None
        assert bool(parse_tool_calls(text)[1]) >= required


def test_a_call_that_was_begun_in_free_text_is_ended(tokenizer) -> None:
    form, size = ToolFormat(tools=TOOLS), tokenizer.vocab_size + 3
    grammar = fed(form, tokenizer, "Voy a mirar. <tool_call>")
    ids, sampler = list[int](), Sampler(GenerationConfig(temperature=1.0, seed=0), [], size)
    for left in range(70, 0, -1):
        ids.append(grammar.choose(sampler, torch.zeros(size), left).token_id)
        if ids[-1] in tokenizer.end_ids:
            break
    assert grammar.complete
    assert validate(form, f"<tool_call>{tokenizer.decode(ids)}") is None


def test_a_tokenizer_that_cannot_write_it_is_told() -> None:
    from tokenizers import Tokenizer as AnyTokenizer
    from tokenizers import models

    vocab = {letter: id for id, letter in enumerate('abcdefghijklmnopqrstuvwxyz{":')}
    bare = Tokenizer(AnyTokenizer(models.BPE(vocab=vocab, merges=[])))
    with pytest.raises(UserError, match="the tokenizer has no tokens for"):
        grammar_of(JsonFormat(json_schema=None), bare, len(vocab))
    with pytest.raises(UserError, match="the tokenizer has no tokens for 'sí'"):
        grammar_of(ChoiceFormat(options=("no", "sí")), bare, len(vocab))
    grammar = fed(ChoiceFormat(options=("no", "si")), bare, "s")
    grammar.accept(vocab["i"])
    # It has no end token, and needs none.
    assert grammar.finished
    for seed in range(5):
        text, grammar = written(RegexFormat(pattern="a(bcdefg)*"), bare, seed, 8)
        assert text.startswith("a") and not grammar.finished


def test_what_is_taken_back_may_be_written_otherwise(tokenizer) -> None:
    form = JsonFormat(json_schema=PERSON)
    grammar = fed(form, tokenizer, '{"nombre": "')
    before = grammar.allowed()
    steps = 0
    for letter in ("A", '"', ","):
        [id] = tokenizer.encode(letter)
        grammar.accept(id)
        steps += 1
    assert not np.array_equal(grammar.allowed(), before)
    grammar.rollback(steps)
    assert np.array_equal(grammar.allowed(), before)
    whole = fed(form, tokenizer, '{"nombre": "", "año": 1999}')
    whole.accept(tokenizer.end_id)
    whole.rollback(2)
    assert (
        not whole.complete
        and whole.allowed().tolist() == fed(form, tokenizer, '{"nombre": "", "año": 1999').allowed().tolist()
    )


def test_a_copy_goes_its_own_way(tokenizer) -> None:
    first = fed(JsonFormat(json_schema=PERSON), tokenizer, '{"nombre": "')
    second = first.copy()
    first.accept(tokenizer.encode('"')[0])
    assert not np.array_equal(first.allowed(), second.allowed())
    size = tokenizer.vocab_size + 3
    for grammar in (first, second):
        sampler = Sampler(GenerationConfig(temperature=1.0, seed=2), [], size)
        for left in range(40, 0, -1):
            grammar.choose(sampler, torch.zeros(size), left)
            if grammar.finished:
                break
        assert grammar.complete


def test_log_probabilities_are_told_of_forced_tokens_too(tokenizer) -> None:
    grammar, size = (
        grammar_of(ChoiceFormat(options=("sí",)), tokenizer, tokenizer.vocab_size),
        tokenizer.vocab_size,
    )
    chosen = grammar.choose(Sampler(GenerationConfig(logprobs=0), [], size), torch.zeros(size), 2)
    assert chosen.scored is not None and chosen.scored.logprob == pytest.approx(
        -float(np.log(size)), abs=1e-5
    )


@pytest.mark.parametrize(
    "pattern",
    [
        r"^[0-9]{4}-[A-Z]{3}$",
        r"^(ES|MX)\d+$",
        r"^[^@ ]+@[^@ ]+\.com$",
        r"^\w\W\s\S$",
        r"^.a?b*?c+$",
        r"[-_]x{3,}",
        r"[^a]",
        "ñ",
    ],
)
def test_the_example_of_a_pattern_matches_it(pattern: str) -> None:
    example = shortest_match(pattern)
    assert example is not None and re.search(pattern, example)
    assert shortest_match("(") is None


def test_what_is_excluded_is_joined_by_control_characters() -> None:
    assert (
        without_controls(r'^[^"]+\[^a][^]b][^\]c]$') == r'^[^\x00-\x1f"]+\[^a][^\x00-\x1f]b][^\x00-\x1f\]c]$'
    )
    assert without_controls("[a^b](^c)[[^d]") == "[a^b](^c)[[^d]"


def test_a_place_knows_strings_from_what_is_around_them() -> None:
    place = Place.start("json").after(b'{"a\\"')
    assert place.in_string and place.name
    assert not place.after(b'"').in_string
    value = place.after(b'": "')
    assert value.in_string and not value.name
    assert Place.start("tools").after(b'a "b').in_string
    assert not Place.start("tools").after(b'a "b <tool').after(b"_call>").in_string
    assert Place.start("plain").after(b'"').in_string


def test_validation_reads_what_was_written(tokenizer) -> None:  # noqa: ARG001
    form = JsonFormat(json_schema=PERSON)
    assert validate(form, json.dumps({"nombre": "a", "año": 1999})) is None
    assert validate(form, '{"nombre": 3, "año": 1999}') == 'nombre: 3 is not of type "string"'
    assert "is not JSON" in (validate(form, '{"nombre"') or "")
    assert validate(JsonFormat(json_schema=None), "[1]") == 'the whole: [1] is not of type "object"'
    dated = JsonFormat(json_schema={"type": "string", "format": "date"})
    assert validate(dated, '"2023-02-29"') == 'the whole: "2023-02-29" is not a "date"'


def test_a_sentencepiece_vocabulary_writes_it_too(tmp_path) -> None:
    lines = "\n".join(['El niño {"nombre": "Ana", "año": 1999}', "la casa es bonita"] * 50)
    (tmp_path / "text").write_text(lines)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces, form = read_tokenizer(tmp_path / "tokenizer.model"), JsonFormat(json_schema=PERSON)
    for seed in range(4):
        text, grammar = written(form, pieces, seed, 60)
        assert grammar.complete and validate(form, text) is None
