"""A conversation in the format of a foreign model: its chat template, rendered and then encoded.

Special tokens that the template writes become ids. Those that somebody typed into a content stay ordinary text: they
are put between private marks before rendering, and what lies between marks is not looked at for special tokens.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from yunque.errors import UserError
from yunque.tokenizer.disguise import disguised, random_names
from yunque.tokenizer.template import render

_Span = tuple[int, int]

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

    def encode(
        self, messages: Sequence[tuple[str, str]], add_generation_prompt: bool
    ) -> tuple[list[int], list[bool]]:
        """The ids, and which of them are an answer (with the token that ends it)."""
        for role, _ in messages:
            if self._of_control.search(role):
                raise UserError(f"{role!r} is not a role")
        marks = _unused_letters([self._template, *(text for message in messages for text in message)])
        said = [{"role": role, "content": self._marked(content, role, marks)} for role, content in messages]
        text = self._render(said, add_generation_prompt, marks)
        plain, spans = self._disguise(text, marks)
        if not spans:
            spans = [
                (len(self._disguise(text[:start], marks)[0]), len(self._disguise(text[:end], marks)[0]))
                for start, end in self._answers(said, text, marks)
            ]
        encoding = self._inner.encode(plain, add_special_tokens=False)
        written = [
            any(start < last and first < end for first, last in spans) for start, end in encoding.offsets
        ]
        return encoding.ids, written

    def _render(self, said: list[dict[str, str]], add_generation_prompt: bool, marks: "_Marks") -> str:
        return render(
            self._template,
            {
                **self._variables,
                "messages": said,
                "add_generation_prompt": add_generation_prompt,
                "_opened": marks.opened,
                "_closed": marks.closed,
            },
        )

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

    def _answers(self, said: list[dict[str, str]], text: str, marks: "_Marks") -> list[_Span]:
        """Where the answers stand in the rendered text, each with the token that ends it.

        A template without `{% generation %}` does not say; the conversation up to an answer, rendered alone, does.
        """
        spans: list[_Span] = []
        cursor = 0
        for position, message in enumerate(said):
            if message["role"] != "assistant":
                continue
            content = message["content"].strip()
            asked = self._try_render(said[:position], True, marks)
            told = self._try_render(said[: position + 1], False, marks)
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

    def _try_render(
        self, said: list[dict[str, str]], add_generation_prompt: bool, marks: "_Marks"
    ) -> str | None:
        """The beginning of a conversation, or None where the template wants the whole of it."""
        try:
            return self._render(said, add_generation_prompt, marks)
        except UserError:
            return None


class _Marks:
    """Four letters for private use: around what was typed, and around what a model is to write."""

    def __init__(self, letters: list[str]) -> None:
        self.begin, self.end, self.opened, self.closed = letters
        self.all = "".join(letters)


def _unused_letters(texts: Sequence[str]) -> _Marks:
    """Letters of the private use area that none of the texts contains."""
    used = set().union(*texts)
    free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in used)
    try:
        return _Marks([next(free) for _ in range(4)])
    except (StopIteration, RuntimeError):
        raise UserError("a message uses every letter of Unicode's private use area") from None


def _alternatives(tokens: set[str]) -> re.Pattern[str]:
    """Any of the tokens; without tokens, nothing."""
    ordered = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, ordered)) or "(?!)")
