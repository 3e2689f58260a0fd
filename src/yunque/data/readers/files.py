"""Finding files in folders, and finding out what bytes they hold."""

import codecs
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from yunque.data.readers.piece import Complain, Limits, Unreadable

_BLOCK = 1 << 20
_SAMPLE_BYTES = 1 << 16
# Controls that no text holds: all but tab, newlines, form feed and escape.
_CONTROLS = bytes(set(range(32)) - {9, 10, 11, 12, 13, 27})
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# The single-byte encodings that Spanish and English files come in; others would only be guessed wrongly.
_OLD_ENCODINGS = ["cp1252", "latin_1", "iso8859_15", "mac_roman", "cp850"]
_DECLARED = re.compile(rb"charset\s*=\s*[\"']?([A-Za-z0-9_.:-]+)", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """A file to read: where it lies, and its name in the dataset (relative to the folder the user gave)."""

    path: Path
    name: str


@dataclass(frozen=True)
class Skipped:
    """A file, or a part of one, that was left out, and why."""

    file: str
    reason: str


def find_files(paths: Iterable[Path], skipped: list[Skipped]) -> list[Found]:
    """The files that `paths` name or hold, in sorted order, hidden ones left out, each folder entered once.

    Names are relative to the folder given; where two files would have one name, the folders above tell them apart.
    """
    found: list[Found] = []
    taken: dict[str, Path] = {}
    for path in paths:
        folder, files = (path, _walk(path, skipped)) if path.is_dir() else (path.parent, iter([path]))
        for file in files:
            name = file.relative_to(folder).as_posix()
            if not _is_text(name):
                shown = name.encode("utf-8", "replace").decode()
                skipped.append(Skipped(shown, "its name is not UTF-8 text: give it another name"))
                continue
            above = list(folder.resolve().parts[1:])
            while taken.get(name, file) != file and above:
                name = f"{above.pop()}/{name}"
            if name not in taken:
                taken[name] = file
                found.append(Found(file, name))
    return found


def _is_text(name: str) -> bool:
    """Whether a file's name can be written down; Linux allows any bytes in one."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _walk(folder: Path, skipped: list[Skipped]) -> Iterator[Path]:
    entered: set[tuple[int, int]] = set()

    def refused(error: OSError) -> None:
        name = Path(error.filename).relative_to(folder).as_posix()
        skipped.append(Skipped(name, f"the folder cannot be opened ({error.strerror})"))

    for root, folders, files in os.walk(folder, followlinks=True, onerror=refused):
        inside = Path(root)
        here = inside.stat()
        # A link back to a folder above would never end.
        if (here.st_dev, here.st_ino) in entered:
            folders.clear()
            continue
        entered.add((here.st_dev, here.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield inside / name


def check_regular(path: Path) -> int:
    """The size of a file in bytes; raises Unreadable if it is not a regular file that can be opened."""
    try:
        status = path.stat()
    except FileNotFoundError:
        reason = "is a link to a file that does not exist" if path.is_symlink() else "does not exist"
        raise Unreadable(reason) from None
    except OSError as error:
        raise Unreadable(f"cannot be opened ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable("is not a regular file (a pipe, socket or device)")
    if status.st_size == 0:
        raise Unreadable("is empty")
    return status.st_size


@dataclass(frozen=True)
class TextFile:
    """A file that holds text; `sha256` is of its bytes."""

    path: Path
    sha256: str
    size: int
    encoding: str

    def text(self, limits: Limits) -> str:
        """All of it; raises Unreadable when it is larger than the limit for documents."""
        check_size(self.size, limits)
        # Not read_text: universal newlines would be undone by normalize anyway, and errors name the encoding.
        return self.path.read_bytes().decode(self.encoding)

    def lines(self, limits: Limits, complain: Complain) -> Iterator[tuple[int, str]]:
        """Numbered lines with their line end; one that is too long is told of and left out."""
        limit = limits.line_characters
        with self.path.open(encoding=self.encoding, newline="") as file:
            number = 0
            while line := file.readline(limit + 1):
                number += 1
                if len(line) <= limit:
                    yield number, line
                    continue
                complain(f"line {number}: is longer than {limit:,} characters")
                while line and not line.endswith("\n"):
                    line = file.readline(_BLOCK)


def check_size(size: int, limits: Limits) -> None:
    """Raises Unreadable when a document that must be read whole is too large."""
    if size > limits.document_bytes:
        raise Unreadable(
            f"has {size / 1e6:,.0f} MB; files of this format are read up to {limits.document_bytes / 1e6:,.0f} MB"
        )


def inspect_text(path: Path, declares_charset: bool = False) -> TextFile:
    """Find out how the text of a file is encoded, in one pass that holds one block at a time.

    UTF-8 first, then what a byte order mark or (for HTML) the file itself says, then the old encodings of
    western Europe. Raises Unreadable for binary files.
    """
    size = check_regular(path)
    digest = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_utf8, has_nul, head, odd = True, False, b"", bytearray()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                head = head or block[:_SAMPLE_BYTES]
                has_nul = has_nul or b"\0" in block
                if is_utf8:
                    try:
                        decoder.decode(block)
                    except UnicodeDecodeError:
                        is_utf8 = False
                if not is_utf8 and len(odd) < _SAMPLE_BYTES:
                    odd += block[:_SAMPLE_BYTES]
        if is_utf8:
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        is_utf8, odd = False, odd or bytearray(head)
    except OSError as error:
        raise Unreadable(f"cannot be opened ({error.strerror})") from None
    encoding = _encoding(head, bytes(odd), is_utf8, has_nul, declares_charset)
    return TextFile(path, digest.hexdigest(), size, encoding)


def _encoding(head: bytes, odd: bytes, is_utf8: bool, has_nul: bool, declares_charset: bool) -> str:
    for mark, name in _BOMS:
        if head.startswith(mark):
            return name
    if has_nul:
        if guessed := _unmarked_utf16(head):
            return guessed
        raise Unreadable("is binary, not text (it holds NUL bytes)")
    controls = sum(head.count(control) for control in _CONTROLS)
    if controls > len(head) / 50:
        raise Unreadable("is binary, not text (it holds control characters)")
    if is_utf8:
        return "utf-8"
    if declares_charset and (declared := _DECLARED.search(head[:4096])):
        name = declared[1].decode("ascii")
        try:
            return codecs.lookup("cp1252" if name.lower() in ("iso-8859-1", "latin1") else name).name
        except LookupError:
            pass
    return _old_encoding(head, odd)


def _unmarked_utf16(head: bytes) -> str | None:
    """UTF-16 without its mark shows as a NUL in (nearly) every second byte of western text."""
    if len(head) < 8:
        return None
    half = len(head) // 2
    if head[1::2].count(0) > 0.7 * half and head[::2].count(0) < 0.05 * half:
        return "utf-16-le"
    if head[::2].count(0) > 0.7 * half and head[1::2].count(0) < 0.05 * half:
        return "utf-16-be"
    return None


def _old_encoding(head: bytes, odd: bytes) -> str:
    from charset_normalizer import from_bytes

    sample = b"\n".join(line for line in odd.splitlines() if not line.isascii())[:_SAMPLE_BYTES] or head
    best = from_bytes(sample, cp_isolation=_OLD_ENCODINGS).best()
    if best is None:
        raise Unreadable("has an encoding that is neither UTF-8, UTF-16 nor one of western Europe's")
    # Windows-1252 holds all that Latin-1 does, and what programs that say Latin-1 really write.
    return "cp1252" if best.encoding in ("latin_1", "cp1252") and _is_cp1252(odd) else best.encoding


def _is_cp1252(data: bytes) -> bool:
    try:
        data.decode("cp1252")
    except UnicodeDecodeError:
        return False
    return True
