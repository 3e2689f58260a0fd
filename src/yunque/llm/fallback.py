"""Several models as one: the next answers when one cannot."""

from collections.abc import Callable, Iterator, Sequence

from yunque.generate.config import GenerationConfig
from yunque.llm.face import Chunk, Completion, LanguageModel, Message, ModelUnavailable


class FallbackModel:
    """Asks `models` in order until one does not raise ModelUnavailable.

    `Completion.model`, and `Chunk.model` of a stream's last chunk, say which one answered. A stream goes on to the
    next model only while no text was sent: half an answer of one model is never continued by another. Other
    exceptions (a mistake of the user) are raised at once.
    """

    def __init__(self, models: Sequence[LanguageModel]) -> None:
        if not models:
            raise ValueError("a fallback needs at least one model")
        self.models = tuple(models)
        self.name = ", else ".join(model.name for model in self.models)
        # A text may reach any of them, so one that is remote makes the whole remote.
        self.local = all(model.local for model in self.models)

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        """Answer a conversation."""
        return self._first(lambda model: model.chat(messages, config))

    def complete(self, prompt: str, config: GenerationConfig) -> Completion:
        """Go on with a text."""
        return self._first(lambda model: model.complete(prompt, config))

    def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
        """Answer a conversation piece by piece."""
        return self._first_stream(lambda model: model.stream_chat(messages, config))

    def stream_complete(self, prompt: str, config: GenerationConfig) -> Iterator[Chunk]:
        """Go on with a text piece by piece."""
        return self._first_stream(lambda model: model.stream_complete(prompt, config))

    def _first(self, ask: Callable[[LanguageModel], Completion]) -> Completion:
        failures: list[str] = []
        for model in self.models:
            try:
                return ask(model)
            except ModelUnavailable as error:
                failures.append(str(error))
        raise ModelUnavailable("no model could answer: " + "; ".join(failures))

    def _first_stream(self, ask: Callable[[LanguageModel], Iterator[Chunk]]) -> Iterator[Chunk]:
        failures: list[str] = []
        for model in self.models:
            started = False
            try:
                for chunk in ask(model):
                    started = started or bool(chunk.text)
                    if started or chunk.finish_reason:
                        yield chunk
                return
            except ModelUnavailable as error:
                if started:
                    raise
                failures.append(str(error))
        raise ModelUnavailable("no model could answer: " + "; ".join(failures))
