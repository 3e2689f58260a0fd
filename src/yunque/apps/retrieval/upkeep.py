"""Taking things out of an index: what only old versions have, and what must be in no version any more."""

import json
from typing import Any

from yunque.apps.retrieval.index import FILE
from yunque.apps.retrieval.ledger import Ledger
from yunque.apps.retrieval.stores import ANY_VERSION, Scope, Where
from yunque.apps.retrieval.vectors import CorpusEmbedder
from yunque.workspace import Artifact, Workspace


def prune(workspace: Workspace, name: str, keep: int = 1) -> dict[str, Any]:
    """Delete what no kept version has: the newest `keep`, and those that an app answers from. Returns the counts of
    deleted passages and stores, and the kept versions."""
    newest = workspace.get(name, "index")
    versions = _versions(workspace, newest.name)
    used = {parent for app in workspace.list("app", every_version=True) for parent in app.parents}
    kept = [one for one in versions if one in versions[-keep:] or one.ref in used]
    views = [view for one in kept if (view := _view(workspace, one))]
    deleted = stores = 0
    with Ledger.open(workspace, newest.name) as ledger, ledger.alone():
        job = ledger.job()
        busy = {job[0], job[1]} if job else set()
        for generation in ledger.generations():
            needed = [view for number, view in views if number == generation.number]
            if needed:
                store = ledger.store(generation.number)
                deleted += store.prune(min(needed))
                store.close()
                ledger.pruned(generation.number, min(needed))
            elif generation.number not in busy:
                store = ledger.store(generation.number)
                deleted += store.count(Scope(version=ANY_VERSION))
                store.close()
                ledger.drop(generation.number)
                if not generation.committed:
                    ledger.forget_cut()  # it was cut as this one wanted it
                stores += 1
    workspace.record("index.prune", f"index/{newest.name}", passages=deleted, kept=[one.ref for one in kept])
    return {"passages": deleted, "stores": stores, "kept": [one.ref for one in kept]}


def erase(workspace: Workspace, name: str, where: Where) -> int:
    """Erase the passages that fulfil conditions from every version; returns how many there were.

    The words that they alone had leave the vocabulary and the embedder too. What a dataset or a file still holds
    comes back when it is taken in again: erase it there first.
    """
    newest = workspace.get(name, "index")
    count = 0
    with Ledger.open(workspace, newest.name) as ledger, ledger.alone():
        _without_unfinished(ledger)
        for generation in ledger.generations():
            store = ledger.store(generation.number)
            ids = store.ids(Scope(version=ANY_VERSION, where=where))
            count += store.erase(ids)
            embedder = ledger.embedder(workspace, generation.number)
            if ids and isinstance(embedder, CorpusEmbedder):
                stems = {stem for _, stem in store.words(Scope(version=ANY_VERSION))}
                ledger.keep_embedder(generation.number, embedder.without(stems), generation.fitted)
            store.close()
        ledger.compact()
    workspace.record("index.erase", f"index/{newest.name}", passages=count)
    return count


def _without_unfinished(ledger: Ledger) -> None:
    """Take out what a killed run had cut, and generations without a finished view: they belong to no version.

    A half-made view of a generation that has a finished one stays, with its job: the next run makes it whole."""
    job = ledger.job()
    if job and not ledger.generation(job[0]).committed:
        ledger.give_up_job()
    ledger.forget_cut()
    for generation in ledger.generations():
        if not generation.committed:
            ledger.drop(generation.number)


def _versions(workspace: Workspace, name: str) -> list[Artifact]:
    found = [one for one in workspace.list("index", every_version=True) if one.name == name]
    return sorted(found, key=lambda one: one.version)


def _view(workspace: Workspace, artifact: Artifact) -> tuple[int, int] | None:
    """The generation and view of a version; None for one that holds its passages itself."""
    if FILE not in artifact.files:
        return None
    described = json.loads(workspace.file(artifact, FILE).read_bytes())
    return described["generation"], described["view"]
