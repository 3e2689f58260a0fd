"""What models answered while an app made one answer: who it was, with which prompts, and whether another one did."""

import hashlib
from collections.abc import Iterator, Sequence

from yunque.apps.retrieval.words import Language
from yunque.generate.config import GenerationConfig
from yunque.llm.face import Chunk, Completion, LanguageModel, Message, Prompt
from yunque.llm.wrapped import Wrapped

_OTHER_MODEL_NOTE = {
    "es": "El modelo {model} no pudo responder; respondió {other}.",
    "en": "The model {model} could not answer; {other} did.",
}


class Heard:
    """Listens to the models that it wraps."""

    def __init__(self) -> None:
        self._answered: dict[str, None] = {}
        self._others: dict[tuple[str, str], None] = {}
        self._prompts: list[str] = []

    def listening(self, model: LanguageModel) -> LanguageModel:
        """The model, listened to."""
        return _Listened(model, self)

    @property
    def models(self) -> str:
        """Who answered, in the order of their first answers."""
        return ", ".join(self._answered)

    @property
    def prompt_hash(self) -> str:
        """One hash of all the prompts (of the prompt, where there was one); empty where nobody was asked."""
        if len(self._prompts) == 1:
            return self._prompts[0]
        return hashlib.sha256("\0".join(self._prompts).encode()).hexdigest() if self._prompts else ""

    def note(self, language: Language) -> str:
        """Which models could not answer, and who did in their place."""
        template = _OTHER_MODEL_NOTE[language]
        return " ".join(template.format(model=asked, other=other) for asked, other in self._others)

    def told(self, asked: str, messages: Sequence[Message], answered: str, note: str) -> None:
        """Somebody answered."""
        self._answered[answered] = None
        self._prompts.append(prompt_hash(messages))
        if note:
            self._others[asked, answered] = None


class _Listened(Wrapped):
    def __init__(self, model: LanguageModel, heard: Heard) -> None:
        super().__init__(model)
        self._heard = heard

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        """Answer a conversation."""
        completion = self.model.chat(messages, config)
        self._heard.told(self.name, messages, completion.model, completion.note)
        return completion

    def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
        """Answer a conversation piece by piece."""
        return self._followed(messages, self.model.stream_chat(messages, config))

    def complete(self, prompt: Prompt, config: GenerationConfig) -> Completion:
        """Go on with a text."""
        completion = self.model.complete(prompt, config)
        self._heard.told(self.name, _as_message(prompt), completion.model, completion.note)
        return completion

    def stream_complete(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        """Go on with a text piece by piece."""
        return self._followed(_as_message(prompt), self.model.stream_complete(prompt, config))

    def _followed(self, messages: Sequence[Message], chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            if chunk.usage:
                self._heard.told(self.name, messages, chunk.model or self.name, chunk.note)
            yield chunk


def prompt_hash(messages: Sequence[Message]) -> str:
    """What a call is known by in the log: the SHA-256 of the prompt, without what was answered."""
    return hashlib.sha256("\0".join(f"{m.role}\0{m.content}" for m in messages).encode()).hexdigest()


def _as_message(prompt: Prompt) -> list[Message]:
    return [Message("user", prompt if isinstance(prompt, str) else " ".join(map(str, prompt)))]
