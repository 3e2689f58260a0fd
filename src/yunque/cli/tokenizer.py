"""`yunque tokenizer`: learn a tokenizer, and look at what it does to a text."""

import sys

import typer
from rich.console import Console
from rich.text import Text

from yunque.cli.show import JSON_OPTION, bars, emit
from yunque.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Train a tokenizer and show what it does.")

# Neighbours differ, so that one sees where a token ends; black on each of them is readable.
_COLOURS = ("#a6cee3", "#b2df8a", "#fdbf6f", "#cab2d6", "#fb9a99")
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


@app.command("show")
def show(
    ref: str = typer.Argument(help="The tokenizer: NAME, tokenizer/NAME@VERSION, or a model's model/NAME."),
    text: str | None = typer.Option(None, help="The text. [default: standard input]"),
    as_json: bool = JSON_OPTION,
) -> None:
    """Show how a text is divided into tokens, each in its colour, and their ids."""
    from yunque.tokenizer import Tokenizer
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    artifact = workspace.get(ref, None if ref.startswith("model/") else "tokenizer")
    tokenizer = Tokenizer.load(workspace.file(artifact, "tokenizer.json"))
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
