"""Which reader a file is given to."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from yunque.data.readers.docx import read_docx
from yunque.data.readers.files import Found, Skipped, TextFile, check_regular, inspect_text
from yunque.data.readers.html import read_html
from yunque.data.readers.markdown import read_markdown
from yunque.data.readers.pdf import read_pdf
from yunque.data.readers.piece import Complain, Limits, Piece, Unreadable
from yunque.data.readers.plain import read_plain
from yunque.data.readers.records import read_csv, read_json, read_jsonl
from yunque.workspace.files import sha256_of

_TextReader = Callable[[TextFile, Limits, Complain], Iterator[Piece]]

_TEXT_READERS: dict[str, _TextReader] = {
    **dict.fromkeys((".md", ".markdown"), read_markdown),
    **dict.fromkeys((".html", ".htm", ".xhtml"), read_html),
    **dict.fromkeys((".csv", ".tsv"), read_csv),
    **dict.fromkeys((".jsonl", ".ndjson"), read_jsonl),
    ".json": read_json,
}
_DOCUMENT_READERS = {".pdf": read_pdf, ".docx": read_docx}
# A file that is not what its name says would be complained of in every line.
_NAMED_PARTS = 20


@dataclass(frozen=True)
class Reading:
    """A file being read: the SHA-256 of its bytes, and its pieces as they come."""

    sha256: str
    pieces: Iterator[Piece]


def read_file(found: Found, limits: Limits, skipped: list[Skipped]) -> Reading | None:
    """Begin to read a file by its suffix, as plain text if the suffix is unknown.

    What cannot be read is added to `skipped` with the reason, at once or while the pieces are taken.
    """

    complaints = 0

    def complain(reason: str) -> None:
        nonlocal complaints
        complaints += 1
        if complaints <= _NAMED_PARTS:
            skipped.append(Skipped(found.name, reason))

    def sum_up() -> None:
        if complaints > _NAMED_PARTS:
            skipped.append(Skipped(found.name, f"and {complaints - _NAMED_PARTS:,} more parts of this file"))

    suffix = found.path.suffix.lower()
    try:
        if document_reader := _DOCUMENT_READERS.get(suffix):
            check_regular(found.path)
            sha256, pieces = sha256_of(found.path), document_reader(found.path, limits, complain)
        else:
            file = inspect_text(found.path, declares_charset=suffix in (".html", ".htm", ".xhtml"))
            sha256, pieces = file.sha256, _TEXT_READERS.get(suffix, read_plain)(file, limits, complain)
    except Unreadable as error:
        complain(str(error))
        return None
    except OSError as error:
        complain(f"cannot be opened ({error.strerror})")
        return None
    return Reading(sha256, _guarded(pieces, complain, sum_up))


def _guarded(pieces: Iterator[Piece], complain: Complain, sum_up: Callable[[], None]) -> Iterator[Piece]:
    try:
        yield from pieces
    except Unreadable as error:
        complain(str(error))
    except UnicodeDecodeError as error:
        complain(f"cannot be read further: its bytes are not {error.encoding} text")
    except OSError as error:
        complain(f"cannot be read further ({error.strerror})")
    except RecursionError:
        complain("cannot be read: it is nested too deeply")
    sum_up()
