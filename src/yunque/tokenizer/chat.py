"""A conversation in the format of a foreign model: its chat template, rendered and then encoded.

Special tokens that the template writes become ids. Those that somebody typed into a content stay ordinary text: they
are put between private marks before rendering, and what lies between marks is not looked at for special tokens.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from yunque.errors import UserError
from yunque.tokenizer.disguise import disguised, random_names
from yunque.tokenizer.template import render

_Span = tuple[int, int]
Fields = dict[str, Any]

Turn = tuple[str, str] | Mapping[str, Any]
"""A message of a conversation: who says it and what, or all its fields (`role`, `content`, `tool_calls`...) as
templates know them."""

PLAIN_TEMPLATE = """\
{{- bos_token if bos_token else '' -}}
{%- for message in messages -%}
{{ message['role'] | capitalize + ':\\n' + message['content'] -}}
{{ (eos_token if message['role'] == 'assistant' else '') + '\\n' -}}
{%- endfor -%}
{{ 'Assistant:\\n' if add_generation_prompt else '' -}}
"""
"""For a model that was never taught a format: who speaks, and what, in plain text."""


class ChatFormat:
    """The chat template of a tokenizer.

    `described` is its tokenizer.json; `special` its special tokens and `added` the other tokens that are found in any
    text. Of these, the ones that the template itself writes are control tokens too, and a user cannot type them.
    """

    def __init__(
        self,
        template: str,
        described: Mapping[str, Any],
        special: Mapping[str, int],
        added: Mapping[str, int],
        named: Mapping[str, str],
        end_ids: Sequence[int],
    ) -> None:
        self._template = template
        self._variables = {"tools": None, "documents": None, **named}
        self._special = set(special)
        control = {**special, **{token: id for token, id in added.items() if token in template}}
        self._control = set(control)
        self._names = random_names(control)
        self._inner = disguised(described, control, self._names)
        self._ends = {token for token, id in control.items() if id in end_ids}
        # The longest first: of two tokens that begin alike, the library takes the longer.
        self._any_token = _alternatives({*control, *added})
        self._of_special, self._of_control = _alternatives(self._special), _alternatives(self._control)

    @property
    def writes_tools(self) -> bool:
        """Whether the template tells the model of `tools`, to be called as `<tool_call>{...}</tool_call>`.

        A template with another form of a call would teach what nobody here reads.
        """
        return bool(re.search(r"\btools\b", self._template)) and "<tool_call>" in self._template

    def encode(
        self,
        messages: Sequence[Turn],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[list[int], list[bool]]:
        """The ids, and which of them are an answer (with the token that ends it)."""
        turns = [_as_fields(message) for message in messages]
        for turn in turns:
            if self._of_control.search(turn["role"]):
                raise UserError(f"{turn['role']!r} is not a role")
        marks = _unused_letters(self._template + json.dumps([turns, tools], ensure_ascii=False))
        said = [
            {"role": turn["role"], **self._marked_all(_without_role(turn), turn["role"], marks)}
            for turn in turns
        ]
        told = self._marked_all(list(tools), "system", marks) if tools else None
        write = partial(self._render, tools=told, marks=marks)
        text = write(said, add_generation_prompt)
        plain, spans = self._disguise(text, marks)
        if not spans:
            spans = [
                (len(self._disguise(text[:start], marks)[0]), len(self._disguise(text[:end], marks)[0]))
                for start, end in self._answers(said, text, write)
            ]
        encoding = self._inner.encode(plain, add_special_tokens=False)
        written = [
            any(start < last and first < end for first, last in spans) for start, end in encoding.offsets
        ]
        return encoding.ids, written

    def _render(self, said: list[Fields], add_generation_prompt: bool, *, tools: Any, marks: "_Marks") -> str:
        return render(
            self._template,
            {
                **self._variables,
                "tools": tools,
                "messages": said,
                "add_generation_prompt": add_generation_prompt,
                "_opened": marks.opened,
                "_closed": marks.closed,
            },
        )

    def _marked_all(self, value: Any, role: str, marks: "_Marks") -> Any:
        """A JSON value with every text in it marked, keys too."""
        if isinstance(value, str):
            return self._marked(value, role, marks)
        if isinstance(value, list):
            return [self._marked_all(each, role, marks) for each in value]
        if isinstance(value, dict):
            typed = rf"{marks.begin}\g<0>{marks.end}"
            return {
                self._of_control.sub(typed, key): self._marked_all(each, role, marks)
                for key, each in value.items()
            }
        return value

    def _marked(self, content: str, role: str, marks: "_Marks") -> str:
        """The content with marks around the tokens that it may not write, whole or half at its edges.

        What a model said before may hold the tokens that are not special (its `<think>`, for example).
        """
        tokens = self._special if role == "assistant" else self._control
        pattern = self._of_special if role == "assistant" else self._of_control
        content = pattern.sub(lambda found: f"{marks.begin}{found[0]}{marks.end}", content)
        bare = content.strip()
        if any(bare.endswith(token[:size]) for token in tokens for size in range(1, len(token))):
            behind = len(content.rstrip())
            content = content[:behind] + marks.end + content[behind:]
        if any(bare.startswith(token[size:]) for token in tokens for size in range(1, len(token))):
            before = len(content) - len(content.lstrip())
            content = content[:before] + marks.begin + content[before:]
        return content

    def _disguise(self, text: str, marks: "_Marks") -> tuple[str, list[_Span]]:
        """The text with the template's control tokens under their random names and without marks.

        With it come the spans that `{% generation %}` marked, as positions in that text.
        """
        parts: list[str] = []
        length = 0
        spans: list[_Span] = []
        opened: int | None = None
        pattern = re.compile(
            f"{marks.begin}(?P<typed>{self._of_control.pattern}){marks.end}|(?P<mark>[{marks.all}])"
            f"|(?P<token>{self._any_token.pattern})"
        )
        position = 0
        for found in pattern.finditer(text):
            piece = text[position : found.start()]
            if found["token"] is not None:
                piece += self._names.get(found["token"], found["token"])
            elif found["typed"] is not None:
                piece += found["typed"]
            parts.append(piece)
            length += len(piece)
            position = found.end()
            if found["mark"] == marks.opened:
                opened = length
            elif found["mark"] == marks.closed and opened is not None:
                spans.append((opened, length))
                opened = None
        parts.append(text[position:])
        return "".join(parts), spans

    def _answers(
        self, said: list[Fields], text: str, write: Callable[[list[Fields], bool], str]
    ) -> list[_Span]:
        """Where the answers stand in the rendered text, each with the token that ends it.

        A template without `{% generation %}` does not say; the conversation up to an answer, rendered alone, does.
        """
        spans: list[_Span] = []
        cursor = 0
        for position, message in enumerate(said):
            if message["role"] != "assistant":
                continue
            content = message["content"].strip()
            asked = _attempt(write, said[:position], True)
            told = _attempt(write, said[: position + 1], False)
            start = len(asked) if asked is not None and text.startswith(asked) else None
            found = text.find(content, cursor if start is None else start)
            if found < 0:
                continue
            limit = len(told) if told is not None and text.startswith(told) else 0
            end = found + len(content)
            behind = re.compile(rf"\s*({self._of_control.pattern})").match(text, end)
            if behind and (behind.end() <= limit or behind[1] in self._ends):
                end = behind.end()
            spans.append((found if start is None else start, end))
            cursor = end
        return spans


def _attempt(
    write: Callable[[list[Fields], bool], str], said: list[Fields], add_generation_prompt: bool
) -> str | None:
    """The beginning of a conversation, or None where the template wants the whole of it."""
    try:
        return write(said, add_generation_prompt)
    except UserError:
        return None


def _as_fields(turn: Turn) -> Fields:
    return dict(turn) if isinstance(turn, Mapping) else {"role": turn[0], "content": turn[1]}


def _without_role(turn: Fields) -> Fields:
    return {name: value for name, value in turn.items() if name != "role"}


class _Marks:
    """Four letters for private use: around what was typed, and around what a model is to write."""

    def __init__(self, letters: list[str]) -> None:
        self.begin, self.end, self.opened, self.closed = letters
        self.all = "".join(letters)


def _unused_letters(text: str) -> _Marks:
    """Letters of the private use area that the text does not contain."""
    used = set(text)
    free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in used)
    try:
        return _Marks([next(free) for _ in range(4)])
    except (StopIteration, RuntimeError):
        raise UserError("a message uses every letter of Unicode's private use area") from None


def _alternatives(tokens: set[str]) -> re.Pattern[str]:
    """Any of the tokens; without tokens, nothing."""
    ordered = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, ordered)) or "(?!)")
