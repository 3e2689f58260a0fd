"""`yunque chain`: run chains of steps, look at their runs, go on with them, and delete them."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from yunque.cli.routed_model import routed_model
from yunque.cli.show import JSON_OPTION, bars, emit, note, table, warn
from yunque.errors import UserError

if TYPE_CHECKING:
    from yunque.apps.chains.chain import Chain
    from yunque.apps.chains.index import StateIndex
    from yunque.apps.chains.reading import ReadPrompt
    from yunque.apps.chains.running import ChainRunner, RunResult
    from yunque.apps.chains.state_rows import RunRow
    from yunque.apps.chains.states import Deletion, States
    from yunque.workspace import Workspace

app = typer.Typer(
    help="Run chains of steps, and look at, resume and delete their runs.", no_args_is_help=True
)

_SHOWN_CHARACTERS = 60
_RUN = typer.Argument(help="The run: its id, or how it begins.")
_MODEL = typer.Option(None, "--model", "-m", help="Use this model for every prompt.", show_default=False)


@app.command()
def run(
    chain: str = typer.Argument(
        help="The chain: FILE.yaml (an app's file too), FILE.py:NAME, or app/NAME[@VERSION]."
    ),
    value: str | None = typer.Argument(
        None, metavar="INPUT", help="The input: a text, or @FILE. Without one it is read from standard input."
    ),
    is_json: bool = typer.Option(False, "--input-json", help="The input is JSON."),
    subject: list[str] = typer.Option(
        [], help="A person whom the input is about: `yunque chain delete --subject` forgets all such runs."
    ),
    model: str | None = _MODEL,
    as_json: bool = JSON_OPTION,
) -> None:
    """Run a chain. Each step's result is kept when it is done: a run that broke off goes on with `resume`."""
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    read = _chain(workspace, chain)
    given = _input(value, is_json)
    runner, index = _opened(workspace, model)
    with _way_on():
        done = runner.run(read, given, subject, bars)
    _finished(done, index, as_json)


@app.command()
def runs(
    chain: str | None = typer.Option(None, help="Only runs of this chain.", show_default=False),
    limit: int = typer.Option(20, "-n", help="How many, the newest first.", min=1),
    as_json: bool = JSON_OPTION,
) -> None:
    """List runs, the newest first."""
    states = _states()
    found = [_standing(states, one) for one in states.runs(chain, limit)]

    def render(console: Console) -> None:
        rows = [
            (one.id, one.chain, one.status, one.created[:16].replace("T", " "), _origin(one), one.error)
            for one in found
        ]
        console.print(table("", ("run", "chain", "status", "began (UTC)", "branch of", "error"), rows))

    emit([_summary(one) for one in found], as_json, render)


@app.command()
def show(
    run: str = _RUN,
    step: str | None = typer.Argument(None, help="The whole result of this step, by its path."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Show what a run did: each step with its result, attempts, time and what it took of models."""
    states = _states()
    kept = _standing(states, states.run(run))
    found = states.states(kept.id)
    if step is not None:
        one = next((state for state in found if state.path == step), None)
        if one is None:
            paths = ", ".join(state.path for state in found)
            raise UserError(f"run {kept.id}: has no step {step!r} (it has: {paths or 'none yet'})")
        shown = (
            one.value if isinstance(one.value, str) else json.dumps(one.value, ensure_ascii=False, indent=1)
        )
        emit(one.as_dict(), as_json, lambda console: console.print(shown, markup=False))
        return

    def render(console: Console) -> None:
        console.print(f"[bold]{kept.id}[/] {escape(kept.chain)}: {kept.status} {escape(_origin(kept))}")
        if kept.error:
            console.print(escape(kept.error), style="red")
        rows = [
            (
                state.path,
                state.status if state.run == kept.id else f"shared with {state.run}",
                state.attempts,
                "" if state.seconds is None else f"{state.seconds:.2f}",
                state.usage.prompt_tokens + state.usage.completion_tokens or "",
                _short(state.value) if state.done else state.error[:_SHOWN_CHARACTERS],
            )
            for state in found
        ]
        columns = ("step", "status", "attempts", "seconds", "tokens", "result")
        console.print(table("", columns, rows, right=("attempts", "seconds", "tokens")))

    emit({**kept.as_dict(), "states": [state.as_dict() for state in found]}, as_json, render)


@app.command()
def resume(
    run: str = _RUN,
    from_step: str | None = typer.Option(
        None, "--from", help="Make a new run that does this step and all after it again.", show_default=False
    ),
    replace: list[str] = typer.Option(
        [], "--set", help="With --from: PATH=JSON, another result for an earlier step.", show_default=False
    ),
    again: list[str] = typer.Option(
        [], help="A step marked `once` that may be run again, by its path.", show_default=False
    ),
    chain: str | None = typer.Option(
        None, help="The chain's file, or app/NAME, where it is not the one it was.", show_default=False
    ),
    model: str | None = _MODEL,
    as_json: bool = JSON_OPTION,
) -> None:
    """Go on with a run where it broke off; with --from, branch off a new run that shares the steps before."""
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    runner, index = _opened(workspace, model)
    kept = runner.states.run(run)
    source = chain or kept.source.get("file") or kept.source.get("app")
    if source is None:
        raise UserError(
            f"run {kept.id}: its chain came from no file; name one with --chain (FILE.yaml, FILE.py:NAME, or app/NAME"
            " where an app made it), or resume it where it was made"
        )
    read = _chain(workspace, str(source))
    if from_step is None:
        if replace:
            raise UserError("--set: a run's results are not changed; use it with --from STEP")
        with _way_on():
            done = runner.resume(read, kept.id, again, bars)
    else:
        edits = dict(map(_edit, replace))
        with _way_on():
            done = runner.branch(read, kept.id, from_step, edits, bars)
    _finished(done, index, as_json)


@app.command()
def prune(
    older: str = typer.Option(..., help="Delete runs that ended longer ago than this: 30d, 12h, 2w."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Delete old runs for good. One that a newer run shares states with stays, and so does one under way."""
    _told(_index().prune(_span(older)), as_json)


@app.command()
def delete(
    runs: list[str] = typer.Argument(None, metavar="RUN...", help="The runs to delete."),
    subject: str | None = typer.Option(
        None, help="Delete all runs about this person, and their branches.", show_default=False
    ),
    with_branches: bool = typer.Option(False, help="Delete the runs made from it with --from, too."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Delete runs for good: from the states and the index, bytes overwritten. They cannot be resumed."""
    if bool(runs) == bool(subject):
        raise UserError("say which runs to delete, or --subject PERSON")
    index = _index()
    _told(index.forget(subject) if subject else index.delete(runs, with_branches), as_json)


def _chain(workspace: "Workspace", name: str) -> "Chain":
    from yunque.apps.chains.reading import read_chain_file

    def prompt(ref: str, where: str) -> Any:
        from yunque.apps.prompts import load_prompt

        try:
            return load_prompt(workspace, ref)[0]
        except UserError as error:
            raise UserError(f"{where}: {error}") from None

    if name.startswith("app/"):
        return _chain_of_app(workspace, name, prompt)
    return read_chain_file(Path(name), prompt)


def _chain_of_app(workspace: "Workspace", ref: str, read_prompt: "ReadPrompt") -> "Chain":
    """The chain of an app of the workspace, as the app itself runs it, but without its guards."""
    from yunque.apps.chains.reading import read_chain
    from yunque.apps.kept import load_definition, unpacked

    definition, artifact = load_definition(workspace, ref)
    if definition.kind != "chain":
        raise UserError(f"{artifact.ref}: has no steps, so it is no chain")
    values = {"name": definition.name, "model": definition.model, "steps": definition.steps}
    folder, source = unpacked(workspace, artifact), {"app": artifact.ref}
    return read_chain(values, artifact.ref, folder, read_prompt=read_prompt, source=source)


def _states() -> "States":
    from yunque.apps.chains.states import open_states, place_of_states
    from yunque.workspace import Workspace

    return open_states(place_of_states(Workspace.open().root))


def _index(workspace: "Workspace | None" = None) -> "StateIndex":
    from yunque.apps.chains.index import StateIndex
    from yunque.apps.chains.states import open_states, place_of_states
    from yunque.workspace import Workspace

    place = place_of_states((workspace or Workspace.open()).root)
    return StateIndex.open(open_states(place), place)


def _opened(workspace: "Workspace", model: str | None) -> tuple["ChainRunner", "StateIndex"]:
    from yunque.apps.chains.running import ChainRunner

    index = _index(workspace)
    return ChainRunner(index.states, lambda name: routed_model(workspace, model or name), index), index


def _input(value: str | None, is_json: bool) -> Any:
    if value is None:
        if sys.stdin.isatty():
            raise UserError('no input: yunque chain run CHAIN "the input", or @FILE, or pipe it in')
        text = sys.stdin.read()
    elif value.startswith("@"):
        try:
            text = Path(value[1:]).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{value[1:]}: cannot be read ({error.strerror})") from None
        except UnicodeDecodeError:
            raise UserError(f"{value[1:]}: is not UTF-8 text") from None
    else:
        text = value
    if not is_json:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the input is not JSON ({error})") from None


def _edit(text: str) -> tuple[str, Any]:
    path, equals, raw = text.partition("=")
    if not equals:
        raise UserError(f"--set {text!r}: write it as PATH=JSON")
    try:
        return path, json.loads(raw)
    except (ValueError, RecursionError):
        raise UserError(f"--set {path}: {raw!r} is not JSON (a text stands in double quotes)") from None


def _span(text: str) -> timedelta:
    units = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
    if text[-1:] not in units or not text[:-1].isdecimal() or len(text) > 7:
        raise UserError(f"--older: {text!r} is not a time such as 30d, 12h or 2w")
    return timedelta(**{units[text[-1]]: int(text[:-1])})


@contextmanager
def _way_on() -> Iterator[None]:
    """After a step that failed, say how to go on."""
    from yunque.apps.chains.work import StepFailed

    try:
        yield
    except StepFailed as failed:
        note(f"what was done is kept; go on with: yunque chain resume {failed.run}")
        raise


def _finished(done: "RunResult", index: "StateIndex", as_json: bool) -> None:
    index.bring_up_to_date()
    shown = (
        done.value if isinstance(done.value, str) else json.dumps(done.value, ensure_ascii=False, indent=1)
    )
    emit(done.as_dict(), as_json, lambda console: console.print(shown, markup=False))
    tokens = done.usage.prompt_tokens + done.usage.completion_tokens
    cost = f", {done.cost.usd:.6f} USD" if done.cost and done.cost.usd else ""
    note(f"run {done.run}{f', {tokens} tokens{cost}' if tokens else ''}")


def _told(done: "Deletion", as_json: bool) -> None:
    emit(
        done.as_dict(),
        as_json,
        lambda console: console.print(f"deleted {len(done.runs)} runs with {done.states} states"),
    )
    if not done.wiped:
        warn(
            "somebody is reading the file, so the bytes could not be overwritten yet; delete anything to try again"
        )


def _summary(run: "RunRow") -> dict[str, Any]:
    return {key: value for key, value in run.as_dict().items() if key not in ("input", "outline")}


def _standing(states: "States", run: "RunRow") -> "RunRow":
    """A run as it stands: one that nobody works on any more was broken off."""
    if run.status != "running" or states.under_way(run.id):
        return run
    return replace(run, status="broken off")


def _origin(run: "RunRow") -> str:
    return f"{run.parent} from {run.parent_step}" if run.parent else ""


def _short(value: Any) -> str:
    text = " ".join((value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
