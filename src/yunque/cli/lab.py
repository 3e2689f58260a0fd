"""`yunque lab`: look at the ideas inside a model, as a picture and on the screen."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from yunque.cli.show import JSON_OPTION, emit, note, table
from yunque.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from yunque.lab.attention import AttentionPart, AttentionView
    from yunque.lab.bits import Held

app = typer.Typer(
    no_args_is_help=True,
    help="Look inside: attention, positions, embeddings, temperature, the bits of a number.",
)

_MODEL = typer.Argument(help="The model: NAME, model/NAME@VERSION, or a folder (./FOLDER).")
_SHADES = " ·░▒▓█"


def _out(name: str) -> Any:
    return typer.Option(
        None, help=f"The picture, .png or .svg. (default: {name}; none with --json)", show_default=False
    )


def _target(out: Path | None, name: str, as_json: bool) -> Path | None:
    """Where the picture goes, None for nowhere; told to be wrong before any work is done."""
    from yunque.lab.pictures import checked_picture

    if out is None and as_json:
        return None
    return checked_picture(out or Path(name))


def _finish(
    facts: dict[str, Any],
    target: Path | None,
    draw: Callable[[], "Figure"],
    as_json: bool,
    render: Callable[[Console], None],
) -> None:
    """Draw, then print the result and say where the picture is."""
    from yunque.lab.pictures import save_picture

    if target is not None:
        save_picture(draw(), target)
    emit({**facts, "picture": str(target) if target else None}, as_json, render)
    if target is not None:
        note(f"picture: {target}")


# Unknown options are let through, so that -2.5 is a number.
@app.command("bits", context_settings={"ignore_unknown_options": True})
def bits(
    number: str = typer.Argument(help="Such as 3.141592, 3,141592, -2.5, 1/3, 6.02e23, inf, nan."),
    largest: str | None = typer.Option(
        None, help="INT8: the largest magnitude that its scale covers. (default: the next power of two)"
    ),
    out: Path | None = _out("lab-bits.png"),
    as_json: bool = JSON_OPTION,
) -> None:
    """Show a number's sign, exponent and fraction in FP32, FP16, BF16, FP8 and INT8, and what each one loses."""
    from yunque.lab.bits import every_format, read_number
    from yunque.lab.draw_bits import draw_bits

    target = _target(out, "lab-bits.png", as_json)
    held = every_format(read_number(number), read_number(largest) if largest is not None else None)
    if "," in number:
        note(f"the comma in {number} is read as the decimal mark")
    facts = {"number": number, "formats": [one.as_dict() for one in held]}
    _finish(
        facts, target, lambda: draw_bits(number, held), as_json, lambda console: console.print(_bits(held))
    )


def _bits(held: Sequence["Held"]) -> Table:
    from yunque.lab.bits import as_formula, told_error, told_value

    drawn = Table(header_style="bold", box=None, pad_edge=False)
    for column in ("format", "sign exponent fraction", "value", "error", "made of"):
        drawn.add_column(column, no_wrap=column != "made of")
    for one in held:
        cells = Text()
        for part, colour in ((one.sign, "red"), (one.exponent, "green"), (one.fraction, "blue")):
            cells.append(f"{part} " if part else "", style=f"bold {colour}")
        drawn.add_row(one.format, cells, told_value(one), told_error(one), as_formula(one))
    return drawn


@app.command("positions")
def positions(
    kind: str = typer.Option("sinusoid", help="sinusoid (added to vectors) or rotary (vectors are turned)."),
    count: int = typer.Option(64, "--positions", min=2, max=4096, help="How many positions."),
    size: int = typer.Option(64, min=2, max=4096, help="How many numbers a vector has."),
    out: Path | None = _out("lab-positions.png"),
    as_json: bool = JSON_OPTION,
) -> None:
    """Show how a Transformer tells positions apart, and how alike it finds two of them."""
    from yunque.lab.positions import KINDS, draw_positions, position_table

    target = _target(out, "lab-positions.png", as_json)
    chosen = next((known for known in KINDS if known == kind), None)
    if chosen is None:
        raise UserError(f"{kind!r} is not a kind of positions ({', '.join(KINDS)})")
    found = position_table(chosen, count, size)

    def render(console: Console) -> None:
        console.print(_shades(found.values_TD.tolist(), -1.0, 1.0))
        near = [
            f"{distance}: {float(found.similarity_TT[0, distance]):.2f}" for distance in _distances(count)
        ]
        console.print("how alike positions are, by distance   " + "   ".join(near), style="dim")

    _finish(found.as_dict(), target, lambda: draw_positions(found), as_json, render)


def _distances(count: int) -> list[int]:
    return [distance for distance in (0, 1, 2, 4, 8, 16, 32, 64, 128) if distance < count]


def _shades(rows: Sequence[Sequence[float]], low: float, high: float, labels: Sequence[str] = ()) -> Text:
    """A heat map in characters: the darkest is `high`. Large ones are thinned out; `labels` stand before the rows."""
    most_rows, most_columns = 32, 96
    every_row, every_column = -(-len(rows) // most_rows), -(-len(rows[0]) // most_columns)
    wide = 2 if len(rows[0]) <= most_columns // 2 else 1
    margin = max(map(len, labels), default=0)
    drawn = Text(no_wrap=True)
    for number in range(0, len(rows), every_row):
        if labels:
            drawn.append(f"{labels[number]:>{margin}} ")
        for value in rows[number][::every_column]:
            share = min(1.0, max(0.0, (value - low) / (high - low)))
            drawn.append(_SHADES[round(share * (len(_SHADES) - 1))] * wide, style="blue")
        drawn.append("\n")
    drawn.rstrip()
    return drawn


@app.command("temperature")
def temperature(
    model: str = _MODEL,
    prompt: str = typer.Argument(help="The text that the next token follows."),
    temperatures: str = typer.Option("0.2,0.7,1,1.5", help="Temperatures, with commas between; 0 is greedy."),
    top_k: int = typer.Option(0, min=0, help="Cut all but the K likeliest tokens. (default: cut none)"),
    top_p: float = typer.Option(
        1.0, help="Cut all but the likeliest tokens that sum to P. (default: cut none)"
    ),
    tokens: int = typer.Option(12, min=1, max=60, help="How many of the likeliest tokens to show."),
    out: Path | None = _out("lab-temperature.png"),
    as_json: bool = JSON_OPTION,
) -> None:
    """Show what temperature, top-k and top-p do to the distribution of the next token."""
    from yunque.lab.opening import open_to_look
    from yunque.lab.temperature import draw_temperature, next_token, percent, told_distribution
    from yunque.workspace import Workspace

    target = _target(out, "lab-temperature.png", as_json)
    wanted = _numbers(temperatures)
    opened = open_to_look(Workspace.open(), model)
    found = next_token(opened, prompt, wanted, top_k, top_p, tokens)

    def render(console: Console) -> None:
        columns = [f"T = {one.temperature:g}" for one in found.distributions]
        rows = [
            (name, *(_bar(float(one.kept_V[id]), percent) for one in found.distributions))
            for id, name in zip(found.token_ids, found.labels, strict=True)
        ]
        console.print(table("", ("token", *columns), rows))
        for one in found.distributions:
            told = ", ".join(line for line in told_distribution(one) if line)
            console.print(f"T = {one.temperature:g}: {told}", style="dim")

    _finish(found.as_dict(), target, lambda: draw_temperature(found), as_json, render)


def _numbers(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.replace(";", ",").split(",") if part.strip()]
    except ValueError:
        raise UserError(
            f"temperatures: {text!r} is not numbers with commas between, such as 0.2,0.7,1"
        ) from None
    if not 1 <= len(found) <= 8:
        raise UserError(f"temperatures: {len(found)} were given; 1 to 8 fit on a picture, such as 0.2,0.7,1")
    return found


def _bar(probability: float, told: Callable[[float], str]) -> str:
    if not probability:
        return "cut"
    return f"{told(probability):>7} {'█' * round(10 * probability)}"


@app.command("embeddings")
def embeddings(
    model: str = _MODEL,
    words: list[str] = typer.Argument(help="Words to compare, such as perro gato avión."),
    neighbours: int = typer.Option(
        4, min=0, max=50, help="How many of the nearest tokens to show for each word."
    ),
    sentences: bool = typer.Option(
        False, help="Take each argument as a text, by an encoder's vector for all of it."
    ),
    out: Path | None = _out("lab-embeddings.png"),
    as_json: bool = JSON_OPTION,
) -> None:
    """Show how near words lie to one another in a model: cosines, nearest tokens, and a map.

    A word of several tokens is the mean of their vectors.
    """
    from yunque.lab.embeddings import draw_embeddings, texts_of, words_of
    from yunque.lab.opening import open_to_look
    from yunque.lab.pictures import label
    from yunque.workspace import Workspace

    target = _target(out, "lab-embeddings.png", as_json)
    opened = open_to_look(Workspace.open(), model)
    found = texts_of(opened, words) if sentences else words_of(opened, words, neighbours)

    def render(console: Console) -> None:
        names = [label(word, 14, blanks=False) for word in found.words]
        rows = [
            (name, *(f"{round(value, 2) + 0.0:.2f}" for value in values))
            for name, values in zip(names, found.cosines_WW.tolist(), strict=True)
        ]
        console.print(table("Cosines", ("", *names), rows, right=names))
        if sentences:
            return
        near = [
            (
                name,
                " ".join(tokens) + (f"  (mean of {len(tokens)})" if len(tokens) > 1 else ""),
                "  ".join(f"{one.label} {one.cosine:.2f}" for one in nearest),
            )
            for name, tokens, nearest in zip(names, found.tokens, found.neighbours, strict=True)
        ]
        console.print(table("", ("word", "tokens", "nearest tokens of the vocabulary"), near))

    _finish(found.as_dict(), target, lambda: draw_embeddings(found), as_json, render)


@app.command("attention")
def attention(
    model: str = _MODEL,
    text: str = typer.Argument(help="The text that the model reads."),
    to_write: str | None = typer.Option(
        None, "--target", help="Encoder-decoder: the answer so far, whose attention is shown too."
    ),
    part: str | None = typer.Option(None, help="Encoder-decoder: only encoder, decoder or cross."),
    layer: int | None = typer.Option(None, min=0, help="Only this layer, from 0."),
    head: int | None = typer.Option(None, min=0, help="Only this head, from 0."),
    out: Path | None = _out("lab-attention.png"),
    as_json: bool = JSON_OPTION,
) -> None:
    """Show where every head of every layer looks while a model reads a text."""
    from yunque.lab.attention import draw_attention, look
    from yunque.lab.opening import open_to_look
    from yunque.workspace import Workspace

    target = _target(out, "lab-attention.png", as_json)
    opened = open_to_look(Workspace.open(), model)
    view = look(opened, text, to_write).select(part, layer, head)

    def render(console: Console) -> None:
        for one in view.parts:
            _show_attention(console, view, one, layer or 0, head or 0)
        if any(one.part == "decoder" and len(one.lookers) == 1 for one in view.parts):
            note("the answer is empty: give its beginning with --target")

    _finish(view.as_dict(), target, lambda: draw_attention(view, layer or 0, head or 0), as_json, render)


def _show_attention(
    console: Console, view: "AttentionView", part: "AttentionPart", first_layer: int, first_head: int
) -> None:
    """One head as a heat map; several as a table of what each does most."""
    if part.heads * len(part.layers) == 1:
        weights_TS = part.layers[0][0].sqrt().tolist()
        console.print(f"{part.part} attention of {view.model}, layer {first_layer}, head {first_head}")
        console.print(_shades(weights_TS, 0.0, 1.0, part.lookers))
        return
    heads = [f"head {first_head + head}" for head in range(part.heads)]
    rows = [
        (first_layer + layer, *(_habit(weights_TS, part.part != "cross") for weights_TS in weights_NTS))
        for layer, weights_NTS in enumerate(part.layers)
    ]
    console.print(table(f"{part.part} attention of {view.model}", ("layer", *heads), rows, right=("layer",)))
    told = "" if part.part == "cross" else "self: the token itself; before: the one before it; "
    console.print(f"{told}first: the first token; wide: many (bits of entropy)", style="dim")


def _habit(weights_TS: Any, own_text: bool) -> str:
    """What a head does most, in a word and a number."""
    from yunque.lab.attention import habit_of

    habit = habit_of(weights_TS, own_text)
    shares = {"self": habit.itself or 0.0, "before": habit.before or 0.0, "first": habit.first}
    most = max(shares, key=shares.__getitem__)
    return f"{most} {100 * shares[most]:.0f} %" if shares[most] >= 0.3 else f"wide {habit.entropy_bits:.1f}"
