"""`yunque quickstart`: the whole life cycle on the shipped samples, by the same commands that a user types."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape

from yunque.cli.show import JSON_OPTION, emit, err, size, table

if TYPE_CHECKING:
    from yunque.workspace import Workspace

QUESTIONS = (
    "¿Puedo llevar a mi perro en la cabina?",
    "How much does it cost to take a bicycle?",
    "¿Quién ganó el mundial de fútbol de 2010?",
)
NEXT = (
    'yunque ask equipaje "¿Qué pasa si pierdo el vuelo?"',
    "yunque lineage answer/1",
    "yunque serve",
    'yunque generate mini-chat "The list is" --max-new-tokens 40',
    "yunque data add YOUR_FOLDER --name mine",
)
_TRAINING_DATA = ("--data", "python-docs", "--data", "airline", "--data", "instructions")
_EVALUATED_ROWS = 10
_SERVED_QUESTION = "¿Cuánto puede pesar la maleta de cabina?"


@dataclass(frozen=True)
class Done:
    """A finished step: what it made, a figure that tells how it went, and how long it took."""

    step: str
    made: list[str]
    figure: str
    seconds: float


def quickstart(
    seconds: float = typer.Option(90, min=2, help="Time for pre-training; tuning takes two thirds of it."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Go through the whole life cycle on sample documents: prepare, train, tune, apply, guard, serve, govern.

    Running it again is safe: what is done already is found and not done twice.
    """
    from yunque.cli.quickstart_proofs import govern_step, guard_step, serve_step
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    done: list[Done] = []
    # With --json only the summary belongs on standard output.
    with (
        contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext(),
        as_file(files("yunque") / "samples") as samples,
    ):
        steps: list[tuple[str, Callable[[], tuple[list[str], str]]]] = [
            ("Prepare", lambda: _prepare(workspace, samples)),
            ("Tokenizer", lambda: _tokenizer(workspace)),
            ("Pre-train", lambda: _train(workspace, seconds)),
            ("Tune", lambda: _tune(workspace, seconds * 2 / 3)),
            ("Quantize", lambda: _quantize(workspace)),
            ("Evaluate", lambda: _evaluate(workspace)),
            ("Apply", lambda: _apply(workspace, samples)),
            ("Guard", lambda: guard_step(workspace)),
            ("Serve", lambda: serve_step(workspace, _SERVED_QUESTION)),
            ("Govern", lambda: govern_step(workspace)),
        ]
        for number, (name, step) in enumerate(steps, start=1):
            err().rule(f"[bold]{number}/{len(steps)} {name}", align="left")
            started = time.monotonic()
            made, figure = step()
            done.append(Done(name, made, figure, round(time.monotonic() - started, 1)))
    emit([asdict(one) for one in done], as_json, lambda console: _summary(console, done, workspace.root))


def command(*arguments: str) -> int:
    """Run a command as if it had been typed, after printing it; returns its exit code."""
    from yunque.cli.main import app

    shown = " ".join(_quoted(argument) for argument in arguments)
    err().print(f"[bold cyan]$[/] [cyan]yunque {escape(shown)}[/]")
    result = app(args=list(arguments), standalone_mode=False)
    return result if isinstance(result, int) else 0


def _quoted(argument: str) -> str:
    return f'"{argument}"' if " " in argument else argument


@contextlib.contextmanager
def _new_artifacts(workspace: "Workspace") -> Iterator[list[str]]:
    """Collects the refs made inside the block."""
    before = {artifact.ref for artifact in workspace.list(every_version=True)}
    made: list[str] = []
    yield made
    made += [a.ref for a in workspace.list(every_version=True) if a.ref not in before]


def _prepare(workspace: "Workspace", samples: Path) -> tuple[list[str], str]:
    from yunque.data.dataset import read_card
    from yunque.data.instructions import shipped_instructions

    for paths, name in (
        (str(samples / "airline"), "airline"),
        (str(samples / "customers"), "messages"),
        ("python:docs", "python-docs"),
    ):
        # The airline's own telephone numbers and addresses are what people ask for; those of its customers are not.
        keep = ["--keep-personal-data"] if name == "airline" else []
        command("data", "add", paths, "--name", name, *keep)
    names = ("airline", "messages", "python-docs")
    command("data", "split", "python-docs")
    command("data", "split", "airline")
    # Their training rows are among what the tokenizer and the model read first; nothing reads the held-out ones.
    instructions = shipped_instructions(workspace)
    datasets = [workspace.get(name, "dataset") for name in names]
    rows = sum(dataset.figures["rows"] for dataset in datasets)
    cards = [read_card(workspace, workspace.get(f"dataset/{name}@1")) for name in names]
    dropped = sum(sum(card["duplicates_dropped"].values()) for card in cards)
    personal = sum(
        sum(card["personal_data"]["found"].values()) for card in cards if card["personal_data"]["replaced"]
    )
    figure = f"{rows:,} rows, {dropped:,} duplicates dropped, {personal:,} personal data replaced"
    return [dataset.ref for dataset in (*datasets, instructions)], figure


def _tokenizer(workspace: "Workspace") -> tuple[list[str], str]:
    from yunque.tokenizer import tokenizer_of

    command("tokenizer", "train", *_TRAINING_DATA, "--name", "bpe")
    sentence = "El cigüeñal del avión pesa 23 kg."
    command("tokenizer", "show", "bpe", "--text", sentence)
    made = workspace.get("bpe", "tokenizer")
    tokenizer = tokenizer_of(workspace, made)
    return [
        made.ref
    ], f"{tokenizer.vocab_size:,} tokens; {len(tokenizer.encode(sentence))} for the sentence above"


def _train(workspace: "Workspace", seconds: float) -> tuple[list[str], str]:
    command(
        *("train", *_TRAINING_DATA, "--tokenizer", "bpe", "--name", "mini", "--seconds", f"{seconds:g}"),
    )
    made = workspace.get("mini", "model")
    figures = made.figures
    return [made.ref], (
        f"{figures['parameters'] / 1e6:.1f} million parameters, {figures['steps']:,} steps, "
        f"{figures['tokens']:,} tokens; validation loss {figures['validation_loss']:.2f}"
    )


def _tune(workspace: "Workspace", seconds: float) -> tuple[list[str], str]:
    command("tune", "mini", "--name", "mini-chat", "--seconds", f"{seconds:.0f}")
    tuned = workspace.get("mini-chat", "model")
    report = workspace.get("mini-chat-tuning", "report")
    figures = report.figures
    return [tuned.ref, report.ref], (
        f"accuracy {figures['accuracy_before']:.0%} before, {figures['accuracy_after']:.0%} after; "
        f"loss on other text {figures['general_loss_before']:.2f} before, {figures['general_loss_after']:.2f} after"
    )


def _quantize(workspace: "Workspace") -> tuple[list[str], str]:
    command("quantize", "mini-chat", "--name", "mini-chat-int8")
    made = workspace.get("mini-chat-int8", "model")
    figures = made.figures
    return [made.ref], (
        f"{size(figures['bytes_before'])} before, {size(figures['bytes_after'])} after; perplexity "
        f"{figures['perplexity_before']:.2f} before, {figures['perplexity_after']:.2f} after"
    )


def _evaluate(workspace: "Workspace") -> tuple[list[str], str]:
    command(
        *("eval", "mini-chat-int8", "--data", "python-docs", "--instructions", "instructions"),
        *("--rows", f"{_EVALUATED_ROWS}"),
    )
    made = workspace.get("mini-chat-int8", "evaluation")
    figures = made.figures
    return [made.ref], f"perplexity {figures['perplexity']:.2f}, accuracy {figures['accuracy']:.0%}"


def _apply(workspace: "Workspace", samples: Path) -> tuple[list[str], str]:
    from yunque.workspace import read_calls

    with _new_artifacts(workspace) as made:
        command("index", "build", "--data", "airline", "--name", "airline")
        command("app", "add", str(samples / "apps" / "equipaje.yaml"))
        for question in QUESTIONS:
            command("ask", "equipaje", question)
    calls = read_calls(workspace.catalog.connection(), len(QUESTIONS))
    cited = sum(bool(call.details["citations"]) for call in calls)
    unknown = sum(not call.details["known"] for call in calls)
    figure = f"{len(calls)} questions: {cited} answered with citations, {unknown} not known"
    return made or [workspace.get("equipaje", "app").ref], figure


def _summary(console: Console, done: list[Done], root: Path) -> None:
    rows = [(one.step, "\n".join(one.made), one.figure, f"{one.seconds:.1f}") for one in done]
    total = sum(one.seconds for one in done)
    console.print(table("", ("step", "made", "figure", "seconds"), rows, right=("seconds",)))
    console.print(f"Everything is in {root} ({total:.0f} s in all). Try next:")
    for line in NEXT:
        console.print(f"  [cyan]{escape(line)}[/]")
