"""What every store of entries must do, held against a plain model in memory."""

import importlib.util
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from yunque.apps.retrieval.stores import ANY_VERSION, Between, Entry, Scope, Store, open_store
from yunque.apps.retrieval.stores.postings import K1, B, analyze
from yunque.errors import UserError

MakeStore = Callable[[], Store]
_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL with pgvector for this run of the tests."""
    pgserver = pytest.importorskip("pgserver", reason="pgserver is not installed")
    pytest.importorskip("psycopg", reason="the extra [postgres] is not installed")
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgres", "lance"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeStore]:
    """Makes stores of one kind, each empty."""
    made: list[Store] = []
    address = ""
    if request.param == "postgres":
        address = request.getfixturevalue("postgres_address")
    if request.param == "lance" and importlib.util.find_spec("lancedb") is None:
        pytest.skip("the extra [lance] is not installed")

    def make() -> Store:
        number = next(_numbers)
        where = {"sqlite": str(tmp_path / f"{number}.db"), "lance": f"lance:{tmp_path / str(number)}"}
        made.append(open_store(where.get(request.param, address), f"test_{number}"))
        return made[-1]

    yield make
    for store in made:
        store.destroy()


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    return make_store()


def _vector(*numbers: float) -> np.ndarray:
    vector = np.array(numbers, np.float32)
    return vector / np.linalg.norm(vector)


def test_what_is_put_comes_back_as_it_was(store: Store) -> None:
    metadata = {"file": "á/b.md", "page": 3, "tags": ["x", "y"], "deep": {"units": [[0, 4]]}, "none": None}
    entry = Entry(
        "id 1", "Línea uno.\n\tLínea dos 😀", "Título > Otro", "es", metadata, ("b", "a"), _vector(1, 2)
    )
    store.put([entry, Entry("2", "", language="en")])
    (kept, empty) = store.get(["id 1", "2"])
    assert (kept.text, kept.heading, kept.language, kept.metadata) == (
        entry.text,
        entry.heading,
        "es",
        metadata,
    )
    assert set(kept.groups) == {"a", "b"} and empty.text == ""
    assert np.allclose(store.vectors(["id 1", "2"])["id 1"], entry.vector) and store.dimensions == 2
    assert store.get(["2", "nothing", "id 1"])[0].id == "2"


def test_an_entry_with_an_id_that_is_there_takes_its_place(store: Store) -> None:
    store.put([Entry("a", "perro grande", vector=_vector(1, 0)), Entry("b", "gato")])
    store.put([Entry("a", "caballo pequeño", vector=_vector(0, 1))])
    assert sorted(store.ids()) == ["a", "b"]
    assert [one.id for one in store.search_keywords({"perr": 1, "caball": 1}, 5)] == ["a"]
    assert store.frequencies(["perr", "caball"]) == {"perr": 0, "caball": 1}
    assert store.search_vectors(_vector(0, 1), 1)[0].score == pytest.approx(1)
    assert "perro" not in dict(store.words())


def test_deleting_takes_the_words_and_the_vector_too(store: Store) -> None:
    store.put([Entry("a", "perro", vector=_vector(1, 0)), Entry("b", "gato perro", vector=_vector(0, 1))])
    assert store.delete(["a", "a", "zzz"]) == 1
    assert store.ids() == ["b"] and store.get(["a"]) == [] and store.vectors(["a"]) == {}
    assert [one.id for one in store.search_vectors(_vector(1, 0), 5)] == ["b"]
    assert store.frequencies(["perr"]) == {"perr": 1}
    store.delete(["b"])
    assert store.count() == 0 and list(store.words()) == [] and store.search_keywords({"perr": 1}, 5) == []


def test_keyword_scores_are_bm25_over_what_may_be_seen(store: Store) -> None:
    texts = {"a": "dog dog cabin", "b": "dog hold", "c": "bicycle box hold price"}
    store.put([Entry(id, text, language="en") for id, text in texts.items()])
    idf, mean = log(1 + (3 - 2 + 0.5) / 2.5), 3.0

    def expected(count: int, length: int) -> float:
        return idf * count * (K1 + 1) / (count + K1 * (1 - B + B * length / mean))

    found = {one.id: one.score for one in store.search_keywords({"dog": 2.0}, 5)}
    assert found == pytest.approx({"a": 2 * expected(2, 3), "b": 2 * expected(1, 2)}, rel=1e-4)
    # What the asker may not see changes no score.
    store.put([Entry(f"secret {n}", "dog dog dog", language="en", groups=("x",)) for n in range(9)])
    as_stranger = store.search_keywords({"dog": 2.0}, 20, Scope(groups=frozenset({"y"})))
    assert {one.id: one.score for one in as_stranger} == pytest.approx(found, rel=1e-4)
    as_friend = store.search_keywords({"dog": 2.0}, 20, Scope(groups=frozenset({"x"})))
    assert {one.id: one.score for one in as_friend} != pytest.approx(found, rel=1e-4)


def test_a_stranger_learns_nothing_of_what_is_for_a_group(store: Store) -> None:
    store.put(
        [
            Entry("open", "perro", vector=_vector(1, 0)),
            Entry(
                "closed",
                "despido perro",
                "Nómina",
                metadata={"year": 2020},
                groups=("hr",),
                vector=_vector(1, 0),
            ),
        ]
    )
    stranger, friend = Scope(groups=frozenset({"it"})), Scope(groups=frozenset({"hr", "it"}))
    for scope, seen in (
        (stranger, ["open"]),
        (Scope(groups=frozenset()), ["open"]),
        (friend, ["closed", "open"]),
    ):
        assert sorted(store.ids(scope)) == seen and store.count(scope) == len(seen)
        assert sorted(one.id for one in store.get(["open", "closed"], scope)) == seen
        assert sorted(one.id for one in store.search_keywords({"perr": 1}, 5, scope)) == seen
        assert sorted(one.id for one in store.search_vectors(_vector(1, 0), 5, scope)) == seen
    assert store.frequencies(["desp", "despid", "nomin", "perr"], stranger)["perr"] == 1
    assert not {"despido", "nomina"} & dict(store.words(stranger)).keys()
    assert {"despido", "nomina"} <= dict(store.words(friend)).keys()
    narrowed = Scope(groups=frozenset({"it"}), where={"year": 2020})
    assert store.ids(narrowed) == [] and store.search_vectors(_vector(1, 0), 5, narrowed) == []


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"year": 2020}, ["a", "d"]),
        ({"year": 2020.0}, ["a", "d"]),
        ({"year": [2019, 2021]}, ["b"]),
        ({"year": []}, []),
        ({"year": "2020"}, []),
        ({"year": True}, []),
        ({"draft": True}, ["b"]),
        ({"year": Between(2020, 2021)}, ["a", "b", "d"]),
        ({"year": Between(low=2021)}, ["b"]),
        ({"day": Between("2024-01-01", "2024-12-31")}, ["a"]),
        ({"day": Between(high="2024")}, ["b"]),
        ({"day": Between(1, 9)}, []),
        ({"draft": Between(0, 1)}, []),
        ({"tags": "x"}, ["a", "b"]),
        ({"tags": "x", "year": Between(None, 2020)}, ["a"]),
        ({"name": "O'Brien \"%_\\"}, ["c"]),
        ({"nothing": 1}, []),
        ({}, ["a", "b", "c", "d"]),
    ],
)
def test_metadata_filters(store: Store, where: dict[str, Any], expected: list[str]) -> None:
    store.put(
        [
            Entry("a", "hotel", metadata={"year": 2020, "day": "2024-05-01", "tags": ["x", "y"]}),
            Entry("b", "hotel", metadata={"year": 2021, "day": "2023-05-01", "tags": "x", "draft": True}),
            Entry("c", "hotel", metadata={"name": "O'Brien \"%_\\", "deep": {"year": 2020}}),
            Entry("d", "hotel", metadata={"year": 2020, "draft": False}),
        ]
    )
    scope = Scope(where=where)
    assert sorted(store.ids(scope)) == expected and store.count(scope) == len(expected)
    assert sorted(one.id for one in store.search_keywords({"hotel": 1}, 9, scope)) == expected


def test_language_narrows_what_is_found(store: Store) -> None:
    store.put([Entry("a", "hotel", language="es"), Entry("b", "hotel", language="en")])
    assert [one.id for one in store.search_keywords({"hotel": 1}, 5, Scope(language="en"))] == ["b"]
    assert store.count(Scope(language="es")) == 1


def test_a_version_is_what_it_was_whatever_comes_after(store: Store) -> None:
    store.put([Entry("a", "perro", vector=_vector(1, 0)), Entry("b", "gato")], version=1)
    store.put([Entry("c", "caballo", vector=_vector(1, 0))], retired=["a"], version=2)
    seen = {version: store.ids(Scope(version=version)) for version in (1, 2)}
    assert seen == {1: ["a", "b"], 2: ["b", "c"]} and store.ids() == ["b", "c"]
    assert sorted(store.ids(Scope(version=ANY_VERSION))) == ["a", "b", "c"]
    assert [one.id for one in store.search_vectors(_vector(1, 0), 5, Scope(version=1))] == ["a"]
    assert [one.id for one in store.search_keywords({"perr": 1, "caball": 1}, 5, Scope(version=2))] == ["c"]
    assert "perro" not in dict(store.words(Scope(version=2))) and "perro" in dict(
        store.words(Scope(version=1))
    )
    assert store.prune(2) == 1 and sorted(store.ids(Scope(version=ANY_VERSION))) == ["b", "c"]


def test_bad_entries_are_refused_and_nothing_of_the_call_is_kept(store: Store) -> None:
    store.put([Entry("v", "x", vector=_vector(1, 0))])
    bad = [
        [Entry("", "x")],
        [Entry("a", "x"), Entry("a", "y")],
        [Entry("a", "nul \0")],
        [Entry("a", "half \ud800")],
        [Entry("a", "x", metadata={"n": float("nan")})],
        [Entry("a", "x", metadata={"n": object()})],
        [Entry("a", "x", metadata={"n": "nul \0"})],
        [Entry("a", "x", vector=_vector(1, 0, 0))],
    ]
    for entries in bad:
        with pytest.raises(UserError):
            store.put([Entry("good", "x"), *entries])
    assert store.ids() == ["v"]


def test_erased_bytes_are_in_no_file(make_store: MakeStore) -> None:
    store = make_store()
    folder = getattr(store, "path", None)
    if folder is None:
        pytest.skip("what a database server has on its disk is its own affair; see docs/retrieval.md")
    secret = [f"zarandajas{n} del expediente kafkiano numero {n}" for n in range(40)]
    store.put(
        [
            Entry(f"s{n}", text, "Encabezadosecreto", metadata={"who": f"persona{n}x"})
            for n, text in enumerate(secret)
        ]
    )
    store.put([Entry(f"k{n}", f"texto corriente {n} sobre perros y gatos") for n in range(400)])
    for n in range(0, 40, 7):
        store.put([Entry(f"s{n}", secret[n] + " otra vez")])
    words = [b"zarandajas7", b"kafkian", b"ncabezadosecreto", b"persona7x", b"encabezadosecret"]
    assert store.erase([f"s{n}" for n in range(40)]) == 40
    files = [folder, *folder.parent.glob(folder.name + "*")] if folder.is_file() else folder.rglob("*")
    held = b"".join(path.read_bytes() for path in files if path.is_file())
    assert not [word for word in words if word in held]
    assert b"corriente 7" in held or b"corrient" in held, "the scan can find what is there"
    assert store.count() == 400 and store.search_keywords({"gat": 1}, 3)


def _put_many(address: str, name: str, started: Any) -> None:
    store = open_store(address, name)
    started.set()
    for batch in range(10_000):
        store.put([Entry(f"{batch}/{n}", f"perro numero {n}", vector=_vector(1, n + 1)) for n in range(20)])


def test_a_kill_in_the_middle_of_writing_leaves_whole_calls(tmp_path: Path) -> None:
    address = str(tmp_path / "killed.db")
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=_put_many, args=(address, "killed", started))
    process.start()
    assert started.wait(60)
    time.sleep(0.4)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    store = open_store(address, "killed")
    count = store.count()
    assert count and count % 20 == 0
    assert store.frequencies(["perr"])["perr"] == count
    assert len(store.search_vectors(_vector(1, 1), count + 1)) == count
    store.put([Entry("after", "gato")])
    assert store.count() == count + 1


def test_readers_see_whole_calls_while_another_writes(store: Store) -> None:
    failures: list[str] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                count, found = store.count(), store.search_keywords({"perr": 1}, 1000)
                vectors = store.search_vectors(_vector(1, 0), 1000)
                if count % 5 or len(found) % 5 or len(vectors) % 5:
                    failures.append(f"{count} {len(found)} {len(vectors)}")
        except Exception as error:
            failures.append(repr(error))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for batch in range(12):
        store.put([Entry(f"{batch}/{n}", "perro", vector=_vector(1, n + 1)) for n in range(5)])
        if batch % 3 == 2:
            store.delete([f"{batch - 1}/{n}" for n in range(5)])
    done.set()
    for reader in readers:
        reader.join()
    assert not failures and store.count() == 40


_WORDS = ["perro", "gato", "casa", "caballo"]
_GROUPS = ["x", "y"]


class StoreAgainstModel(RuleBasedStateMachine):
    """Any calls in any order leave what a plain list of entries would have."""

    make: MakeStore

    def __init__(self) -> None:
        super().__init__()
        self.store = type(self).make()
        self.kept: dict[str, Entry] = {}
        self.version = 1

    @rule(
        data=st.lists(
            st.tuples(
                st.integers(0, 7),
                st.lists(st.sampled_from(_WORDS), max_size=4),
                st.sampled_from([(), ("x",), ("y",), ("x", "y")]),
                st.integers(0, 2),
                st.sampled_from(["es", "en"]),
                st.booleans(),
            ),
            max_size=4,
            unique_by=lambda one: one[0],
        ),
        retire=st.sets(st.integers(0, 7), max_size=2),
    )
    def put(self, data: list[Any], retire: set[int]) -> None:
        entries = [
            Entry(
                str(id),
                " ".join(words),
                words[0] if words else "",
                language,
                {"year": year, "tags": words},
                groups,
                _vector(1, id, year) if vector else None,
            )
            for id, words, groups, year, language, vector in data
        ]
        new = {entry.id for entry in entries}
        retired = [str(id) for id in retire if str(id) not in new]
        self.store.put(entries, retired, self.version)
        for entry in entries:
            self.kept.pop(entry.id, None)
            self.kept[entry.id] = _at(entry, self.version, None)
        for id in retired:
            if id in self.kept:
                self.kept[id] = _at(self.kept[id], self.kept[id].added, self.version)

    @rule()
    def next_version(self) -> None:
        self.version += 1

    @rule(ids=st.sets(st.integers(0, 7), max_size=3))
    def delete(self, ids: set[int]) -> None:
        gone = [str(id) for id in ids]
        assert self.store.delete(gone) == len([self.kept.pop(id) for id in gone if id in self.kept])

    @rule(version=st.integers(1, 3))
    def prune(self, version: int) -> None:
        gone = [id for id, one in self.kept.items() if one.removed is not None and one.removed <= version]
        assert self.store.prune(version) == len([self.kept.pop(id) for id in gone])

    @rule(
        groups=st.sampled_from([None, frozenset(), frozenset({"x"}), frozenset({"y", "z"})]),
        version=st.sampled_from([None, ANY_VERSION, 1, 2, 3]),
        language=st.sampled_from([None, "es"]),
        where=st.sampled_from([{}, {"year": 1}, {"year": Between(1, 2)}, {"tags": ["gato", "casa"]}]),
    )
    def look(self, groups: Any, version: Any, language: Any, where: Any) -> None:
        scope = Scope(groups, version, language, where)
        visible = [one for one in self.kept.values() if _seen(one, groups, version)]
        inside = [one for one in visible if (language in (None, one.language)) and _fits(one.metadata, where)]
        assert self.store.ids(scope) == [one.id for one in inside] and self.store.count(scope) == len(inside)
        assert [one.id for one in self.store.get([*"76543210"], scope)] == sorted(
            (one.id for one in inside), reverse=True
        )
        stems = {"perr": 1.0, "gat": 2.0, "cas": 0.5}
        expected = _bm25(visible, stems)
        found = {one.id: one.score for one in self.store.search_keywords(stems, 50, scope)}
        wanted = {one.id: expected[one.id] for one in inside if one.id in expected}
        assert found == pytest.approx(wanted, rel=1e-4)
        question = _vector(1, 1, 1)
        near = {one.id: one.score for one in self.store.search_vectors(question, 50, scope)}
        assert near == pytest.approx(
            {one.id: float(one.vector @ question) for one in inside if one.vector is not None}, abs=1e-5
        )
        often = self.store.frequencies(list(stems), scope)
        assert often == {stem: sum(stem in _stems(one) for one in visible) for stem in stems}
        # Words of other versions are looked up by their stem, which here tells them apart.
        assert {word for word, _ in self.store.words(scope)} == {
            word for one in visible for word in [*one.text.split(), *one.heading.split()]
        }

    @invariant()
    def counts(self) -> None:
        assert self.store.count(Scope(version=ANY_VERSION)) == len(self.kept)


def _at(entry: Entry, added: int, removed: int | None) -> Entry:
    return Entry(
        entry.id,
        entry.text,
        entry.heading,
        entry.language,
        entry.metadata,
        entry.groups,
        entry.vector,
        added,
        removed,
    )


def _seen(entry: Entry, groups: frozenset[str] | None, version: int | None) -> bool:
    if groups is not None and entry.groups and not groups & set(entry.groups):
        return False
    if version == ANY_VERSION:
        return True
    if version is None:
        return entry.removed is None
    return entry.added <= version and (entry.removed is None or version < entry.removed)


def _fits(metadata: Any, where: Any) -> bool:
    if "tags" in where:
        return bool(set(where["tags"]) & set(metadata["tags"]))
    if where.get("year") == 1:
        return bool(metadata["year"] == 1)
    return not where or 1 <= metadata["year"] <= 2


def _stems(entry: Entry) -> Any:
    return analyze(entry.heading, entry.text, entry.language).counts


def _bm25(visible: list[Entry], terms: dict[str, float]) -> dict[str, float]:
    lengths = [analyze("", one.text, one.language).length for one in visible]
    mean = sum(lengths) / len(lengths) if lengths else 1.0
    scores: dict[str, float] = {}
    for stem, weight in terms.items():
        having = [one for one in visible if stem in _stems(one)]
        idf = log(1 + (len(visible) - len(having) + 0.5) / (len(having) + 0.5))
        for one in having:
            count, length = _stems(one)[stem], analyze("", one.text, one.language).length
            part = count * (K1 + 1) / (count + K1 * (1 - B + B * length / (mean or 1.0)))
            scores[one.id] = scores.get(one.id, 0.0) + weight * idf * part
    return scores


def test_any_calls_in_any_order_leave_what_the_model_has(
    make_store: MakeStore, request: pytest.FixtureRequest
) -> None:
    class Machine(StoreAgainstModel):
        make = staticmethod(make_store)

    kind = request.node.callspec.params["make_store"]
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples={"sqlite": 30, "postgres": 8, "lance": 4}[kind],
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
