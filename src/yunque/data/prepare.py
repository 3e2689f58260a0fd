"""Preparing data: from files to a dataset, from a dataset to its anonymized and its split version."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from yunque.configuration import Settings
from yunque.data.card import Card, Counts, WordsAndMarks
from yunque.data.dataset import UNSPLIT, read_card, read_rows, splits_of, write_dataset
from yunque.data.duplicates import exact_key, near_duplicates, numbers_key
from yunque.data.language import detect_language
from yunque.data.normalize import normalize
from yunque.data.personal import Anonymizer
from yunque.data.python_docs import PYTHON_DOCS, find_modules, read_module
from yunque.data.readers import Found, Limits, Piece, Skipped, find_files, read_file
from yunque.data.row import Row, Source, row_id
from yunque.data.row_store import RowStore
from yunque.data.split import SPLITS, SplitSettings, assign_splits
from yunque.errors import UserError
from yunque.progress import Progress, silent
from yunque.workspace import Artifact, Workspace
from yunque.workspace.artifact import checked_name

# A record that names its person in one of these fields stays in one split with that person's other records.
_SUBJECT_FIELDS = (
    *(
        "subject",
        "person",
        "persona",
        "customer_id",
        "id_cliente",
        "cliente_id",
        "customer",
        "cliente",
        "user_id",
    ),
    *("user", "usuario", "group", "grupo", "nif", "dni", "email", "correo"),
)


class AddSettings(Settings):
    """How files become a dataset.

    `anonymize`: personal data is replaced before anything is stored. `tokenizer`: the one that counts tokens
    (None: words and marks are counted). `document_bytes` and `line_characters`: see `readers.Limits`.
    """

    anonymize: bool = True
    tokenizer: str | None = None
    document_bytes: int = Limits.document_bytes
    line_characters: int = Limits.line_characters


@dataclass
class _Tally:
    """What happened on the way from files to rows."""

    files_read: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    findings: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Raw:
    """A piece of a file with what its row must know about the file."""

    piece: Piece
    file: str
    sha256: str
    group: str


def add(
    workspace: Workspace,
    name: str,
    paths: Sequence[Path | str],
    settings: AddSettings | None = None,
    progress: Progress = silent,
) -> tuple[Artifact, dict[str, Any]]:
    """Read files and folders (or `python:docs`) into a dataset: the artifact and its card.

    Each text is normalized, its personal data replaced, its language found and duplicates dropped; files that
    cannot be read stand in the card under "skipped". Raises UserError when nothing at all could be read.
    """
    settings = settings or AddSettings()
    checked_name(name)
    if not all(str(path).strip() for path in paths):
        # An empty name would mean the current folder: most likely a shell variable that was not set.
        raise UserError("a path is empty: name a file, a folder or python:docs")
    counted = Card(*_token_counter(workspace, settings.tokenizer))
    tally = _Tally()
    with (
        tempfile.TemporaryDirectory(prefix=".dataset-", dir=workspace.root) as folder,
        closing(RowStore(Path(folder, "rows.jsonl"))) as store,
    ):
        rows = _rows(paths, settings, pseudonymizer(workspace), tally, progress)
        dropped = _store_distinct(rows, store)
        if not len(store):
            raise UserError(_nothing_read(paths, tally.skipped))
        exact = len(dropped)
        near = _near_dropped(store, progress)
        dropped += near.values()
        card = {
            **counted.as_dict(),
            "files_read": tally.files_read,
            "skipped": [{"file": part.file, "reason": part.reason} for part in tally.skipped],
            "duplicates_dropped": {"exact": exact, "near": len(near)},
            "personal_data": {"found": dict(sorted(tally.findings.items())), "replaced": settings.anonymize},
        }
        kept = (store.row(number) for number in range(len(store)) if number not in near)
        config = {"step": "add", "paths": [str(path) for path in paths], **settings.model_dump()}
        artifact = write_dataset(
            workspace, name, {UNSPLIT: counted.counting(kept, UNSPLIT, card)}, card, [], config, dropped
        )
    return artifact, read_card(workspace, artifact)


def anonymize(workspace: Workspace, ref: str, progress: Progress = silent) -> Artifact:
    """The dataset with its personal data replaced, as its next version; itself if there is none left in it."""
    artifact = workspace.get(ref, "dataset")
    card = read_card(workspace, artifact)
    anonymizer = pseudonymizer(workspace)
    counted = Card(*_token_counter(workspace, card["token_unit"]))
    findings: Counter[str] = Counter()

    def cleaned(split: str) -> Iterator[Row]:
        with progress("Replacing personal data", total=card["rows"]) as task:
            for row in read_rows(workspace, artifact, split):
                clean, found = anonymized_row(row, anonymizer)
                findings.update(found)
                task.advance(1)
                yield clean

    if card["personal_data"]["replaced"]:
        has_any = any(
            found for row in read_rows(workspace, artifact) for found in anonymized_row(row, anonymizer)[1]
        )
        if not has_any:
            return artifact
    splits = {name: counted.counting(cleaned(name), name, card) for name in splits_of(artifact)}
    card["personal_data"] = {"found": findings, "replaced": True}
    config = {**artifact.config, "step": "anonymize"}
    return write_dataset(workspace, artifact.name, splits, card, [artifact], config)


def split(
    workspace: Workspace, ref: str, settings: SplitSettings | None = None, progress: Progress = silent
) -> Artifact:
    """The dataset divided into train, validation and test, as its next version; itself if it is divided so."""
    settings = settings or SplitSettings()
    artifact = workspace.get(ref, "dataset")
    config = {**artifact.config, "step": "split", "split": settings.model_dump()}
    if artifact.config.get("split") == config["split"]:
        return artifact
    card = read_card(workspace, artifact)
    counted = Card(*_token_counter(workspace, card["token_unit"]))
    counted.splits = {name: Counts() for name in SPLITS}
    with (
        tempfile.TemporaryDirectory(prefix=".dataset-", dir=workspace.root) as folder,
        closing(RowStore(Path(folder, "rows.jsonl"))) as store,
        progress("Dividing rows", total=card["rows"]) as task,
    ):
        groups = []
        for row in read_rows(workspace, artifact):
            store.add(row)
            groups.append(row.group)
            task.advance(1)
        assigned = assign_splits(groups, store.signatures(), store.text, settings)

        def rows_of(name: str) -> Iterator[Row]:
            return (store.row(number) for number, chosen in enumerate(assigned) if chosen == name)

        splits = {name: counted.counting(rows_of(name), name, card) for name in SPLITS}
        return write_dataset(workspace, artifact.name, splits, card, [artifact], config)


def pseudonymizer(workspace: Workspace) -> Anonymizer:
    """The anonymizer of a workspace: one person has one pseudonym in all its datasets."""
    return Anonymizer(workspace.keys.secret("pseudonyms"))


def anonymized_row(row: Row, anonymizer: Anonymizer) -> tuple[Row, Counter[str]]:
    """`row` with pseudonyms in its text, fields, group and locator; and how many findings of each kind.

    What the fields repeat of the text is counted once. The id and the file's name stay.
    """
    text, in_text = anonymizer.anonymize(row.text)
    fields, in_fields = anonymizer.anonymize_values(row.fields)
    group, _ = anonymizer.anonymize(row.group)
    locator, in_locator = anonymizer.anonymize(row.source.locator)
    known = {(found.kind, found.canonical) for found in in_text}
    more = {(found.kind, found.canonical) for found in [*in_fields, *in_locator]} - known
    counts = Counter(found.kind for found in in_text) + Counter(kind for kind, _ in more)
    source = replace(row.source, locator=locator)
    return replace(row, text=text, fields=fields, group=group, source=source), counts


def _token_counter(workspace: Workspace, unit: str | None) -> tuple[Callable[[str], int], str]:
    """The counter of tokens, and the unit it counts in: a tokenizer's ref, or words and marks."""
    if unit in (None, WordsAndMarks.unit):
        return WordsAndMarks.count, WordsAndMarks.unit
    from yunque.tokenizer import tokenizer_of

    artifact = workspace.get(str(unit), "tokenizer")
    tokenizer = tokenizer_of(workspace, artifact)
    return lambda text: len(tokenizer.encode(text)), artifact.ref


def _nothing_read(paths: Sequence[Path | str], skipped: list[Skipped]) -> str:
    names = ", ".join(map(str, paths))
    if not skipped:
        return f"{names}: there is no file with text in it"
    more = f"; and {len(skipped) - 1} more" if len(skipped) > 1 else ""
    return f"nothing could be read from {names} ({skipped[0].file}: {skipped[0].reason}{more})"


def _rows(
    paths: Sequence[Path | str],
    settings: AddSettings,
    anonymizer: Anonymizer,
    tally: _Tally,
    progress: Progress,
) -> Iterator[Row]:
    for raw in _pieces(paths, settings, tally, progress):
        text = normalize(raw.piece.text)
        if not text:
            continue
        fields = _clean(dict(raw.piece.fields))
        number = row_id(raw.file, text)
        group = raw.group
        if raw.piece.record:
            group = _subject(fields) or f"{raw.file}#{raw.piece.record}"
        source = Source(raw.file, raw.sha256, normalize(raw.piece.locator))
        row = Row(number, text, detect_language(text), source, group, fields)
        clean, findings = anonymized_row(row, anonymizer)
        tally.findings.update(findings)
        yield clean if settings.anonymize else row


def _clean(value: Any) -> Any:
    """A JSON value whose texts are normalized."""
    if isinstance(value, str):
        return normalize(value)
    if isinstance(value, dict):
        return {normalize(str(name)): _clean(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    return value


def _subject(fields: dict[str, Any]) -> str | None:
    names = {name.casefold(): name for name in reversed(list(fields))}
    for wanted in _SUBJECT_FIELDS:
        value = fields.get(names.get(wanted, ""))
        if isinstance(value, str | int) and str(value).strip():
            return f"{wanted}:{value}"
    return None


def _pieces(
    paths: Sequence[Path | str], settings: AddSettings, tally: _Tally, progress: Progress
) -> Iterator[_Raw]:
    limits = Limits(settings.document_bytes, settings.line_characters)
    modules = find_modules() if PYTHON_DOCS in map(str, paths) else []
    folders = [Path(path) for path in paths if str(path) != PYTHON_DOCS]
    for folder in folders:
        if not folder.exists() and not folder.is_symlink():
            raise UserError(f"{folder}: there is no such file or folder")
    files = find_files(folders, tally.skipped)
    with progress("Reading files", total=len(files) + len(modules)) as task:
        for found in files:
            task.advance(0, note=found.name)
            yield from _file_pieces(found, limits, tally)
            task.advance(1)
        for found in modules:
            yield from _module_pieces(found, tally)
            task.advance(1, note=found.name)


def _file_pieces(found: Found, limits: Limits, tally: _Tally) -> Iterator[_Raw]:
    reading = read_file(found, limits, tally.skipped)
    has_text = False
    if reading:
        for piece in reading.pieces:
            has_text = True
            yield _Raw(piece, found.name, reading.sha256, found.name)
    if has_text:
        tally.files_read += 1
    elif not any(part.file == found.name for part in tally.skipped):
        tally.skipped.append(Skipped(found.name, "holds no text"))


def _module_pieces(found: Found, tally: _Tally) -> Iterator[_Raw]:
    try:
        module = read_module(found)
    except (SyntaxError, ValueError, OSError) as error:
        tally.skipped.append(Skipped(found.name, f"is not Python that can be read ({error})"))
        return
    tally.files_read += 1
    for group, piece in module.pieces:
        yield _Raw(piece, found.name, module.sha256, group)


def _store_distinct(rows: Iterable[Row], store: RowStore) -> list[dict[str, Any]]:
    """Store the rows whose text was not there before; what was left out is returned, without its text."""
    first: dict[bytes, str] = {}
    dropped = []
    for row in rows:
        key = exact_key(row.text)
        if key in first:
            dropped.append(_dropped(row, "exact", first[key], 1.0))
        else:
            first[key] = row.id
            store.add(row)
    return dropped


def _near_dropped(store: RowStore, progress: Progress) -> dict[int, dict[str, Any]]:
    """The stored rows to leave out as near duplicates, by their number."""
    numbers = [numbers_key(row.text) for row in store]
    dropped: dict[int, dict[str, Any]] = {}
    with progress("Finding near duplicates", total=len(store)) as task:
        last = 0
        for found in near_duplicates(store.signatures(), numbers, store.text):
            kept = store.row(found.kept)
            dropped[found.number] = _dropped(store.row(found.number), "near", kept.id, found.similarity)
            task.advance(found.number - last)
            last = found.number
    return dropped


def _dropped(row: Row, kind: str, kept: str, similarity: float) -> dict[str, Any]:
    return {
        "id": row.id,
        "file": row.source.file,
        "locator": row.source.locator,
        "duplicate": kind,
        "kept": kept,
        "similarity": similarity,
    }
