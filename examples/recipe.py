"""What the recipes share: their options, their workspace, and the tables that they print."""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from yunque.cli.show import complain, note
from yunque.data.dataset import write_dataset
from yunque.data.row import Row, Source, row_id
from yunque.errors import UserError
from yunque.generate.engine import Engine
from yunque.generate.search import greedy_search
from yunque.workspace import Artifact, Workspace, atomic_write

_TOGETHER = 32


@dataclass(frozen=True)
class Table:
    """Columns, and rows of cells that are text already."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table as a README has it."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


@dataclass(frozen=True)
class Outcome:
    """What a recipe shows: tables, sentences that follow from them, and files it wrote; `figures` is for programs."""

    tables: Sequence[Table]
    findings: Sequence[str] = ()
    files: Sequence[Path] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """What is printed, in Markdown."""
        parts = [f"{table.title}\n\n{table.markdown()}\n" for table in self.tables]
        parts += ["".join(f"- {sentence}\n" for sentence in self.findings)] if self.findings else []
        parts += [f"Written: {path}\n" for path in self.files]
        return "\n".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "tables": [asdict(table) for table in self.tables],
            "findings": list(self.findings),
            "files": [str(path) for path in self.files],
            "figures": dict(self.figures),
        }


@dataclass(frozen=True)
class Options:
    """What a person may choose. `scale` multiplies the steps of every training; `quick` only proves that all runs."""

    workspace: Workspace
    data: Path | None
    scale: float
    quick: bool

    def steps(self, count: int, quick: int = 4) -> int:
        """The steps of a training that has `count` of them by default."""
        return quick if self.quick else max(1, round(count * self.scale))


def run_recipe(
    name: str,
    doc: str | None,
    experiment: Callable[[Options], Outcome],
    data_help: str,
    arguments: Sequence[str] | None = None,
) -> None:
    """Read the command line, run the experiment, print what came out, and keep it in the workspace (outcome.md).

    A mistake of the user is told in a sentence, with exit code 2.
    """
    parser = argparse.ArgumentParser(description=(doc or "").strip().partition("\n")[0])
    folder = Path(f".yunque-{name}")
    parser.add_argument(
        "--workspace", type=Path, default=folder, help="where everything is kept [default: %(default)s]"
    )
    parser.add_argument("--data", type=Path, help=f"{data_help} [default: what comes with the recipe]")
    parser.add_argument("--scale", type=float, default=1.0, help="times as long a training [default: 1]")
    parser.add_argument("--quick", action="store_true", help="a few steps only, to see that it runs")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    given = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        if given.scale <= 0:
            raise UserError("--scale must be above 0")
        if given.data is not None and not given.data.exists():
            raise UserError(f"--data: {given.data}: there is no such file or folder")
        workspace = Workspace.open(given.workspace)
        if given.quick:
            # A few steps of a tiny model: a second thread would only be waited for.
            torch.set_num_threads(1)
        outcome = experiment(Options(workspace, given.data, given.scale, given.quick))
    except UserError as error:
        complain(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    text = outcome.text()
    atomic_write(given.workspace / "outcome.md", text)
    sys.stdout.write(
        json.dumps(outcome.as_dict(), ensure_ascii=False, indent=2) + "\n" if given.json else text
    )
    note(f"{time.monotonic() - started:.0f} s; everything is in {given.workspace}")


def read_text(file: Path) -> str:
    """A text file of the user's. Raises UserError for one that cannot be read."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"--data: {file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"--data: {file}: is not UTF-8 text") from None


def greedy_texts(engine: Engine, prompts: Sequence[Sequence[int]], most: int) -> list[str]:
    """What the model writes after each prompt, the likeliest token each time, at most `most` of them."""
    texts: list[str] = []
    ends = engine.tokenizer.end_ids
    for start in range(0, len(prompts), _TOGETHER):
        for ids in greedy_search(engine.model, prompts[start : start + _TOGETHER], most, ends):
            texts.append(engine.tokenizer.decode([id for id in ids if id not in ends]).strip())
    return texts


def text_dataset(workspace: Workspace, name: str, splits: Mapping[str, Sequence[str]]) -> Artifact:
    """Texts as a dataset with these splits ("train", "validation", "test"), for a model to read."""

    def row(split: str, number: int, text: str) -> Row:
        file = f"{name}-{split}-{number}"
        source = Source(file, hashlib.sha256(text.encode()).hexdigest(), "all of it")
        return Row(row_id(file, text), text, "und", source, file)

    rows = {split: [row(split, *pair) for pair in enumerate(texts)] for split, texts in splits.items()}
    card = {"rows": sum(map(len, splits.values())), "personal_data": {"found": {}, "replaced": False}}
    return write_dataset(workspace, name, rows, card, [], {"step": "recipe"})
