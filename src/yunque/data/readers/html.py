"""HTML: sections by heading, without scripts, styles and navigation.

The standard library's parser reads it as events: as tolerant of broken pages as a tree builder, and no tree to hold.
"""

from collections.abc import Iterator
from html.parser import HTMLParser

from yunque.data.readers.files import TextFile
from yunque.data.readers.piece import Complain, Limits, Outline, Piece, table_lines

_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_LEFT_OUT = {"script", "style", "template", "noscript", "svg", "nav", "iframe", "object", "math"}
_RESUMES = {"main", "article", "h1"}
_BLOCKS = {
    *(
        "p",
        "div",
        "section",
        "article",
        "main",
        "header",
        "footer",
        "aside",
        "ul",
        "ol",
        "dl",
        "dt",
        "dd",
        "figure",
    ),
    *(
        "figcaption",
        "blockquote",
        "pre",
        "address",
        "form",
        "fieldset",
        "details",
        "summary",
        "hr",
        "body",
        "html",
    ),
    *("caption", "option", "select", "button"),
}


def read_html(file: TextFile, limits: Limits, complain: Complain) -> Iterator[Piece]:
    """A piece for each section; tables become lines, list items begin with a hyphen."""
    del complain
    page = _Page()
    page.feed(file.text(limits))
    page.close()
    yield from page.finished().pieces()


class _Page(HTMLParser):
    """Hands what it meets to an outline."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._outline = Outline()
        self._words: list[str] = []
        self._left_out: list[str] = []
        self._heading: int | None = None
        self._in_title = False
        self._in_pre = False
        self._items: list[str] = []
        self._list_depth = 0
        self._table: list[list[str]] | None = None
        self._inner_tables = 0  # a table inside a cell is text of that cell
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _RESUMES and self._left_out == ["nav"]:
            self._left_out.clear()  # a navigation that was never closed must not swallow the page
        if self._left_out or tag in _LEFT_OUT:
            if tag in _LEFT_OUT:
                self._left_out.append(tag)
            return
        if tag == "title":
            self._in_title = True
        elif tag == "br":
            self._words.append("\n")
        elif tag == "img":
            self._words.append(f" {dict(attrs).get('alt') or ''} ")
        elif tag in _HEADINGS and not self._in_cell:
            self._flush()
            self._heading = _HEADINGS[tag]
        elif tag in ("ul", "ol"):
            self._flush()
            self._list_depth += 1
        elif tag == "table":
            self._flush()
            if self._table is None:
                self._table = []
            else:
                self._inner_tables += 1
        elif tag in ("tr", "td", "th") and self._table is not None:
            self._cell_starts(tag)
        elif tag == "li" or tag in _BLOCKS:
            self._flush()
            self._in_pre = self._in_pre or tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if self._left_out:
            if tag in self._left_out:
                del self._left_out[self._left_out.index(tag) :]
            return
        if tag == "title":
            self._in_title = False
        elif tag in _HEADINGS and self._heading:
            self._outline.heading(self._heading, "".join(self._words))
            self._words, self._heading = [], None
        elif tag in ("ul", "ol"):
            self._flush()
            self._list_depth = max(0, self._list_depth - 1)
            self._close_list()
        elif tag in ("td", "th", "tr"):
            if not self._inner_tables:
                self._close_cell()
        elif tag == "table":
            self._table_ends()
        elif tag == "li" or tag in _BLOCKS:
            self._flush()
            self._in_pre = self._in_pre and tag != "pre"

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self._outline.title = " ".join(f"{self._outline.title} {data}".split())
        elif not self._left_out:
            self._words.append(data if self._in_pre else _one_line(data))

    def finished(self) -> Outline:
        """The outline, when the end of the page (perhaps with open tags) has come."""
        self._inner_tables = 0
        self._table_ends()
        self._flush()
        self._list_depth = 0
        self._close_list()
        return self._outline

    def _flush(self) -> None:
        if self._in_cell:
            self._words.append(" ")
            return
        if self._heading is not None:
            # A block inside a heading, or a heading never closed: the words so far are the heading.
            self._outline.heading(self._heading, "".join(self._words))
            self._words, self._heading = [], None
            return
        text = "".join(self._words)
        self._words = []
        if not self._in_pre:
            text = "\n".join(" ".join(line.split()) for line in text.split("\n")).strip()
        self._paragraph(text)

    def _paragraph(self, text: str) -> None:
        if not text.strip():
            return
        if self._list_depth:
            self._items.append(f"{'  ' * (self._list_depth - 1)}- {text}")
        else:
            self._outline.paragraph(text)

    def _cell_starts(self, tag: str) -> None:
        if self._inner_tables or self._table is None:
            self._flush()
            return
        self._close_cell()
        if tag == "tr":
            self._flush()
            self._table.append([])
        else:
            self._in_cell = True

    def _close_cell(self) -> None:
        if not self._in_cell or self._table is None:
            return
        if not self._table:
            self._table.append([])
        self._table[-1].append("".join(self._words))
        self._words = []
        self._in_cell = False

    def _table_ends(self) -> None:
        if self._inner_tables:
            self._inner_tables -= 1
            self._flush()
        elif self._table is not None:
            self._close_cell()
            rows, self._table = self._table, None
            self._paragraph(table_lines(rows))

    def _close_list(self) -> None:
        if not self._list_depth and self._items:
            self._outline.paragraph("\n".join(self._items))
            self._items = []


def _one_line(data: str) -> str:
    return data.replace("\n", " ").replace("\r", " ").replace("\t", " ")
