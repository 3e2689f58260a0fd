"""A conversation as ids: the one place that says what a model is asked and what it is to answer.

Training, scoring and serving all use these functions, so that a model is asked as it was taught.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from yunque.data.preferences import Message
from yunque.errors import UserError
from yunque.model import EncoderDecoder, LanguageModel
from yunque.tokenizer import Tokenizer


@dataclass(frozen=True)
class Written:
    """A prompt, and the answer to it with the token that ends it; neither is empty."""

    prompt: list[int]
    answer: list[int]

    @property
    def length(self) -> int:
        """How many tokens a model reads of it."""
        return len(self.prompt) + len(self.answer) - 1


def encode_prompt(tokenizer: Tokenizer, model: LanguageModel, prompt: Sequence[Message]) -> list[int]:
    """A prompt as the model is to be asked: in the chat format, or as the source of an encoder-decoder."""
    if isinstance(model, EncoderDecoder):
        return tokenizer.encode_prompt(spoken(prompt))
    return tokenizer.encode_chat(prompt, True)[0]


def encode_answer(
    tokenizer: Tokenizer, model: LanguageModel, prompt: Sequence[Message], answer: str
) -> Written:
    """A prompt with an answer to it, both in one encoding.

    The answer ends with a token that ends generation, also where the chat template writes none. Raises UserError
    where the chat template leaves the answer out.
    """
    if isinstance(model, EncoderDecoder):
        return Written(encode_prompt(tokenizer, model, prompt), [*tokenizer.encode(answer), tokenizer.end_id])
    ids, written = tokenizer.encode_chat([*prompt, ("assistant", answer)], False)
    if True not in written:
        raise UserError(f"the chat template writes no answer after {spoken(prompt)[:80]!r}")
    end = len(written) - written[::-1].index(True)
    start = end
    while start and written[start - 1]:
        start -= 1
    answered = ids[start:end]
    if answered[-1] not in tokenizer.end_ids:
        answered.append(tokenizer.end_id)
    return Written(ids[:start], answered)


def spoken(prompt: Sequence[Message]) -> str:
    """A prompt as one text: what the user says, or the whole conversation with a line for each message."""
    if len(prompt) == 1:
        return prompt[0][1]
    return "\n".join(f"{role}: {content}" for role, content in prompt)


def positions_needed(model: LanguageModel, written: Written) -> int:
    """How long a context has to be for it: source and target of an encoder-decoder have one each."""
    if isinstance(model, EncoderDecoder):
        return max(len(written.prompt), len(written.answer))
    return written.length
