"""How long work reports its progress without knowing whether a terminal, a log or nobody is looking.

Library functions take `progress: Progress = silent` and write

    with progress("Reading files", total=len(paths)) as task:
        for path in paths:
            ...
            task.advance(1, note=path.name)

The command line passes its bars (`yunque.cli.show.bars`), tests and servers pass nothing.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Task(Protocol):
    """A piece of work under way."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Count `amount` more as done; `note` is shown beside the bar (loss, file name...)."""


class Progress(Protocol):
    """Opens a task; `total` is None when the end is not known."""

    def __call__(self, description: str, total: float | None = None) -> AbstractContextManager[Task]: ...


class _Unseen:
    def advance(self, amount: float = 1, note: str = "") -> None:
        del amount, note


def silent(description: str, total: float | None = None) -> AbstractContextManager[Task]:
    """Progress that nobody sees."""
    del description, total
    return nullcontext(_Unseen())


Warn = Callable[[str], None]
