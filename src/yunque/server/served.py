"""What the server serves: the workspace's models and apps, each opened once and kept."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm import Chunk, ContextOverflow, FinishReason, LanguageModel, Message, Usage, open_model
from yunque.workspace import Artifact, Call, Workspace
from yunque.workspace.artifact import parse_ref


@dataclass(frozen=True)
class Piece:
    """A piece of an answer; the last one carries why it ended, the usage, and what an app adds to it (`extra`)."""

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    extra: dict[str, Any] | None = None


@dataclass(frozen=True)
class Settings:
    """The settings of a request. Where the client asked for no length, less than that of `config` will do."""

    config: GenerationConfig
    length_asked: bool


class Target(Protocol):
    """A model or an app that can be asked; `ref` is its full name with its version."""

    ref: str

    def chat(self, messages: Sequence[Message], settings: Settings) -> Iterator[Piece]:
        """Answer a conversation."""
        ...

    def complete(self, prompt: str, settings: Settings) -> Iterator[Piece]:
        """Go on with a text, or answer it as a question."""
        ...


class ServedModel:
    """A model of the workspace. What it is asked and answers is kept in the call log, without personal data."""

    def __init__(self, workspace: Workspace, ref: str, model: LanguageModel) -> None:
        self.ref = ref
        self._workspace = workspace
        self._model = model

    def chat(self, messages: Sequence[Message], settings: Settings) -> Iterator[Piece]:
        """Answer a conversation."""
        chunks = _fitting(lambda config: self._model.stream_chat(messages, config), settings)
        return self._logged("\n".join(f"{each.role}: {each.content}" for each in messages), chunks)

    def complete(self, prompt: str, settings: Settings) -> Iterator[Piece]:
        """Go on with a text."""
        return self._logged(
            prompt, _fitting(lambda config: self._model.stream_complete(prompt, config), settings)
        )

    def _logged(self, prompt: str, chunks: Iterator[Chunk]) -> Iterator[Piece]:
        started = time.monotonic()
        texts: list[str] = []
        last = Chunk("")
        try:
            for last in chunks:
                texts.append(last.text)
                yield Piece(last.text, last.finish_reason, last.usage)
        finally:
            # An answer that broke off, or was not wanted any more, was given all the same.
            self._log(prompt, "".join(texts), last, time.monotonic() - started)

    def _log(self, prompt: str, answer: str, last: Chunk, seconds: float) -> None:
        from yunque.data.personal import Redaction

        redaction = Redaction()
        question, answered = redaction.redact(prompt), redaction.redact(answer)
        usage = last.usage or Usage(0, 0)
        self._workspace.log_call(
            Call(
                target=self.ref,
                model=last.model or self.ref,
                question=question,
                answer=answered,
                prompt_hash=hashlib.sha256(question.encode()).hexdigest(),
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                seconds=round(seconds, 3),
                details={"finish_reason": last.finish_reason},
            )
        )


def _fitting(stream: Callable[[GenerationConfig], Iterator[Chunk]], settings: Settings) -> Iterator[Chunk]:
    """The stream with the settings, or with as much length as fits where the client asked for none."""
    try:
        return stream(settings.config)
    except ContextOverflow as error:
        if settings.length_asked or error.room < 1:
            raise
        return stream(settings.config.model_copy(update={"max_new_tokens": error.room}))


class NoSuchTarget(UserError):
    """The workspace has no model or app of this name."""


class Served:
    """Models and apps by the names that clients use.

    A model is called `mini`, `model/mini` or `model/mini@2`, a base with an adapter on it `adapter/polite`, an app
    `app/equipaje` or `app/equipaje@1` (or without the kind, where no model has this name). Without a version the
    newest one at the time of the call is meant.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._kept: dict[str, Target] = {}
        self._opening: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def listed(self) -> list[dict[str, Any]]:
        """The newest version of every model and app, as OpenAI's model objects."""
        return [
            _model_object(artifact)
            for kind in ("model", "adapter", "app")
            for artifact in self._workspace.list(kind)
        ]

    def described(self, name: str) -> dict[str, Any]:
        """One model or app as OpenAI's model object, under the name that was asked for."""
        return {**_model_object(self._find(name)), "id": name}

    def open(self, name: str) -> Target:
        """The model or app called `name`; raises NoSuchTarget. The first call loads it, and takes its time."""
        artifact = self._find(name)
        with self._lock:
            opening = self._opening.setdefault(artifact.ref, threading.Lock())
        with opening:
            if artifact.ref not in self._kept:
                self._kept[artifact.ref] = _opened(self._workspace, artifact)
        return self._kept[artifact.ref]

    def _find(self, name: str) -> Artifact:
        try:
            kind = parse_ref(name).kind
        except UserError:
            kind = "no such kind"
        if kind in (None, "model") and (model := self._workspace.find(name, "model")):
            return model
        if kind in (None, "adapter") and (adapter := self._workspace.find(name, "adapter")):
            return adapter
        if kind in (None, "app") and (app := self._workspace.find(name, "app")):
            return app
        known = ", ".join(each["id"] for each in self.listed()) or "nothing yet"
        raise NoSuchTarget(f"the model {name!r} does not exist here (served: {known})")


def _opened(workspace: Workspace, artifact: Artifact) -> Target:
    if artifact.kind in ("model", "adapter"):
        return ServedModel(workspace, artifact.ref, open_model(workspace, artifact.ref))
    from yunque.server.served_app import ServedApp

    return ServedApp.open(workspace, artifact.ref)


def _model_object(artifact: Artifact) -> dict[str, Any]:
    return {
        "id": artifact.name if artifact.kind == "model" else f"{artifact.kind}/{artifact.name}",
        "object": "model",
        "created": int(datetime.fromisoformat(artifact.created).timestamp()),
        "owned_by": "yunque",
    }
