"""What the command line puts on the screen: results on standard output, progress and complaints on standard error."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from yunque.errors import UserError
from yunque.processes import rank

JSON_OPTION = typer.Option(False, "--json", help="Print the result as JSON.")

_PLAIN_SECONDS = 10.0
_PIPE_WIDTH = 140
_WIDE = 100
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def out() -> Console:
    """Where results go."""
    # In a pipe or a file there is no width to keep to, and a sentence stays on its line.
    wide = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty(), width=wide)


def err() -> Console:
    """Where progress, notes and complaints go. Of several processes (torchrun) the first one alone shows them."""
    return _errors(quiet=rank() > 0)


def _errors(quiet: bool = False) -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty(), quiet=quiet)


def complain(sentence: str) -> None:
    """Tell about an error."""
    _errors().print(f"[bold red]error:[/] {escape(sentence)}")


def warn(sentence: str) -> None:
    """Tell about something that went on, but not as it should."""
    err().print(f"[yellow]warning:[/] {escape(sentence)}")


def note(sentence: str) -> None:
    """Say something that is not the result (it must not end up in a pipe)."""
    err().print(escape(sentence), style="dim")


def emit(value: Any, as_json: bool, render: Callable[[Console], None]) -> None:
    """Print a result: `value` as JSON if asked for, else whatever `render` draws."""
    if rank():
        return
    if as_json:
        sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")
    else:
        render(out())


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()
) -> Table:
    """A table; the columns named in `right` are aligned right. Cells are plain text."""
    drawn = Table(title=title or None, title_justify="left", header_style="bold")
    for column in columns:
        drawn.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(str(cell)) for cell in row))
    return drawn


def size(count: float) -> str:
    """A number of bytes for a person."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def bytes_of(text: str, option: str) -> int:
    """A number of bytes from "8GB" (thousands) or "8GiB" (1,024s); raises UserError naming the option."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    units = _BINARY_UNITS if found and found[3] else _UNITS
    unit = units.get(found[2].upper()) if found else None
    count = int(float(found[1]) * unit) if found and unit else 0
    if count < 1:
        raise UserError(f"{option}: {text!r} is not a size such as 8GB, 512MB or 16GiB")
    return count


class _Bar:
    def __init__(self, advance: Callable[[float, str], None]) -> None:
        self._advance = advance

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Count `amount` more as done."""
        self._advance(amount, note)


@contextmanager
def bars(description: str, total: float | None = None) -> Iterator[_Bar]:
    """`yunque.progress.Progress` on standard error: a bar on a terminal, a line now and then elsewhere."""
    if rank():
        yield _Bar(lambda *_: None)
        return
    if sys.stderr.isatty():
        with _terminal_bar(description, total) as bar:
            yield bar
        return
    started = told = time.monotonic()
    done = before = 0.0

    def advance(amount: float, note: str) -> None:
        nonlocal done, before, told
        now = time.monotonic()
        if not note and not done:
            before = amount  # done by a process before this one: it says nothing about how fast this one is
        done += amount
        if now - told >= _PLAIN_SECONDS:
            told = now
            share = f" {100 * done / total:.0f} %" if total else ""
            left = (
                f", {_duration((now - started) * (total - done) / (done - before))} left"
                if total and done > before
                else ""
            )
            sys.stderr.write(f"{description}:{share} {note} ({_duration(now - started)}{left})\n")
            sys.stderr.flush()

    yield _Bar(advance)


def _duration(seconds: float) -> str:
    """Seconds for a person: 48 s, 4 min 10 s, 2 h 05 min."""
    count = max(0, round(seconds))
    if count < 60:
        return f"{count} s"
    if count < 3600:
        return f"{count // 60} min {count % 60:02} s"
    return f"{count // 3600} h {count % 3600 // 60:02} min"


@contextmanager
def _terminal_bar(description: str, total: float | None) -> Iterator[_Bar]:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = err()
    columns = (
        TextColumn("{task.description}"),
        # What is said beside the bar has to fit on the line.
        BarColumn(bar_width=24 if console.width >= _WIDE else 10),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(escape(description), total=total, note="")
        yield _Bar(lambda amount, note: progress.update(task, advance=amount, note=note))
