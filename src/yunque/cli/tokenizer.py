"""`yunque tokenizer`: learn a tokenizer or bring one, and look at what it does to a text."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from yunque.cli.show import JSON_OPTION, bars, emit, note, table
from yunque.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Train or import a tokenizer, show what it does, and compare.")

# Neighbours differ, so that one sees where a token ends; black on each of them is readable.
_COLOURS = ("#a6cee3", "#b2df8a", "#fdbf6f", "#cab2d6", "#fb9a99")
_WHICH = "NAME or NAME@VERSION, a model's model/NAME, or a file or folder"
_VISIBLE = str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"})


@app.command("train")
def train(
    data: list[str] = typer.Option([], "--data", help="A dataset to learn from; may be given several times."),
    vocab_size: int = typer.Option(4096, min=1, help="How many tokens, special ones included."),
    name: str = typer.Option("tokenizer", help="The name of the tokenizer."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Learn a byte-level BPE tokenizer from datasets."""
    from yunque.tokenizer import train_tokenizer
    from yunque.workspace import Workspace

    made = train_tokenizer(Workspace.open(), name, data, vocab_size, bars)

    def render(console: Console) -> None:
        figures = made.figures
        console.print(
            f"{made.ref}: {figures['vocab_size']:,} tokens, learned from {figures['rows']:,} rows "
            f"({figures['bytes'] / 1e6:.1f} MB)"
        )

    emit(made.as_dict(), as_json, render)


@app.command("import")
def import_(
    path: Path = typer.Argument(
        help="tokenizer.json, *.model, vocab.json with merges.txt, *.tiktoken, tok*.bin, or a folder with one."
    ),
    name: str = typer.Option(..., "--name", "-n", help="The name of the tokenizer."),
    pattern: str | None = typer.Option(
        None, help="How a vocabulary without tokenizer.json divides a text: gpt2, cl100k, o200k, qwen2..."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Keep a tokenizer that another model came with."""
    from yunque.tokenizer import import_tokenizer
    from yunque.workspace import Workspace

    made = import_tokenizer(Workspace.open(), path, name, pattern)

    def render(console: Console) -> None:
        figures = made.figures
        console.print(
            f"{made.ref}: {figures['vocab_size']:,} tokens, {figures['special_tokens']:,} of them special"
        )

    emit(made.as_dict(), as_json, render)


@app.command("list")
def list_tokenizers(as_json: bool = JSON_OPTION) -> None:
    """List the tokenizers of the workspace."""
    from yunque.workspace import Workspace

    found = Workspace.open().list("tokenizer")

    def render(console: Console) -> None:
        if not found:
            note("no tokenizer yet: make one with `yunque tokenizer train --data NAME`")
            return
        rows = [
            (one.ref, f"{one.figures.get('vocab_size', 0):,}", _origin(one.parents, one.config), one.created)
            for one in found
        ]
        console.print(table("", ("tokenizer", "tokens", "from", "made"), rows, right=("tokens",)))

    emit([one.as_dict() for one in found], as_json, render)


def _origin(parents: Sequence[str], config: Mapping[str, Any]) -> str:
    return ", ".join(parents) or str(config.get("imported", ""))


@app.command("compare")
def compare(
    refs: list[str] = typer.Argument(help=f"Tokenizers, each {_WHICH}."),
    texts: list[str] = typer.Option(
        [],
        "--text",
        help="A file, or a text itself; may be given several times. (default: Spanish, English and code of ours)",
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Compare what texts cost: tokens per word (fewer is cheaper) and bytes per token (more is cheaper)."""
    from yunque.tokenizer import costs, open_tokenizer, sample_texts

    found = costs(dict(map(open_tokenizer, refs)), _named_texts(texts) if texts else sample_texts())

    def render(console: Console) -> None:
        rows = [
            (
                one.text,
                one.tokenizer,
                f"{one.tokens:,}",
                _two_digits(one.tokens_per_word),
                _two_digits(one.bytes_per_token),
                "" if one.round_trip else "not the same text",
            )
            for one in found
        ]
        columns = ("text", "tokenizer", "tokens", "tokens per word", "bytes per token", "decoded")
        console.print(table("", columns, rows, right=columns[2:5]))

    emit([one.as_dict() for one in found], as_json, render)


def _two_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _named_texts(texts: list[str]) -> dict[str, str]:
    """Each text under the name of its file, or its own beginning."""
    named: dict[str, str] = {}
    for text in texts:
        # A long text is no name of a file, and some systems refuse even to look.
        path = Path(text) if 0 < len(text) < 200 and "\n" not in text else None
        if path is None or not path.is_file():
            named[text if len(text) <= 24 else text[:23] + "…"] = text
            continue
        try:
            named[text] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{text}: is not a UTF-8 text that can be read") from None
    return named


@app.command("show")
def show(
    ref: str = typer.Argument(help=f"The tokenizer: {_WHICH}."),
    text: str | None = typer.Option(None, help="The text. (default: standard input)"),
    as_json: bool = JSON_OPTION,
) -> None:
    """Show how a text is divided into tokens, each in its colour, and their ids."""
    from yunque.tokenizer import open_tokenizer

    _, tokenizer = open_tokenizer(ref)
    if text is None:
        if sys.stdin.isatty():
            raise UserError("give the text with --text, or on standard input")
        text = sys.stdin.read()
    ids = tokenizer.encode(text)
    names = [tokenizer.token_name(id) for id in ids]

    def render(console: Console) -> None:
        tokens, numbers = Text(), Text()
        for position, (id, name) in enumerate(zip(ids, names, strict=True)):
            style = f"black on {_COLOURS[position % len(_COLOURS)]}"
            tokens.append(name.translate(_VISIBLE), style)
            if "\n" in name:
                tokens.append("\n")
            numbers.append(str(id), style).append(" ")
        console.print(tokens)
        console.print(numbers)
        letters = f"{len(text) / len(ids):.2f} characters a token" if ids else "nothing to show"
        console.print(f"{len(ids)} tokens, {len(text)} characters ({letters})", style="dim")

    bytes_of = [tokenizer.token_bytes(id).hex() for id in ids]
    emit(
        {
            "tokens": [
                {"id": id, "text": name, "bytes": data}
                for id, name, data in zip(ids, names, bytes_of, strict=True)
            ],
            "count": len(ids),
            "round_trip": tokenizer.decode(ids) == text,
        },
        as_json,
        render,
    )
