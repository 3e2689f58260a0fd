"""`yunque index`: passages that can be found, by keyword and by vector."""

from pathlib import Path

import typer

from yunque.cli.show import JSON_OPTION, bars, emit, note, table

app = typer.Typer(help="Make and measure indexes over datasets.", no_args_is_help=True)


@app.command()
def build(
    name: str = typer.Option(..., "--name", "-n", help="The name of the index."),
    data: list[str] = typer.Option(..., "--data", "-d", help="A dataset; may be given several times."),
    exclude: list[str] = typer.Option([], help="Leave out files whose name matches this pattern."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Cut datasets into passages and index them."""
    from yunque.apps.retrieval.index import IndexConfig, build_index
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    artifact = build_index(workspace, name, data, bars, IndexConfig(exclude=tuple(exclude)))
    for user in workspace.list("app"):
        older = [ref for ref in user.parents if ref.startswith(f"index/{name}@") and ref != artifact.ref]
        if older:
            note(
                f"{user.ref} still answers from {older[0]}: add its file again (`yunque app add`) to use the new one"
            )
    languages = ", ".join(f"{count} {language}" for language, count in artifact.figures["languages"].items())
    emit(
        artifact.as_dict(),
        as_json,
        lambda console: console.print(
            f"[bold]{artifact.ref}[/]: {artifact.figures['passages']} passages ({languages}), "
            f"{artifact.figures['words']} different words"
        ),
    )


@app.command()
def search(
    index: str = typer.Argument(help="The index: NAME or NAME@VERSION."),
    words: str = typer.Argument(help="What to look for."),
    k: int = typer.Option(5, "-k", help="How many passages.", min=1),
    language: str | None = typer.Option(None, help="Only passages in this language: es or en."),
    as_json: bool = JSON_OPTION,
) -> None:
    """The passages nearest to some words."""
    from yunque.apps.retrieval.index import Index
    from yunque.workspace import Workspace

    hits = Index.open(Workspace.open(), index).search(words, k, language)
    found = [
        {
            "file": hit.passage.file,
            "locator": hit.passage.locator,
            "score": round(hit.score, 4),
            "keyword": round(hit.keyword, 2),
            "vector": round(hit.vector, 3),
            "text": hit.passage.text,
        }
        for hit in hits
    ]
    columns = ("file", "locator", "keyword", "vector", "text")
    rows = [[line[column] for column in columns] for line in found]
    emit(found, as_json, lambda console: console.print(table("", columns, rows, right=("keyword", "vector"))))


@app.command("eval")
def evaluate(
    index: str = typer.Argument(help="The index: NAME or NAME@VERSION."),
    questions: Path = typer.Argument(
        help="JSON lines: language, question, answerable, file, answer, also_ok."
    ),
    app_ref: str | None = typer.Option(None, "--app", help="Use this app's synonyms and relevance."),
    k: int = typer.Option(5, "-k", help="The k of recall at k.", min=1),
    as_json: bool = JSON_OPTION,
) -> None:
    """Measure an index: what it finds, how many answers hold the fact, and what it refuses."""
    from yunque.apps.retrieval.measure import measure_index, read_questions
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    measured = measure_index(workspace, index, read_questions(questions), app_ref, k, bars)
    rows = [(name.replace("_", " "), value) for name, value in measured.figures().items()]
    emit(
        {**measured.figures(), "wrong": measured.wrong},
        as_json,
        lambda console: console.print(
            table(f"{index} on {questions.name}", ("figure", "value"), rows, ("value",))
        ),
    )
    if measured.wrong and not as_json:
        note(f"{len(measured.wrong)} questions went wrong: --json lists them")


@app.command("list")
def list_indexes(as_json: bool = JSON_OPTION) -> None:
    """The indexes of the workspace."""
    from yunque.workspace import Workspace

    found = Workspace.open().list("index")
    rows = [(one.ref, one.figures.get("passages", ""), ", ".join(one.parents)) for one in found]
    emit(
        [one.as_dict() for one in found],
        as_json,
        lambda console: console.print(table("", ("index", "passages", "made of"), rows, ("passages",))),
    )
