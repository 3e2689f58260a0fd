"""From the format that a request asks for to a grammar, and the check of what was written."""

import json
import threading
from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

import jsonschema_rs
from llguidance import LLMatcher, LLTokenizer

from yunque.errors import UserError
from yunque.generate.config import ChoiceFormat, Format, JsonFormat, RegexFormat, ToolFormat
from yunque.generate.grammar import Grammar
from yunque.generate.grammar_closing import LONGEST, Closer, Kind
from yunque.generate.grammar_schema import (
    Schema,
    check_pattern,
    prepare_schema,
    schema_strings,
    shortest_match,
    string_examples,
)
from yunque.generate.grammar_vocabulary import Vocabulary, byte_tokenizer
from yunque.generate.tool_calls import OPEN, ToolStream, parse_tool_calls
from yunque.tokenizer import Tokenizer

_KEPT = 64
_LEAST_RESERVE, _MOST_RESERVE = 128, 2000
_LONGEST_PATTERN = 10_000
_MOST_CHOICES = 10_000
_LARGEST_TOOLS = 200_000

_vocabularies: WeakKeyDictionary[Tokenizer, dict[int, "_Formats"]] = WeakKeyDictionary()
_lock = threading.Lock()


def grammar_of(format: Format, tokenizer: Tokenizer, vocab_size: int) -> Grammar:
    """The grammar of a text of this format, for a model with `vocab_size` scores. It, or why there is none, is kept
    for the next request, as long as the tokenizer is in use.

    Raises UserError for a format that nothing can fulfil, that cannot be followed, or that is too large.
    """
    with _lock:
        formats = _vocabularies.setdefault(tokenizer, {}).setdefault(vocab_size, _Formats())
    return formats.get(format, tokenizer, vocab_size)


class _Compiled:
    """A format's grammar, or the sentence that says why it has none; made when it is first asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._grammar: Grammar | None = None
        self._fault: str | None = None

    def get(self, format: Format, vocabulary: Vocabulary) -> Grammar:
        """One to use. Whoever asks for the same while it is made waits for it, and nobody else."""
        with self._lock:
            if self._grammar is None and self._fault is None:
                try:
                    self._grammar = _compile(format, vocabulary)
                except UserError as error:
                    self._fault = str(error)
            if self._grammar is None:
                raise UserError(self._fault)
            return self._grammar.copy()


class _Formats:
    """The grammars of a vocabulary that were asked for last. It must not hold the tokenizer, which is its key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._vocabulary: Vocabulary | None = None
        self._kept: OrderedDict[str, _Compiled] = OrderedDict()

    def get(self, format: Format, tokenizer: Tokenizer, vocab_size: int) -> Grammar:
        """One to use."""
        try:
            key = format.model_dump_json()
        except (ValueError, RecursionError):
            raise UserError("format: it is nested too deeply") from None
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(tokenizer, vocab_size)
            vocabulary = self._vocabulary
            compiled = self._kept.setdefault(key, _Compiled())
            self._kept.move_to_end(key)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return compiled.get(format, vocabulary)


def _compile(format: Format, vocabulary: Vocabulary) -> Grammar:
    grammar, kind, examples = _described(format)
    matcher = _matcher(vocabulary.tokenizer, grammar)
    if not vocabulary.complete:
        _check_writable(format, vocabulary)
    closer = Closer(_matcher(byte_tokenizer(), grammar), kind, examples)
    opening = closer.shortest(patience=10)
    if opening is None and closer.fault:
        raise UserError(f"format: the form is too much to follow ({closer.fault})")
    if opening is None:
        raise UserError(f"format: no text of at most {LONGEST:,} bytes was found that has this form")
    ids = vocabulary.fewest(opening)
    if ids is None:
        raise UserError(f"format: the tokenizer has no tokens for {opening.decode(errors='replace')!r}")
    # What a token can open (an object with all its names) is hardly longer than what describes it.
    return Grammar(
        vocabulary, matcher, closer, ids, reserve=max(_LEAST_RESERVE, min(len(grammar), _MOST_RESERVE))
    )


def _matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    if matcher.is_error():
        lines = [line.strip() for line in matcher.get_error().splitlines() if line.strip()]
        told = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
        raise UserError(f"format: this form cannot be followed ({told[:300].rstrip('.')})")
    return matcher


def _described(format: Format) -> tuple[str, Kind, list[str]]:
    """The grammar in the library's words, of what kind it is, and examples of strings in it."""
    if isinstance(format, JsonFormat):
        schema = prepare_schema(format.json_schema)
        return LLMatcher.grammar_from_json_schema(schema), "json", list(string_examples(format.json_schema))
    if isinstance(format, RegexFormat):
        if len(format.pattern) > _LONGEST_PATTERN:
            raise UserError(
                f"format: the pattern has {len(format.pattern):,} characters, more than {_LONGEST_PATTERN:,}"
            )
        example = shortest_match(check_pattern(format.pattern))
        return LLMatcher.grammar_from_regex(format.pattern), "plain", [example] if example else []
    if isinstance(format, ChoiceFormat):
        if len(format.options) > _MOST_CHOICES:
            raise UserError(f"format: there are {len(format.options):,} choices, more than {_MOST_CHOICES:,}")
        options = " | ".join(_literal(option) for option in dict.fromkeys(format.options))
        return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {options}\n"), "plain", []
    examples = [example for tool in format.tools for example in string_examples(tool.parameters)]
    return LLMatcher.grammar_from_lark(_tool_grammar(format)), "tools", examples


def _tool_grammar(format: ToolFormat) -> str:
    names = [tool.name for tool in format.tools]
    if len(set(names)) < len(names):
        raise UserError("format: two tools have the same name")
    more = r"(/\n?/ call)*" if format.parallel else ""
    lines = [f"start: call {more}"]
    if not format.required:
        # What is written before the first call is text; with `<tool_call>` a call begins and nothing else.
        lines = [
            f"start: opened body {more} | TEXT",
            "opened[lazy]: /(?s:.*)<tool_call>/",
            "TEXT: /(?s:.*)/ & ~/(?s:.*)<tool_call>(?s:.*)/",
        ]
    lines += [
        'call: "<tool_call>" body',
        r'body: /\n?/ tool /\n?/ "</tool_call>"',
        "tool: " + " | ".join(f"tool{number}" for number in range(len(names))),
    ]
    for number, tool in enumerate(format.tools):
        head = _literal(f'{{"name": "{tool.name}", "arguments": ')
        schema = prepare_schema(_arguments(tool.parameters))
        if schema["type"] != "object":
            raise UserError(
                f"format: the parameters of the tool {tool.name!r} are of type {json.dumps(schema['type'])}, "
                "and a tool's arguments are an object always"
            )
        lines.append(f'tool{number}: {head} %json {json.dumps(schema)} "}}"')
    grammar = "\n".join(lines)
    if len(grammar) > _LARGEST_TOOLS:
        raise UserError(f"format: the tools have {len(grammar):,} characters, more than {_LARGEST_TOOLS:,}")
    return grammar


def _arguments(parameters: Schema) -> Schema:
    """The schema of a call's arguments: of what it describes only objects."""
    kinds = parameters.get("type", ["object"])
    return {**parameters, "type": "object"} if isinstance(kinds, list) and "object" in kinds else parameters


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _check_writable(format: Format, vocabulary: Vocabulary) -> None:
    """A tokenizer without a token for every byte may be unable to write a name or a value."""
    if isinstance(format, ChoiceFormat):
        texts = list(format.options)
    elif isinstance(format, JsonFormat):
        texts = list(schema_strings(format.json_schema))
    elif isinstance(format, ToolFormat):
        texts = [tool.name for tool in format.tools]
        texts += [text for tool in format.tools for text in schema_strings(tool.parameters)]
    else:
        texts = []
    for text in texts:
        if vocabulary.fewest(text.encode()) is None:
            raise UserError(f"format: the tokenizer has no tokens for {text!r}")


def validate(format: Format, text: str) -> str | None:
    """What is wrong with a text that should have this format, in a sentence; None where nothing is."""
    if isinstance(format, JsonFormat):
        schema = format.json_schema
        return _json_fault(text, {"type": "object"} if schema is None else schema)
    if isinstance(format, ChoiceFormat):
        return None if text in format.options else f"{text[:80]!r} is none of the choices"
    if isinstance(format, RegexFormat):
        closer = Closer(_matcher(byte_tokenizer(), _described(format)[0]), "plain", [])
        return None if closer.ends_with(text.encode()) else f"{text[:80]!r} does not match {format.pattern!r}"
    return _call_fault(format, text)


def _call_fault(format: ToolFormat, text: str) -> str | None:
    stream = ToolStream()
    stream.feed(text)
    content, calls = parse_tool_calls(text)
    if stream.inside or OPEN in content:
        return "a tool call is cut off or is no JSON"
    if format.required and (content or not calls):
        return "there is no tool call" if not calls else "there is text beside the tool calls"
    if len(calls) > 1 and not format.parallel:
        return f"there are {len(calls)} tool calls, and one is allowed"
    known = {tool.name: tool for tool in format.tools}
    for call in calls:
        if call.name not in known:
            return f"there is no tool {call.name!r}"
        fault = _json_fault(call.arguments, _arguments(known[call.name].parameters))
        if fault:
            return f"the arguments of {call.name}: {fault}"
    return None


def _json_fault(text: str, schema: Any) -> str | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"it is not JSON ({error})"
    validator = jsonschema_rs.validator_for(schema, validate_formats=True, retriever=_offline)
    fault = next(iter(validator.iter_errors(value)), None)
    if fault is None:
        return None
    place = "/".join(str(part) for part in fault.instance_path)
    return f"{place or 'the whole'}: {fault.message}"


def _offline(uri: str) -> Any:
    raise ValueError(f"{uri} is not fetched")
