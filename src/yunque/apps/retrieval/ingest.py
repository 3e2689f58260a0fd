"""Making an index, and taking in what changed: read and cut, fit or keep the embedder, put, and make a version of it.

What is cut waits in the ledger until it is in the store, file by file, so that a run that was killed is gone on with:
nothing is read, cut or embedded twice. A store's next view can be seen by nobody before it is whole.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from yunque.apps.retrieval.index import FILE, FORMAT, embedded_text, entry_of
from yunque.apps.retrieval.index_config import IndexConfig, digest
from yunque.apps.retrieval.ledger import Generation, Ledger, Unit
from yunque.apps.retrieval.passages import Passage, cut
from yunque.apps.retrieval.sources import (
    Offer,
    Offered,
    Sources,
    filterable,
    offer_datasets,
    offer_paths,
)
from yunque.apps.retrieval.stores import Entry, Scope, Store
from yunque.apps.retrieval.vectors import CorpusEmbedder, Embedder
from yunque.data.readers import Skipped
from yunque.errors import UserError
from yunque.progress import Progress, silent
from yunque.workspace import Artifact, Workspace
from yunque.workspace.artifact import checked_name

GROWTH = 0.5
"""An embedder fitted on the corpus is fitted again when there are this much more passages than it has seen: what it
finds falls with the first new topics and again from twice the corpus on (`docs/retrieval.md`)."""
_SPOOLED_AT_ONCE = 2_000
_PUT_AT_ONCE = 5_000


@dataclass
class Report:
    """What a run did: how many files were read, were there already, and are gone; what was left out, and why."""

    read: int = 0
    unchanged: int = 0
    gone: int = 0
    resumed: int = 0
    refitted: bool = False
    skipped: list[Skipped] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **{name: getattr(self, name) for name in ("read", "unchanged", "gone", "resumed", "refitted")},
            "skipped": [{"file": one.file, "reason": one.reason} for one in self.skipped],
        }


def build(
    workspace: Workspace,
    name: str,
    sources: Sources,
    config: IndexConfig | None = None,
    progress: Progress = silent,
) -> tuple[Artifact, Report]:
    """Make `index/NAME` hold just what these sources do; what it holds already is not read again."""
    return _Run(workspace, name, sources, config or IndexConfig(), progress).run(only=True)


def add(
    workspace: Workspace,
    name: str,
    sources: Sources,
    config: IndexConfig | None = None,
    progress: Progress = silent,
) -> tuple[Artifact, Report]:
    """Take more sources into an index, or what changed in some of them. Without a configuration it is the index's."""
    before = workspace.find(f"index/{name}", "index")
    if config is None and before is not None:
        config = IndexConfig.model_validate(before.config)
    return _Run(workspace, name, sources, config or IndexConfig(), progress).run(only=False)


def keep_floor(workspace: Workspace, ref: str, floor: float) -> Artifact:
    """The index with another relevance floor, as its next version."""
    artifact = workspace.get(ref, "index")
    if FILE not in artifact.files:
        raise UserError(f"{artifact.ref}: was made before floors were kept with an index: build it again")
    described = json.loads(workspace.file(artifact, FILE).read_bytes())
    files = {FILE: json.dumps({**described, "floor": floor}, sort_keys=True).encode()}
    parents = [workspace.get(parent) for parent in artifact.parents]
    with Ledger.open(workspace, artifact.name) as ledger:
        ledger.keep_floor(described["generation"], floor)
    return workspace.put("index", artifact.name, files, parents, artifact.config, artifact.figures)


class _Run:
    """One run over one index."""

    def __init__(
        self, workspace: Workspace, name: str, sources: Sources, config: IndexConfig, progress: Progress
    ) -> None:
        self.workspace, self.name, self.sources = workspace, checked_name(name), sources
        self.config = config.model_copy(update={"store": _address(config.store)})
        self.progress = progress
        self.report = Report()

    def run(self, only: bool) -> tuple[Artifact, Report]:
        if not (self.sources.datasets or self.sources.paths or self.sources.urls):
            raise UserError(
                "an index needs something to be made of: a file, a folder, an address, or --data NAME"
            )
        with (
            Ledger.open(self.workspace, self.name) as self.ledger,
            self.ledger.alone(),
            tempfile.TemporaryDirectory(prefix=".index-", dir=self.workspace.root) as folder,
        ):
            generation = self._generation(only)
            known = self._known(generation)
            offer = self._offer(known, Path(folder))
            self._cut(offer, known)
            gone = self._gone(offer, known, only)
            if not self.ledger.spooled() and not gone and generation.committed and not self.ledger.job():
                return self._artifact(generation, offer.parents, only), self.report
            if not self.ledger.spooled_count() and not (set(known) - set(gone)):
                raise UserError(self._nothing())
            generation = self._fitted(generation, gone)
            self._put(generation, gone)
            return self._artifact(self.ledger.generation(generation.number), offer.parents, only), self.report

    def _generation(self, only: bool) -> Generation:
        """The generation to go on with, or a new one."""
        made = self.ledger.generations()
        job = self.ledger.job()
        cutting = self.config.cutting()
        if job is not None and self.ledger.generation(job[0]).cutting == cutting:
            self.report.resumed = len(self.ledger.spooled())
            return self.ledger.generation(job[0])
        whole = [one for one in made if one.committed]
        if whole and whole[-1].cutting != cutting and not only:
            raise UserError(
                f"index {self.name}: was made with other settings ({_difference(whole[-1].cutting, cutting)}): leave "
                "them out, or build it again with them"
            )
        if job is not None:
            self.ledger.give_up_job()
        elif made and made[-1].cutting != cutting:
            self.ledger.forget_cut()
        # Without a job nothing was put into them yet. One that was to be copied into would look like an empty index.
        for one in self.ledger.generations():
            if not one.committed:
                self.ledger.drop(one.number)
        if whole and whole[-1].cutting == cutting:
            return whole[-1]
        return self.ledger.begin(cutting)

    def _known(self, generation: Generation) -> dict[str, Unit]:
        """The units that stand in the store, or that a killed run had still to copy into it."""
        job = self.ledger.job()
        source = job[1] if job and job[0] == generation.number else None
        copied = self.ledger.units(source) if source is not None else {}
        return {**copied, **self.ledger.units(generation.number)}

    def _offer(self, known: dict[str, Unit], folder: Path) -> Offer:
        offer = Offer()
        offer_datasets(self.workspace, self.sources.datasets, self.config, offer)
        offer_paths(self.workspace, self.sources.paths, self.config, offer, self.report.skipped)
        if self.sources.urls:
            from yunque.apps.retrieval.web import offer_urls

            offer_urls(
                self.workspace,
                self.sources.urls,
                self.config,
                offer,
                self.report.skipped,
                self.ledger,
                known,
                folder,
                self.progress,
            )
        return offer

    def _cut(self, offer: Offer, known: dict[str, Unit]) -> None:
        """Read what is new or changed, and spool its passages."""
        spooled = self.ledger.spooled()
        waiting: list[tuple[Unit, list[dict[str, Any]]]] = []
        with self.progress("Reading and cutting", len(offer.units)) as task:
            for offered in offer.units:
                unit = offered.unit
                task.advance(0, note=unit.name)
                if unit == known.get(unit.key):
                    self.report.unchanged += 1
                    if unit.key in spooled:  # it was changed, cut by a run that was killed, and changed back
                        self.ledger.forget_cut([unit.key])
                elif unit == spooled.get(unit.key):
                    self.report.unchanged += unit.key in known
                elif (passages := self._passages(offered)) is None:
                    offer.kept.add(unit.key)
                else:
                    waiting.append((unit, passages))
                    self.report.read += 1
                    if sum(len(cut) for _, cut in waiting) >= _SPOOLED_AT_ONCE:
                        self._spool(waiting)
                        waiting = []
                task.advance(1)
        self._spool(waiting)

    def _spool(self, waiting: Sequence[tuple[Unit, Sequence[dict[str, Any]]]]) -> None:
        if waiting:
            self.ledger.spool(waiting)

    def _passages(self, offered: Offered) -> list[dict[str, Any]] | None:
        """The passages of a unit as they are spooled; None when it cannot be read and must stay as it was."""
        skipped = len(self.report.skipped)
        found = []
        try:
            for row in offered.rows(self.report.skipped):
                fields = filterable(row.fields)
                for passage in cut(row, self.config.passage_chars):
                    found.append({"passage": passage.as_dict(), "fields": fields, "groups": offered.groups})
        except Exception as error:  # a file that breaks a reader must not break the rest
            reason = f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:80]})"
            self.report.skipped.append(Skipped(offered.unit.name, reason))
        if found:
            return found
        if len(self.report.skipped) == skipped:
            self.report.skipped.append(Skipped(offered.unit.name, "holds no text"))
        return None

    def _gone(self, offer: Offer, known: dict[str, Unit], only: bool) -> list[str]:
        """The units that stand in the store and should not any more."""
        offered = {one.unit.key for one in offer.units} | offer.kept
        gone = [key for key in known if key not in offered and (only or offer.covered(key))]
        # A killed run had cut them; they are not there now.
        self.ledger.forget_cut(
            [key for key in self.ledger.spooled() if key not in offered and (only or offer.covered(key))]
        )
        self.report.gone = len(gone)
        return gone

    def _nothing(self) -> str:
        names = ", ".join([*self.sources.datasets, *map(str, self.sources.paths), *self.sources.urls])
        why = "".join(f" ({one.file}: {one.reason})" for one in self.report.skipped[:1])
        return f"{names}: no text to index{why}"

    def _fitted(self, generation: Generation, gone: Sequence[str]) -> Generation:
        """The generation to fill, with its embedder: this one, or a new one when the corpus has outgrown it."""
        job = self.ledger.job()
        copied_from = job[1] if job else None
        if not (job and job[0] == generation.number):
            if generation.fitted:
                entries = self._entries(generation)
                if entries + self.ledger.spooled_count() > (1 + GROWTH) * generation.fitted:
                    copied_from = generation.number
                    generation = self.ledger.begin(generation.cutting)
                    self.report.refitted = True
            self.ledger.begin_job(generation.number, copied_from)
        if generation.cutting["embedder"] == "corpus" and not generation.fitted:
            self._fit(generation, copied_from)
            generation = self.ledger.generation(generation.number)
        if copied_from is not None:
            self._copy(copied_from, generation, gone)
        return generation

    def _entries(self, generation: Generation) -> int:
        store = self.ledger.store(generation.number)
        try:
            return store.count()
        finally:
            store.close()

    def _fit(self, generation: Generation, copied_from: int | None) -> None:
        """Fit the corpus embedder on what is spooled, and on what is copied."""
        texts: list[tuple[str, str]] = []
        if copied_from is not None:
            store = self.ledger.store(copied_from)
            for ids in batched(store.ids(), _PUT_AT_ONCE):
                texts += [(f"{one.heading}\n{one.text}", one.language) for one in store.get(ids)]
            store.close()
        for key in self.ledger.spooled():
            for values in self.ledger.spooled_passages(key):
                texts.append(embedded_text(Passage.from_dict(values["passage"])))
        with self.progress("Fitting vectors") as task:
            embedder = CorpusEmbedder.fit(texts, self.config.dimensions)
            task.advance(1)
        self.ledger.keep_embedder(generation.number, embedder, len(texts))

    def _copy(self, copied_from: int, generation: Generation, gone: Sequence[str]) -> None:
        """Put what the older generation has, and is not read anew, under the new embedder."""
        units = self.ledger.units(copied_from)
        done = self.ledger.units(generation.number)
        left = set(units) - set(gone) - set(self.ledger.spooled()) - set(done)
        numbers = {unit_number(key): key for key in left}
        old, new = self.ledger.store(copied_from), self.ledger.store(generation.number)
        embedder = self.ledger.embedder(self.workspace, generation.number)
        there = set(new.ids())
        ids = [id for id in old.ids() if id not in there]
        with self.progress("Copying passages", len(ids)) as task:
            for part in batched(ids, _PUT_AT_ONCE):
                kept = [one for one in old.get(part) if one.metadata["unit"] in numbers]
                new.put(_embedded(kept, embedder), version=generation.committed + 1)
                task.advance(len(part))
        old.close()
        new.close()
        self.ledger.settle(generation.number, [units[key] for key in left])

    def _put(self, generation: Generation, gone: Sequence[str]) -> None:
        """Put the spooled units into the store, retire what is gone, and close the view."""
        view = generation.committed + 1
        known = self._known(generation)
        embedder = self.ledger.embedder(self.workspace, generation.number)
        store = self.ledger.store(generation.number)
        with self.progress("Indexing passages", self.ledger.spooled_count()) as task:
            for units in self._portions():
                new: list[Entry] = []
                retired: list[str] = []
                for unit in units:
                    entries = list(self._spooled(unit, view))
                    before = _ids_of(store, unit.key) if unit.key in known else {}
                    wanted = {content_of(one.id) for one in entries}
                    new += [one for one in entries if content_of(one.id) not in before]
                    retired += [id for content, id in before.items() if content not in wanted]
                self.ledger.expect(generation.number, units)
                store.put(_embedded(new, embedder), retired, view)
                self.ledger.settle(generation.number, units)
                task.advance(len(new))
        for key in gone:
            store.put([], list(_ids_of(store, key).values()), view)
            self.ledger.settle(generation.number, [], [key])
        # A floor found once, or by a person's questions, is kept for as long as the embedder is.
        floor = generation.floor
        if floor is None:
            floor = self._calibrated(store, embedder, view)
        store.close()
        self.ledger.end_job(generation.number, view, floor)

    def _calibrated(self, store: Store, embedder: Embedder, view: int) -> float | None:
        from yunque.apps.retrieval.calibration import calibrated_floor
        from yunque.apps.retrieval.index import Index

        with self.progress("Calibrating") as task:
            floor = calibrated_floor(Index(store, embedder, Scope(version=view)))
            task.advance(1)
        return floor

    def _portions(self) -> Iterator[list[Unit]]:
        """The spooled units in portions of a few thousand passages."""
        portion: list[Unit] = []
        count = 0
        rows = self.ledger.connection.execute("SELECT key, name, digest, count FROM spool ORDER BY key")
        for key, name, made, passages in rows.fetchall():
            portion.append(Unit(key, name, made))
            count += passages
            if count >= _PUT_AT_ONCE:
                yield portion
                portion, count = [], 0
        if portion:
            yield portion

    def _spooled(self, unit: Unit, view: int) -> Iterator[Entry]:
        """The entries of a spooled unit. The id tells the content, and from which view on it is there."""
        seen = set[str]()
        number = unit_number(unit.key)
        for values in self.ledger.spooled_passages(unit.key):
            passage = Passage.from_dict(values["passage"])
            content = digest(
                unit.key, passage.heading, passage.start, passage.text, values["fields"], values["groups"]
            )
            if content in seen:
                continue  # the same words under the same heading at the same place of two rows
            seen.add(content)
            fields = {**values["fields"], "unit": number}
            yield entry_of(passage, f"{content}-{view}", None, fields, values["groups"])

    def _artifact(self, generation: Generation, parents: Sequence[Artifact], only: bool) -> Artifact:
        """The version of the index that this view is."""
        from yunque.apps.retrieval.vocabulary import Vocabulary

        store = self.ledger.store(generation.number)
        scope = Scope(version=generation.committed)
        ids = store.ids(scope)
        described = {
            "format": FORMAT,
            "generation": generation.number,
            "view": generation.committed,
            "passages": len(ids),
            "digest": digest(sorted(ids)),
            "floor": generation.floor,
        }
        counted = {
            language: store.count(Scope(version=scope.version, language=language))
            for language in ("en", "es")
        }
        figures = {
            "passages": len(ids),
            "languages": {language: count for language, count in counted.items() if count},
            "words": Vocabulary(store, scope).stems(),
        }
        store.close()
        model = self.config.embedder
        if "/" in model and (
            encoder := self.workspace.find(model, "model") if model.startswith("model/") else None
        ):
            parents = [*parents, encoder]
        if not only and (before := self.workspace.find(f"index/{self.name}", "index")):
            earlier = [self.workspace.get(ref) for ref in before.parents]
            newer = {parent.name for parent in parents}
            parents = [*(one for one in earlier if one.name not in newer), *parents]
        files = {FILE: json.dumps(described, sort_keys=True).encode()}
        config = self.config.model_dump(mode="json")
        return self.workspace.put("index", self.name, files, parents, config, figures)


def _address(store: str) -> str:
    """Where passages are to be kept, as it may be written down; raises UserError for an address with a password."""
    if store.startswith("lance:"):
        return f"lance:{Path(store.removeprefix('lance:')).resolve()}"
    if store and "://" not in store:
        return str(Path(store).resolve())
    if urlsplit(store).password or "password=" in store:
        raise UserError(
            "the address of a store must not hold a password: it would be kept with the index; use ~/.pgpass"
        )
    return store


def batched(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Ids in parts of at most `size`."""
    return (ids[start : start + size] for start in range(0, len(ids), size))


def unit_number(key: str) -> str:
    """What an entry tells its unit by: the key may hold the folders of this machine."""
    return digest(key)[:12]


def content_of(id: str) -> str:
    """The part of an entry's id that tells its content."""
    return id.rpartition("-")[0]


def _ids_of(store: Store, key: str) -> dict[str, str]:
    """The live entries of a unit: their ids by their content."""
    return {content_of(id): id for id in store.ids(Scope(where={"unit": unit_number(key)}))}


def _embedded(entries: Iterable[Entry], embedder: Embedder) -> list[Entry]:
    """Entries with their vectors."""
    from dataclasses import replace

    entries = list(entries)
    vectors = embedder.embed([(f"{one.heading}\n{one.text}", one.language) for one in entries])
    return [
        replace(one, vector=vector if vector.any() else None, added=0)
        for one, vector in zip(entries, vectors, strict=True)
    ]


def _difference(made: dict[str, Any], wanted: dict[str, Any]) -> str:
    names = [name for name in {**made, **wanted} if made.get(name) != wanted.get(name)]
    return ", ".join(f"{name}: {made.get(name)!r}, now {wanted.get(name)!r}" for name in names)
