"""`yunque task`: tasks on files or standard input. Each task is a command, made from its prompt's inputs."""

import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import typer.core
import typer.main
from rich.markup import escape

from yunque.cli.prompt import plain, read_text, typed
from yunque.cli.routed_model import routed_model
from yunque.cli.show import JSON_OPTION, bars, complain, emit, note, table, warn
from yunque.errors import UserError

if TYPE_CHECKING:
    from yunque.apps.prompts import Input
    from yunque.apps.tasks import Task, TaskAnswer
    from yunque.llm import LanguageModel
    from yunque.workspace import Workspace

_READ_AS_DOCUMENTS = (".pdf", ".docx", ".html", ".htm")
_TYPES: dict[str, type] = {"integer": int, "number": float, "boolean": bool}
_ASK = "ask"
_TAKEN = ("index", "files", "model", "language", "out", "again", "send_personal_data", "as_json")


class _Tasks(typer.core.TyperGroup):
    """Finds a task's command when it is asked for: reading every prompt would slow down every `yunque`."""

    def list_commands(self, ctx: Any) -> list[str]:
        from yunque.apps.tasks.definition import shipped_names

        own = super().list_commands(ctx)
        variants = ("summarize-dialogue", "summarize-paper")
        return [*own, *(name for name in shipped_names() if name not in variants)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        return found or _command_of(cmd_name)


app = typer.Typer(
    cls=_Tasks,
    help="Summarize, translate, classify, label, review code... in Spanish and English.",
    no_args_is_help=True,
)


def _command_of(name: str) -> Any:
    """The command of a task, of those that come with Yunque or of the workspace; None where there is none."""
    from yunque.apps.tasks.definition import find_task, shipped_names, shipped_task
    from yunque.workspace import Workspace

    if name in shipped_names():
        task = shipped_task(name)
    else:
        # A mistyped name must not make a workspace.
        if not Path(os.environ.get("YUNQUE_WORKSPACE") or ".yunque").is_dir():
            return None
        try:
            task = find_task(Workspace.open(), name)
        except UserError:
            return None
    single = typer.Typer(add_completion=False)
    single.command(name, help=task.prompt.definition.description, no_args_is_help=False)(_function_of(task))
    return typer.main.get_command(single)


def _function_of(task: "Task") -> Callable[..., None]:
    """A function whose parameters are the task's inputs, as typer reads them."""

    def run(**given: Any) -> None:
        _run(task, given)

    parameters = [_parameter("files", list[Path] | None, typer.Argument(None, help=_files_help(task)))]
    for name, one in task.prompt.inputs.items():
        if name != task.file_input and name not in _TAKEN and "filled in by the task" not in one.description:
            parameters.append(_option_of(name, one))
    for variant, other in task.settings.variants.items():
        parameters.append(
            _parameter(f"as_{variant}", bool, typer.Option(False, f"--{variant}", help=f"Do {other}."))
        )
    if task.settings.step == _ASK:
        said = "Ask an index of the workspace instead of a file."
        parameters.append(_parameter("index", str | None, typer.Option(None, "--index", help=said)))
    parameters += [
        _parameter("model", str, typer.Option(..., "--model", "-m", help="The model's name.")),
        _parameter(
            "language",
            str | None,
            typer.Option(
                None, "--language", "-l", help="Of the answer: two letters. (default: that of the input)"
            ),
        ),
        _parameter(
            "out",
            Path | None,
            typer.Option(None, "--out", "-o", help="A file, or a folder for several files."),
        ),
        _parameter(
            "again", bool, typer.Option(False, help="Do files again whose answer is in the folder already.")
        ),
        _parameter(
            "send_personal_data",
            bool,
            typer.Option(
                False, "--send-personal-data", help="Send personal data to a model that is not local too."
            ),
        ),
        _parameter("as_json", bool, JSON_OPTION),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect.signature heeds it
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _parameter(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _option_of(name: str, one: "Input") -> inspect.Parameter:
    kind = _TYPES.get(one.type, str)
    said = one.description
    if one.enum:
        said += f": {', '.join(map(str, one.enum))}"
    if one.default is not None:
        shown = ",".join(map(str, one.default)) if isinstance(one.default, list) else one.default
        said += f" (default: {shown})"
    flag = f"--{name.replace('_', '-')}"
    if one.is_required:
        return _parameter(name, kind, typer.Option(..., flag, help=said))
    return _parameter(name, kind | None, typer.Option(None, flag, help=said, show_default=False))


def _files_help(task: "Task") -> str:
    return f"Files with the {task.file_input}; without one it is read from standard input."


def _run(task: "Task", given: dict[str, Any]) -> None:
    from yunque.apps.tasks.definition import find_task
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    chosen = [other for variant, other in task.settings.variants.items() if given.pop(f"as_{variant}")]
    if len(chosen) > 1:
        raise UserError(f"choose one of {', '.join(f'--{name}' for name in task.settings.variants)}")
    if chosen:
        task = find_task(workspace, chosen[0])
    values = {
        name: typed(value, task.prompt.inputs[name].type, f"--{name}") if isinstance(value, str) else value
        for name in task.prompt.inputs
        if (value := given.get(name)) is not None
    }
    model = routed_model(workspace, given["model"])
    files = given["files"] or []
    options = {name: given[name] for name in ("language", "send_personal_data")}
    if given.get("index"):
        if files:
            raise UserError("ask: a file or --index, not both")
        _give(
            _from_index(task, model, values, workspace, given["index"], options),
            given["out"],
            given["as_json"],
        )
        return
    if len(files) < 2 and not (given["out"] and given["out"].is_dir()):
        source = read_document(files[0]) if files else _read_stdin(task)
        answer = _answer(task, model, {**values, task.file_input: source}, workspace, options)
        answer = _of_file(answer, files[0], source) if files else answer
        _give(answer, given["out"], given["as_json"])
        return
    _run_many(task, model, files, values, workspace, options, given)


def _run_many(
    task: "Task", model: "LanguageModel", files: Sequence[Path], values: Mapping[str, Any], workspace: "Workspace",
    options: Mapping[str, Any], given: Mapping[str, Any],
) -> None:  # fmt: skip
    """Several files, each for itself: one that fails is told of, and the others are done."""
    from yunque.apps.tasks.answer_names import unique_names

    out, as_json = given["out"], given["as_json"]
    if out and out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, and the answers to several files need a folder")
    results: list[dict[str, Any]] = []
    failed = 0
    names = unique_names(files)
    for file in files:
        place = out / f"{names[file]}.{'json' if as_json else 'txt'}" if out else None
        if place and place.exists() and not given["again"]:
            note(f"{file}: is done already ({place}); --again does it again")
            continue
        try:
            source = read_document(file)
            answer = _answer(task, model, {**values, task.file_input: source}, workspace, options)
            answer = _of_file(answer, file, source)
        except UserError as error:
            complain(f"{file}: {error}")
            failed += 1
            continue
        if place:
            _give(answer, place, as_json)
            note(f"{file} -> {place}")
        elif as_json:
            results.append({"file": str(file), **answer.as_dict()})
        else:
            plain(f"==> {file} <==\n{answer.text}")
            plain("")
            sys.stdout.flush()
            _tell(answer)
    if as_json and not out:
        emit(results, True, lambda _: None)
    if failed:
        raise typer.Exit(2)


def _of_file(answer: "TaskAnswer", file: Path, code: str) -> "TaskAnswer":
    """Unit tests with the name of the file's own module, so that they run beside it."""
    from dataclasses import replace

    from yunque.apps.tasks.testing import is_module_name, of_module

    if answer.task != "unit-tests" or not isinstance(answer.value, dict):
        return answer
    if not is_module_name(file.stem):
        said = f"{file.name} cannot be imported by that name: the tests import it as subject"
        return replace(answer, notes=(*answer.notes, said))
    tests = of_module(answer.value["tests"], code, file.stem)
    return replace(answer, value={**answer.value, "tests": tests}, text=tests)


def _answer(
    task: "Task",
    model: "LanguageModel",
    values: Mapping[str, Any],
    workspace: "Workspace",
    options: Mapping[str, Any],
) -> "TaskAnswer":
    from yunque.apps.structured import NoValidAnswer
    from yunque.apps.tasks import run_task
    from yunque.llm import ModelUnavailable

    try:
        return run_task(task, model, values, workspace=workspace, progress=bars, **options)
    except (NoValidAnswer, ModelUnavailable) as error:
        raise UserError(str(error)) from None


def _from_index(
    task: "Task", model: "LanguageModel", values: Mapping[str, Any], workspace: "Workspace", index: str,
    options: Mapping[str, Any],
) -> "TaskAnswer":  # fmt: skip
    from yunque.apps.retrieval.index import Index
    from yunque.apps.structured import NoValidAnswer
    from yunque.apps.tasks.indexed import ask_index
    from yunque.llm import ModelUnavailable

    opened = Index.open(workspace, index)
    try:
        return ask_index(
            values["question"], opened, model, task=task, workspace=workspace, progress=bars, **options
        )
    except (NoValidAnswer, ModelUnavailable) as error:
        raise UserError(str(error)) from None


def _give(answer: "TaskAnswer", out: Path | None, as_json: bool) -> None:
    if out:
        from yunque.workspace.files import atomic_write

        told = (
            json.dumps(answer.as_dict(), ensure_ascii=False, indent=2)
            if as_json
            else answer.text.rstrip("\n")
        )
        try:
            # What people bring is private.
            atomic_write(out, told + "\n", 0o600)
        except OSError as error:
            raise UserError(f"{out}: cannot be written ({error.strerror})") from None
    else:
        emit(answer.as_dict(), as_json, lambda _: plain(answer.text))
    _tell(answer)


def _tell(answer: "TaskAnswer") -> None:
    for one in answer.notes:
        note(one)


def _read_stdin(task: "Task") -> str:
    if sys.stdin.isatty():
        raise UserError(f"no {task.file_input}: name a file, or pipe it in (yunque task {task.name} FILE)")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise UserError("standard input is not UTF-8 text") from None


def read_document(path: Path) -> str:
    """The text of a file; PDF, Word and HTML are read as documents. Raises UserError."""
    if path.suffix.lower() not in _READ_AS_DOCUMENTS:
        return read_text(path)
    from yunque.data.readers.files import Found, Skipped
    from yunque.data.readers.piece import Limits
    from yunque.data.readers.read import read_file

    skipped: list[Skipped] = []
    reading = read_file(Found(path, path.name), Limits(), skipped)
    pieces = [piece.text for piece in reading.pieces] if reading else []
    if not pieces:
        raise UserError(f"{path}: {skipped[0].reason if skipped else 'holds no text'}")
    return "\n\n".join(pieces)


@app.command("list")
def list_tasks(as_json: bool = JSON_OPTION) -> None:
    """The tasks that there are: those that come with Yunque, and those of the workspace."""
    from yunque.apps.tasks.definition import kept_tasks, shipped_names, shipped_task
    from yunque.workspace import Workspace

    tasks = [*map(shipped_task, shipped_names()), *kept_tasks(Workspace.open())]
    values = [_described(task) for task in tasks]
    rows = [
        (one["name"], one["metric"], one["items"], one["description"])
        for one in values
        if not one["variant_of"]
    ]
    rows.append(("label", "", "", "A column of a CSV file, by models and people, with their agreement."))
    emit(
        values,
        as_json,
        lambda console: console.print(
            table("", ("task", "metric", "items", "description"), rows, right=("items",))
        ),
    )


def _described(task: "Task") -> dict[str, Any]:
    return {
        "name": task.name,
        "ref": task.ref,
        "description": task.prompt.definition.description,
        "languages": task.prompt.languages,
        "metric": task.metric,
        "long": task.settings.long,
        "items": len(task.items()) if task.set_path else 0,
        "variant_of": task.settings.variant_of,
        "inputs": {name: one.model_dump(mode="json") for name, one in task.prompt.inputs.items()},
        "answer": task.prompt.answer,
    }


@app.command()
def show(name: str = typer.Argument(help="The task."), as_json: bool = JSON_OPTION) -> None:
    """A task's prompt, and its inputs."""
    from yunque.apps.tasks.definition import find_task
    from yunque.workspace import Workspace

    task = find_task(Workspace.open(), name)
    emit(_described(task), as_json, lambda _: plain(task.prompt.source))


@app.command()
def add(
    file: Path = typer.Argument(help="The task's prompt, with a field task."),
    items: Path | None = typer.Option(None, "--set", help="Its test set (JSONL)."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Keep a task of your own in the workspace; `yunque task NAME` does it then."""
    from yunque.apps.tasks import add_task
    from yunque.workspace import Workspace

    artifact = add_task(Workspace.open(), file, items)
    emit(artifact.as_dict(), as_json, lambda console: console.print(f"[bold]{artifact.ref}[/]"))


@app.command("eval")
def evaluate(
    name: str = typer.Argument(help="The task."),
    model: str = typer.Option(..., "--model", "-m", help="The model's name."),
    limit: int | None = typer.Option(None, min=1, help="So many items of each language."),
    language: str | None = typer.Option(None, "--language", "-l", help="Items in this language only."),
    send_personal_data: bool = typer.Option(
        False, help="Send personal data to a model that is not local too."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Measure a model on a task's test set."""
    from yunque.evaluate.task_sets import evaluate_task, keep_report, open_task
    from yunque.llm import ModelUnavailable
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    task = open_task(workspace, name)
    try:
        report = evaluate_task(
            workspace, task, routed_model(workspace, model), limit, language, send_personal_data, bars
        )
    except ModelUnavailable as error:
        raise UserError(str(error)) from None
    kept = keep_report(workspace, task, report, f"task-{name.split('/')[-1].split('@')[0]}")

    def draw(console: Any) -> None:
        rows = [(language, f"{score:.3f}") for language, score in report.by_language.items()]
        rows.append(("all", f"{report.score:.3f}  ({report.low:.3f} to {report.high:.3f})"))
        console.print(
            table(f"{task.name}, {report.model}", ("language", report.metric), rows, right=(report.metric,))
        )
        wrong = [one for one in report.items if one.error]
        if wrong:
            console.print(
                f"{len(wrong)} of {len(report.items)} items got no answer; the first: {escape(wrong[0].error)}"
            )
        console.print(
            f"[dim]{kept.ref} · {report.usage.prompt_tokens} + {report.usage.completion_tokens} tokens[/]"
        )

    emit({"ref": kept.ref, **report.as_dict()}, as_json, draw)


@app.command()
def label(
    file: Path = typer.Argument(help="A CSV file."),
    column: str = typer.Option(..., "--column", "-c", help="The column with the text."),
    labels: str = typer.Option(..., "--labels", help="The labels: a,b,c."),
    model: list[str] | None = typer.Option(None, "--model", "-m", help="A model; several vote."),
    twice: bool = typer.Option(
        False, help="Ask each model a second time, with the labels in reversed order."
    ),
    person: list[str] | None = typer.Option(None, help="A column that a person filled in: votes too."),
    hint: str | None = typer.Option(None, help="What the labels mean."),
    out: Path | None = typer.Option(None, "--out", "-o", help="(default: FILE.labelled.csv)"),
    decisions: Path | None = typer.Option(
        None, help="The file of doubts, with the column decision filled in."
    ),
    send_personal_data: bool = typer.Option(
        False, help="Send personal data to a model that is not local too."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Label a column of a CSV file; what is in doubt goes to a file for a person to decide."""
    from yunque.apps.tasks import Labelling, Rater, find_task, label_rows, read_table
    from yunque.llm import ModelUnavailable
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    target = out or file.with_suffix(".labelled.csv")
    if not target.parent.is_dir():
        raise UserError(f"{target}: there is no folder {target.parent}")
    work = Labelling(
        read_table(file), column, [one.strip() for one in labels.split(",")], target, hint, person or ()
    )
    models = [routed_model(workspace, name) for name in model or ()]
    raters = [Rater(one, turned) for one in models for turned in ((False, True) if twice else (False,))]
    try:
        report = label_rows(
            find_task(workspace, "classify"), work, raters, workspace, decisions, send_personal_data, bars
        )
    except ModelUnavailable as error:
        raise UserError(f"{error}; what was labelled is kept: run it again") from None
    for number, fault in list(report.failed.items())[:5]:
        warn(f"{file}: row {number}: {fault}")
    queue = target.with_suffix(".doubts.csv")

    def draw(console: Any) -> None:
        console.print(table("", ("label", "rows"), list(report.counts.items()), right=("rows",)))
        for pair, kappa in report.kappa.items():
            console.print(f"Cohen's kappa, {escape(pair)}: {_number(kappa)}")
        if report.kappa:
            console.print(f"Krippendorff's alpha: {_number(report.alpha)}")
        console.print(f"{report.labelled} of {report.rows} rows labelled -> {escape(str(target))}")
        if report.doubts:
            console.print(
                f"{report.doubts} in doubt -> {escape(str(queue))}: fill in decision, then --decisions {queue}"
            )

    emit(
        {**report.as_dict(), "out": str(target), "doubts_file": str(queue) if report.doubts else None},
        as_json,
        draw,
    )


def _number(value: float | None) -> str:
    return "not defined (one label only)" if value is None else f"{value:.3f}"
