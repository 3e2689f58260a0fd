"""General text read again beside what is learned, so that less of it is forgotten: by its own loss, by the divergence
from the base, or by both."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from yunque.model import CausalModel, LanguageModel
from yunque.train.corpus import RowKey, Windows
from yunque.train.loss import token_losses, window_vectors
from yunque.train.objective import Part, PartLoss
from yunque.train.objectives.divergence import base_vectors, divergences
from yunque.train.objectives.next_token import NextToken
from yunque.train.objectives.span_corruption import SpanCorruption
from yunque.train.objectives.written import Writer, answer_vectors, writer_of

GROUP = "replay"


@dataclass(frozen=True)
class Replay:
    """`weight` times the loss of `text`, and `kl` times KL(base || model), both means over the positions of a step.

    `frozen` is the base where the model itself changes; None where it is the model without its adapter.
    """

    text: NextToken | SpanCorruption
    weight: float = 1.0
    kl: float = 0.0
    frozen: Writer | None = None

    def parts(self, model: LanguageModel, step: int) -> Sequence[Part]:
        """What of the text a step reads."""
        return [Part(part.batch, part.weight, part.tokens, GROUP) for part in self.text.parts(model, step)]

    def loss(self, model: LanguageModel, part: Part) -> PartLoss:
        """The loss of a part; each of the two is among the figures where it counts."""
        writer = writer_of(model)
        if not self.kl:
            text = self.text.loss(model, part).mean
            return PartLoss(self.weight * text, {"replay_loss": text})
        vectors_ND, targets_N = _vectors(writer, part)
        base_ND = base_vectors(writer, self.frozen, lambda base: _vectors(base, part)[0])
        kl = divergences(writer, vectors_ND, self.frozen, base_ND).mean()
        if not self.weight:
            return PartLoss(self.kl * kl, {"replay_kl": kl})
        text = token_losses(writer, vectors_ND, targets_N).mean()
        return PartLoss(self.weight * text + self.kl * kl, {"replay_loss": text, "replay_kl": kl})

    def rows_seen(self, steps: int) -> Counter[RowKey]:
        """In how many windows or pieces of the first `steps` each row was read."""
        return self.text.rows_seen(steps)


def _vectors(model: Writer, part: Part) -> tuple[Tensor, Tensor]:
    """The final vectors [N, D] of a part and its targets [N]."""
    if isinstance(model, CausalModel):
        assert isinstance(part.batch, Windows)
        return window_vectors(model, part.batch)
    return answer_vectors(model, part.batch)
