"""What the server serves: the workspace's models, adapters and apps, opened when they are asked for."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from typing_extensions import TypedDict

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm import Chunk, Embeddings, LanguageModel, Message, Prompt, open_model
from yunque.llm.open import is_url
from yunque.server.account import account
from yunque.server.lent import LentModel
from yunque.server.loading import Loading, Needs, planned_bytes
from yunque.workspace import Artifact, Workspace
from yunque.workspace.artifact import parse_ref


@dataclass(slots=True)
class Piece(Chunk):
    """A piece of an app's answer; the last one carries what the app adds to it."""

    extra: dict[str, Any] | None = None


@dataclass(frozen=True)
class Settings:
    """The settings of a request. Where the client asked for no length, less than that of `config` will do;
    `conversation` is the one of an app that it goes on with, `subject` the person that the client asks for."""

    config: GenerationConfig
    length_asked: bool
    conversation: str | None = None
    subject: str = ""


class ModelBody(TypedDict):
    """A model or an app, as OpenAI describes one."""

    id: str
    object: str
    created: int
    owned_by: str


class Target(Protocol):
    """A model or an app that can be asked; `ref` is its full name with its version."""

    ref: str

    def chat(self, messages: Sequence[Message], settings: Settings) -> Iterator[Chunk]:
        """Answer a conversation."""
        ...

    def complete(self, prompt: Prompt, settings: Settings) -> Iterator[Chunk]:
        """Go on with a text, or answer it as a question."""
        ...

    def prepare(self, prompt: Prompt, settings: Settings) -> Callable[[], Iterator[Chunk]]:
        """As `complete`, but it is begun when what this gives is called; what cannot be is told now."""
        ...

    def embed(self, texts: Sequence[Prompt]) -> Embeddings:
        """A vector for each text."""
        ...

    def close(self) -> None:
        """Give its memory back."""
        ...


class NoSuchTarget(UserError):
    """The workspace has no model or app of this name."""


class Served:
    """Models and apps by the names that clients use.

    A model is called `mini`, `model/mini` or `model/mini@2`, a base with an adapter on it `adapter/polite`, an app
    `app/equipaje` or `app/equipaje@1` (or without the kind, where no model has this name). Without a version the
    newest one at the time of the call is meant. `most_bytes` is the limit of memory for all that is open.
    """

    def __init__(self, workspace: Workspace, most_bytes: int | None = None) -> None:
        self._workspace = workspace
        self.loading: Loading[Target] = Loading(self._opened, self._planned, most_bytes)

    def listed(self) -> list[ModelBody]:
        """The newest version of every model and app that the request's key is good for."""
        return [
            _model_body(artifact)
            for kind in ("model", "adapter", "app")
            for artifact in self._workspace.list(kind)
            if account().may_use(kind, artifact.name)
        ]

    def described(self, name: str) -> ModelBody:
        """One model or app, under the name that was asked for."""
        return {**_model_body(self._find(name)), "id": name}

    @contextmanager
    def use(self, name: str) -> Iterator[Target]:
        """The model or app called `name`, open while this lasts; raises NoSuchTarget. The first use loads it, and
        takes its time."""
        artifact = self._find(name)
        if artifact.kind == "adapter":
            with self._on_base(artifact) as target:
                yield target
            return
        with self.loading.use(artifact.ref) as target:
            yield target

    @contextmanager
    def _on_base(self, artifact: Artifact) -> Iterator[Target]:
        """An adapter on the base that serves the others too; one that cannot share it is opened alone."""
        from yunque.generate.opening import base_of
        from yunque.server.served_model import ServedModel

        with self.loading.use(base_of(self._workspace, artifact).ref) as base:
            shared = None
            if isinstance(base, ServedModel):
                with suppress(UserError):
                    shared = base.enter_adapter(artifact)
                if shared:
                    try:
                        yield shared
                    finally:
                        base.leave_adapter(artifact)
                    return
        with self.loading.use(artifact.ref) as alone:
            yield alone

    def only_model(self) -> str:
        """The one model of the workspace, for clients that name none; raises UserError where there are several."""
        found = [body["id"] for body in self.listed() if "/" not in body["id"]]
        if len(found) != 1:
            raise UserError(f"there are {len(found)} models here: say which one with `model`")
        return found[0]

    def _opened(self, ref: str) -> Target:
        artifact = self._workspace.get(ref)
        if artifact.kind == "app":
            from yunque.server.served_app import ServedApp

            return ServedApp.open(self._workspace, ref, self._lent)
        # torch is loaded here, so not at the top of the module.
        from yunque.server.served_model import ServedEncoder, ServedModel, is_encoder

        if is_encoder(self._workspace, artifact):
            return ServedEncoder.open(self._workspace, ref)
        model = open_model(self._workspace, ref, self.loading.granted(ref))
        return ServedModel(self._workspace, ref, model)

    def _lent(self, name: str) -> LanguageModel:
        """The model that an app names: that of the workspace which is open for all."""
        artifact = None if is_url(name) else self._found(name)
        if artifact is None:
            return open_model(self._workspace, name)  # elsewhere, or the error that says there is none
        return LentModel(artifact.ref, lambda: self._model(artifact.ref))

    @contextmanager
    def _model(self, ref: str) -> Iterator[LanguageModel]:
        with self.loading.use(ref) as target:
            model = getattr(target, "model", None)
            if model is None:
                raise UserError(f"{ref} writes no text: an app needs a model that does")
            yield model

    def _planned(self, ref: str) -> Needs:
        return planned_bytes(self._workspace, self._workspace.get(ref))

    def _find(self, name: str) -> Artifact:
        found = self._found(name)
        if found is None:
            known = ", ".join(body["id"] for body in self.listed()) or "nothing yet"
            raise NoSuchTarget(f"the model {name!r} does not exist here (served: {known})")
        account().check_model(found.kind, found.name)
        return found

    def _found(self, name: str) -> Artifact | None:
        try:
            kind = parse_ref(name).kind
        except UserError:
            return None
        for possible in ("model", "adapter", "app"):
            if kind in (None, possible) and (artifact := self._workspace.find(name, possible)):
                return artifact
        return None


def _model_body(artifact: Artifact) -> ModelBody:
    return {
        "id": artifact.name if artifact.kind == "model" else f"{artifact.kind}/{artifact.name}",
        "object": "model",
        "created": int(datetime.fromisoformat(artifact.created).timestamp()),
        "owned_by": "yunque",
    }
