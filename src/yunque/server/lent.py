"""A model as an app of the server asks it: the one that is open for everybody, for as long as it answers."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from typing import TYPE_CHECKING

from typing_extensions import TypeIs

from yunque.generate.config import GenerationConfig
from yunque.llm import Chunk, Completion, LanguageModel, Message, Prompt
from yunque.llm.router import joined
from yunque.server.account import account

if TYPE_CHECKING:
    from yunque.llm.local import LocalModel


class LentModel:
    """The model that `use()` opens. Its answer ends early where nobody waits for it any more (ApiError)."""

    local = True

    def __init__(self, name: str, use: Callable[[], AbstractContextManager[LanguageModel]]) -> None:
        self.name = name
        self._use = use

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        """Answer a conversation."""
        return joined(self.stream_chat(messages, config), self.name)

    def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
        """Answer a conversation piece by piece."""
        with self._use() as model:
            if _runs_here(model):
                yield from _while_wanted(model.stream_chat(messages, config, account().wanted))
            else:
                yield from _while_wanted(model.stream_chat(messages, config))

    def complete(self, prompt: Prompt, config: GenerationConfig) -> Completion:
        """Go on with a text."""
        return joined(self.stream_complete(prompt, config), self.name)

    def stream_complete(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        """Go on with a text piece by piece."""
        with self._use() as model:
            if _runs_here(model):
                yield from _while_wanted(model.stream_complete(prompt, config, account().wanted))
            else:
                yield from _while_wanted(model.stream_complete(prompt, config))


def _runs_here(model: LanguageModel) -> "TypeIs[LocalModel]":
    # torch is loaded here, so not at the top of the module.
    from yunque.llm.local import LocalModel

    return isinstance(model, LocalModel)


def _while_wanted(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    with closing(_as_generator(chunks)) as made:
        for chunk in made:
            account().check()
            yield chunk
    # An answer that nobody waited for any more breaks off without a word.
    account().check()


def _as_generator(chunks: Iterator[Chunk]) -> Generator[Chunk]:
    yield from chunks
