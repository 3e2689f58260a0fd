"""The steps of one run under way: in order, in branches, and over the items of lists side by side."""

import random
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, NoReturn

from yunque.apps.chains.apart import apart, reason_of
from yunque.apps.chains.chain import lookup
from yunque.apps.chains.context import OpenModel, Recall, StepContext
from yunque.apps.chains.doing import do_step, fed
from yunque.apps.chains.states import RunDeleted, Spent, States
from yunque.apps.chains.steps import BranchStep, FunctionStep, MapStep, PromptStep, Retry, Step, label_of
from yunque.apps.keeping.json_values import digest
from yunque.errors import UserError
from yunque.llm.face import ModelUnavailable
from yunque.progress import Task

LONGEST_ERROR = 2000


class StepFailed(UserError):
    """A step that failed as often as it may be tried; `__cause__` is why.

    As a text it says why, which is for the owner of the workspace: an exception may hold a password. `told` is for
    anybody else.
    """

    def __init__(self, run: str, path: str, reason: str) -> None:
        super().__init__(f"run {run}, step {path}: {reason}")
        self.run, self.path, self.reason = run, path, reason

    @property
    def told(self) -> str:
        """That it failed, and which run says why."""
        return f"step {self.path} failed; run {self.run} says why"


class _Stopped(Exception):
    """Another item of the map failed: this one does not go on."""


class Stop:
    """Whether the items of a map are to go on; they are not where a map around it is not."""

    def __init__(self, around: "Stop | None" = None) -> None:
        self._own, self._around = threading.Event(), around

    def set(self) -> None:
        """No item goes on."""
        self._own.set()

    def is_set(self) -> bool:
        """Whether it was said here or around."""
        return self._own.is_set() or (self._around is not None and self._around.is_set())

    def wait(self, seconds: float) -> None:
        """Wait, unless it is said meanwhile."""
        end = time.monotonic() + seconds
        while not self.is_set() and (left := end - time.monotonic()) > 0:
            self._own.wait(min(left, 0.1))


@dataclass(frozen=True)
class Place:
    """Where in a run steps are done: what their paths begin with, and what stops them."""

    before: str
    stop: Stop


class Work:
    """One run under way."""

    def __init__(
        self,
        states: States,
        run: str,
        again: frozenset[str],
        task: Task,
        open_model: OpenModel,
        recall: Recall | None,
    ) -> None:
        self.states, self.run, self.again, self.task = states, run, again, task
        self._open_model, self._recall = open_model, recall

    def sequence(self, steps: Sequence[Step], value: Any, values: Mapping[str, Any], place: Place) -> Any:
        """Steps one after the other; the result of the last."""
        known = dict(values)
        for one in steps:
            known["previous"] = value
            path = place.before + one.name
            if isinstance(one, MapStep):
                value = self._mapped(one, known, path, place.stop)
            elif isinstance(one, BranchStep):
                value = self._branched(one, known, path, place.stop)
            else:
                value = self._kept(one, known, path, place.stop)
            known[one.name] = value
            if not place.before:
                self.task.advance(1, note=one.name)
        return value

    def _branched(self, one: BranchStep, values: Mapping[str, Any], path: str, stop: Stop) -> Any:
        chosen = (
            self._referred(one.choose, values, path)
            if isinstance(one.choose, str)
            else self._kept(one.choose, values, f"{path}[]", stop)
        )
        label = label_of(chosen)
        steps = one.cases.get(label, one.default)
        if steps is None:
            known = ", ".join(one.cases)
            raise StepFailed(
                self.run, path, f"has no case {label[:100]!r} (its cases: {known}), and no default"
            )
        named = label if label in one.cases else "*"
        return self.sequence(steps, values["previous"], values, Place(f"{path}[{named}]/", stop))

    def _mapped(self, one: MapStep, values: Mapping[str, Any], path: str, stop: Stop) -> Any:
        kept = self.states.state(self.run, path)
        if kept and kept.done:
            return kept.value
        listed = self._referred(one.over, values, path) if one.over else values["previous"]
        if not isinstance(listed, list):
            raise StepFailed(self.run, path, f"goes over a list, but was given a {type(listed).__name__}")
        self.states.start(self.run, path, key_of(self.run, path))
        began = time.monotonic()
        results = self._items(one, listed, values, Place(path, Stop(stop)))
        self.states.keep(self.run, path, results, time.monotonic() - began, Spent())
        return results

    def _items(self, one: MapStep, items: list[Any], values: Mapping[str, Any], place: Place) -> list[Any]:
        """The result of each item, in order. Once one fails none is begun; those under way end their step."""
        results: dict[int, Any] = {}
        failures: list[StepFailed] = []
        turn = threading.Lock()

        def done(number: int) -> None:
            if place.stop.is_set():
                raise _Stopped
            own = {**values, "item": items[number]}
            try:
                found = self.sequence(
                    one.steps, items[number], own, Place(f"{place.before}[{number}]/", place.stop)
                )
            except StepFailed as failed:
                if one.failures == "stop":
                    place.stop.set()
                with turn:
                    failures.append(failed)
                return
            with turn:
                results[number] = found
            self.task.advance(0, note=f"{place.before}: {len(results)} of {len(items)}")

        with ThreadPoolExecutor(min(one.parallel, max(1, len(items)))) as pool:
            futures = [pool.submit(done, number) for number in range(len(items))]
            try:
                for when in (FIRST_EXCEPTION, ALL_COMPLETED):
                    finished, _ = wait(futures, return_when=when)
                    _raise_first(finished)
            except BaseException:
                place.stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        if failures and one.failures == "stop":
            raise failures[0]
        if place.stop.is_set():
            raise _Stopped
        return [results[number] for number in sorted(results)]

    def _kept(self, one: FunctionStep | PromptStep, values: Mapping[str, Any], path: str, stop: Stop) -> Any:
        """The result of a step: the one that is kept, or a new one, which then is."""
        kept = self.states.state(self.run, path)
        if kept and kept.done:
            return kept.value
        if kept and kept.status == "started" and one.once and path not in self.again:
            raise StepFailed(
                self.run,
                path,
                "was under way when the run was broken off, and may have acted; see whether it did, then go on with"
                f" --again {path} to run it again",
            )
        retry, tries = one.retry or Retry(attempts=1), 0
        while True:
            if stop.is_set():
                raise _Stopped
            attempt = self.states.start(self.run, path, key_of(self.run, path))
            context = StepContext(
                *(self.run, path, key_of(self.run, path), attempt, values, self._open_model, self._recall)
            )
            began = time.monotonic()
            try:
                with apart():
                    result = do_step(one, fed(one, values, path), context)
            except RunDeleted:
                raise
            except Exception as error:
                tries += 1
                self.states.fail(self.run, path, _reason(error)[:LONGEST_ERROR], context.spent)
                if tries >= retry.attempts or not retry.applies(error):
                    self._failed(path, error, attempt)
                after = (error.after or 0.0) if isinstance(error, ModelUnavailable) else 0.0
                self.task.advance(0, note=f"{path}: failed, trying again")
                stop.wait(max(after, retry.pause(tries, random.random())))
                continue
            self.states.keep(self.run, path, result, time.monotonic() - began, context.spent)
            self.task.advance(0, note=path)
            return result

    def _referred(self, reference: str, values: Mapping[str, Any], path: str) -> Any:
        try:
            return lookup(values, reference, f"step {path}")
        except UserError as error:
            raise StepFailed(self.run, path, str(error)) from None

    def _failed(self, path: str, error: Exception, attempt: int) -> NoReturn:
        times = f" ({attempt} attempts)" if attempt > 1 else ""
        raise StepFailed(self.run, path, f"{_reason(error)}{times}") from error


def _raise_first(finished: Iterable[Future[None]]) -> None:
    """Raise what was raised in one of these, unless it only stopped because of another."""
    for future in finished:
        error = future.exception()
        if error is not None and not isinstance(error, _Stopped):
            raise error


def _reason(error: Exception) -> str:
    if isinstance(error, UserError | ModelUnavailable):
        return str(error)
    return reason_of(error)


def key_of(run: str, path: str) -> str:
    """The key that a step hands to what it changes: the same for the same step of the same run, for ever."""
    return digest([run, path])[:32]
