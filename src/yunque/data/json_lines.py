"""Rows that people write, a JSON object on each line: read so that every mistake is told with its line, and kept."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from yunque.errors import UserError
from yunque.workspace import Artifact, Workspace


class Identified(Protocol):
    """A row with an id of its own."""

    @property
    def id(self) -> str: ...
    def as_dict(self) -> dict[str, Any]: ...


RowT = TypeVar("RowT", bound=Identified)


def read_json_lines(
    path: Path, parse: Callable[[object], RowT], noun: str, on_bad: Callable[[str], None] | None = None
) -> list[RowT]:
    """The rows of a file; `parse` raises ValueError for a line that is none, `noun` names a row in messages.

    Raises UserError with file and line for the first bad line, or tells it to `on_bad` and goes on; ids may not
    repeat, and a file without rows is a mistake.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    rows, seen = list[RowT](), dict[str, int]()
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse(_decoded(line))
            if row.id in seen:
                raise ValueError(f"the id {row.id!r} is that of line {seen[row.id]} too")
        except ValueError as error:
            sentence = f"{path}:{number}: {error}"
            if on_bad is None:
                raise UserError(
                    f"{sentence}; mend the line, or leave bad lines out with --skip-bad"
                ) from None
            on_bad(sentence)
            continue
        seen[row.id] = number
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: holds no {noun}")
    return rows


def write_json_lines(
    workspace: Workspace,
    name: str,
    format: str,
    splits: Mapping[str, Sequence[Identified]],
    sources: Sequence[Mapping[str, str]] = (),
    settings: Mapping[str, Any] | None = None,
    card: Mapping[str, Any] | None = None,
) -> Artifact:
    """Keep rows as the dataset `name`: one file `SPLIT.jsonl` for each split ("train", "heldout").

    `sources` are the files that they were read from (`file`, `sha256`), `settings` how they were made of them, and
    `card` what there is to tell about them (`card.json`), whose whole numbers are figures of the dataset too.
    """
    contents = {f"{split}.jsonl": _as_lines(rows) for split, rows in splits.items()}
    figures = {f"{split}_rows": len(rows) for split, rows in splits.items()}
    config: dict[str, Any] = {"format": format, "sources": [dict(source) for source in sources]}
    if settings is not None:
        config["settings"] = dict(settings)
    if card is not None:
        figures |= {key: value for key, value in card.items() if isinstance(value, int)}
        contents["card.json"] = json.dumps(card, ensure_ascii=False, indent=2).encode() + b"\n"
    return workspace.put("dataset", name, contents, config=config, figures=figures)


def _as_lines(rows: Sequence[Identified]) -> bytes:
    return "".join(json.dumps(row.as_dict(), ensure_ascii=False) + "\n" for row in rows).encode()


def _decoded(line: bytes) -> object:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    except (ValueError, RecursionError):
        raise ValueError("is not valid JSON") from None
