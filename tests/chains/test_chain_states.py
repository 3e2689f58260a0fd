"""One conformance suite for the states of chains, on SQLite and on Postgres."""

import secrets
import threading
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reopened import Reopen

from yunque.apps.chains import (
    Chain,
    ChainRunner,
    Retry,
    RunDeleted,
    States,
    StepContext,
    branch,
    map_over,
    step,
)
from yunque.apps.chains.index import StateIndex
from yunque.apps.keeping.database import Database
from yunque.apps.keeping.holding import Held
from yunque.errors import UserError
from yunque.llm import Cost, Message, ScriptedModel, Usage


class Killed(BaseException):
    """Stands for kill -9: nothing that catches errors catches it."""


class Counted:
    """Steps that count how often they were run, and with what."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.turn = threading.Lock()

    def note(self, call: str) -> None:
        with self.turn:
            self.calls.append(call)

    def chain(self) -> Chain:
        def parts(text: str) -> list[str]:
            self.note("parts")
            return text.split()

        def clean(word: str) -> str:
            self.note(f"clean {word}")
            return word.strip(".,")

        def is_long(word: str) -> bool:
            self.note(f"is_long {word}")
            return len(word) > 3

        def shorten(word: str) -> str:
            self.note(f"shorten {word}")
            return word[:3]

        def join(words: list[str], parts: list[str]) -> str:
            self.note("join")
            return f"{len(parts)}: {' '.join(words)}"

        cut = branch(is_long, {"true": [step(shorten)], "false": []}, name="cut")
        return Chain("words", [step(parts), map_over(step(clean), cut, name="each", parallel=2), step(join)])


TEXT = "uno, cuatro dos."
WHOLE = "3: uno cua dos"


class Dying:
    """A database that is killed at the nth write: before it, or after it was made."""

    def __init__(self, database: Database, at: int, after: bool) -> None:
        self._database, self._left, self._after = database, at, after
        self._turn = threading.RLock()

    def __getattr__(self, name: str) -> object:
        return getattr(self._database, name)

    def write(self, sql: str, values: object = ()) -> int:
        with self._turn:
            self._left -= 1
            if self._left < 0 or (self._left == 0 and not self._after):
                raise Killed
            changed = self._database.write(sql, values)  # type: ignore[arg-type]
            if self._left == 0:
                raise Killed
            return changed


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kills=st.lists(st.tuples(st.integers(2, 60), st.booleans()), min_size=1, max_size=3))
def test_killed_at_any_write_a_run_goes_on_to_the_same_result_and_does_no_finished_step_again(
    reopen: Reopen, kills: list[tuple[int, bool]]
) -> None:
    counted, run = Counted(), f"run-{secrets.token_hex(8)}"
    chain = counted.chain()
    finished: set[str] = set()
    for number, (at, after) in enumerate(kills):
        states = reopen()
        states.database = Dying(states.database, at, after)  # type: ignore[assignment]
        runner = ChainRunner(states)
        counted.calls.clear()
        try:
            if number == 0:
                runner.run(chain, TEXT, id=run)
            else:
                runner.resume(chain, run)
        except Killed:
            pass
        except UserError:
            assert not _known(reopen(), run)  # it was killed before the run was kept
        assert not finished & _paths(counted.calls)
        if _known(reopen(), run):
            finished = {s.path for s in reopen().states(run) if s.done}
    counted.calls.clear()
    runner = ChainRunner(reopen())
    done = runner.resume(chain, run) if _known(runner.states, run) else runner.run(chain, TEXT, id=run)
    assert done.value == WHOLE
    assert not finished & _paths(counted.calls)
    assert len(set(counted.calls)) == len(counted.calls)
    reopen.close()


def _known(states: States, run: str) -> bool:
    return any(one.id == run for one in states.runs(limit=10_000))


def _paths(calls: list[str]) -> set[str]:
    """Where in the run these calls stand."""
    places = {"uno,": 0, "uno": 0, "cuatro": 1, "dos.": 2, "dos": 2}
    found = set()
    for call in calls:
        name, _, word = call.partition(" ")
        at = f"each[{places.get(word)}]/"
        paths = {"clean": f"{at}clean", "is_long": f"{at}cut[]", "shorten": f"{at}cut[true]/shorten"}
        found.add(paths.get(name, name))
    return found


def test_a_run_goes_back_in_time_as_a_branch_that_shares_what_came_before(reopen: Reopen) -> None:
    counted = Counted()
    runner = ChainRunner(reopen())
    first = runner.run(counted.chain(), TEXT)
    for start, again in (
        ("join", ["join"]),
        ("each", ["clean cuatro", "clean dos.", "clean uno,", "is_long cuatro", "is_long dos", "is_long uno", "join",
                  "shorten cuatro"]),
        ("each[1]", ["clean cuatro", "is_long cuatro", "join", "shorten cuatro"]),
        ("each[1]/cut", ["is_long cuatro", "join", "shorten cuatro"]),
        ("shorten", ["join", "shorten cuatro"]),
        ("cut", ["is_long cuatro", "is_long dos", "is_long uno", "join", "shorten cuatro"]),
    ):  # fmt: skip
        counted.calls.clear()
        made = runner.branch(counted.chain(), first.run, start)
        assert made.value == WHOLE
        assert sorted(counted.calls) == again, start
    kept = runner.states.run(made.run)
    assert (kept.parent, kept.parent_step) == (first.run, "cut")
    counted.calls.clear()
    edited = runner.branch(counted.chain(), made.run, "join", {"each": ["otra", "cosa"]})
    assert edited.value == "3: otra cosa" and counted.calls == ["join"]
    with pytest.raises(
        UserError, match=r"has no step 'nowhere' to go on from \(there are: parts, each, each/clean"
    ):
        runner.branch(counted.chain(), first.run, "nowhere")
    with pytest.raises(UserError, match="has no result at 'join' before each"):
        runner.branch(counted.chain(), first.run, "each", {"join": "x"})


def test_a_chain_that_has_changed_goes_on_from_a_step_only(reopen: Reopen) -> None:
    counted = Counted()
    runner = ChainRunner(reopen())
    first = runner.run(counted.chain(), TEXT)

    def loudly(text: str) -> str:
        return text.upper()

    longer = Chain("words", [*counted.chain().steps, step(loudly)])
    with pytest.raises(UserError, match="has other steps by now"):
        runner.resume(longer, first.run)
    counted.calls.clear()
    assert runner.branch(longer, first.run, "loudly").value == WHOLE.upper()
    assert counted.calls == []


def test_a_run_with_branches_is_deleted_with_them_or_not_at_all(reopen: Reopen) -> None:
    counted, states = Counted(), reopen()
    runner = ChainRunner(states)
    first = runner.run(counted.chain(), TEXT)
    second = runner.branch(counted.chain(), first.run, "join")
    third = runner.branch(counted.chain(), second.run, "join")
    with pytest.raises(UserError, match="has branches that share its states"):
        states.delete([first.run])
    states.delete([third.run])
    assert runner.resume(counted.chain(), second.run).value == WHOLE
    gone = states.delete([first.run], with_branches=True)
    assert set(gone.runs) == {first.run, second.run} and gone.wiped
    assert states.runs() == []
    for table in ("runs", "states", "shared", "subjects"):
        assert states.database.read(f"SELECT * FROM {table}") == []
    with pytest.raises(RunDeleted):
        states.run(first.run)


def test_a_person_is_forgotten_with_all_runs_about_them_and_nobody_elses(reopen: Reopen) -> None:
    counted, states = Counted(), reopen()
    runner = ChainRunner(states)
    ana = runner.run(counted.chain(), TEXT, subject="ana")
    both = runner.run(counted.chain(), TEXT, subject=["ana", "luis"])
    luis = runner.run(counted.chain(), TEXT, subject="luis")
    branched = runner.branch(counted.chain(), ana.run, "join")
    assert states.of_subject("ana") == sorted([ana.run, both.run, branched.run])
    states.delete(states.of_subject("ana"), with_branches=True)
    assert [one.id for one in states.runs()] == [luis.run]
    assert states.of_subject("ana") == []


def test_old_runs_are_found_for_pruning_but_not_what_is_under_way_or_shared_with_newer_ones(
    reopen: Reopen,
) -> None:
    counted, states = Counted(), reopen()
    runner = ChainRunner(states)
    old, parent, busy, new = (runner.run(counted.chain(), TEXT).run for _ in range(4))
    child = runner.branch(counted.chain(), parent, "join").run
    for run in (old, parent, busy):
        states.database.write(
            "UPDATE runs SET updated = '2020-01-01T00:00:00.000+00:00' WHERE id = ?", (run,)
        )
    with reopen().hold(busy):
        assert states.older(timedelta(days=30)) == [old]
    assert states.older(timedelta(days=30)) == sorted([old, busy])
    states.database.write("UPDATE runs SET updated = '2020-01-01T00:00:00.000+00:00' WHERE id = ?", (child,))
    assert states.older(timedelta(days=30)) == sorted([old, busy, parent, child])
    assert new not in states.older(timedelta(days=30))


def test_one_holds_a_run_and_lets_go_of_it(reopen: Reopen) -> None:
    one, other = reopen(), reopen()
    with one.hold("r"):
        with pytest.raises(Held), other.hold("r"):
            pass
        with pytest.raises(Held), one.hold("r"):
            pass
        with other.hold("another"):
            pass
    with other.hold("r"):
        pass


def test_a_transaction_that_fails_leaves_nothing(reopen: Reopen) -> None:
    states = reopen()
    with pytest.raises(ValueError, match="no"), states.database.transaction():
        states.database.write("INSERT INTO gone (id, time, pending) VALUES ('x', '', 1)")
        raise ValueError("no")
    assert reopen().to_unindex() == []


def test_a_run_is_found_by_how_its_id_begins(reopen: Reopen) -> None:
    runner = ChainRunner(reopen())
    for id in ("aa1", "aa2", "b%_"):
        runner.run(Counted().chain(), TEXT, id=id)
    assert runner.states.run("b%").id == "b%_"
    assert runner.states.run("aa1").id == "aa1"
    with pytest.raises(UserError, match="several runs begin with 'aa': aa1, aa2"):
        runner.states.run("aa")
    for none in ("%", "c", ""):
        with pytest.raises(UserError, match=r"there is no run|several"):
            runner.states.run(none)


def test_states_are_looked_up_and_deleted_in_the_vector_store_too(reopen: Reopen) -> None:
    pytest.importorskip("numpy")
    index = StateIndex.open(reopen(), reopen.place)

    def weigh(text: str) -> str:
        return f"La maleta de {text} pesa 23 kg"

    runner = ChainRunner(index.states, recall=index)
    chain = Chain("weigh", [step(weigh)])
    ana, luis = runner.run(chain, "Ana", subject="ana"), runner.run(chain, "Luis")
    assert {one.run for one in index("maleta", k=5)} == {ana.run, luis.run}
    assert [one.run for one in index("maleta", run=luis.run)] == [luis.run]
    assert index.forget("ana").runs == (ana.run,)
    assert [one.run for one in index("maleta", k=5)] == [luis.run]
    assert index.search.count() == 1
    index.delete([luis.run])
    assert index.search.count() == 0
    index.search.close()


def test_what_failed_attempts_took_of_models_is_counted(reopen: Reopen) -> None:
    model = ScriptedModel(["one two", "three"])

    def ask(text: str, context: StepContext) -> str:
        said = context.chat(model, [Message("user", text)]).text
        if context.attempt < 2:
            raise ConnectionError("lost")
        return said

    runner = ChainRunner(reopen())
    done = runner.run(Chain("ask", [step(ask, retry=Retry(attempts=2, wait=0))]), "a b c")
    assert done.value == "three"
    assert done.usage == Usage(6, 3) and done.cost == Cost(0.0)
