"""Several models as one: retries, fallbacks (while streaming too), deadlines, hedging and circuit breakers."""

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import Field

from yunque.configuration import Settings
from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm.breaker import SHARED, Breakers, provider_of
from yunque.llm.face import (
    Chunk,
    Completion,
    Embeddings,
    FinishReason,
    LanguageModel,
    Message,
    ModelUnavailable,
    Prompt,
    ToolCallPart,
    Usage,
    joined_calls,
)
from yunque.llm.hedging import Runner, raced
from yunque.llm.retrying import Attempt, RetrySettings, Try, attempts, in_haste, is_sign_of_life
from yunque.llm.route import Route
from yunque.llm.under_way import UnderWay, pause, under_way
from yunque.llm.wrapped import can
from yunque.workspace.artifact import KINDS

ItemT = TypeVar("ItemT", Chunk, Completion)
_LOG = logging.getLogger(__name__)


class RouterSettings(Settings):
    """Which models answer, and how patiently. Times are in seconds.

    Where `model` cannot be reached, `fallbacks` are asked in their order, and `local_fallback` last; where a text is
    too long, `context_window_fallbacks`. `deadline` is for the whole request (but not for opening `model`, once):
    what is left of it is shared evenly by the models that remain. `silence` is the longest wait for the next piece of
    a remote stream. With `hedge_after` a second model is asked where the first has said nothing by then; the first to
    answer wins.
    """

    model: str = Field(min_length=1)
    fallbacks: tuple[str, ...] = ()
    context_window_fallbacks: tuple[str, ...] = ()
    local_fallback: str | None = None
    retries: RetrySettings = RetrySettings()
    deadline: float | None = Field(default=None, gt=0)
    silence: float | None = Field(default=30.0, gt=0)
    hedge_after: float | None = Field(default=None, ge=0)

    @property
    def names(self) -> tuple[str, ...]:
        """Every model that may be asked, in order."""
        last = (self.local_fallback,) if self.local_fallback else ()
        return tuple(dict.fromkeys((self.model, *self.fallbacks, *self.context_window_fallbacks, *last)))


@dataclass(frozen=True)
class Measured:
    """How an answer came: seconds to its first token (None where it was not streamed) and to its end. `before` are
    the models that did not answer, in their order, and why."""

    model: str
    usage: Usage
    first_token: float | None
    seconds: float
    before: tuple[Attempt, ...] = ()


Watch = Callable[[Measured], None]


class Router:
    """A model that is several: whoever asks it need not know which of them answers. Safe for many threads.

    `models` gives a model by its name: a mapping, or a function that opens it (asked once for each name).
    """

    def __init__(
        self,
        settings: RouterSettings,
        models: Callable[[str], LanguageModel] | Mapping[str, LanguageModel],
        breakers: Breakers = SHARED,
        watch: Watch | None = None,
        sleep: Callable[[float], None] = pause,
    ) -> None:
        self.settings = settings
        self.name = settings.model
        # Whether nothing leaves this machine, whichever of the models answers.
        known = models if isinstance(models, Mapping) else {}
        self.local = all(known[name].local if name in known else looks_local(name) for name in settings.names)
        self._open = models.__getitem__ if isinstance(models, Mapping) else models
        self._breakers, self._watch, self._sleep = breakers, watch, sleep
        self._models: dict[str, LanguageModel] = {}
        self._lock = threading.Lock()

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        """Answer a conversation. Raises ModelUnavailable when no model could, ContextOverflow when none has room."""
        return self._whole(
            lambda model: model.chat(messages, config), lambda model: model.stream_chat(messages, config)
        )

    def complete(self, prompt: Prompt, config: GenerationConfig) -> Completion:
        """Go on with a text; raises as `chat`."""
        return self._whole(
            lambda model: model.complete(prompt, config), lambda model: model.stream_complete(prompt, config)
        )

    def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
        """Answer a conversation piece by piece; raises as `chat`.

        A model that breaks off after its first piece is followed by a chunk with `restart`, and by another's whole
        answer.
        """
        return self._streamed(lambda model: model.stream_chat(messages, config))

    def stream_complete(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        """Go on with a text piece by piece; raises and restarts as `stream_chat`."""
        return self._streamed(lambda model: model.stream_complete(prompt, config))

    def embed(self, texts: Sequence[Prompt]) -> Embeddings:
        """A vector for each text, by the first model that gives vectors: another one's could not be compared."""
        made: Embeddings = self._able("embed", lambda model: model.embed(texts))
        return made

    def score(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """The log-likelihood (nats) of each answer, by the first model that tells it."""
        scores: list[float] = self._able("score", lambda model: model.score(messages, answers))
        return scores

    def close(self) -> None:
        """Close the connections of the models elsewhere; they can be asked again all the same."""
        for model in list(self._models.values()):
            # One of this machine may be lent by somebody who goes on to use it.
            if not model.local and (close := getattr(model, "close", None)):
                close()

    def is_named(self, model: str) -> bool:
        """Whether an answer's `model` is the one that was named, and no fallback."""
        first = self._models.get(self.settings.model)
        return model == (first.name if first else self.settings.model)

    def _able(self, ability: str, ask: Callable[[Any], Any]) -> Any:
        """What the first model that has this method answers; it is asked again, and no other is."""
        name = next((name for name in self.settings.names if can(self._opened(name), ability)), None)
        if name is None:
            raise UserError(f"none of {', '.join(self.settings.names)} can {ability}")
        model = self._opened(name)
        deadline = self._route().deadline
        for this in attempts(self.settings.retries, self._breakers, model, deadline, self._sleep):
            try:
                answer = ask(model)
            except Exception as error:
                this.failed(error)
                continue
            this.succeeded()
            return answer
        raise AssertionError("the last attempt returns or raises")

    def _opened(self, name: str) -> LanguageModel:
        # One at a time: two threads must not load the same weights.
        if (kept := self._models.get(name)) is not None:
            return kept
        with self._lock:
            if name not in self._models:
                self._models[name] = self._open(name)
            return self._models[name]

    def _route(self) -> Route:
        # What a model takes to be opened, once, is not its answer's time. If it cannot be, the route tells.
        with suppress(UserError, ModelUnavailable):
            self._opened(self.settings.model)
        return Route(self.settings, self._opened, self._breakers, self._sleep)

    def _whole(
        self,
        ask: Callable[[LanguageModel], Completion],
        stream: Callable[[LanguageModel], Iterator[Chunk]],
    ) -> Completion:
        def once(model: LanguageModel) -> Iterator[Completion]:
            # A model of this machine that is not wanted any more ends between two pieces.
            limited = self.settings.deadline is not None or self.settings.hedge_after is not None
            yield joined(stream(model), model.name) if model.local and limited else ask(model)

        route = self._route()
        for model, this in route.tries():
            started = time.monotonic()
            try:
                with closing(self._pieces(route, model, this, once, False)) as pieces:
                    runner, completion = next(pieces)
            except Exception as error:
                this.failed(error)
                continue
            self._answered(this, model, runner.model)
            self._measured(route, runner.model, completion.usage, None, time.monotonic() - started)
            note = "; ".join(filter(None, (route.note(runner.model), completion.note)))
            return replace(completion, note=note) if note != completion.note else completion
        raise AssertionError("a route ends with an answer or an error")

    def _streamed(self, ask: Callable[[LanguageModel], Iterator[Chunk]]) -> Iterator[Chunk]:
        route = self._route()
        sent = False
        for model, this in route.tries():
            started = time.monotonic()
            restart, finished, first = sent, False, None
            try:
                with closing(self._pieces(route, model, this, ask, True)) as pieces:
                    for runner, chunk in pieces:
                        if restart:
                            yield Chunk("", restart=True, model=runner.model.name)
                            restart = False
                        if _counts(chunk):
                            sent = True
                            first = first or time.monotonic() - started
                        if chunk.usage is None:
                            yield chunk
                            continue
                        finished, seconds = True, time.monotonic() - started
                        self._answered(this, model, runner.model)
                        try:
                            yield _with_note(chunk, route.note(runner.model))
                        finally:
                            # Nobody has to wait for the file that it is written to.
                            self._measured(route, runner.model, chunk.usage, first, seconds)
                if not finished:
                    raise ModelUnavailable(f"{model.name} broke off in the middle of its answer", True)
            except Exception as error:
                # What breaks after the end of an answer does not make it less of one.
                if not finished:
                    this.failed(error)

    def _pieces(
        self,
        route: Route,
        model: LanguageModel,
        this: Try,
        ask: Callable[[LanguageModel], Iterator[ItemT]],
        stream: bool,
    ) -> Generator[tuple[Runner[ItemT], ItemT], None, None]:
        """What a model gives, with the one who gave it: a slow one may be overtaken by another.

        An empty piece is a sign of life (a model that thinks), and no part of the answer. The reader's own time is no
        silence: that begins when the next piece is asked for.
        """
        settings, silence = self.settings, self.settings.silence if stream else None
        outer, started = under_way(), time.monotonic()

        def runner_of(one: LanguageModel) -> Runner[ItemT]:
            limit = route.limit()
            call = UnderWay(_sooner(limit, one, silence), outer)

            def renew(item: ItemT) -> None:
                nonlocal limit
                # Who only gives signs of life has its share of the time; who answers may finish.
                limit = route.deadline if _counts(item) else limit
                call.deadline = _sooner(limit, one, silence)

            return Runner(one, lambda: ask(one), call, renew)

        def told(runner: Runner[ItemT], error: Exception | None) -> None:
            haste = in_haste(started, route.deadline)
            if isinstance(error, ModelUnavailable) and error.again and not haste:
                self._breakers.failed(provider_of(runner.model))

        this.until = route.limit()
        first = runner_of(model)
        obeys = first.call.deadline is None or getattr(model, "keeps_deadline", False)
        if settings.hedge_after is None and obeys:
            for item in first.call.following(first.make()):
                if not _is_sign_of_life(item):
                    yield first, item
                first.renew(item)
            return

        def beside() -> Runner[ItemT]:
            return runner_of(route.next_beside() or model)

        with closing(raced(first, _counts, beside, settings.hedge_after, told)) as items:
            for runner, item in items:
                if not _is_sign_of_life(item):
                    yield runner, item

    def _answered(self, this: Try, asked: LanguageModel, answered: LanguageModel) -> None:
        """Tell the one who answered; one that was overtaken is told nothing."""
        if answered is asked:
            this.succeeded()
        else:
            self._breakers.succeeded(provider_of(answered))

    def _measured(
        self, route: Route, model: LanguageModel, usage: Usage, first: float | None, seconds: float
    ) -> None:
        if self._watch is None:
            return
        try:
            self._watch(Measured(model.name, usage, first, seconds, tuple(route.attempts)))
        except Exception as error:
            # The answer is there: that nobody could write down how quickly it came takes nothing from it.
            _LOG.warning("how quickly %s answered was not kept (%s)", model.name, type(error).__name__)


def joined(chunks: Iterator[Chunk], name: str) -> Completion:
    """The (first) answer that a stream is made of; raises ModelUnavailable where it does not end as one does."""
    under = under_way()
    texts: list[str] = []
    parts: list[ToolCallPart] = []
    last: Chunk | None = None
    reason: FinishReason | None = None
    try:
        for chunk in chunks:
            if under and under.stopped:
                raise ModelUnavailable(f"{name} was stopped")
            if chunk.restart:
                texts, parts, reason = [], [], None
            if chunk.index == 0 and not chunk.echoed:
                texts.append(chunk.text)
                parts += chunk.tool_calls
                reason = chunk.finish_reason or reason
            last = chunk
    finally:
        if close := getattr(chunks, "close", None):
            close()
    if last is None or last.usage is None or reason is None:
        raise ModelUnavailable(f"{name} broke off in the middle of its answer", True)
    return Completion(
        "".join(texts), last.model or name, reason, last.usage, joined_calls(parts), last.cost, last.note
    )


def looks_local(name: str) -> bool:
    """Whether a name is one of this machine's: NAME, model/NAME or adapter/NAME (with or without @VERSION), or
    scripted:FILE."""
    kind, slash, _ = name.partition("/")
    return name.startswith("scripted:") or ("://" not in name and (not slash or kind in KINDS))


def _sooner(deadline: float | None, model: LanguageModel, silence: float | None) -> float | None:
    """A model of this machine may read a long text in silence; it is not lost on the way."""
    if silence is None or model.local:
        return deadline
    until = time.monotonic() + silence
    return until if deadline is None else min(deadline, until)


def _counts(item: Chunk | Completion) -> bool:
    """Whether a reader has seen something of the answer."""
    if isinstance(item, Completion):
        return True
    return bool(item.text or item.tool_calls or item.tokens or item.finish_reason)


def _is_sign_of_life(item: Chunk | Completion) -> bool:
    return isinstance(item, Chunk) and is_sign_of_life(item)


def _with_note(chunk: Chunk, note: str) -> Chunk:
    if not note:
        return chunk
    return replace(chunk, note="; ".join(filter(None, (note, chunk.note))))
