"""The loss of a model on text that it was not trained on: of each next token, or of spans that are taken out."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from yunque.data.row import Row
from yunque.errors import UserError
from yunque.evaluate.metrics import perplexity
from yunque.generate.engine import Engine
from yunque.model import CausalModel, EncoderDecoder
from yunque.progress import Progress, silent
from yunque.train import evaluate_loss
from yunque.train.corruption import CorruptionSettings
from yunque.train.loss import context_of
from yunque.train.objectives.span_corruption import Corruption, Pieces, SpanCorruption

_ROWS_AT_ONCE = 16


class NoTextLoss(UserError):
    """A model whose loss on plain text is not defined."""


@dataclass(frozen=True)
class TextLoss:
    """Mean negative log-likelihood `loss` (nats a token) of rows with so many tokens and bytes of UTF-8.

    Of a decoder-only model it is that of every token, of an encoder-decoder that of the `tokens` in the spans that
    were taken out.
    """

    loss: float
    rows: int
    tokens: int
    bytes: int
    of: Literal["every token", "spans"] = "every token"

    @property
    def perplexity(self) -> float:
        """exp of the loss."""
        return perplexity(self.loss * self.tokens, self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Bits for each byte of text: unlike the others, comparable between tokenizers."""
        return self.loss * self.tokens / math.log(2) / self.bytes

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        figures = {**asdict(self), "perplexity": self.perplexity}
        return figures if self.of == "spans" else figures | {"bits_per_byte": self.bits_per_byte}


def text_loss(engine: Engine, rows: Iterable[Row], most_tokens: int, progress: Progress = silent) -> TextLoss:
    """The loss on the first rows, whole ones, until they have `most_tokens` tokens (an end token after each).

    Raises NoTextLoss for an encoder-decoder whose vocabulary has no marks for spans.
    """
    kept: list[tuple[int, Row]] = []
    tokens = length = 0
    for row in rows:
        if not row.text:
            continue
        count = len(engine.tokenizer.encode(row.text)) + 1
        kept.append((count, row))
        tokens += count
        length += len(row.text.encode("utf-8", errors="replace"))
        if tokens >= most_tokens:
            break
    if isinstance(engine.model, EncoderDecoder):
        return _span_loss(engine, engine.model, [row for _, row in kept], length)
    assert isinstance(engine.model, CausalModel)
    # Rows of like length share a batch, so that little of it is padding.
    by_length = [row for _, row in sorted(kept, key=lambda pair: pair[0])]
    loss = evaluate_loss(engine.model, engine.tokenizer, by_length, max_tokens=tokens, progress=progress)
    return TextLoss(loss, len(kept), tokens, length)


@torch.inference_mode()
def _span_loss(engine: Engine, model: EncoderDecoder, rows: list[Row], length: int) -> TextLoss:
    """The loss of the spans that are taken out of rows, as in pre-training; the same ones for every model."""
    corruption = Corruption(engine.tokenizer, context_of(model), CorruptionSettings())
    if corruption.tokenizer.vocab_size > model.config.vocab_size:
        raise NoTextLoss(
            f"{engine.name} is an encoder-decoder without marks for spans: its loss on plain text is not defined"
        )
    documents = [engine.tokenizer.encode(row.text) for row in rows]
    pieces = Pieces(documents, [("", row.id) for row in rows], corruption.longest, _ROWS_AT_ONCE, 0)
    spans = SpanCorruption(corruption, pieces, pieces, len(pieces.lengths), _ROWS_AT_ONCE)
    loss = spans.validation_loss(model)
    if loss is None:
        raise UserError("the loss cannot be measured: the rows hold no text")
    return TextLoss(
        loss, len(rows), sum(len(written.answer) for written in spans.validation), length, "spans"
    )
