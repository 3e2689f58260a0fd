"""A model behind the API: what is asked and answered is counted, and kept in the call log without personal data."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.generate.scheduler import Unwanted
from yunque.llm import Chunk, Embeddings, LanguageModel, Message, Prompt, Usage
from yunque.llm.embedding import LocalEncoder
from yunque.llm.local import LocalModel
from yunque.model import Encoder
from yunque.model.family import family_of
from yunque.server.account import account
from yunque.server.served import Settings
from yunque.workspace import Artifact, Call, Workspace

_MOST_ADAPTERS = 16


def is_encoder(workspace: Workspace, artifact: Artifact) -> bool:
    """Whether a model only reads. False where its files do not tell; opening it says what is wrong."""
    if artifact.kind != "model":
        return False
    try:
        config = json.loads(workspace.file(artifact, "config.json").read_bytes())
        made = family_of(config).model
    except (UserError, OSError, ValueError, AttributeError):
        return False
    return isinstance(made, type) and issubclass(made, Encoder)


class ServedModel:
    """A model of the workspace, with the adapters on it that were asked for."""

    def __init__(self, workspace: Workspace, ref: str, model: LanguageModel) -> None:
        self.ref = ref
        self.model = model
        self._workspace = workspace
        # The adapters that are loaded, the longest unused first, and how many requests use each.
        self._adapters: dict[str, int] = {}
        self._loading = threading.Lock()

    def enter_adapter(self, artifact: Artifact) -> "ServedModel":
        """An adapter on this model, until `leave_adapter`: its requests share batches with the model's own, and with
        other adapters'.

        Raises UserError where it cannot be put on beside others (and has to be opened alone).
        """
        if not isinstance(self.model, LocalModel):
            raise UserError(f"{self.ref} takes no adapters")
        engine, ref = self.model.engine, artifact.ref
        with self._loading:
            users = self._adapters.pop(ref, None)
            if users is None:
                engine.load_adapter(ref, self._workspace.files(artifact))
            self._adapters[ref] = (users or 0) + 1
            idle = [name for name, count in self._adapters.items() if not count]
            for name in idle[: max(0, len(self._adapters) - _MOST_ADAPTERS)]:
                engine.drop_adapter(name)
                del self._adapters[name]
        return ServedModel(self._workspace, ref, LocalModel(ref, engine, ref))

    def leave_adapter(self, artifact: Artifact) -> None:
        """A request with this adapter is over."""
        with self._loading:
            self._adapters[artifact.ref] -= 1

    @property
    def local(self) -> LocalModel | None:
        """The model, if this process runs it."""
        return self.model if isinstance(self.model, LocalModel) else None

    def chat(self, messages: Sequence[Message], settings: Settings) -> Iterator[Chunk]:
        """Answer a conversation."""
        said = "\n".join(f"{each.role}: {each.content}" for each in messages)
        if isinstance(self.model, LocalModel):
            prompt_ids = self.model.encode(messages, settings.config)
            return self._prepared(self.model, prompt_ids, said, settings)()
        return self._counted(said, 0, self.model.stream_chat(messages, settings.config))

    def complete(self, prompt: Prompt, settings: Settings) -> Iterator[Chunk]:
        """Go on with a text."""
        return self.prepare(prompt, settings)()

    def prepare(self, prompt: Prompt, settings: Settings) -> Callable[[], Iterator[Chunk]]:
        """As `complete`, begun when it is called; what the key has not left, and what does not fit, is told now."""
        if isinstance(self.model, LocalModel):
            tokenizer = self.model.tokenizer
            ids = tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else list(prompt)
            text = prompt if isinstance(prompt, str) else tokenizer.decode(ids)
            return self._prepared(self.model, ids, text, settings)
        text, model = prompt if isinstance(prompt, str) else " ".join(map(str, prompt)), self.model
        return lambda: self._counted(text, 0, model.stream_complete(prompt, settings.config))

    def embed(self, texts: Sequence[Prompt]) -> Embeddings:
        """A vector for each text; raises UserError for a model that runs elsewhere."""
        if not isinstance(self.model, LocalModel):
            raise UserError(f"{self.ref} gives no vectors")
        return _embedded(self.model, texts)

    def figures(self) -> dict[str, float]:
        """What its engine is doing, for the metrics."""
        return asdict(self.model.engine.load) if isinstance(self.model, LocalModel) else {}

    def memory_bytes(self) -> int:
        """What it holds, texts under way included; 0 where it runs elsewhere."""
        return self.model.engine.memory_bytes if isinstance(self.model, LocalModel) else 0

    def close(self) -> None:
        """Give the model's memory back."""
        if isinstance(self.model, LocalModel):
            self.model.close()

    def _prepared(
        self, model: LocalModel, ids: list[int], text: str, settings: Settings
    ) -> Callable[[], Iterator[Chunk]]:
        current, config = account(), _fitting(model, len(ids), settings)
        read = model.fitted(ids, config)
        current.reserve(len(read), config.max_new_tokens * config.candidates)
        return lambda: self._counted(text, len(read), model.stream_complete(read, config, current.wanted))

    def _counted(self, prompt: str, prompt_tokens: int, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        started = time.monotonic()
        current = account()
        texts: dict[int, list[str]] = {}
        last, written = Chunk(""), 0
        try:
            with closing(_as_generator(chunks)) as made:
                for last in made:
                    if not last.echoed:
                        current.wrote(1)
                        written += 1
                        texts.setdefault(last.index, []).append(last.text)
                    if last.usage and last.usage.completion_tokens > written:
                        # What was written for answers that are not given (`best_of`).
                        current.wrote(last.usage.completion_tokens - written)
                    yield last
        finally:
            # An answer that broke off, or was not wanted any more, was given all the same.
            answer = "\n".join("".join(texts[index]) for index in sorted(texts))
            usage = last.usage or Usage(prompt_tokens, written)
            self._log(prompt, answer, last, usage, time.monotonic() - started)

    def _log(self, prompt: str, answer: str, last: Chunk, usage: Usage, seconds: float) -> None:
        from yunque.data.personal import Redaction

        redaction = Redaction()
        question, answered = redaction.redact(prompt), redaction.redact(answer)
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


def _fitting(model: LocalModel, prompt_tokens: int, settings: Settings) -> GenerationConfig:
    """The request's settings; where it asked for no length, with no more than there is room for."""
    config = settings.config
    if settings.length_asked:
        return config
    rooms = [model.room(prompt_tokens, config.truncate)]
    if config.truncate and model.context:
        prompt_tokens = min(prompt_tokens, model.context)
    if (left := account().room) is not None:
        rooms.append((left - prompt_tokens) // config.candidates)
    length = max(1, min(config.max_new_tokens, *rooms))
    return config.model_copy(update={"max_new_tokens": length})


def _embedded(model: LocalModel | LocalEncoder, texts: Sequence[Prompt]) -> Embeddings:
    """A vector for each text; its tokens are put by before. Raises ApiError where nobody waits for it any more."""
    current, ids = account(), model.read(texts)
    current.reserve(sum(map(len, ids)), 0)
    try:
        return model.embed(ids, current.wanted)
    except Unwanted:
        current.check()
        raise


def _as_generator(chunks: Iterator[Chunk]) -> Generator[Chunk]:
    yield from chunks


class ServedEncoder:
    """A model of the workspace that reads texts and writes none."""

    def __init__(self, ref: str, model: LocalEncoder) -> None:
        self.ref = ref
        self.local = model

    @classmethod
    def open(cls, workspace: Workspace, ref: str) -> "ServedEncoder":
        """The encoder called `ref`."""
        return cls(ref, LocalEncoder.open(workspace, ref))

    def chat(self, messages: Sequence[Message], settings: Settings) -> Iterator[Chunk]:
        """Raises UserError."""
        del messages, settings
        raise UserError(f"{self.ref} reads texts and writes none: use it with /v1/embeddings")

    def complete(self, prompt: Prompt, settings: Settings) -> Iterator[Chunk]:
        """Raises UserError."""
        del prompt
        return self.chat([], settings)

    def prepare(self, prompt: Prompt, settings: Settings) -> Callable[[], Iterator[Chunk]]:
        """What it gives raises UserError."""
        return lambda: self.complete(prompt, settings)

    def embed(self, texts: Sequence[Prompt]) -> Embeddings:
        """A vector for each text."""
        return _embedded(self.local, texts)

    def close(self) -> None:
        """Nothing is held but memory, which goes with it."""
