"""A model of a provider: a wire that knows its API, and a transport that makes one attempt at each call."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

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
from yunque.llm.transport import Patience, Refused, Transport, WholeAnswer
from yunque.llm.wire import BadReply, Declined, Problem, Reader, Request, Said, Wire, Wrapping

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
    carries a note. Usage that is not told is estimated, at one token for four bytes of UTF-8.
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
        """That the model did something which is no answer."""
        return self._transport.unavailable(what, again)

    def _headers(self) -> dict[str, str]:
        try:
            return self.wire.headers(self._key())
        except NoKey as error:
            raise ModelUnavailable(f"{self.name} {error}") from None

    # Whole answers ------------------------------------------------------------------------------------------------

    def _whole(self, ask: Callable[[], Request], config: GenerationConfig, prompt: Prompt) -> Completion:
        for request in self._requests(ask):
            try:
                body = self._transport.whole(request.path, self._headers(), request.body)
            except Refused as refused:
                self._adapt(refused)
                continue
            return self._completion(self._read(body), request, config, prompt)
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

    def _completion(
        self, said: Said, request: Request, config: GenerationConfig, prompt: Prompt
    ) -> Completion:
        usage = said.usage or _estimated(prompt, said.text)
        cost = cost_of(self.at, usage)
        if said.declined:
            raise self._declined(said.declined, usage, cost)
        text = Wrapping([said.text]).unwrapped() if request.wrapped else said.text
        reason: FinishReason = said.reason or "stop"
        calls = joined_calls(said.calls)
        return Completion(text, self.name, reason, usage, calls, cost, self._note(config, said.usage))

    # Streams ------------------------------------------------------------------------------------------------------

    def _streamed(
        self, ask: Callable[[], Request], config: GenerationConfig, prompt: Prompt
    ) -> Iterator[Chunk]:
        # What is wrong with the request is told here, not when the first piece is waited for.
        first = ask()
        return self._chunks(first, ask, config, prompt)

    def _chunks(
        self, first: Request, ask: Callable[[], Request], config: GenerationConfig, prompt: Prompt
    ) -> Iterator[Chunk]:
        for request in self._requests(ask, first):
            reader = self.wire.reader()
            events = self._transport.stream(request.path, self._headers(), request.body, reader)
            try:
                try:
                    yield from self._told(events, reader, request, config, prompt)
                except Refused as refused:
                    # Before the first event, so nothing was told yet.
                    self._adapt(refused)
                    continue
            finally:
                events.close()  # type: ignore[attr-defined]  # it is a generator
            return

    def _told(
        self,
        events: Iterator[Any],
        reader: Reader,
        request: Request,
        config: GenerationConfig,
        prompt: Prompt,
    ) -> Iterator[Chunk]:
        texts: list[str] = []
        read, wrapped = reader.read, request.wrapped
        reason: FinishReason | None = None
        declined = ""
        told: Usage | None = None
        for event in events:
            if event is None:
                break
            if type(event) is WholeAnswer:
                said = self._read(event.body)
                told = said.usage
            else:
                if type(event) is not dict or "error" in event:
                    self._raise_if_error(event)
                try:
                    said = read(event)
                except BadReply as error:
                    raise self.unavailable(str(error), again=True) from None
            reason = said.reason or reason
            declined = declined or said.declined
            if said.text or said.calls:
                texts.append(said.text)
                if not wrapped:
                    yield Chunk(said.text, tool_calls=said.calls)
            if reader.ended:
                break
        if reason is None:
            raise self.unavailable("broke off in the middle of its answer", again=True)
        told = reader.usage() or told
        usage = told or _estimated(prompt, "".join(texts))
        cost = cost_of(self.at, usage)
        if declined:
            raise self._declined(declined, usage, cost)
        if wrapped:
            yield Chunk(Wrapping(texts).unwrapped())
        yield Chunk("", reason, usage, self.name, cost=cost, note=self._note(config, told))
        for _ in events:
            pass  # what follows the end is not read, but the connection is left in order

    def _raise_if_error(self, event: object) -> None:
        if not isinstance(event, dict):
            raise self.unavailable("streamed JSON that is not a completion", again=True)
        if event["error"]:
            raise self._broken_off(self.wire.problem(0, event), "broke off with an error")

    # Refusals -----------------------------------------------------------------------------------------------------

    def _requests(self, ask: Callable[[], Request], first: Request | None = None) -> Iterator[Request]:
        """The request, and again each time that a setting had to be left out of it."""
        yield first or ask()
        for _ in range(_MOST_LEFT_OUT):
            yield ask()

    def _adapt(self, refused: Refused) -> None:
        """Leave out what the model said that it does not take; raises the error where it is about something else."""
        problem = self.wire.problem(refused.status, refused.body)
        if not problem.setting or problem.setting in self.wire.left_out:
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
            return self.unavailable(f"refused the API key (status {status}; {key_advice(self.at)}){told}")
        if status == 404:
            return self.unavailable(f"does not know this model, or has no such API (status 404){told}")
        if 300 <= status < 400:
            return self.unavailable(
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
        what = how + words if how.endswith("error") else f"{how} with an error{words}"
        return self._transport.unavailable(what, problem.again or not problem.kind, problem.after)

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

    def _note(self, config: GenerationConfig, told: Usage | None) -> str:
        """What a user should know of how the answer came about."""
        if not self.wire.left_out and told is not None:
            return ""
        notes: list[str] = []
        asked = [name for name in sorted(self.wire.left_out) if _was_asked(name, config)]
        if asked:
            notes.append(f"{self.name} takes no {', '.join(asked)}; its own settings were used.")
        if "reasoning_effort" in self.wire.left_out and isinstance(config.format, ToolFormat):
            notes.append(f"{self.name} takes tools only without reasoning, which was switched off.")
        if told is None:
            notes.append(f"{self.name} did not tell its usage; it was estimated.")
        return " ".join(notes)


def _was_asked(name: str, config: GenerationConfig) -> bool:
    if name == "tool_choice":
        return isinstance(config.format, ToolFormat) and config.format.required
    if name not in GenerationConfig.model_fields:
        return False
    return name == "temperature" or getattr(config, name) != GenerationConfig.model_fields[name].default


def _estimated(prompt: Prompt, answer: str) -> Usage:
    read = math.ceil(len(prompt.encode(errors="replace")) / 4) if isinstance(prompt, str) else len(prompt)
    return Usage(read, math.ceil(len(answer.encode(errors="replace")) / 4))
