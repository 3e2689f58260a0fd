"""The loss of a model on text that it was not trained on."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from yunque.data.row import Row
from yunque.errors import UserError
from yunque.evaluate.metrics import perplexity
from yunque.generate.engine import Engine
from yunque.model import CausalModel
from yunque.progress import Progress, silent
from yunque.train import evaluate_loss


@dataclass(frozen=True)
class TextLoss:
    """Mean negative log-likelihood `loss` (nats a token) of rows with so many tokens and bytes of UTF-8."""

    loss: float
    rows: int
    tokens: int
    bytes: int

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
        return {**asdict(self), "perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte}


def text_loss(engine: Engine, rows: Iterable[Row], most_tokens: int, progress: Progress = silent) -> TextLoss:
    """The loss on the first rows, whole ones, until they have `most_tokens` tokens (an end token after each).

    Raises UserError for a model that does not go on with texts.
    """
    if not isinstance(engine.model, CausalModel):
        raise UserError(f"{engine.name} is no decoder-only model: its loss on plain text is not defined")
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
    # Rows of like length share a batch, so that little of it is padding.
    by_length = [row for _, row in sorted(kept, key=lambda pair: pair[0])]
    loss = evaluate_loss(engine.model, engine.tokenizer, by_length, max_tokens=tokens, progress=progress)
    return TextLoss(loss, len(kept), tokens, length)
