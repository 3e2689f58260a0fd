"""The answer to a request as it is made: steps in the order they come."""

import queue
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from yunque.generate.config import GenerationConfig
from yunque.generate.scheduler import Job, Scheduler, Unwanted
from yunque.generate.step import Step

Told = Step | Exception


class Steps(Iterator[Step]):
    """The steps of a request's `texts` texts, interleaved. Closing it ends the generation within one step, and so
    does whoever made the job; then there are no more steps."""

    def __init__(self, told: "queue.SimpleQueue[Told]", texts: int) -> None:
        self._told = told
        self._left = texts
        self._submitted: tuple[Scheduler, Job] | None = None

    def submit(self, scheduler: Scheduler, job: Job) -> None:
        """Begin: `job` will put what it tells into the queue."""
        scheduler.submit(job)
        self._submitted = scheduler, job

    def __next__(self) -> Step:
        if not self._left:
            raise StopIteration
        told = self._told.get()
        if isinstance(told, Unwanted):
            self._left = 0
            raise StopIteration
        if isinstance(told, Exception):
            self.close()
            raise told
        if told.finish_reason:
            self._left -= 1
        return told

    def close(self) -> None:
        """End the generation; there are no more steps."""
        self._left = 0
        if self._submitted:
            self._submitted[1].unwanted = True

    def __del__(self) -> None:
        self.close()


def best_of(steps: Steps, config: GenerationConfig) -> Iterator[Step]:
    """The steps of the `n` texts with the likeliest tokens in the mean, best first, once all are written."""
    texts: dict[int, list[Step]] = {}
    with closing(steps):
        for step in steps:
            texts.setdefault(step.index, []).append(step)
    ranked = sorted(texts.values(), key=_mean_logprob, reverse=True)
    unseen = sum(not step.echoed for text in ranked[config.n :] for step in text)
    for index, text in enumerate(ranked[: config.n]):
        for step in text:
            told = replace(step, index=index, unseen=unseen)
            unseen = 0
            yield told if config.logprobs is not None else replace(told, scored=None)


def _mean_logprob(text: Sequence[Step]) -> float:
    written = [step.scored.logprob or 0.0 for step in text if step.scored and not step.echoed]
    return sum(written) / max(1, len(written))
