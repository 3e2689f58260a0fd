"""Running chains: order, types, retries, maps, branches, and what is kept of them."""

import sys
import threading
from pathlib import Path

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

from yunque.apps.chains import (
    Chain,
    ChainRunner,
    Retry,
    RunDeleted,
    StepContext,
    StepFailed,
    branch,
    map_over,
    open_states,
    step,
)
from yunque.errors import UserError
from yunque.llm import ModelUnavailable


class Article(BaseModel):
    title: str
    paragraphs: list[str]


class Found(TypedDict):
    words: int


def split(text: str) -> Article:
    title, *rest = text.split("\n")
    return Article(title=title, paragraphs=rest)


def paragraphs(article: Article) -> list[str]:
    return article.paragraphs


def shout(text: str) -> str:
    return text.upper()


def count(texts: list[str], split: Article) -> Found:
    return {"words": sum(len(one.split()) for one in texts) + len(split.title.split())}


@pytest.fixture
def runner(tmp_path: Path) -> ChainRunner:
    return ChainRunner(open_states(tmp_path))


REVIEW = Chain(
    "review", [step(split), step(paragraphs), map_over(step(shout), name="shouted", parallel=2), step(count)]
)


def test_steps_follow_one_another_and_may_read_earlier_ones_by_name(runner: ChainRunner) -> None:
    done = runner.run(REVIEW, "A title\none two\nthree")
    assert done.value == {"words": 5}
    kept = {state.path: state.value for state in runner.states.states(done.run)}
    assert kept["shouted[0]/shout"] == "ONE TWO"
    assert kept["shouted"] == ["ONE TWO", "THREE"]
    assert kept["split"] == {"title": "A title", "paragraphs": ["one two", "three"]}


def test_types_that_do_not_fit_are_told_with_the_step_when_the_chain_is_made() -> None:
    with pytest.raises(
        UserError, match=r"chain wrong, step shout: takes str, but what split gives is Article"
    ):
        Chain("wrong", [step(split), step(shout)])
    with pytest.raises(UserError, match=r"step each: goes over a list, but what split gives is Article"):
        Chain("wrong", [step(split), map_over(step(shout), name="each")])

    def later(text: str, nobody: int) -> str:
        return text * nobody

    with pytest.raises(
        UserError, match=r"step later: its parameter 'nobody' is not the name of an earlier step"
    ):
        Chain("wrong", [step(shout), step(later)])
    with pytest.raises(UserError, match="two steps are called 'shout'"):
        Chain("wrong", [step(shout), step(shout)])
    with pytest.raises(UserError) as told:
        Chain("wrong", [step(split), step(shout), step(later)])
    assert [line.split(":")[0] for line in str(told.value).splitlines()] == [
        "chain wrong, step shout", "chain wrong, step later",
    ]  # fmt: skip
    Chain("right", [step(split), map_over(step(shout), name="each", over="split.paragraphs")])
    with pytest.raises(UserError, match="Article has no 'authors'"):
        Chain("wrong", [step(split), map_over(step(shout), name="each", over="split.authors")])


def test_names_may_have_the_letters_of_any_language(runner: ChainRunner) -> None:
    done = runner.run(Chain("2.reseñas", [map_over(step(shout, name="años"), name="reseñas")]), ["a"])
    assert [state.path for state in runner.states.states(done.run)] == ["reseñas", "reseñas[0]/años"]
    again = runner.branch(
        Chain("2.reseñas", [map_over(step(shout, name="años"), name="reseñas")]), done.run, "años"
    )
    assert again.value == ["A"]
    for wrong in ("1x", "a b", "item", "x/y", "x[1]", ""):
        with pytest.raises(UserError, match="cannot be the name"):
            step(shout, name=wrong) if wrong else map_over(step(shout), name="")


def test_a_step_that_runs_once_is_not_tried_again() -> None:
    with pytest.raises(UserError, match="leave out once or retry"):
        step(shout, once=True, retry=Retry())

    async def later(text: str) -> str:
        return text

    with pytest.raises(UserError, match="its function is async"):
        step(later)


def test_a_function_must_say_its_types() -> None:
    with pytest.raises(UserError, match="step bare: its parameter text has no type"):
        step(lambda text: text, name="bare")


def test_what_a_step_gives_must_be_what_it_says(runner: ChainRunner) -> None:
    def liar(text: str) -> int:
        return text  # type: ignore[return-value]

    with pytest.raises(StepFailed, match="step liar: what it gave is not of the type that it says"):
        runner.run(Chain("lies", [step(liar)]), "word")

    def endless(text: str) -> float:
        return float("inf") if text else 0.0

    with pytest.raises(StepFailed, match="cannot be kept as JSON"):
        runner.run(Chain("endless", [step(endless)]), "word")


def test_a_branch_takes_the_case_that_was_chosen_and_keeps_the_choice(runner: ChainRunner) -> None:
    asked: list[str] = []

    def is_long(text: str) -> bool:
        asked.append(text)
        return len(text) > 5

    def shorten(text: str) -> str:
        return text[:5]

    chain = Chain(
        "cut", [branch(is_long, {"true": [step(shorten)], "false": []}, name="length"), step(shout)]
    )
    assert runner.run(chain, "a long text").value == "A LON"
    done = runner.run(chain, "short")
    assert done.value == "SHORT"
    assert runner.resume(chain, done.run).value == "SHORT"
    assert len(asked) == 2
    only = Chain("cut", [branch(is_long, {"true": [step(shorten)]}, name="length")])
    with pytest.raises(StepFailed, match="has no case 'false'"):
        runner.run(only, "short")


def test_a_step_is_tried_again_after_errors_that_may_pass_and_only_after_those(runner: ChainRunner) -> None:
    tries: list[int] = []

    def shaky(text: str, context: StepContext) -> str:
        tries.append(context.attempt)
        if context.attempt < 3:
            raise ModelUnavailable("is busy", again=True)
        return text

    quick = Retry(attempts=3, wait=0.0)
    assert runner.run(Chain("c", [step(shaky, retry=quick)]), "x").value == "x"
    assert tries == [1, 2, 3]

    def broken(text: str) -> str:
        tries.append(0)
        raise ValueError(text)

    tries.clear()
    with pytest.raises(StepFailed, match="step broken: ValueError: x"):
        runner.run(Chain("c", [step(broken, retry=quick)]), "x")
    assert tries == [0]
    tries.clear()
    with pytest.raises(StepFailed, match="3 attempts"):
        runner.run(Chain("c", [step(broken, retry=Retry(attempts=3, wait=0, on=("ValueError",)))]), "x")
    assert tries == [0, 0, 0]


def test_a_step_that_exits_fails_and_does_not_end_the_process(
    runner: ChainRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    def leave(number: int) -> int:
        print(f"printed by {number}")
        if number == 1:
            sys.exit("bye")
        return number

    chain = Chain("c", [map_over(step(leave), name="each", parallel=3, failures="leave_out")])
    assert runner.run(chain, [0, 1, 2]).value == [0, 2]
    with pytest.raises(StepFailed, match=r"step leave: it called sys.exit\('bye'\)") as failed:
        runner.run(Chain("c", [step(leave)]), 1)
    assert runner.states.run(failed.value.run).status == "failed"
    print("ours")
    said = capsys.readouterr()
    assert said.out == "ours\n"
    assert sorted(said.err.splitlines()) == [f"printed by {number}" for number in (0, 1, 1, 2)]


def test_prints_of_others_at_the_same_time_still_reach_standard_output(
    runner: ChainRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    inside, go = threading.Event(), threading.Event()

    def wait(text: str) -> str:
        print("apart, before")
        inside.set()
        go.wait(5)
        print("apart, after")
        return text

    before = sys.stdout
    work = threading.Thread(target=lambda: runner.run(Chain("c", [step(wait)]), "x"))
    work.start()
    assert inside.wait(5)
    print("ours meanwhile")
    go.set()
    work.join()
    assert sys.stdout is before
    said = capsys.readouterr()
    assert said.out == "ours meanwhile\n" and said.err == "apart, before\napart, after\n"


def test_why_a_step_failed_is_kept_and_told_apart_from_what_anybody_may_know(runner: ChainRunner) -> None:
    def connect(text: str) -> str:
        raise KeyError(f"postgres://root:PASSWORD@db/{text}")

    with pytest.raises(StepFailed) as caught:
        runner.run(Chain("c", [step(connect)]), "x")
    failed = caught.value
    assert failed.told == f"step connect failed; run {failed.run} says why"
    assert (failed.path, "PASSWORD" in failed.reason, "PASSWORD" in str(failed)) == ("connect", True, True)
    assert "PASSWORD" in runner.states.run(failed.run).error
    assert "PASSWORD" in runner.states.state(failed.run, "connect").error  # type: ignore[union-attr]


def test_a_failed_run_goes_on_where_it_failed(runner: ChainRunner) -> None:
    calls: list[str] = []
    mended = threading.Event()

    def first(text: str) -> str:
        calls.append("first")
        return text + "!"

    def second(text: str) -> str:
        calls.append("second")
        if not mended.is_set():
            raise ValueError("not yet")
        return text + "?"

    chain = Chain("c", [step(first), step(second)])
    with pytest.raises(StepFailed) as failed:
        runner.run(chain, "x")
    assert runner.states.run(failed.value.run).status == "failed"
    mended.set()
    done = runner.resume(chain, failed.value.run)
    assert done.value == "x!?"
    assert calls == ["first", "second", "second"]
    assert runner.states.run(done.run).status == "done"


def test_a_map_does_at_most_so_many_items_at_once_and_a_failed_item_alone_is_done_again(
    runner: ChainRunner,
) -> None:
    under_way, most, seen = 0, 0, list[int]()
    turn, mended = threading.Lock(), threading.Event()
    together = threading.Barrier(3, timeout=5)

    def work(number: int) -> int:
        nonlocal under_way, most
        with turn:
            under_way += 1
            most = max(most, under_way)
            seen.append(number)
        if number < 3 and not mended.is_set():
            together.wait()
        with turn:
            under_way -= 1
        if number == 5 and not mended.is_set():
            raise ValueError("five")
        return number * 10

    chain = Chain("m", [map_over(step(work), name="tens", parallel=3)])
    with pytest.raises(StepFailed, match=r"tens\[5\]/work: ValueError: five") as failed:
        runner.run(chain, list(range(6)))
    assert most == 3
    first_time = list(seen)
    mended.set()
    assert runner.resume(chain, failed.value.run).value == [0, 10, 20, 30, 40, 50]
    assert set(seen[len(first_time) :]) == {5} | (set(range(6)) - set(first_time))


def test_items_that_fail_can_be_left_out_without_stopping_a_map_around(runner: ChainRunner) -> None:
    def inverse(number: int) -> float:
        return 1 / number

    chain = Chain(
        "m", [map_over(map_over(step(inverse), name="inner"), name="outer", parallel=1, failures="leave_out")]
    )
    assert runner.run(chain, [[1, 0], [2], [4, 4]]).value == [[0.5], [0.25, 0.25]]


def test_a_step_knows_its_key_and_keeps_it(runner: ChainRunner) -> None:
    keys: list[str] = []

    def pay(amount: int, context: StepContext) -> int:
        keys.append(context.key)
        if len(keys) == 1:
            raise ConnectionError("lost")
        return amount

    chain = Chain("p", [step(pay)])
    with pytest.raises(StepFailed) as failed:
        runner.run(chain, 5)
    runner.resume(chain, failed.value.run)
    runner.run(chain, 5)
    assert keys[0] == keys[1] != keys[2]


def test_a_step_marked_once_is_not_run_again_after_a_kill_in_the_middle(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    paid: list[int] = []

    def pay(amount: int) -> int:
        paid.append(amount)
        if len(paid) == 1:
            raise Killed
        return amount

    runner = ChainRunner(open_states(tmp_path))
    for once, again in ((True, 1), (False, 2)):
        paid.clear()
        chain = Chain("p", [step(pay, once=once)])
        with pytest.raises(Killed):
            runner.run(chain, 5, id=f"r{once}")
        if once:
            with pytest.raises(StepFailed, match="may have acted"):
                runner.resume(chain, "rTrue")
            assert len(paid) == again
            runner.resume(chain, "rTrue", again=["pay"])
            assert len(paid) == 2
        else:
            runner.resume(chain, "rFalse")
            assert len(paid) == again


def test_two_cannot_work_on_one_run(runner: ChainRunner, tmp_path: Path) -> None:
    other = ChainRunner(open_states(tmp_path))
    said: list[str] = []

    def meddle(text: str, context: StepContext) -> str:
        try:
            other.resume(chain, context.run)
        except UserError as error:
            said.append(str(error))
        return text

    chain = Chain("c", [step(meddle)])
    runner.run(chain, "x")
    assert len(said) == 1 and "another process is working on it" in said[0]


def test_a_run_deleted_while_under_way_stops_and_stays_deleted(runner: ChainRunner, tmp_path: Path) -> None:
    other = open_states(tmp_path)
    after: list[str] = []

    def deleted(text: str, context: StepContext) -> str:
        other.delete([context.run])
        return text

    def later(text: str) -> str:
        after.append(text)
        return text

    chain = Chain("c", [step(deleted), step(later)])
    with pytest.raises(RunDeleted):
        runner.run(chain, "x", id="gone")
    assert not after
    for attempt in (lambda: runner.resume(chain, "gone"), lambda: runner.run(chain, "x", id="gone")):
        with pytest.raises(RunDeleted):
            attempt()
    assert runner.states.runs() == []


def test_an_input_that_is_no_json_is_refused_and_one_of_another_type_is_told(runner: ChainRunner) -> None:
    with pytest.raises(UserError, match="the input must be a JSON value"):
        runner.run(REVIEW, {1, 2})
    with pytest.raises(StepFailed, match="what it is given is not of its type"):
        runner.run(REVIEW, 5)


@pytest.mark.parametrize("text", ["\ud800", "\x00", "ñ🎈", "", "'; DROP TABLE runs"])
def test_any_text_comes_back_as_it_was(runner: ChainRunner, text: str) -> None:
    def same(value: str) -> list[str]:
        return [value]

    if text == "\ud800":
        chain = Chain("any", [branch("input.x", {"y": []}, name="b")])
        done = runner.run(chain, {"x": "y", "odd": text})
        assert runner.states.run(done.run).input == {"x": "y", "odd": text}
        return
    done = runner.run(Chain("any", [step(same)]), text)
    assert runner.states.state(done.run, "same").value == [text]  # type: ignore[union-attr]
