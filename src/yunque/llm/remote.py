"""A model of a provider: a wire that knows its API, and a transport that makes one attempt at each call."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig, ToolFormat
from yunque.llm.face import (
    Chunk,
    Completion,
    ContextOverflow,
    Cost,
    Embeddings,
    FinishReason,
    Message,
    ModelUnavailable,
    Prompt,
    Usage,
    joined_calls,
)
from yunque.llm.names import RemoteName
from yunque.llm.prices import cost_of
from yunque.llm.provider_keys import NoKey, key_advice
from yunque.llm.providers import provider_of
from yunque.llm.transport import ALIVE, Patience, Refused, Transport, WholeAnswer
from yunque.llm.under_way import under_way
from yunque.llm.wire import (
    ADDED_BY_A_PROVIDER,
    ADDED_BY_A_SERVER,
    BadReply,
    Declined,
    Problem,
    Reader,
    Request,
    Said,
    Unanswered,
    Wire,
    Wrapping,
    is_possible,
)

# A model that takes none of the settings that it was asked with is asked that often until they are all left out.
_MOST_LEFT_OUT = 6
# Servers like to quote the key that they refuse, also one that somebody else set.
_LIKE_A_KEY = re.compile(r"\b(?:sk|pk|yq|gsk|hf|key)[-_][A-Za-z0-9_*-]{6,}|\bAIza[A-Za-z0-9_-]{10,}")


class RemoteModel:
    """A model that runs elsewhere. It makes one attempt: who wants more wraps it (`yunque.llm.retrying`).

    Safe from several threads, which share its connections. Every failure is a ModelUnavailable of one sentence (its
    `again` says whether to ask again), a ContextOverflow, or a UserError for what the API does not have.
    `local` is False for an address of this machine too: where a server sends the text on to cannot be known.

    A model that says that it does not take a setting is asked at once without it, from then on always, and the answer
    carries a note. Usage that is not told, or cannot be true, is estimated, at one token for four bytes of UTF-8.
    A stream has an empty Chunk for each sign of life that adds no text (a thought, a ping, a piece of an answer that
    is only told whole): who waits for it can count the silence from there.
    """

    local = False
    keeps_deadline = True
    """A deadline of `yunque.llm.under_way` is kept, and stopping a call wakes it."""

    def __init__(
        self, name: RemoteName, wire: Wire, key: Callable[[], str], patience: Patience | None = None
    ) -> None:
        """`key` tells the key for a call; it raises NoKey where one is needed and there is none."""
        self.name = name.name
        self.provider = provider_of(name.name)
        self.at = name
        self.wire = wire
        self._key = key
        self._transport = Transport(name.base_url, name.name, name.on_this_machine, patience)

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        """Answer a conversation."""
        prompt = "".join(message.content for message in messages)
        return self._whole(lambda: self.wire.chat(messages, config, stream=False), config, prompt)

    def complete(self, prompt: Prompt, config: GenerationConfig) -> Completion:
        """Go on with a text; where the API only has conversations, the text is a message of a user."""
        return self._whole(lambda: self.wire.complete(prompt, config, stream=False), config, prompt)

    def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
        """Answer a conversation piece by piece; what the API does not have is refused at the call."""
        prompt = "".join(message.content for message in messages)
        return self._streamed(lambda: self.wire.chat(messages, config, stream=True), config, prompt)

    def stream_complete(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        """Go on with a text piece by piece."""
        return self._streamed(lambda: self.wire.complete(prompt, config, stream=True), config, prompt)

    def embed(self, texts: Sequence[Prompt]) -> Embeddings:
        """A vector of length 1 for each text; raises UserError where the API has no vectors."""
        from yunque.llm.remote_vectors import embed

        return embed(self, texts)

    def score(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """The log-likelihood (nats) of each answer, with its end; raises UserError where the API does not tell it."""
        from yunque.llm.remote_scores import score

        return score(self, messages, answers)

    def models(self) -> list[str]:
        """What the provider calls the models that it has."""
        from yunque.llm.remote_vectors import models

        return models(self)

    def close(self) -> None:
        """Close the connections that are kept open; the model can be asked again all the same."""
        self._transport.close()

    def ask(self, url: str, body: dict[str, Any] | None) -> Any:
        """The JSON that a request is answered with; one attempt, with the key."""
        try:
            return self._transport.whole(url, self._headers(), body)
        except Refused as refused:
            raise self._error(refused) from None

    def unavailable(self, what: str, again: bool = False) -> ModelUnavailable:
        """That the model did something which is no answer, to a request that was sent."""
        return self._transport.unavailable(what, again, sent=True)

    def _headers(self) -> dict[str, str]:
        try:
            return self.wire.headers(self._key())
        except NoKey as error:
            raise ModelUnavailable(f"{self.name} {error}") from None
        except UserError as error:
            # A key that cannot be one is this model's trouble; another model may answer.
            raise ModelUnavailable(f"{self.name} cannot be asked: {error}") from None

    # Whole answers ------------------------------------------------------------------------------------------------

    def _whole(self, ask: Callable[[], Request], config: GenerationConfig, prompt: Prompt) -> Completion:
        for asked in self._requests(ask, config, prompt):
            try:
                body = self._transport.whole(asked.request.path, self._headers(), asked.request.body)
            except Refused as refused:
                self._adapt(refused, asked)
                continue
            return self._completion(self._read(body), asked)
        raise AssertionError("the last request returns or raises")

    def _read(self, body: object) -> Said:
        if not isinstance(body, dict):
            raise self.unavailable("answered JSON that is not a completion", again=True)
        if body.get("error"):
            raise self._broken_off(self.wire.problem(0, body), "answered")
        try:
            return self.wire.answer(body)
        except BadReply as error:
            raise self.unavailable(str(error), again=True) from None

    def _completion(self, said: Said, asked: "_Asked") -> Completion:
        told, usage = asked.used(said.usage, said.text + _told(said))
        cost = cost_of(self.at, usage)
        if said.declined:
            raise self._declined(said.declined, usage, cost)
        text = Wrapping([said.text]).unwrapped() if asked.request.wrapped else said.text
        reason: FinishReason = said.reason or "stop"
        calls = joined_calls(said.calls)
        return Completion(text, self.name, reason, usage, calls, cost, self._note(asked, told))

    # Streams ------------------------------------------------------------------------------------------------------

    def _streamed(
        self, ask: Callable[[], Request], config: GenerationConfig, prompt: Prompt
    ) -> Iterator[Chunk]:
        requests = self._requests(ask, config, prompt)
        # What is wrong with the request is told here, not when the first piece is waited for.
        return self._chunks(next(requests), requests)

    def _chunks(self, asked: "_Asked", later: Iterator["_Asked"]) -> Iterator[Chunk]:
        while True:
            reader = self.wire.reader()
            events = self._transport.stream(asked.request.path, self._headers(), asked.request.body, reader)
            heard = _Heard()
            try:
                try:
                    yield from self._told(events, reader, asked, heard)
                except Unanswered as error:
                    self._add_usage(error, reader, asked, heard)
                    raise
                except Refused as refused:
                    # Before the first event, so nothing was told yet.
                    self._adapt(refused, asked)
                    asked = next(later)
                    continue
            finally:
                events.close()  # type: ignore[attr-defined]  # it is a generator
            return

    def _add_usage(self, error: Unanswered, reader: Reader, asked: "_Asked", heard: "_Heard") -> None:
        """What a broken stream has used, if the provider told of it before: the prompt, and what was written."""
        told = reader.usage()
        if told is not None:
            written = _estimated("", "".join(heard.written)).completion_tokens
            told = replace(told, completion_tokens=max(told.completion_tokens, written))
            if asked.can_have_used(told, ""):
                error.usage, error.cost = told, cost_of(self.at, told)

    def _told(
        self, events: Iterator[Any], reader: Reader, asked: "_Asked", heard: "_Heard"
    ) -> Iterator[Chunk]:
        wrapped = asked.request.wrapped
        for event in self._until_the_end(events, heard):
            if event is ALIVE:
                yield Chunk("")
                continue
            said = self._said(event, reader)
            if type(event) is WholeAnswer:
                heard.usage = said.usage
            if heard.hear(said) and not wrapped:
                yield Chunk(said.text, tool_calls=said.calls)
            else:
                yield Chunk("")
            if reader.ended:
                break
        if heard.reason is None:
            raise self.unavailable("broke off in the middle of its answer", again=True)
        told, usage = asked.used(reader.usage() or heard.usage, "".join(heard.written))
        cost = cost_of(self.at, usage)
        if heard.declined:
            raise self._declined(heard.declined, usage, cost)
        if wrapped:
            yield Chunk(Wrapping(heard.texts).unwrapped())
        yield Chunk("", heard.reason, usage, self.name, cost=cost, note=self._note(asked, told))
        for _ in events:
            pass  # what follows the end is not read, but the connection is left in order

    def _until_the_end(self, events: Iterator[Any], heard: "_Heard") -> Iterator[Any]:
        """The events up to the mark of the end. Once the reason of the end is known, nothing that breaks is one."""
        try:
            for event in events:
                if event is None:
                    return
                yield event
        except ModelUnavailable:
            call = under_way()
            if heard.reason is None or (call is not None and call.stopped):
                raise

    def _said(self, event: object, reader: Reader) -> Said:
        if type(event) is WholeAnswer:
            return self._read(event.body)
        if not isinstance(event, dict):
            raise self.unavailable("streamed JSON that is not a completion", again=True)
        if event.get("error"):
            raise self._broken_off(self.wire.problem(0, event), "broke off with an error")
        try:
            return reader.read(event)
        except BadReply as error:
            raise self.unavailable(str(error), again=True) from None

    # Refusals -----------------------------------------------------------------------------------------------------

    def _requests(
        self, ask: Callable[[], Request], config: GenerationConfig, prompt: Prompt
    ) -> Iterator["_Asked"]:
        """The request, and again each time that a setting had to be left out of it."""
        hosted = self.at.provider is not None and self.at.provider.needs_key
        added = ADDED_BY_A_PROVIDER if hosted else ADDED_BY_A_SERVER
        for number in range(_MOST_LEFT_OUT + 1):
            # Before the request is written: another thread may learn of a setting meanwhile.
            left_out = frozenset(self.wire.left_out.copy())
            yield _Asked(ask(), left_out, config, prompt, added, number == _MOST_LEFT_OUT)

    def _adapt(self, refused: Refused, asked: "_Asked") -> None:
        """Leave out what the model said that it does not take; raises the error where it is about something else."""
        problem = self.wire.problem(refused.status, refused.body)
        # Another call may have learned of it since this one was sent; only what was left out then is no remedy.
        if not problem.setting or problem.setting in asked.left_out or asked.last:
            raise self._error(refused) from None
        self.wire.left_out.add(problem.setting)

    def _error(self, refused: Refused) -> Exception:
        """A reply that is no success, as one sentence."""
        problem = self.wire.problem(refused.status, refused.body)
        told = self._words(problem.message or (refused.body if isinstance(refused.body, str) else ""))
        if problem.overflow:
            return self._overflow(problem)
        status = refused.status
        after = refused.after if refused.after is not None else problem.after
        again = refused.again and (status >= 500 or problem.again or not problem.kind)
        if status in (401, 403) or problem.kind == "bad_key":
            return self._transport.unavailable(
                f"refused the API key (status {status}; {key_advice(self.at)}){told}"
            )
        if status == 404:
            return self._transport.unavailable(
                f"does not know this model, or has no such API (status 404){told}"
            )
        if 300 <= status < 400:
            return self._transport.unavailable(
                f"wants to send us elsewhere (status {status}); use the address it moved to"
            )
        return self._transport.unavailable(
            f"answered with status {status}{told}", again, after if again else None
        )

    def _broken_off(self, problem: Problem, how: str) -> Exception:
        """An error that came where an answer was to come."""
        if problem.overflow:
            return self._overflow(problem)
        words = self._words(problem.message)
        if problem.kind == "bad_key":
            return self._transport.unavailable(f"refused the API key ({key_advice(self.at)}){words}")
        what = how + words if how.endswith("error") else f"{how} with an error{words}"
        return self._transport.unavailable(what, problem.again or not problem.kind, problem.after, sent=True)

    def _overflow(self, problem: Problem) -> ContextOverflow:
        return ContextOverflow(
            f"{self.name}: the prompt and the answer asked for are longer than its context"
            + self._words(problem.message),
            problem.room,
        )

    def _declined(self, why: str, usage: Usage, cost: Cost | None) -> Declined:
        return Declined(f"{self.name} declined to answer{self._words(why)}", usage, cost)

    def _words(self, told: str) -> str:
        """The server's own words, in one short line and without our key."""
        line = " ".join("".join(each if each.isprintable() else " " for each in told[:4000]).split())
        try:
            key = self._key()
        except Exception:
            key = ""
        if key:
            line = line.replace(key, "(key)")
        line = _LIKE_A_KEY.sub("(key)", line)
        if not line:
            return ""
        return ": " + (line if len(line) <= 300 else line[:299] + "…")

    def _note(self, asked: "_Asked", told: Usage | None) -> str:
        """What a user should know of how the answer came about."""
        if not asked.left_out and told is not None:
            return ""
        notes: list[str] = []
        missed = [name for name in sorted(asked.left_out) if _was_asked(name, asked.config)]
        if missed:
            notes.append(f"{self.name} takes no {', '.join(missed)}; its own settings were used.")
        if "reasoning_effort" in asked.left_out and isinstance(asked.config.format, ToolFormat):
            notes.append(f"{self.name} takes tools only without reasoning, which was switched off.")
        if told is None:
            notes.append(f"{self.name} did not tell its usage; it was estimated.")
        return " ".join(notes)


@dataclass(frozen=True)
class _Asked:
    """A request, what it was made of, and the settings that were left out when it was written."""

    request: Request
    left_out: frozenset[str]
    config: GenerationConfig
    prompt: Prompt
    added: int
    """Tokens that may have come to the prompt on the other side."""
    last: bool

    def used(self, told: Usage | None, written: str) -> tuple[Usage | None, Usage]:
        """The usage that was told, if it can be true, and the one to go by."""
        if told is not None and not self.can_have_used(told, written):
            told = None
        return told, told or _estimated(self.prompt, written)

    def can_have_used(self, told: Usage, written: str) -> bool:
        """Whether this usage can be true of an answer of this text."""
        return is_possible(told, self.request, written, self.config.max_new_tokens, self.added)


@dataclass(slots=True)
class _Heard:
    """What a stream has told so far; `written` is all that was written, the arguments of calls too."""

    texts: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    reason: FinishReason | None = None
    declined: str = ""
    usage: Usage | None = None

    def hear(self, said: Said) -> bool:
        """Whether it adds to the answer."""
        self.reason = said.reason or self.reason
        # A refusal is streamed in pieces too.
        self.declined += said.declined
        if not said.text and not said.calls:
            return False
        self.texts.append(said.text)
        self.written.append(said.text + _told(said) if said.calls else said.text)
        return True


def _told(said: Said) -> str:
    """The calls, as a model writes them."""
    return "".join((part.name or "") + part.arguments for part in said.calls)


def _was_asked(name: str, config: GenerationConfig) -> bool:
    if name == "tool_choice":
        return isinstance(config.format, ToolFormat) and config.format.required
    if name not in GenerationConfig.model_fields:
        return False
    return name == "temperature" or getattr(config, name) != GenerationConfig.model_fields[name].default


def _estimated(prompt: Prompt, answer: str) -> Usage:
    read = math.ceil(len(prompt.encode(errors="replace")) / 4) if isinstance(prompt, str) else len(prompt)
    return Usage(read, math.ceil(len(answer.encode(errors="replace")) / 4))
