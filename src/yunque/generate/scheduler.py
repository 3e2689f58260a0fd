"""Runs many texts side by side: they join and leave at every step (continuous batching; Yu et al. 2022, "Orca").

Shapes: W scores of one text, V vocab_size.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from yunque.errors import UserError
from yunque.generate.runner import NoRoom, Runner, Text, Work, check_scores
from yunque.generate.turn import Turn


@dataclass(frozen=True)
class Next:
    """What a text reads next; the last `forget` positions that it has read are given up before."""

    ids: list[int]
    forget: int = 0


class Task(Protocol):
    """Somebody who wants a text: hears the scores of what was read, and says what is read next."""

    def take(self, scores_WV: Tensor) -> Next | None:
        """The next tokens (none while more scores of the present ones are to come), or None: it is over."""
        ...

    def fail(self, error: Exception) -> None:
        """It ends here, because of `error`."""
        ...


@dataclass
class Job:
    """Tasks that begin with the same `prompt`, and part after it.

    `ahead` is read behind the prompt, and scores are given from the one after the prompt on. Each task needs room for
    `fresh` tokens behind the prompt. It ends at the next step where `unwanted` is set, or `wanted` says no.
    """

    prompt: list[int]
    tasks: list[Task]
    fresh: int
    ahead: list[int] = field(default_factory=list)
    adapter: str | None = None
    wanted: Callable[[], bool] | None = None
    unwanted: bool = False

    def fail(self, error: Exception) -> None:
        """All its tasks end, because of `error`."""
        for task in self.tasks:
            task.fail(error)


class Unwanted(Exception):
    """Nobody waits for a request any more."""


@dataclass
class _Running:
    """A text that is read: `pending` are the tokens to come, and from place `silent` of them scores are wanted.

    Where its task is `writing` they are read at once; a prompt may be cut. While several tasks share it, `places`
    keep the room that each of the others will need.
    """

    job: Job
    tasks: list[Task]
    text: Text
    pending: list[int]
    silent: int
    places: list[Text]
    writing: bool = False

    def chunk(self, most: int) -> Work:
        """What is read of it in this step."""
        ids = self.pending[:most]
        return Work(self.text, ids, max(0, len(ids) - self.silent))

    def close(self) -> None:
        """Give its memory back."""
        for text in (self.text, *self.places):
            text.close()


class Scheduler:
    """The turn of everyone at one model. Its thread lives while there is work.

    In a step every text that is being written reads its next token, and prompts are read in the order they came, at
    most `chunk` tokens of them together, so that a long prompt does not hold up the others for long.
    """

    _IDLE_SECONDS = 1.0

    def __init__(self, runner: Runner, turn: Turn, most_texts: int = 64, chunk: int = 256) -> None:
        """`turn` is held during each step: whoever else computes the model takes it too."""
        self._runner = runner
        self._turn = turn
        self._most_texts, self._chunk = most_texts, chunk
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: list[_Running] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def running(self) -> int:
        """How many texts are under way."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many requests have not begun."""
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Begin a job as soon as there is room. Raises RuntimeError after `close`."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._waiting.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """End every job, and wait until nothing is computed any more."""
        with self._changed:
            self._closed = True
            thread = self._thread
            self._changed.notify()
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        with torch.inference_mode():
            while self._has_work():
                try:
                    with self._turn:
                        self._drop()
                        self._admit()
                        self._step()
                except Exception as error:  # whoever waits for a step must not wait for ever
                    self._end_all(error)
        if self._closed:
            self._end_all(RuntimeError("the engine was closed"))

    def _end_all(self, error: Exception) -> None:
        for job in {id(job): job for job in [*(each.job for each in self._running), *self._waiting]}.values():
            job.fail(error)
        for each in self._running:
            with suppress(Exception):  # it may be what failed
                each.close()
        self._running.clear()
        self._waiting.clear()

    def _has_work(self) -> bool:
        with self._changed:
            if not self._running and not self._waiting and not self._closed:
                self._changed.wait(self._IDLE_SECONDS)
            if self._closed or not (self._running or self._waiting):
                # Whoever comes now starts another thread: both are under the lock.
                self._thread = None
                return False
            return True

    def _drop(self) -> None:
        """End what nobody wants any more."""
        with self._changed:
            waiting = list(self._waiting)
        for job in {id(job): job for job in [*waiting, *(each.job for each in self._running)]}.values():
            if job.unwanted or (job.wanted and not job.wanted()):
                job.unwanted = True
                # Whoever waits for its next step wakes up.
                job.fail(Unwanted())
        with self._changed:
            self._waiting = deque(job for job in self._waiting if not job.unwanted)
        for each in self._running:
            if each.job.unwanted:
                each.close()
        self._running = [each for each in self._running if not each.job.unwanted]

    def _admit(self) -> None:
        while self._waiting:
            job = self._waiting[0]
            if self._running and len(self._running) + len(job.tasks) > self._most_texts:
                return
            try:
                opened = self._opened(job)
            except NoRoom:
                if self._running:
                    return
                opened = None
                job.fail(UserError("the cache is too small for this request, even with nothing else in it"))
            except Exception as error:
                opened = None
                job.fail(error)
            with self._changed:
                self._waiting.popleft()
            if opened:
                self._running.append(opened)

    def _opened(self, job: Job) -> _Running:
        text = self._runner.open(job.prompt, job.fresh, job.adapter)
        places: list[Text] = []
        try:
            places += (text.fork() for _ in job.tasks[1:])
        except Exception:
            for place in (text, *places):
                place.close()
            raise
        pending = [*text.unread, *job.ahead]
        return _Running(job, job.tasks, text, pending, len(text.unread) - 1, places)

    def _step(self) -> None:
        left, chosen = self._chunk, list[tuple[_Running, Work]]()
        for each in self._running:
            if each.writing:
                chosen.append((each, each.chunk(len(each.pending))))
            elif left:
                work = each.chunk(left)
                left -= len(work.ids)
                chosen.append((each, work))
        if not chosen:
            return
        try:
            scores = self._runner.run([work for _, work in chosen])
        except Exception as error:
            for each in self._running:
                each.close()
                _fail(each.tasks, error)
            self._running.clear()
            return
        going_on = {
            id(each): self._continued(each, work, scores_WV)
            for (each, work), scores_WV in zip(chosen, scores, strict=True)
        }
        self._running = [one for each in self._running for one in going_on.get(id(each), [each])]

    def _continued(self, each: _Running, work: Work, scores_WV: Tensor) -> list[_Running]:
        """What goes on after this work: itself, nothing, or a text for each of its tasks."""
        each.pending = each.pending[len(work.ids) :]
        each.silent = max(0, each.silent - len(work.ids))
        if not work.wanted:
            return [each]
        following = [(task, _taken(task, scores_WV)) for task in each.tasks]
        if each.pending:
            each.tasks = [task for task, next in following if next]
            if each.tasks:
                return [each]
            each.close()
            return []
        writing = [(task, next) for task, next in following if next]
        for place in each.places:
            place.close()
        texts = [each.text, *(each.text.fork() for _ in writing[1:])]
        if not writing:
            each.text.close()
        parted: list[_Running] = []
        for (task, next), text in zip(writing, texts, strict=False):
            if next.forget:
                text.truncate(text.length - next.forget)
            parted.append(_Running(each.job, [task], text, next.ids, 0, [], writing=True))
        return parted


def _taken(task: Task, scores_WV: Tensor) -> Next | None:
    """What the task says to the scores; a failure of its own ends it alone."""
    try:
        check_scores(scores_WV)
        return task.take(scores_WV)
    except Exception as error:
        task.fail(error)
        return None


def _fail(tasks: Sequence[Task], error: Exception) -> None:
    for task in tasks:
        task.fail(error)
