"""From a format to a grammar: what is refused, what is kept, for how long, and who waits for whom."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from yunque.errors import UserError
from yunque.generate import grammar_compiling
from yunque.generate.config import ChoiceFormat, Format, JsonFormat, RegexFormat, Tool, ToolFormat
from yunque.generate.grammar import Grammar
from yunque.generate.grammar_compiling import grammar_of
from yunque.generate.grammar_vocabulary import Vocabulary
from yunque.tokenizer import Tokenizer

TOOL = Tool(name="hora", parameters={"properties": {"z": {"enum": ["Z", "CET"]}}})


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(['{"nombre": "José", "año": 1999} sí, <tool_call>'] * 3, 300)


@pytest.fixture
def compiled(monkeypatch) -> list[Format]:
    """What is compiled from now on."""
    seen = list[Format]()
    compile = grammar_compiling._compile

    def noted(format: Format, vocabulary: Vocabulary) -> Grammar:
        seen.append(format)
        return compile(format, vocabulary)

    monkeypatch.setattr(grammar_compiling, "_compile", noted)
    return seen


REFUSED = [
    (JsonFormat(json_schema={"type": "integer", "minimum": 5, "maximum": 3}), "minimum .5. is greater than maximum"),
    (JsonFormat(json_schema=False), "is false, which no text fulfils"),
    (JsonFormat(json_schema={"not": {"type": "string"}}), 'Unimplemented keys: ."not"'),
    (JsonFormat(json_schema={"type": "array", "uniqueItems": True}), "uniqueItems"),
    (JsonFormat(json_schema={"type": "texto"}), "is not one: type: .*texto"),
    (JsonFormat(json_schema={"$ref": "#/$defs/nada"}), "'/.defs/nada' does not exist"),
    (JsonFormat(json_schema={"$ref": "http://127.0.0.1:9/x"}), "is not present"),
    (JsonFormat(json_schema={"type": "string", "pattern": "(?=a)"}), "look-around"),
    (JsonFormat(json_schema={"type": "string", "format": "iri"}), "format 'iri' .* cannot be promised"),
    (JsonFormat(json_schema={"type": "string", "minLength": 10**9}), "minLength is 1,000,000,000, more than 10,000"),
    (JsonFormat(json_schema={"type": "integer", "multipleOf": 999983}), "multiples of 999983 cannot be followed"),
    (JsonFormat(json_schema={"enum": ["x" * 300_000]}), "300,.* characters, more than 100,000"),
    (
        JsonFormat(json_schema={"type": "object", "properties": {f"a{number}": {} for number in range(600)}}),
        "the form is too much to follow .*Current row",
    ),
    (
        JsonFormat(json_schema={"$defs": {"n": {"properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"],
                                                "type": "object"}}, "$ref": "#/$defs/n"}),
        "no text of at most 20,000 bytes was found that has this form",
    ),
    (RegexFormat(pattern="(a"), "unclosed group"),
    (RegexFormat(pattern=r"(?<!a)b"), "look-around"),
    (RegexFormat(pattern=r"[^\s\S]"), "no text of at most"),
    (RegexFormat(pattern="a" * 10_001), "10,001 characters"),
    (RegexFormat(pattern="((a{1000}){1000}){1000}"), "more than 10,000 characters at the least"),
    (ChoiceFormat(options=tuple(map(str, range(10_001)))), "10,001 choices"),
    (ToolFormat(tools=(TOOL, TOOL)), "two tools have the same name"),
    (ToolFormat(tools=(Tool(name="f", parameters={"type": "nada"}),)), "is not one"),
    (ToolFormat(tools=(TOOL, Tool(name="f", parameters={"type": "string"}))), "tool 'f' are of type .string.,"),
    (ToolFormat(tools=(Tool(name="f", parameters={"type": ["array", "null"]}),)), "the tool 'f' .* an object always"),
    (
        ToolFormat(tools=tuple(Tool(name=f"f{n}", parameters={"title": "x" * 90_000}) for n in range(3))),
        "the tools have 270,.* characters, more than 200,000",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("form", "told"), REFUSED, ids=range(len(REFUSED)))
def test_a_form_that_cannot_be_kept_is_told_in_one_sentence(tokenizer, form: Format, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        grammar_of(form, tokenizer, tokenizer.vocab_size)
    message = str(caught.value)
    assert message.startswith("format: ") and "\n" not in message and len(message) < 500


def test_a_schema_nested_without_end_is_refused(tokenizer) -> None:
    schema: dict = {"type": "string"}
    for _ in range(3000):
        schema = {"type": "object", "properties": {"a": schema}}
    with pytest.raises(UserError, match="nested too deeply"):
        grammar_of(JsonFormat.model_construct(json_schema=schema, kind="json"), tokenizer, 300)


def test_a_tokenizer_that_is_no_longer_used_is_freed() -> None:
    ours = Tokenizer.train(["sí, no"] * 3, 262)
    grammar = grammar_of(JsonFormat(json_schema={"type": "object"}), ours, ours.vocab_size)
    seen = [weakref.ref(ours), weakref.ref(grammar._vocabulary)]
    gc.collect()
    assert all(one() is not None for one in seen)
    ways = grammar._vocabulary.fewest(b'{"a": "')
    del ours
    gc.collect()
    assert seen[0]() is None
    # A text that is under way goes on without it.
    for token_id in ways or ():
        assert token_id in grammar.allowed()
        grammar.accept(token_id)
    del grammar
    gc.collect()
    assert seen[1]() is None


def test_why_there_is_no_grammar_is_kept_too(tokenizer, compiled) -> None:
    bad = ChoiceFormat(options=tuple(map(str, range(10_002))))
    for _ in range(3):
        with pytest.raises(UserError, match="10,002 choices"):
            grammar_of(bad, tokenizer, 290)
    assert compiled == [bad]
    for number in range(64):
        grammar_of(ChoiceFormat(options=(str(number),)), tokenizer, 290)
    with pytest.raises(UserError):
        grammar_of(bad, tokenizer, 290)
    assert len(compiled) == 66


def test_a_form_that_takes_long_holds_up_only_those_who_ask_for_it(tokenizer, compiled, monkeypatch) -> None:
    begun, go_on, slow = threading.Event(), threading.Event(), ChoiceFormat(options=("lento",))
    compile = grammar_compiling._compile

    def slowly(format: Format, vocabulary: Vocabulary) -> Grammar:
        if format == slow:
            begun.set()
            assert go_on.wait(20)
        return compile(format, vocabulary)

    monkeypatch.setattr(grammar_compiling, "_compile", slowly)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(grammar_of, slow, tokenizer, 291) for _ in range(2)]
        try:
            assert begun.wait(20)
            quick = pool.submit(grammar_of, ChoiceFormat(options=("pronto",)), tokenizer, 291)
            assert isinstance(quick.result(20), Grammar)
            assert not any(one.done() for one in waiting)
        finally:
            go_on.set()
        assert waiting[0].result(20) is not waiting[1].result(20)
    assert compiled.count(slow) == 1
