"""The scheduler and what is written with it, over a runner of a few lines whose texts can be foretold."""

import queue
import threading
import time
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.generate.runner import NoRoom, Text, Work
from yunque.generate.sampler import Sampler
from yunque.generate.scheduler import Job, Scheduler
from yunque.generate.speculation import Proposal
from yunque.generate.step import Step
from yunque.generate.steps import Steps, best_of
from yunque.generate.turn import Turn
from yunque.generate.writing import Scoring, Writing
from yunque.tokenizer import Tokenizer

VOCABULARY = 300


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["el niño comió piñas y el perro comió piñas"] * 3, VOCABULARY)


class Remembered:
    """A text of the runner below: the tokens that were read."""

    def __init__(self, runner: "Reckoner", ids: list[int], unread: list[int], fresh: int) -> None:
        self.runner, self.ids, self.unread, self.fresh = runner, ids, unread, fresh

    @property
    def length(self) -> int:
        return len(self.ids)

    def truncate(self, length: int) -> None:
        del self.ids[length:]

    def fork(self) -> "Remembered":
        self.runner.take_place()
        return Remembered(self.runner, list(self.ids), list(self.unread), self.fresh)

    def close(self) -> None:
        self.runner.open_texts -= 1


class Reckoner:
    """A runner whose scores depend on every token that a text has read. `places` texts fit at a time."""

    can_truncate = True

    def __init__(self, places: int = 1000) -> None:
        self.places, self.open_texts = places, 0
        self.calls: list[list[int]] = []
        self.before_run: Callable[[], None] = lambda: None

    def take_place(self) -> None:
        if self.open_texts == self.places:
            raise NoRoom
        self.open_texts += 1

    def open(self, prompt: Sequence[int], fresh: int, adapter: str | None = None) -> Text:
        if adapter == "unknown":
            raise UserError("there is no such adapter")
        self.take_place()
        return Remembered(self, [], list(prompt), fresh)

    def scores(self, ids: Sequence[int]) -> Tensor:
        number = 7
        for id in ids:
            number = (number * 31 + id) % 1_000_003
        return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(number)) * 2

    def run(self, works: Sequence[Work]) -> list[Tensor]:
        self.before_run()
        self.calls.append([len(work.ids) for work in works])
        given = []
        for work in works:
            text = work.text
            assert isinstance(text, Remembered)
            rows = []
            for id in work.ids:
                text.ids.append(id)
                rows.append(self.scores(text.ids))
            given.append(torch.stack(rows)[len(rows) - work.wanted :])
        return given


@pytest.fixture
def runner() -> Reckoner:
    return Reckoner()


@pytest.fixture
def scheduler(runner):
    made = Scheduler(runner, Turn(), chunk=8)
    yield made
    made.close()
    assert runner.open_texts == 0, "every text gave its place back"


def begun(scheduler, tokenizer, prompt: list[int], config: GenerationConfig, draft=None, **job) -> Steps:
    told = queue.SimpleQueue[Step | Exception]()
    never = torch.tensor(tokenizer.mark_ids)
    tasks = [
        Writing(
            config,
            tokenizer,
            Sampler(config, prompt, VOCABULARY, never, index),
            told.put,
            prompt,
            index,
            draft=draft() if draft else None,
        )
        for index in range(config.candidates)
    ]
    made = Job(prompt, list(tasks), config.max_new_tokens, **job)
    if config.echo:
        made.prompt, made.ahead = prompt[:1], prompt[1 : None if config.max_new_tokens else -1]
    steps = Steps(told, config.candidates)
    steps.submit(scheduler, made)
    return steps


def written(runner: Reckoner, tokenizer: Tokenizer, prompt: list[int], count: int) -> list[int]:
    """The likeliest tokens, one whole reading after the other."""
    ids = list(prompt)
    for _ in range(count):
        scores = runner.scores(ids)
        scores[list(tokenizer.mark_ids)] = float("-inf")
        ids.append(int(scores.argmax()))
    return ids[len(prompt) :]


GREEDY = GenerationConfig(max_new_tokens=12, ignore_end=True)


def test_texts_of_any_length_side_by_side_are_what_each_is_alone(scheduler, runner, tokenizer) -> None:
    prompts = [[9 + n] * (1 + 5 * n) for n in range(16)]
    streams = [begun(scheduler, tokenizer, prompt, GREEDY) for prompt in prompts]
    for prompt, stream in zip(prompts, streams, strict=True):
        assert [step.token_id for step in stream] == written(runner, tokenizer, prompt, 12)
    assert max(len(call) for call in runner.calls) > 4, "they shared steps"


def test_a_text_joins_others_under_way(scheduler, runner, tokenizer) -> None:
    first = begun(scheduler, tokenizer, [9], GREEDY.model_copy(update={"max_new_tokens": 2000}))
    for _ in range(3):
        next(first)
    second = list(begun(scheduler, tokenizer, [9, 10], GREEDY))
    assert [step.token_id for step in second] == written(runner, tokenizer, [9, 10], 12)
    assert next(first).finish_reason is None
    first.close()


def test_long_prompts_are_read_in_pieces_while_others_write(runner, tokenizer) -> None:
    gate = threading.Event()
    runner.before_run = lambda: gate.wait(5) and None
    scheduler = Scheduler(runner, Turn(), chunk=8)
    writer = begun(scheduler, tokenizer, [9], GREEDY)
    reader = begun(scheduler, tokenizer, list(range(9, 49)), GREEDY)
    gate.set()
    assert [step.token_id for step in reader] == written(runner, tokenizer, list(range(9, 49)), 12)
    assert len(list(writer)) == 12
    scheduler.close()
    assert all(sum(size for size in call if size > 1) <= 8 for call in runner.calls)
    assert [1, 8] in runner.calls, "one text wrote while the other was read"


def test_a_closed_stream_frees_its_place_within_one_step(scheduler, runner, tokenizer) -> None:
    stream = begun(scheduler, tokenizer, [9], GREEDY.model_copy(update={"max_new_tokens": 10**6}))
    next(stream)
    before = len(runner.calls)
    stream.close()
    at_the_close = len(runner.calls)
    while runner.open_texts:
        time.sleep(0.001)
    assert len(runner.calls) <= at_the_close + 1
    assert before <= at_the_close
    assert list(stream) == []


def test_who_finds_no_room_waits_its_turn(tokenizer) -> None:
    runner = Reckoner(places=2)
    scheduler = Scheduler(runner, Turn())
    streams = [begun(scheduler, tokenizer, [9 + n], GREEDY) for n in range(6)]
    for n, stream in enumerate(streams):
        assert [step.token_id for step in stream] == written(runner, tokenizer, [9 + n], 12)
    assert max(len(call) for call in runner.calls) == 2
    with pytest.raises(UserError, match="too small for this request"):
        list(begun(scheduler, tokenizer, [9], GREEDY.model_copy(update={"n": 3})))
    scheduler.close()
    assert runner.open_texts == 0


def test_a_request_that_nobody_wants_any_more_ends_wherever_it_is(scheduler, runner, tokenizer) -> None:
    endless = GREEDY.model_copy(update={"max_new_tokens": 10**6})
    until = time.monotonic() + 0.05
    steps = list(begun(scheduler, tokenizer, [9], endless, wanted=lambda: time.monotonic() < until))
    assert 0 < len(steps) < 10**6 and steps[-1].finish_reason is None
    calls = len(runner.calls)
    assert list(begun(scheduler, tokenizer, [9], GREEDY, wanted=lambda: False)) == []
    assert len(runner.calls) == calls
    assert len(list(begun(scheduler, tokenizer, [9], GREEDY, wanted=lambda: True))) == 12


def test_whoever_waits_is_told_of_any_failure_of_the_scheduler(
    scheduler, runner, tokenizer, monkeypatch
) -> None:
    def broken(*_) -> None:
        monkeypatch.undo()
        raise ValueError("a fault of ours")

    for owner, part, n in ((Remembered, "fork", 2), (scheduler, "_step", 1)):
        monkeypatch.setattr(owner, part, broken)
        with pytest.raises(ValueError, match="a fault of ours"):
            list(begun(scheduler, tokenizer, [9], GREEDY.model_copy(update={"n": n})))
        assert len(list(begun(scheduler, tokenizer, [9], GREEDY))) == 12
        assert runner.open_texts == 0


def test_tokens_of_texts_that_are_not_returned_are_counted(scheduler, tokenizer) -> None:
    config = GenerationConfig(
        max_new_tokens=6, temperature=1.5, seed=1, n=2, best_of=5, logprobs=0, ignore_end=True
    )
    steps = list(best_of(begun(scheduler, tokenizer, [9], config), config))
    assert len(steps) == 12 and sum(step.unseen for step in steps) == 18


def test_several_texts_of_a_request_part_after_the_prompt(scheduler, runner, tokenizer) -> None:
    config = GenerationConfig(max_new_tokens=10, temperature=1.0, seed=5, n=3, ignore_end=True)
    prompt = list(range(9, 30))
    steps = list(begun(scheduler, tokenizer, prompt, config))
    texts = [[step.token_id for step in steps if step.index == index] for index in range(3)]
    assert len({tuple(text) for text in texts}) == 3, "each draws for itself"
    assert sum(sum(call) for call in runner.calls) == len(prompt) + 3 * 9, "the prompt is read once"
    again = list(begun(scheduler, tokenizer, prompt, config))
    assert [[step.token_id for step in again if step.index == index] for index in range(3)] == texts
    alone = begun(scheduler, tokenizer, prompt, config.model_copy(update={"n": 1}))
    assert [step.token_id for step in alone] == texts[0], "the first one is what it is without others"


def test_the_best_of_several_has_the_highest_mean_log_probability(scheduler, tokenizer) -> None:
    config = GenerationConfig(
        max_new_tokens=6, temperature=1.5, seed=1, n=2, best_of=6, logprobs=0, ignore_end=True
    )
    every = list(begun(scheduler, tokenizer, [9], config))
    means = {
        index: sum(step.scored.logprob for step in every if step.index == index) / 6 for index in range(6)
    }
    kept = list(best_of(begun(scheduler, tokenizer, [9], config), config))
    best = sorted(means, key=means.get, reverse=True)[:2]
    for index, original in enumerate(best):
        assert [step.token_id for step in kept if step.index == index] == [
            step.token_id for step in every if step.index == original
        ]
    assert means[best[0]] > min(means.values())


def logprobs(runner: Reckoner, ids: Sequence[int]) -> list[float]:
    """Of each token but the first after those before it."""
    return [float(runner.scores(ids[:place]).log_softmax(0)[ids[place]]) for place in range(1, len(ids))]


@pytest.mark.parametrize("fresh", [0, 1, 4])
@pytest.mark.parametrize("prompt", [[9], [9, 40], list(range(9, 40))], ids=len)
def test_echo_tells_the_prompt_with_its_log_probabilities(
    scheduler, runner, tokenizer, prompt: list[int], fresh: int
) -> None:
    config = GenerationConfig(max_new_tokens=fresh, echo=True, logprobs=2, ignore_end=True)
    steps = list(begun(scheduler, tokenizer, prompt, config))
    echoed, rest = steps[: len(prompt)], steps[len(prompt) :]
    assert [step.token_id for step in echoed] == prompt and all(step.echoed for step in echoed)
    assert [step.token_id for step in rest] == written(runner, tokenizer, prompt, fresh)
    assert echoed[0].scored.logprob is None and echoed[0].likeliest == ()
    told = [step.scored.logprob for step in echoed[1:]]
    assert told == pytest.approx(logprobs(runner, prompt), abs=1e-5)
    assert all(len(step.likeliest) == 2 for step in steps[1:])
    assert [step.finish_reason for step in steps] == [None] * (len(steps) - 1) + ["length"]
    assert "".join(step.text for step in echoed) == tokenizer.decode(prompt)


def test_a_continuation_is_scored_token_by_token(scheduler, runner) -> None:
    told = queue.SimpleQueue[float | Exception]()
    prompt, continuation = [9, 8, 7], list(range(30, 60))
    scheduler.submit(Job(prompt, [Scoring(continuation, told.put)], 30, ahead=continuation[:-1]))
    expected = sum(logprobs(runner, [*prompt, *continuation])[len(prompt) - 1 :])
    assert told.get(timeout=10) == pytest.approx(expected, rel=1e-5)
    assert sum(logprobs(runner, [*prompt, *continuation])[: len(continuation)]) != pytest.approx(
        expected, rel=1e-3
    )


def test_scores_that_are_no_numbers_end_only_their_own_text(scheduler, runner, tokenizer) -> None:
    plain = runner.scores
    runner.scores = lambda ids: plain(ids) + (float("nan") if ids[0] == 13 and len(ids) > 4 else 0.0)
    good = begun(scheduler, tokenizer, [9], GREEDY)
    bad = begun(scheduler, tokenizer, [13], GREEDY)
    with pytest.raises(UserError, match="not numbers"):
        list(bad)
    assert len(list(good)) == 12


def test_a_failure_of_the_runner_is_told_to_all_and_the_next_request_is_answered(
    scheduler, runner, tokenizer
) -> None:
    def fail() -> None:
        runner.before_run = lambda: None
        raise UserError("out of something")

    runner.before_run = fail
    with pytest.raises(UserError, match="out of something"):
        list(begun(scheduler, tokenizer, [9], GREEDY))
    with pytest.raises(UserError, match="no such adapter"):
        list(begun(scheduler, tokenizer, [9], GREEDY, adapter="unknown"))
    assert len(list(begun(scheduler, tokenizer, [9], GREEDY))) == 12


def test_its_thread_ends_when_there_is_nothing_to_do_and_comes_back(runner, tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(Scheduler, "_IDLE_SECONDS", 0.01)
    scheduler = Scheduler(runner, Turn())
    for _ in range(3):
        assert len(list(begun(scheduler, tokenizer, [9], GREEDY))) == 12
        while scheduler._thread is not None:
            time.sleep(0.005)
    scheduler.close()
    with pytest.raises(RuntimeError, match="closed"):
        begun(scheduler, tokenizer, [9], GREEDY)


def test_closing_ends_what_is_under_way_and_what_waits(tokenizer) -> None:
    runner = Reckoner(places=1)
    scheduler = Scheduler(runner, Turn())
    endless = GREEDY.model_copy(update={"max_new_tokens": 10**6})
    first, second = (begun(scheduler, tokenizer, [9], endless) for _ in range(2))
    next(first)
    scheduler.close()
    for stream in (first, second):
        with pytest.raises(RuntimeError, match="closed"):
            list(stream)
    assert runner.open_texts == 0


def test_a_seed_gives_the_same_text_whatever_else_is_written(scheduler, tokenizer) -> None:
    config = GenerationConfig(max_new_tokens=20, temperature=1.0, top_p=0.9, seed=3, ignore_end=True)
    alone = [step.token_id for step in begun(scheduler, tokenizer, [9], config)]
    others = [begun(scheduler, tokenizer, [10 + n], config.model_copy(update={"seed": n})) for n in range(5)]
    among = [step.token_id for step in begun(scheduler, tokenizer, [9], config)]
    assert among == alone
    assert [step.token_id for step in others[0]] != alone


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_proposals_are_read_together_and_change_nothing_that_is_greedy(
    scheduler, runner, tokenizer, temperature: float
) -> None:
    foretold = written(runner, tokenizer, [9, 10, 11], 60)

    class Sometimes:
        """Right about three of four tokens."""

        def propose(self, ids, count, _) -> Proposal:
            place = len(ids) - 3
            return Proposal(tuple(id if id % 4 else 5 for id in foretold[place : place + count]))

        def close(self) -> None:
            closed.append(1)

    closed: list[int] = []
    config = GREEDY.model_copy(update={"max_new_tokens": 60, "temperature": temperature, "seed": 1})
    steps = list(begun(scheduler, tokenizer, [9, 10, 11], config, draft=Sometimes))
    assert len(steps) == 60 and closed
    if not temperature:
        assert [step.token_id for step in steps] == foretold
        assert len(runner.calls) < 45, "several tokens a step"


def test_stop_strings_and_ends_are_kept_within_proposals(scheduler, runner, tokenizer) -> None:
    foretold = written(runner, tokenizer, [9, 10, 11], 40)
    end = foretold[17]

    class Prophet:
        def propose(self, ids, count, _) -> Proposal:
            return Proposal(tuple(foretold[len(ids) - 3 :][:count]))

        def close(self) -> None:
            pass

    config = GenerationConfig(max_new_tokens=40, stop_ids=(end,))
    steps = list(begun(scheduler, tokenizer, [9, 10, 11], config, draft=Prophet))
    first = min(place for place, id in enumerate(foretold) if id in (end, *tokenizer.end_ids))
    assert [step.token_id for step in steps] == foretold[: first + 1]
    assert steps[-1].finish_reason == "stop"
