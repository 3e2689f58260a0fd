"""A model of the workspace, run on this machine."""

from collections.abc import Iterator, Sequence

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.generate.conversation import encode_answer, encode_prompt
from yunque.generate.engine import Engine, Step
from yunque.llm.face import Chunk, Completion, ContextOverflow, Message, Usage
from yunque.workspace import Workspace


class LocalModel:
    """A model that this process runs; nothing leaves the machine. Tokens are the model's own."""

    local = True

    def __init__(self, name: str, engine: Engine) -> None:
        self.name = name
        self.engine = engine

    @classmethod
    def open(cls, workspace: Workspace, ref: str) -> "LocalModel":
        """The model `[model/]NAME[@VERSION]`, or the adapter `adapter/NAME` on its base; raises UserError when there
        is none."""
        engine = Engine.open(workspace, ref)
        return cls(engine.name, engine)

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        """Answer a conversation; raises ContextOverflow when it and the answer are longer than the context."""
        return self._whole(self.stream_chat(messages, config))

    def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
        """Answer a conversation piece by piece; raises ContextOverflow at the call."""
        return self._stream(encode_prompt(self.engine.tokenizer, self.engine.model, _turns(messages)), config)

    def complete(self, prompt: str, config: GenerationConfig) -> Completion:
        """Go on with a text; raises ContextOverflow."""
        return self._whole(self.stream_complete(prompt, config))

    def stream_complete(self, prompt: str, config: GenerationConfig) -> Iterator[Chunk]:
        """Go on with a text piece by piece; raises ContextOverflow at the call."""
        return self._stream(self.engine.tokenizer.encode_prompt(prompt), config)

    def score(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """The log-likelihood (nats) of each answer to a conversation, with its end; raises ContextOverflow."""
        engine, likelihoods = self.engine, list[float]()
        for answer in answers:
            written = encode_answer(engine.tokenizer, engine.model, _turns(messages), answer)
            try:
                likelihoods.append(engine.score(written.prompt, written.answer))
            except UserError as error:
                raise ContextOverflow(str(error), engine.room(len(written.prompt))) from None
        return likelihoods

    def _stream(self, prompt_ids: list[int], config: GenerationConfig) -> Iterator[Chunk]:
        try:
            steps = self.engine.stream(prompt_ids, config)
        except UserError as error:
            raise ContextOverflow(str(error), self.engine.room(len(prompt_ids))) from None
        return self._chunks(len(prompt_ids), steps)

    def _chunks(self, prompt_tokens: int, steps: Iterator[Step]) -> Iterator[Chunk]:
        for written, step in enumerate(steps, start=1):
            if step.finish_reason:
                yield Chunk(step.text, step.finish_reason, Usage(prompt_tokens, written), self.name)
            elif step.text:
                yield Chunk(step.text)

    def _whole(self, chunks: Iterator[Chunk]) -> Completion:
        texts: list[str] = []
        for chunk in chunks:
            texts.append(chunk.text)
            if chunk.finish_reason and chunk.usage:
                return Completion("".join(texts), self.name, chunk.finish_reason, chunk.usage)
        raise AssertionError("the engine's last step says why it ended")


def _turns(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]
