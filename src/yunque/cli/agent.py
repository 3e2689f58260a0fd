"""`yunque agent`: what agents did, step by step; and deleting it."""

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from yunque.cli.show import JSON_OPTION, emit, table, warn
from yunque.errors import UserError

if TYPE_CHECKING:
    from yunque.apps.agents.journal import Journal, RunRecord, StepRecord

app = typer.Typer(help="Look at what agents did, step by step, and delete it.", no_args_is_help=True)

_SHOWN_CHARACTERS = 500


@app.command()
def runs(
    agent: str | None = typer.Option(None, help="Only runs of this agent (or app).", show_default=False),
    limit: int = typer.Option(20, "-n", help="How many, the newest first.", min=1),
    as_json: bool = JSON_OPTION,
) -> None:
    """List runs, the newest first."""
    journal = _journal()
    found = [_standing(journal, one) for one in journal.runs(agent, limit)]
    rows = [
        (one.id, one.agent, one.status, one.updated[:16].replace("T", " "), one.begun["question"][:80])
        for one in found
    ]
    columns = ("run", "agent", "status", "last step (UTC)", "question")
    values = [{**one.as_dict(), "question": one.begun["question"], "pending": one.pending} for one in found]
    emit(values, as_json, lambda console: console.print(table("", columns, rows)))


@app.command()
def show(
    run: str = typer.Argument(help="The run, as `yunque agent runs` shows it."), as_json: bool = JSON_OPTION
) -> None:
    """Show every step of a run: what the model was asked anew and answered, what tools were given and returned."""
    journal = _journal()
    kept, steps = _standing(journal, journal.run(run)), journal.steps(run)

    def render(console: Console) -> None:
        made_by = f" ({kept.origin})" if kept.origin else ""
        console.print(f"[bold]{kept.id}[/] {escape(kept.agent + made_by)}: {kept.status}")
        if kept.status == "broken off":
            console.print("[yellow]nobody works on it any more; AgentRunner.resume(agent, run) goes on[/]")
        for step in steps:
            spent = step.content["spent"]
            tokens = spent["prompt_tokens"] + spent["completion_tokens"]
            took = f"{spent['seconds']:.2f} s" + (f", {tokens} tokens" if tokens else "")
            console.print(f"[cyan]{step.number} {step.kind}[/] [dim]{took}[/]")
            for line in _lines(step):
                console.print(f"  {escape(_short(line))}")
        if kept.pending:
            arguments = json.dumps(kept.pending["arguments"], ensure_ascii=False)
            console.print(f"[yellow]waits for a person:[/] {kept.pending['tool']} {escape(arguments)}")
        if kept.answer:
            console.print(f"[bold]answer:[/] {escape(kept.answer)}")

    told = [{"number": step.number, "kind": step.kind, "time": step.time, **step.content} for step in steps]
    emit(
        {**kept.as_dict(), **kept.begun, "answer": kept.answer, "pending": kept.pending, "steps": told},
        as_json,
        render,
    )


@app.command()
def delete(
    runs: list[str] = typer.Argument(None, metavar="RUN...", help="The runs to delete."),
    subject: str | None = typer.Option(None, help="Delete all runs about this person.", show_default=False),
    as_json: bool = JSON_OPTION,
) -> None:
    """Delete runs for good: their keys are destroyed and their bytes overwritten."""
    if bool(runs) == bool(subject):
        raise UserError("say which runs to delete, or --subject PERSON")
    journal = _journal()
    gone = journal.of_subject(subject) if subject else list(dict.fromkeys(runs))
    wiped = journal.delete(gone)
    emit(
        {"deleted": gone, "wiped": wiped},
        as_json,
        lambda console: console.print(f"deleted {len(gone)} runs"),
    )
    if not wiped:
        warn(
            "somebody is reading the file: what is left there has no key any more; delete anything to overwrite it"
        )


def _standing(journal: "Journal", run: "RunRecord") -> "RunRecord":
    """A run as it stands: one that nobody works on any more was broken off."""
    if run.status != "running" or journal.under_way(run.id):
        return run
    return replace(run, status="broken off")


def _lines(step: "StepRecord") -> list[str]:
    content: dict[str, Any] = step.content
    if step.kind == "tool":
        asked = content["asked"]
        outcome = "failed: " if content["failed"] else ""
        return [
            f"{asked['tool']} {json.dumps(asked['arguments'], ensure_ascii=False)}",
            f"{outcome}{content['text']}",
        ]
    answer = content["answer"]
    said = [
        f"{message['role']}: {message['content']}"
        for message in content["new_messages"]
        if message["content"]
    ]
    calls = [f"calls {call['name']} {call['arguments']}" for call in answer["tool_calls"]]
    return [*said, *([f"answers: {answer['text']}"] if answer["text"] else []), *calls]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 1] + "…"


def _journal() -> "Journal":
    from yunque.apps.agents.journal import Journal
    from yunque.workspace import Workspace

    return Journal(Workspace.open())
