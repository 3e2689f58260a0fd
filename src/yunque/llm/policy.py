"""What may leave this machine: where a request may go, and what happens to the personal data in it.

It is decided before a model is asked; what is refused never reaches the model that would send it. Personal data is
what `yunque.data.personal` finds: names of persons and postal addresses are not among it.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Literal

from yunque.configuration import Settings
from yunque.data.personal import KINDS, Redaction, find_personal_data
from yunque.generate.config import ChoiceFormat, GenerationConfig, JsonFormat, RegexFormat, ToolFormat
from yunque.llm.breaker import provider_of
from yunque.llm.face import (
    Chunk,
    Completion,
    Embeddings,
    LanguageModel,
    Message,
    Prompt,
    ToolCall,
    ToolCallPart,
)
from yunque.llm.retrying import Refusal
from yunque.llm.wrapped import Wrapped


class WirePolicy(Settings):
    """Which models may be asked, and what is done with personal data before it leaves.

    `where`: anywhere, local (models that this process runs), or a list of providers (`openai`, or HOST:PORT of an
    address). A server of this machine is no local model: what it does with a text is not known; list it to allow it.
    `personal_data`: refuse what holds some, redact it (numbered placeholders, put back in the answer) or send it.
    """

    where: Literal["anywhere", "local"] | tuple[str, ...] = "anywhere"
    personal_data: Literal["send", "redact", "refuse"] = "redact"

    def allows(self, model: LanguageModel) -> bool:
        """Whether this model may be asked at all."""
        if model.local or self.where == "anywhere":
            return True
        return self.where != "local" and provider_of(model) in {name.lower() for name in self.where}


class PolicyRefusal(Refusal):
    """The policy does not let this request go to this model."""


class PolicedModel(Wrapped):
    """A model that sees what the policy lets it see. A local one sees everything.

    Every request has a redaction of its own: what is put back in an answer never goes into another request.
    """

    def __init__(self, model: LanguageModel, policy: WirePolicy) -> None:
        super().__init__(model)
        self.policy = policy
        if not model.local and policy.personal_data != "send":
            _load_recognizers()

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        """Answer a conversation; raises PolicyRefusal."""
        if not self._hides():
            return self.model.chat(messages, config)
        wire = _Wire(self._refuse_where_found)
        return wire.restored(self.model.chat(*wire.chat(messages, config)))

    def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
        """Answer a conversation piece by piece; raises PolicyRefusal at the call."""
        if not self._hides():
            return self.model.stream_chat(messages, config)
        wire = _Wire(self._refuse_where_found)
        return wire.restored_stream(self.model.stream_chat(*wire.chat(messages, config)))

    def complete(self, prompt: Prompt, config: GenerationConfig) -> Completion:
        """Go on with a text; raises PolicyRefusal."""
        if not self._hides():
            return self.model.complete(prompt, config)
        wire = _Wire(self._refuse_where_found)
        return wire.restored(self.model.complete(*wire.prompt(self._readable(prompt), config)))

    def stream_complete(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        """Go on with a text piece by piece; raises PolicyRefusal at the call."""
        if not self._hides():
            return self.model.stream_complete(prompt, config)
        wire = _Wire(self._refuse_where_found)
        return wire.restored_stream(self.model.stream_complete(*wire.prompt(self._readable(prompt), config)))

    def embed(self, texts: Sequence[Prompt]) -> Embeddings:
        """A vector for each text (with placeholders in it, where the policy says so); raises PolicyRefusal."""
        embed: Callable[[Sequence[Prompt]], Embeddings] = self.ability("embed")
        if not self._hides():
            return embed(texts)
        # Each text is a request of its own: its numbers must not depend on its neighbours.
        sent = [(_Wire(self._refuse_where_found), self._readable(text)) for text in texts]
        return embed([wire.prompt(text, GenerationConfig())[0] for wire, text in sent])

    def score(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """The log-likelihood (nats) of each answer; raises PolicyRefusal."""
        score: Callable[[Sequence[Message], Sequence[str]], list[float]] = self.ability("score")
        if not self._hides():
            return score(messages, answers)
        wire = _Wire(self._refuse_where_found)
        redacted = wire.messages(messages), [wire.text(answer) for answer in answers]
        return score(*(redacted if wire.found else (messages, answers)))

    def _hides(self) -> bool:
        """Whether personal data must be looked for; raises PolicyRefusal where the model may not be asked."""
        if not self.policy.allows(self.model):
            where = self.policy.where
            allowed = "local models" if where == "local" else ", ".join(where) or "no provider at all"
            raise PolicyRefusal(f"the policy allows {allowed}, and {self.name} is not that")
        return not self.model.local and self.policy.personal_data != "send"

    def _refuse_where_found(self, kinds: Sequence[str]) -> None:
        if self.policy.personal_data == "refuse" and kinds:
            raise PolicyRefusal(
                f"the text holds personal data ({', '.join(sorted(set(kinds)))}), "
                f"and the policy lets none go to {self.name}"
            )

    def _readable(self, prompt: Prompt) -> str:
        if isinstance(prompt, str):
            return prompt
        raise PolicyRefusal(
            f"a prompt of tokens cannot be searched for personal data before it goes to {self.name}: send text"
        )


@cache
def _load_recognizers() -> None:
    """What they import, and their table of letters, takes a second on a busy machine: no part of a call."""
    find_personal_data(
        "Iñaki: ana@example.com, 12345678Z, B12345674, +34 612 345 678, ES9121000418450200051332"
    )


class _Wire:
    """One request as it goes over the wire, and its answer as it comes back."""

    def __init__(self, check: Callable[[Sequence[str]], None]) -> None:
        self._redaction = Redaction()
        self._check = check
        self._json = False
        self._numbers: set[str] = set()

    @property
    def found(self) -> bool:
        """Whether there is personal data in what was read so far."""
        return bool(self._redaction.findings)

    def chat(
        self, messages: Sequence[Message], config: GenerationConfig
    ) -> tuple[Sequence[Message], GenerationConfig]:
        """A conversation with placeholders; as it is where it holds no personal data, so that placeholders of the
        caller's own stay what they are."""
        redacted = self.messages(messages), self.config(config)
        return redacted if self.found else (messages, config)

    def prompt(self, text: str, config: GenerationConfig) -> tuple[str, GenerationConfig]:
        """A text with placeholders; as it is where it holds no personal data."""
        redacted = self.text(text), self.config(config)
        return redacted if self.found else (text, config)

    def text(self, text: str) -> str:
        """A text with placeholders."""
        redacted = self._redaction.redact(text)
        self._check([found.kind for found in self._redaction.findings])
        return redacted

    def messages(self, messages: Sequence[Message]) -> list[Message]:
        """A conversation with placeholders: texts, calls of tools and their results."""
        return [
            replace(
                message,
                content=self._text_or_json(message.content),
                tool_calls=tuple(
                    ToolCall(self.text(call.id), self.text(call.name), self._text_or_json(call.arguments))
                    for call in message.tool_calls
                ),
                tool_call_id=None if message.tool_call_id is None else self.text(message.tool_call_id),
            )
            for message in messages
        ]

    def config(self, config: GenerationConfig) -> GenerationConfig:
        """The settings with placeholders: what a form, a tool or a stop string says is sent too."""
        form = config.format
        changed: dict[str, Any] = {"stop": tuple(map(self.text, config.stop))} if config.stop else {}
        match form:
            case JsonFormat():
                self._json = True
                changed["format"] = form.model_copy(update={"json_schema": self._schema(form.json_schema)})
            case ChoiceFormat():
                changed["format"] = ChoiceFormat(options=tuple(map(self.text, form.options)))
            case ToolFormat():
                tools = tuple(
                    tool.model_copy(
                        update={
                            "description": self.text(tool.description),
                            "parameters": self._schema(tool.parameters),
                        }
                    )
                    for tool in form.tools
                )
                changed["format"] = form.model_copy(update={"tools": tools})
            case RegexFormat():
                if find_personal_data(form.pattern):
                    raise PolicyRefusal(
                        "the pattern of the answer holds personal data, which cannot be taken out of a pattern"
                    )
            case None:
                pass
        return config.model_copy(update=changed) if changed else config

    def restored(self, completion: Completion) -> Completion:
        """An answer with the values back in it."""
        if not self.found:
            return completion
        calls = tuple(
            replace(call, arguments=self._restore(call.arguments, True)) for call in completion.tool_calls
        )
        return replace(completion, text=self._restore(completion.text, self._json), tool_calls=calls)

    def restored_stream(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """A streamed answer with the values back in it; what may be the beginning of a placeholder is held back."""
        return self._restored_chunks(chunks) if self.found else chunks

    def _restored_chunks(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        texts: dict[int, _Held] = {}
        calls: dict[tuple[int, int], _Held] = {}
        try:
            for chunk in chunks:
                if chunk.restart:
                    texts.clear()
                    calls.clear()
                if chunk.text or chunk.finish_reason:
                    held = texts.setdefault(chunk.index, self._held(self._json))
                    chunk = replace(chunk, text=held.next(chunk.text, bool(chunk.finish_reason)))
                if chunk.tool_calls or (calls and chunk.finish_reason):
                    chunk = replace(chunk, tool_calls=self._restored_parts(chunk, calls))
                yield chunk
        finally:
            if close := getattr(chunks, "close", None):
                close()

    def _restored_parts(
        self, chunk: Chunk, calls: dict[tuple[int, int], "_Held"]
    ) -> tuple[ToolCallPart, ...]:
        parts = []
        for part in chunk.tool_calls:
            held = calls.setdefault((chunk.index, part.number), self._held(True))
            parts.append(replace(part, arguments=held.next(part.arguments, False)))
        if chunk.finish_reason:
            for (index, number), held in calls.items():
                if index == chunk.index and (rest := held.next("", True)):
                    parts.append(ToolCallPart(number, rest))
        return tuple(parts)

    def _restore(self, text: str, as_json: bool) -> str:
        """The text with its values; inside of JSON a value is written as JSON writes a text, or as the number that it
        was."""
        if not as_json:
            return self._redaction.restore(text)
        if self._numbers:
            text = _QUOTED.sub(self._number, text)
        return _PLACEHOLDER.sub(
            lambda match: json.dumps(self._redaction.restore(match[0]), ensure_ascii=False)[1:-1], text
        )

    def _number(self, quoted: re.Match[str]) -> str:
        value = self._redaction.restore(quoted[1])
        # It may have been met first as a text, in another spelling.
        is_number = quoted[1].upper() in self._numbers and _JSON_NUMBER.fullmatch(value)
        return value if is_number else quoted[0]

    def _held(self, as_json: bool) -> "_Held":
        begun = _BEGUN_QUOTED if as_json and self._numbers else _BEGUN
        return _Held(lambda text: self._restore(text, as_json), begun)

    def _schema(self, value: Any) -> Any:
        """A JSON schema with placeholders. Its bounds stay: a schema with a text for a bound is none, and a bound
        is nobody's number."""
        if isinstance(value, Mapping):
            return {
                self.text(str(name)): inner
                if name in _BOUNDS and isinstance(inner, int | float)
                else self._schema(inner)
                for name, inner in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._schema(inner) for inner in value]
        return self._value(value)

    def _text_or_json(self, text: str) -> str:
        """A text, or JSON, in which letters may be written as \\u0040: those are read before they are searched."""
        redacted = self.text(text)
        if not text.lstrip().startswith(("{", "[", '"')) or ("\\" not in text and redacted == text):
            return redacted
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return redacted
        changed = self._value(value)
        told = text if changed == value else json.dumps(changed, ensure_ascii=False)
        if find_personal_data(told):
            # Some numbers are found by the word beside them, which a value alone has not.
            return self.text(json.dumps(value, ensure_ascii=False))
        return told

    def _value(self, value: Any) -> Any:
        """A JSON value with placeholders in every text, name and number of it."""
        if isinstance(value, str):
            return self._text_or_json(value)
        if isinstance(value, Mapping):
            return {self.text(str(name)): self._value(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._value(inner) for inner in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            written = str(value)
            redacted = self.text(written)
            if redacted == written:
                return value
            if _PLACEHOLDER.fullmatch(redacted):
                self._numbers.add(redacted.upper())
            return redacted
        return value


_NAMES = "|".join((*KINDS, "MARK"))
_PLACEHOLDER = re.compile(rf"\[(?:{_NAMES})-\d{{1,6}}\]", re.IGNORECASE)
_BEGINNINGS = sorted({name[:length] for name in (*KINDS, "MARK") for length in range(len(name) + 1)})
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?")
_QUOTED = re.compile(rf'"({_PLACEHOLDER.pattern})"', re.IGNORECASE)
_BEGUN = re.compile(rf"\[(?:(?:{'|'.join(_BEGINNINGS)})|(?:{_NAMES})-\d{{0,6}})\Z", re.IGNORECASE)


_ENDS_QUOTED = re.compile(_QUOTED.pattern + r"\Z", re.IGNORECASE)
# The same with the quote before it, until the quote after it.
_BEGUN_QUOTED = re.compile(
    rf'(?:{_BEGUN.pattern})|"(?:{_PLACEHOLDER.pattern}|{_BEGUN.pattern})?\Z', re.IGNORECASE
)
_BOUNDS = frozenset(
    f"{which}{what}" for which in ("min", "max") for what in ("Length", "Items", "Properties", "Contains")
) | {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}


class _Held:
    """A text that comes in pieces, of which the end is held back while it may be half of a placeholder."""

    def __init__(self, restore: Callable[[str], str], begun: re.Pattern[str] = _BEGUN) -> None:
        self._restore, self._begun = restore, begun
        self._rest = ""

    def next(self, text: str, last: bool) -> str:
        """What can be told by now; all of it with the `last` piece."""
        text = self._rest + text
        begun = None if last else self._begun.search(text, max(0, len(text) - _LONGEST))
        if begun and begun[0] == '"' and _ENDS_QUOTED.search(text, max(0, len(text) - _LONGEST)):
            begun = None  # the quote after a placeholder, not before one
        self._rest = text[begun.start() :] if begun else ""
        return self._restore(text[: begun.start()] if begun else text)


_LONGEST = max(map(len, KINDS)) + len('"[-999999]')
