"""`yunque index`: documents that can be found, by keyword and by vector."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from yunque.cli.show import JSON_OPTION, bars, emit, note, table, warn
from yunque.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from yunque.apps.retrieval.index_config import IndexConfig
    from yunque.apps.retrieval.ingest import Report
    from yunque.apps.retrieval.ledger import Unit
    from yunque.apps.retrieval.sources import Sources
    from yunque.workspace import Artifact, Workspace

app = typer.Typer(help="Make, search and measure indexes of documents.", no_args_is_help=True)

_NAMED = 8
_SOURCES = typer.Argument(None, help="Files, folders, or http(s):// addresses.", show_default=False)
_DATA = typer.Option([], "--data", "-d", help="A dataset; may be given several times.")
_EXCLUDE = typer.Option([], help="Leave out files whose name matches this pattern.")
_ONLY_FOR = typer.Option(
    [],
    metavar="PATTERN=GROUP[,GROUP]",
    help="Only these groups may see files whose name or path, or a trailing part of it, matches the pattern. Where "
    "several match, all of them hold.",
)
_WHERE = typer.Option(
    [], metavar="FIELD=VALUE", help="Only what fulfils this: FIELD=A, FIELD=A|B, FIELD>=A or FIELD<=A."
)
_GROUPS = typer.Option(
    None, help="Search as a member of these groups (commas between them); without, all is seen."
)


@app.command()
def build(
    sources: list[str] | None = _SOURCES,
    name: str = typer.Option(..., "--name", "-n", help="The name of the index."),
    data: list[str] = _DATA,
    exclude: list[str] = _EXCLUDE,
    only_for: list[str] = _ONLY_FOR,
    embedder: str = typer.Option(
        "corpus", help="corpus, hashing, none, model/NAME, or a remote model's name."
    ),
    passage_chars: int = typer.Option(600, help="About how long a passage may be, in characters."),
    store: str = typer.Option(
        "", help="Where passages are kept: postgresql://..., lance:FOLDER; else in the workspace."
    ),
    anonymize: bool = typer.Option(
        False, "--anonymize", help="Replace personal data of files and pages first."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Make an index of just these sources; what it has of them already is not read again."""
    from yunque.apps.retrieval.index_config import IndexConfig
    from yunque.apps.retrieval.ingest import build as build_index
    from yunque.configuration import validated
    from yunque.workspace import Workspace

    config = validated(
        IndexConfig,
        {
            "exclude": exclude,
            "permissions": _permissions(only_for),
            "embedder": embedder,
            "passage_chars": passage_chars,
            "store": store,
            "anonymize": anonymize,
        },
        "yunque index build",
    )
    workspace = Workspace.open()
    before = workspace.find(f"index/{name}", "index")
    made = build_index(workspace, name, _sources(sources, data), config, bars)
    _warn_of_permissions(workspace, config, config.permissions, before, made[0])
    _show_made(workspace, *made, as_json)


@app.command()
def add(
    name: str = typer.Argument(help="The index; it is made if it is not there."),
    sources: list[str] | None = _SOURCES,
    data: list[str] = _DATA,
    exclude: list[str] = _EXCLUDE,
    only_for: list[str] = _ONLY_FOR,
    as_json: bool = JSON_OPTION,
) -> None:
    """Take more sources into an index, or what changed in some that it has."""
    from yunque.apps.retrieval.index_config import IndexConfig
    from yunque.apps.retrieval.ingest import add as add_to_index
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    before = workspace.find(f"index/{name}", "index")
    config = IndexConfig.model_validate(before.config) if before else IndexConfig()
    if exclude:
        config = config.model_copy(update={"exclude": (*config.exclude, *exclude)})
    wanted = _permissions(only_for)
    config = config.tightened(wanted)
    named = _sources(sources, data)
    if wanted and before:
        _check_offered(workspace, name, wanted, named)
    made = add_to_index(workspace, name, named, config, bars)
    _warn_of_permissions(workspace, config, wanted, before, made[0])
    _show_made(workspace, *made, as_json)


def _check_offered(
    workspace: "Workspace", name: str, wanted: dict[str, tuple[str, ...]], sources: "Sources"
) -> None:
    """Raises UserError where a new pattern matches files that would stay as open as they are."""
    from yunque.apps.retrieval.sources import not_offered, place_of

    left = not_offered(workspace, wanted, _units(workspace, name), sources)
    if left:
        more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
        raise UserError(
            f"--only-for matches what index {name} has and what is not named here, and would stay as open as it is: "
            f"{', '.join(place_of(one) for one in left[:_NAMED])}{more}; name it too"
        )


def _units(workspace: "Workspace", name: str) -> "list[Unit]":
    """What the newest version of an index has, and what a killed run was to put into it."""
    from yunque.apps.retrieval.ledger import Ledger

    with Ledger.open(workspace, name) as ledger:
        generations = ledger.generations()
        standing = ledger.units(generations[-1].number) if generations else {}
        return list({**standing, **ledger.spooled()}.values())


def _warn_of_permissions(
    workspace: "Workspace",
    config: "IndexConfig",
    wanted: "Mapping[str, tuple[str, ...]]",
    before: "Artifact | None",
    made: "Artifact",
) -> None:
    """Tell of patterns that do nothing, let nobody see a file, or were left out; and of what older versions show."""
    from yunque.apps.retrieval.sources import NOBODY, groups_of, place_of, unmatched

    units = _units(workspace, made.name)
    for pattern in unmatched(wanted, units):
        warn(f"--only-for: {pattern!r} matches no file of {made.ref} (a great letter is not a small one)")
    hidden = [one.name for one in units if NOBODY in groups_of(one.name, config.permissions, place_of(one))]
    if hidden:
        warn(f"no group is in all patterns that match {hidden[0]} ({len(hidden)} files): nobody finds them")
    if not before or before.ref == made.ref:
        return
    held = before.config.get("permissions") or {}
    lost = [pattern for pattern in held if pattern not in config.permissions]
    if lost:
        warn(f"{before.ref} had --only-for for {', '.join(lost)}: {made.ref} was built without")
    if wanted and dict(config.permissions) != {pattern: tuple(groups) for pattern, groups in held.items()}:
        warn(
            f"{before.ref} and older ones, and the apps made with them, show what they did: make the apps anew, then "
            f"`yunque index prune {made.name}`"
        )


def _sources(named: list[str] | None, data: list[str]) -> "Sources":
    from yunque.apps.retrieval.sources import Sources

    urls = tuple(one for one in named or () if "://" in one)
    paths = tuple(Path(one) for one in named or () if "://" not in one)
    if not all(str(one).strip() for one in named or ()):
        raise UserError("a source is empty: name a file, a folder or an address")
    return Sources(tuple(data), paths, urls)


def _permissions(only_for: list[str]) -> dict[str, tuple[str, ...]]:
    from yunque.apps.retrieval.index_config import IndexConfig

    found = IndexConfig()
    for one in only_for:
        pattern, equals, groups = one.rpartition("=")
        names = tuple(group.strip() for group in groups.split(",") if group.strip())
        if not equals or not pattern or not names:
            raise UserError(f"--only-for: {one!r} is not PATTERN=GROUP, as in 'hr/*=hr,board'")
        found = found.tightened({pattern: names})
    return dict(found.permissions)


def _show_made(workspace: "Workspace", artifact: "Artifact", report: "Report", as_json: bool) -> None:
    for user in workspace.list("app"):
        older = [
            ref for ref in user.parents if ref.startswith(f"index/{artifact.name}@") and ref != artifact.ref
        ]
        if older:
            note(
                f"{user.ref} still answers from {older[0]}: add its file again (`yunque app add`) to use the new one"
            )
    if report.resumed:
        note(f"went on with what a run before had begun: {report.resumed} files were cut already")
    if report.refitted:
        note("the corpus had outgrown its vectors: all of them were made anew")
    for skipped in report.skipped[:_NAMED] if not as_json else ():
        warn(f"{skipped.file}: {skipped.reason}")
    if len(report.skipped) > _NAMED and not as_json:
        warn(f"and {len(report.skipped) - _NAMED} more were left out: --json lists them")
    languages = ", ".join(f"{count} {language}" for language, count in artifact.figures["languages"].items())
    emit(
        {**artifact.as_dict(), "run": report.as_dict()},
        as_json,
        lambda console: console.print(
            f"[bold]{artifact.ref}[/]: {artifact.figures['passages']} passages ({languages}), "
            f"{artifact.figures['words']} different words; {report.read} files read, {report.unchanged} unchanged, "
            f"{report.gone} gone"
        ),
    )


@app.command()
def search(
    index: str = typer.Argument(help="The index: NAME or NAME@VERSION."),
    words: str = typer.Argument(help="What to look for."),
    k: int = typer.Option(5, "-k", help="How many passages.", min=1),
    language: str | None = typer.Option(None, help="Only passages in this language: es or en."),
    where: list[str] = _WHERE,
    groups: str | None = _GROUPS,
    diversity: float = typer.Option(
        0.0, help="Put passages like better ones further down (MMR).", min=0, max=1
    ),
    feedback: bool = typer.Option(False, "--feedback", help="Search again with words of what was found."),
    by_ranks: bool = typer.Option(False, "--by-ranks", help="Fuse by reciprocal ranks, not by scores."),
    as_json: bool = JSON_OPTION,
) -> None:
    """The passages nearest to some words."""
    from yunque.apps.retrieval.conditions import parse_conditions
    from yunque.apps.retrieval.index import Index
    from yunque.workspace import Workspace

    theirs = None if groups is None else frozenset(one.strip() for one in groups.split(",") if one.strip())
    opened = Index.open(Workspace.open(), index).narrowed(theirs, parse_conditions(where))
    fusion: Literal["scores", "ranks"] = "ranks" if by_ranks else "scores"
    hits = opened.search(words, k, language, diversity=diversity, feedback=feedback, fusion=fusion)
    found = [
        {
            "file": hit.passage.file,
            "locator": hit.passage.locator,
            "heading": hit.passage.heading,
            "start": hit.passage.start,
            "end": hit.passage.end,
            "row": hit.passage.row_id,
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
        help="JSON lines: language, question, answerable, file, answer, also_ok; or, with --qrels, id and question."
    ),
    qrels: Path | None = typer.Option(None, help="Judgements: lines of `question-id 0 document grade`."),
    app_ref: str | None = typer.Option(None, "--app", help="Use this app's synonyms and relevance."),
    k: int = typer.Option(5, "-k", help="The k of recall and nDCG at k.", min=1),
    calibrate: bool = typer.Option(
        False, "--calibrate", help="Keep the best floor with the index, as a new version."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Measure an index: what it finds, how many answers hold the fact, and what it refuses."""
    from yunque.apps.retrieval.measure import measure_index, read_questions
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    if qrels is not None:
        from yunque.apps.retrieval.judgements import measure_judged

        figures: dict[str, Any] = measure_judged(workspace, index, questions, qrels, k, bars)
        wrong: list[dict[str, Any]] = []
    else:
        measured = measure_index(workspace, index, read_questions(questions), app_ref, k, bars)
        figures, wrong = measured.figures(), measured.wrong
    if calibrate and qrels is None:
        from yunque.apps.retrieval.ingest import keep_floor

        figures["index"] = keep_floor(workspace, index, figures["best_floor"]).ref
    rows = [(name.replace("_", " "), value) for name, value in figures.items()]
    emit(
        {**figures, "wrong": wrong},
        as_json,
        lambda console: console.print(
            table(f"{index} on {questions.name}", ("figure", "value"), rows, ("value",))
        ),
    )
    if wrong and not as_json:
        note(f"{len(wrong)} questions went wrong: --json lists them")


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


@app.command()
def prune(
    name: str = typer.Argument(help="The index."),
    keep: int = typer.Option(1, help="How many of its newest versions to keep.", min=1),
    as_json: bool = JSON_OPTION,
) -> None:
    """Delete what only old versions of an index have. A version that an app answers from is kept."""
    from yunque.apps.retrieval.upkeep import prune as prune_index
    from yunque.workspace import Workspace

    done = prune_index(Workspace.open(), name, keep)
    emit(
        done,
        as_json,
        lambda console: console.print(
            f"index/{name}: {done['passages']} passages and {done['stores']} stores deleted; kept: "
            f"{', '.join(done['kept'])}"
        ),
    )


@app.command()
def erase(
    name: str = typer.Argument(help="The index."),
    row: list[str] = typer.Option([], help="The id of a row; may be given several times."),
    file: list[str] = typer.Option([], help="A file's name; may be given several times."),
    where: list[str] = _WHERE,
    as_json: bool = JSON_OPTION,
) -> None:
    """Erase passages from every version of an index, so that nothing of them is left in its files."""
    from yunque.apps.retrieval.conditions import parse_conditions
    from yunque.apps.retrieval.upkeep import erase as erase_from_index
    from yunque.workspace import Workspace

    conditions: dict[str, Any] = {**({"row": row} if row else {}), **({"file": file} if file else {})}
    conditions |= parse_conditions(where)
    if not conditions:
        raise UserError("nothing to erase is named: use --row, --file or --where")
    count = erase_from_index(Workspace.open(), name, conditions)
    emit({"erased": count}, as_json, lambda console: console.print(f"index/{name}: {count} passages erased"))
