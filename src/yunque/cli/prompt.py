"""`yunque prompt`: prompts as versioned files, checked, filled, asked and compared."""

import difflib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape

from yunque.cli.routed_model import routed_model
from yunque.cli.show import JSON_OPTION, bars, emit, table
from yunque.errors import UserError

if TYPE_CHECKING:
    from yunque.apps.prompts import Prompt
    from yunque.workspace import Workspace

app = typer.Typer(help="Add, check, fill and compare prompts.", no_args_is_help=True)

_PROMPT = typer.Argument(
    metavar="PROMPT", help="A prompt of the workspace (NAME or NAME@VERSION), or a file."
)
_INPUTS = typer.Argument(
    None, metavar="[NAME=VALUE]...", help="Inputs; NAME=@FILE reads a file, NAME=- standard input."
)
_LANGUAGE = typer.Option(None, "--language", "-l", help="Two letters. (default: that of the inputs)")


@app.command()
def add(file: Path = typer.Argument(help="The prompt's file."), as_json: bool = JSON_OPTION) -> None:
    """Keep a prompt in the workspace; another text is another version."""
    from yunque.apps.prompts import add_prompt
    from yunque.workspace import Workspace

    artifact = add_prompt(Workspace.open(), file)
    emit(artifact.as_dict(), as_json, lambda console: console.print(f"[bold]{artifact.ref}[/]"))


@app.command("list")
def list_prompts(as_json: bool = JSON_OPTION) -> None:
    """The prompts of the workspace."""
    from yunque.workspace import Workspace

    found = Workspace.open().list("prompt")
    rows = [
        (one.ref, ", ".join(one.config.get("languages", [])), one.config.get("description", ""))
        for one in found
    ]
    emit(
        [one.as_dict() for one in found],
        as_json,
        lambda console: console.print(table("", ("prompt", "languages", "description"), rows)),
    )


@app.command()
def show(name: str = _PROMPT, as_json: bool = JSON_OPTION) -> None:
    """A prompt's file as it was added."""
    prompt = _found(name)
    values = prompt.definition.model_dump(mode="json", exclude_none=True)
    sections = [vars(section) for section in prompt.sections]
    emit({**values, "sections": sections}, as_json, lambda _: plain(prompt.source))


@app.command()
def check(file: Path = typer.Argument(help="The prompt's file."), as_json: bool = JSON_OPTION) -> None:
    """Read a prompt's file without keeping it, and tell what is wrong with it and where."""
    from yunque.apps.prompts import read_prompt

    prompt = read_prompt(file)
    unused = [] if prompt.definition.task else prompt.unused_inputs()
    value = {
        "name": prompt.name,
        "inputs": list(prompt.inputs),
        "languages": prompt.languages,
        "unused": unused,
    }

    def render(console: Any) -> None:
        console.print(
            f"{escape(str(file))}: [bold]{escape(prompt.name)}[/] is right; inputs: {', '.join(prompt.inputs)}"
        )
        for name in unused:
            console.print(
                f"[yellow]the input {escape(name)} is in no text: what is given for it changes nothing[/]"
            )

    emit(value, as_json, render)


@app.command()
def render(
    name: str = _PROMPT,
    inputs: list[str] | None = _INPUTS,
    language: str | None = _LANGUAGE,
    as_json: bool = JSON_OPTION,
) -> None:
    """Fill a prompt and show what a model would be asked."""
    from yunque.apps.prompts.asking import language_of_inputs

    prompt = _found(name)
    values = read_inputs(prompt, inputs or [])
    rendered = prompt.render(values, language or language_of_inputs(values))
    value = {
        "messages": [{"role": message.role, "content": message.content} for message in rendered.messages],
        "hash": rendered.hash,
        "language": rendered.language,
    }

    def draw(console: Any) -> None:
        for message in rendered.messages:
            console.print(f"[bold cyan]\\[{message.role}][/]")
            plain(message.content)
            console.print()
        console.print(f"[dim]hash {rendered.hash}[/]")

    emit(value, as_json, draw)


@app.command()
def run(
    name: str = _PROMPT,
    inputs: list[str] | None = _INPUTS,
    model: str = typer.Option(..., "--model", "-m", help="The model's name."),
    language: str | None = _LANGUAGE,
    send_personal_data: bool = typer.Option(
        False, help="Send personal data to a model that is not local too."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Ask a model with a prompt; the answer has the prompt's form, or there is none."""
    from yunque.apps.prompts import ask_prompt
    from yunque.apps.structured import NoValidAnswer
    from yunque.apps.tasks.calls import Calls
    from yunque.llm import ModelUnavailable
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    prompt = _found(name, workspace)
    values = read_inputs(prompt, inputs or [])
    calls = Calls(routed_model(workspace, model), f"prompt/{prompt.name}", workspace, send_personal_data)
    try:
        answered = ask_prompt(calls, prompt, values, language, restore=calls.restore)
    except (ModelUnavailable, NoValidAnswer) as error:
        raise UserError(str(error)) from None
    told = (
        answered.value
        if isinstance(answered.value, str)
        else json.dumps(answered.value, ensure_ascii=False, indent=2)
    )
    value = {"value": answered.value, "hash": answered.hash, "usage": vars(answered.usage)}
    value["cost"] = vars(answered.cost) if answered.cost else None
    emit(value, as_json, lambda _: plain(told))


@app.command()
def diff(
    one: str = typer.Argument(help="A prompt (NAME@1) or a file."),
    other: str = typer.Argument(help="Another one (NAME@2), or a file."),
) -> None:
    """What differs between two prompts, or two versions of one."""
    first, second = _found(one), _found(other)
    lines = difflib.unified_diff(
        first.source.splitlines(), second.source.splitlines(), first.where, second.where, lineterm=""
    )
    for line in lines:
        sys.stdout.write(line + "\n")


@app.command()
def choose(
    name: str = _PROMPT,
    model: str = typer.Option(..., "--model", "-m", help="The model's name."),
    train: Path = typer.Option(..., help='Rows to choose from: {"inputs": {...}, "answer": ...} a line.'),
    dev: Path = typer.Option(..., help="Rows to search on."),
    held_out: Path = typer.Option(..., help="Rows that decide whether the examples are kept."),
    metric: str = typer.Option("exact", help="exact, rougeL or chrf."),
    shots: int = typer.Option(4, help="How many examples at most."),
    search: str = typer.Option("greedy", help="greedy or random."),
    trials: int = typer.Option(16, help="How many examples (greedy: a round) or sets (random) are tried."),
    seed: int = typer.Option(0, help="The same seed makes the same choice."),
    send_personal_data: bool = typer.Option(
        False, help="Send personal data to a model that is not local too."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Choose a prompt's examples by a metric; they are kept only if it rises on held-out rows."""
    from yunque.apps.prompts import put_prompt
    from yunque.apps.prompts.choosing import choose_examples, read_examples
    from yunque.apps.tasks.calls import Calls
    from yunque.evaluate.task_sets import ANSWER_METRICS
    from yunque.llm import ModelUnavailable
    from yunque.workspace import Workspace

    if metric not in ANSWER_METRICS or search not in ("greedy", "random"):
        raise UserError(f"--metric is one of {', '.join(ANSWER_METRICS)}, --search greedy or random")
    workspace = Workspace.open()
    prompt = _found(name, workspace)
    opened = routed_model(workspace, model)
    calls = Calls(opened, f"prompt/{prompt.name}", workspace, send_personal_data)
    try:
        chosen = choose_examples(
            prompt, calls, read_examples(train), read_examples(dev), read_examples(held_out),
            ANSWER_METRICS[metric], shots, "greedy" if search == "greedy" else "random", trials, seed,
            workspace.runs / f"prompt-{prompt.name}.scores.jsonl", opened.name, calls.restore, bars,
        )  # fmt: skip
    except ModelUnavailable as error:
        raise UserError(f"{error}; what was scored is kept: run it again") from None
    figures = {key: value for key, value in chosen.as_dict().items() if key != "examples"}
    ref = put_prompt(workspace, chosen.prompt, figures=figures).ref if chosen.kept else None

    def draw(console: Any) -> None:
        rows = [
            ("dev", f"{chosen.dev_before:.3f}", f"{chosen.dev_after:.3f}"),
            ("held-out", f"{chosen.held_out_before:.3f}", f"{chosen.held_out_after:.3f}"),
        ]
        console.print(table(f"{metric}, {len(chosen.examples)} examples", ("set", "before", "after"), rows))
        console.print(f"kept as [bold]{ref}[/]" if ref else "not kept: the held-out metric does not rise")

    emit({**chosen.as_dict(), "ref": ref}, as_json, draw)


def _found(name: str, workspace: "Workspace | None" = None) -> "Prompt":
    from yunque.apps.prompts import load_prompt, read_prompt
    from yunque.workspace import Workspace

    path = Path(name)
    if path.is_file() or path.suffix == ".prompt":
        return read_prompt(path)
    return load_prompt(workspace or Workspace.open(), name)[0]


def read_inputs(prompt: "Prompt", given: list[str]) -> dict[str, Any]:
    """`name=value` as the types that the prompt's inputs have; raises UserError."""
    values: dict[str, Any] = {}
    for text in given:
        name, equals, raw = text.partition("=")
        if not equals or name not in prompt.inputs:
            raise UserError(
                f"{text[:60]!r}: write NAME=VALUE, with one of {', '.join(prompt.inputs) or 'no inputs'}"
            )
        if raw == "-":
            raw = sys.stdin.read()
        elif raw.startswith("@"):
            raw = read_text(Path(raw[1:]))
        values[name] = typed(raw, prompt.inputs[name].type, name)
    return values


def typed(raw: str, kind: str, name: str) -> Any:
    """A value as its input wants it: a list is `a,b` or JSON. Raises UserError."""
    if kind == "string":
        return raw
    if kind == "array" and not raw.lstrip().startswith("["):
        return [part.strip() for part in raw.split(",") if part.strip()]
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise UserError(f"{name}: {raw[:60]!r} is not of type {kind}") from None


def plain(text: str) -> None:
    """Print a text as it is; on a terminal without what would move its cursor or change its colours."""
    if sys.stdout.isatty():
        text = "".join(letter if letter.isprintable() or letter in "\n\t" else "�" for letter in text)
    sys.stdout.write(text.rstrip("\n") + "\n")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8; raises UserError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
