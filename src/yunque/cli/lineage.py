"""`yunque list`, `yunque lineage` and `yunque log`: what there is, where it came from, and what was asked."""

import typer
from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from yunque.cli.show import JSON_OPTION, emit, size, table

_MOST_FILES = 12


def list_artifacts(
    kind: str | None = typer.Argument(None, help="Only this kind: dataset, tokenizer, model, index, app..."),
    every_version: bool = typer.Option(False, "--all", help="Old versions too."),
    as_json: bool = JSON_OPTION,
) -> None:
    """List the artifacts of the workspace."""
    from yunque.errors import UserError
    from yunque.workspace import KINDS, Workspace

    if kind is not None and kind not in KINDS:
        raise UserError(f"{kind!r} is not a kind of artifact ({', '.join(KINDS)})")
    workspace = Workspace.open()
    artifacts = workspace.list(kind, every_version)
    sizes = {
        artifact.ref: sum(workspace.blobs.path(digest).stat().st_size for digest in artifact.files.values())
        for artifact in artifacts
    }

    def render(console: Console) -> None:
        if not artifacts:
            console.print("Nothing here yet: start with `yunque quickstart` or `yunque data add PATH`.")
            return
        rows = [
            (artifact.ref, size(sizes[artifact.ref]), artifact.created, ", ".join(artifact.parents))
            for artifact in artifacts
        ]
        console.print(table("", ("artifact", "size", "made", "from"), rows, right=("size",)))

    emit([{**one.as_dict(), "bytes": sizes[one.ref]} for one in artifacts], as_json, render)


def lineage(
    ref: str = typer.Argument(..., help="answer/N (see `yunque log`), or an artifact such as app/equipaje."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Show what an answer or an artifact came from, down to the files."""
    from yunque.govern import Node, trace
    from yunque.workspace import Workspace

    found = trace(Workspace.open(), ref)
    seen: set[str] = set()

    def grow(tree: Tree, node: Node) -> None:
        files = [parent for parent in node.parents if parent.kind == "file"]
        shown = [parent for parent in node.parents if parent not in files[_MOST_FILES:]]
        for parent in shown:
            repeated = parent.ref in seen and bool(parent.parents)
            branch = tree.add(_label(parent) + (" [dim](above)[/]" if repeated else ""))
            if not repeated:
                seen.add(parent.ref)
                grow(branch, parent)
        if len(files) > _MOST_FILES:
            tree.add(f"[dim]and {len(files) - _MOST_FILES} more files (--json lists them)[/]")

    def _label(node: Node) -> str:
        return f"[bold]{escape(node.ref)}[/] [dim]{escape(node.detail)}[/]"

    def render(console: Console) -> None:
        tree = Tree(_label(found))
        grow(tree, found)
        console.print(tree)

    emit(found.as_dict(), as_json, render)


def log(
    limit: int = typer.Option(20, "--limit", "-n", min=1, max=1_000_000, help="How many calls."),
    number: int | None = typer.Option(None, "--call", min=1, max=10**15, help="Only this call, whole."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Show the newest questions and answers; personal data was taken out before they were kept."""
    from yunque.errors import UserError
    from yunque.workspace import Workspace, read_calls

    calls = read_calls(Workspace.open().catalog.connection(), limit, number)
    if number is not None and not calls:
        raise UserError(f"no call has the number {number}: see `yunque log`")

    def render(console: Console) -> None:
        if not calls:
            console.print('Nothing was asked yet: try `yunque ask equipaje "¿Puedo llevar a mi perro?"`.')
        elif number is not None:
            console.print_json(data=calls[0].as_dict(), ensure_ascii=False)
        else:
            rows = [
                (call.id, call.time[:19], call.target, call.model, _cut(call.question), _cut(call.answer))
                for call in calls
            ]
            console.print(table("", ("call", "time", "asked", "answered by", "question", "answer"), rows))

    emit([call.as_dict() for call in calls], as_json, render)


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:59] + "…"
