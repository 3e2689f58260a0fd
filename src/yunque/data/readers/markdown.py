"""Markdown: sections by heading."""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from yunque.data.readers.files import TextFile
from yunque.data.readers.piece import Complain, Limits, Outline, Piece, table_lines

if TYPE_CHECKING:
    from markdown_it.token import Token

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?\n)(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_TAG = re.compile(r"<!--.*?-->|<[^>]*>", re.DOTALL)


def read_markdown(file: TextFile, limits: Limits, complain: Complain) -> Iterator[Piece]:
    """A piece for each section; tables become lines, code stays as it is."""
    del complain
    from markdown_it import MarkdownIt

    text = file.text(limits).replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")
    outline = Outline()
    if front := _FRONT_MATTER.match(text):
        yield Piece(front[1], "front matter")
        text = text[front.end() :]
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    _Writer(outline).write(tokens)
    yield from outline.pieces()


class _Writer:
    """Walks the tokens of a document and hands paragraphs, lists and tables to the outline."""

    def __init__(self, outline: Outline) -> None:
        self._outline = outline
        self._lists: list[int | None] = []  # for each open list the number of its next item; None is a bullet
        self._list_lines: list[str] = []
        self._marker = ""
        self._table: list[list[str]] | None = None

    def write(self, tokens: Sequence["Token"]) -> None:
        """Walk a whole document."""
        for position, token in enumerate(tokens):
            if token.type == "heading_open":
                continue
            if token.type == "inline":
                self._inline(tokens[position - 1], _inline_text(token))
            elif token.type in ("fence", "code_block"):
                self._paragraph(token.content.rstrip("\n"))
            elif token.type == "html_block":
                self._paragraph(" ".join(_TAG.sub(" ", token.content).split()))
            else:
                self._structure(token)

    def _structure(self, token: "Token") -> None:
        if token.type in ("bullet_list_open", "ordered_list_open"):
            start = token.attrGet("start")
            self._lists.append(None if token.type[0] == "b" else int(1 if start is None else start))
        elif token.type in ("bullet_list_close", "ordered_list_close"):
            self._lists.pop()
            if not self._lists:
                self._outline.paragraph("\n".join(self._list_lines))
                self._list_lines = []
        elif token.type == "list_item_open":
            number = self._lists[-1]
            self._marker = "- " if number is None else f"{number}. "
            if number is not None:
                self._lists[-1] = number + 1
        elif token.type == "table_open":
            self._table = []
        elif token.type == "tr_open" and self._table is not None:
            self._table.append([])
        elif token.type == "table_close":
            rows, self._table = self._table or [], None
            self._paragraph(table_lines(rows))

    def _inline(self, opener: "Token", text: str) -> None:
        if opener.type == "heading_open":
            self._outline.heading(int(opener.tag[1]), text)
        elif self._table is not None:
            self._table[-1].append(text)
        else:
            self._paragraph(text)

    def _paragraph(self, text: str) -> None:
        if not self._lists:
            self._outline.paragraph(text)
        elif text:
            indent = "  " * (len(self._lists) - 1)
            head, *rest = text.split("\n")
            blank = " " * len(self._marker)
            self._list_lines.append(f"{indent}{self._marker or '  '}{head}")
            self._list_lines += [f"{indent}{blank}{line}" for line in rest]
            self._marker = ""


def _inline_text(token: "Token") -> str:
    parts = []
    for child in token.children or []:
        if child.type in ("text", "code_inline"):
            parts.append(child.content)
        elif child.type == "softbreak":
            parts.append(" ")
        elif child.type == "hardbreak":
            parts.append("\n")
        elif child.type == "image":
            parts.append(child.content)
        elif child.type == "html_inline" and child.content.lower().startswith("<br"):
            parts.append("\n")
    return "".join(parts)
