"""Who may see a file does not depend on how it was named, and is never loosened by what is added later."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from yunque.apps.retrieval import ingest
from yunque.apps.retrieval.index import Index
from yunque.apps.retrieval.index_config import IndexConfig, normal_pattern
from yunque.apps.retrieval.sources import NOBODY, Sources, groups_of
from yunque.apps.retrieval.stores import Between
from yunque.apps.retrieval.stores.store import Condition, matches
from yunque.cli.index import app
from yunque.errors import UserError
from yunque.workspace import Workspace

_HR = {"hr/*": ("hr",)}


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("YUNQUE_WORKSPACE", str(tmp_path / "ws"))
    return Workspace.open(tmp_path / "ws")


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    made = tmp_path / "docs"
    (made / "hr").mkdir(parents=True)
    (made / "a.md").write_text("El perro viaja en cabina con su dueño.")
    (made / "hr" / "pay.txt").write_text("El salario secreto de Ana asciende a 90000 euros.")
    return made


def _build(workspace: Workspace, *paths: Path, name: str = "docs", **config: Any) -> None:
    ingest.build(workspace, name, Sources(paths=paths), IndexConfig(embedder="hashing", **config))


def _seen(workspace: Workspace, *groups: str, ref: str = "docs") -> set[str]:
    """The files that a member of some groups finds, by their last part."""
    index = Index.open(workspace, ref).narrowed(frozenset(groups))
    return {Path(passage.file).name for passage in index.passages}


def _yunque(*words: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    text = done.output + (str(done.exception) if isinstance(done.exception, UserError) else "")
    return done.exit_code, " ".join(text.split())


@pytest.mark.parametrize("added", ["hr", "hr/pay.txt", "."])
def test_a_file_named_in_another_way_stays_hidden(empty: Workspace, docs: Path, added: str) -> None:
    _build(empty, docs, permissions=_HR)
    ingest.add(empty, "docs", Sources(paths=(docs / added,)))
    assert _seen(empty) == {"a.md"} and _seen(empty, "hr") == {"a.md", "pay.txt"}


def test_a_file_named_twice_is_hidden_and_taken_in_once(empty: Workspace, docs: Path) -> None:
    _build(empty, docs, docs / "hr", permissions=_HR)
    assert _seen(empty) == {"a.md"}
    assert {passage.file for passage in Index.open(empty, "docs").passages} == {"a.md", "hr/pay.txt"}
    sources = Sources(paths=(docs, docs / "hr"))
    _, report = ingest.build(empty, "docs", sources, IndexConfig(embedder="hashing", permissions=_HR))
    assert report.read == 0


def test_a_link_is_hidden_by_where_it_lies_and_by_where_it_leads(empty: Workspace, docs: Path) -> None:
    (docs / "open").mkdir()
    (docs / "open" / "link.txt").symlink_to(docs / "hr" / "pay.txt")
    _build(empty, docs / "open", permissions=_HR)
    assert _seen(empty) == set() and _seen(empty, "hr") == {"link.txt"}
    _build(empty, docs / "open", permissions={"open/*": ("staff",)}, name="other")
    assert _seen(empty, ref="other") == set() and _seen(empty, "staff", ref="other") == {"link.txt"}


@pytest.mark.parametrize("pattern", ["hr", "hr/", "./hr/*", "hr//*", "docs/hr/*", "pay.*", "*", "hr/pay.txt"])
def test_ways_to_write_a_pattern(empty: Workspace, docs: Path, pattern: str) -> None:
    _build(empty, docs, permissions={pattern: ("hr",)})
    assert "pay.txt" not in _seen(empty)


def test_a_pattern_matches_whole_names_of_folders() -> None:
    for other in ("hrx/pay.txt", "xhr/pay.txt", "HR/pay.txt", "hr"):
        assert groups_of(other, {"hr/": ("hr",)}) == ()
    assert groups_of("notes[1].txt", {"notes[1].txt": ("hr",)}) == ("hr",)
    assert groups_of("https://a.org/x?y=1", {"https://a.org/*": ("hr",)}) == ("hr",)
    assert groups_of("cafe\u0301/a", {"café/": ("hr",)}) == ("hr",)
    assert normal_pattern("https://a.org//x/") == "https://a.org//x/"


_GROUPS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True).map(tuple)
_PATTERNS = st.dictionaries(st.sampled_from(["hr/*", "hr", "*.txt", "pay*", "*", "no/*"]), _GROUPS)


@settings(deadline=None)
@given(_PATTERNS, _PATTERNS)
def test_a_further_pattern_never_lets_more_see_a_file(
    one: dict[str, tuple[str, ...]], other: dict[str, tuple[str, ...]]
) -> None:
    config = IndexConfig(permissions=one)
    try:
        tightened = config.tightened(other)
    except UserError:
        return
    before, alone, after = (
        groups_of("hr/pay.txt", permissions) for permissions in (one, other, tightened.permissions)
    )
    for group in "abc":
        both = all(not groups or group in groups for groups in (before, alone))
        assert (not after or group in after) == both


def test_files_of_two_patterns_without_a_common_group_are_seen_by_nobody(
    empty: Workspace, docs: Path
) -> None:
    _build(empty, docs, permissions={**_HR, "*.txt": ("board",)})
    for group in ("", "hr", "board"):
        assert _seen(empty, group) == {"a.md"}
    assert groups_of("hr/x.txt", {**_HR, "*.txt": ("board",)}) == (NOBODY,)


def test_a_pattern_is_tightened_by_adding_and_not_loosened(empty: Workspace, docs: Path) -> None:
    assert (
        _yunque("build", docs, "-n", "docs", "--embedder", "hashing", "--only-for", "hr/*=hr,board")[0] == 0
    )
    assert _yunque("add", "docs", docs, "--only-for", "hr/=board,it")[0] == 0
    assert _seen(empty, "board") == {"a.md", "pay.txt"} and _seen(empty, "hr", "it") == {"a.md"}
    code, said = _yunque("add", "docs", docs, "--only-for", "hr/*=it")
    assert code and "build it anew" in said and _seen(empty, "it") == {"a.md"}


def test_patterns_last_for_what_comes_later(empty: Workspace, docs: Path) -> None:
    assert _yunque("build", docs / "a.md", "-n", "docs", "--embedder", "hashing")[0] == 0
    code, said = _yunque("add", "docs", docs / "a.md", "--only-for", "hr/*=hr")
    assert code == 0 and "'hr/*' matches no file" in said
    assert _yunque("add", "docs", docs / "hr")[0] == 0
    assert _seen(empty) == {"a.md"} and _seen(empty, "hr") == {"a.md", "pay.txt"}


def test_a_new_pattern_for_files_that_are_not_named_is_refused(
    empty: Workspace, docs: Path, tmp_path: Path
) -> None:
    more = tmp_path / "more.txt"
    more.write_text("El loro viaja en cabina.")
    assert _yunque("build", docs, "-n", "docs", "--embedder", "hashing")[0] == 0
    code, said = _yunque("add", "docs", more, "--only-for", "hr/*=hr")
    assert code and "pay.txt" in said.replace(" ", "") and "name it too" in said
    assert empty.get("docs", "index").version == 1
    code, said = _yunque("add", "docs", more, docs / "hr", "--only-for", "hr/*=hr")
    assert code == 0 and "index/docs@1 and older ones" in said
    assert _seen(empty) == {"a.md", "more.txt"}


@pytest.mark.parametrize(("pattern", "told"), [("HR/*", True), ("hr/*", False)])
@pytest.mark.usefixtures("empty")
def test_a_pattern_that_matches_nothing_is_told(docs: Path, pattern: str, told: bool) -> None:
    code, said = _yunque("build", docs, "-n", "x", "--embedder", "hashing", "--only-for", f"{pattern}=hr")
    assert code == 0 and ("matches no file" in said) == told


@pytest.mark.usefixtures("empty")
def test_a_build_that_leaves_patterns_out_says_so(docs: Path) -> None:
    words = ("build", docs, "-n", "docs", "--embedder", "hashing")
    _yunque(*words, "--only-for", "hr/*=hr")
    assert "had --only-for for hr/*" in _yunque(*words)[1]
    assert "had --only-for" not in _yunque(*words)[1]


_VALUES = st.one_of(st.booleans(), st.integers(-2, 2), st.floats(-2, 2), st.sampled_from(["a", "b", "c"]))
_ENDS = st.one_of(st.none(), st.integers(-2, 2), st.sampled_from(["a", "b"]))
_CONDITIONS = st.one_of(_VALUES, st.lists(_VALUES, max_size=3), st.builds(Between, _ENDS, _ENDS))


@pytest.fixture(scope="module")
def nothing() -> Iterator[Index]:
    index = Index.of([])
    yield index
    index.close()


@settings(deadline=None)  # the clock of a busy machine tells nothing here
@given(one=_CONDITIONS, other=_CONDITIONS, value=_VALUES)
def test_narrowing_twice_keeps_what_fulfils_both(
    nothing: Index, one: Condition, other: Condition, value: Any
) -> None:
    index = nothing.narrowed(where={"x": one}).narrowed(where={"x": other})
    both = matches({"x": value}, {"x": one}) and matches({"x": value}, {"x": other})
    assert matches({"x": value}, index.scope.where) == both


def test_a_narrowed_index_is_not_widened_by_narrowing_again(empty: Workspace, docs: Path) -> None:
    _build(empty, docs)
    index = Index.open(empty, "docs")
    first = index.narrowed(where={"file": ["a.md", "hr/pay.txt"]})
    assert {one.file for one in first.narrowed(where={"file": "a.md"}).passages} == {"a.md"}
    assert first.narrowed(where={"file": "a.md"}).narrowed(where={"file": "hr/pay.txt"}).passages == []
    assert len(first.passages) == 2


def test_two_indexes_at_one_path_do_not_mix(empty: Workspace, docs: Path, tmp_path: Path) -> None:
    shared = str(tmp_path / "shared.db")
    other = Workspace.open(tmp_path / "other")
    _build(empty, docs / "hr", name="secret", store=shared)
    _build(empty, docs / "a.md", name="open", store=shared)
    _build(other, docs / "a.md", name="open", store=shared)
    assert _seen(empty, ref="secret") == {"pay.txt"}
    assert _seen(empty, ref="open") == {"a.md"} == _seen(other, ref="open")
    assert {path.name for path in tmp_path.glob("*.db")} == {
        "shared-1.db",
        "shared-open-1.db",
        "shared-open-2-1.db",
    }
    _build(empty, docs, name="open", store=shared)
    assert _seen(empty, ref="open") == {"a.md", "pay.txt"} and _seen(other, ref="open") == {"a.md"}
