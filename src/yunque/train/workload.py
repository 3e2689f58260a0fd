"""What an objective asks of the machine, played before any of it is done: the memory of a step, and its FLOPs.

Shapes: B rows, T positions, S positions of a source, D hidden_size, N positions that are scored.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from yunque.model import CausalModel, EncoderDecoder, LanguageModel
from yunque.model.memory import Training, TrainingMemory, outline_of, plan_training_of
from yunque.model.scored import ScoredModel
from yunque.model.simulation import first_playable, play_training_flops
from yunque.train.loss import token_losses
from yunque.train.settings import Precision

_Losses = Callable[[CausalModel | EncoderDecoder, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Workload:
    """What an objective asks of the machine.

    `step_tokens` and `epoch_tokens` are positions that the model reads. At once it reads at most `rows` rows, the
    longest of `length` positions (of an encoder-decoder the source; the target of `target_length`, else as many),
    and as a mean of `mean_length`; `packed` rows hold several documents. `scored` is the share of positions that
    are scored against the vocabulary. Where a step is `accumulated`, gradients of one part wait while the next is
    read. A row of `micro_batch_size` is `rows_each` rows for the model (a pair: two). `held_bytes` are other
    weights, kept in memory. For each position that is learned from, a frozen base reads `frozen_share` more. Each
    `rollout_steps` steps the model writes what they learn from.
    """

    step_tokens: float
    epoch_tokens: float
    rows: int
    length: int
    packed: bool
    target_length: int | None = None
    mean_length: float | None = None
    scored: float = 1.0
    accumulated: bool = False
    rows_each: int = 1
    held_bytes: int = 0
    frozen_share: float = 0.0
    rollout_steps: int | None = None

    def memory(
        self,
        model: LanguageModel,
        precision: Precision,
        rows: int | None = None,
        accumulated: bool | None = None,
    ) -> TrainingMemory:
        """What the largest batch takes (or one of `rows` rows), with `model` as it is: on a meta device, under an
        adapter, quantized. `held_bytes` are not in it."""

        def loss(played: LanguageModel) -> Tensor:
            target = self.target_length or self.length
            return self._loss(played, rows or self.rows, self.length, target, token_losses)

        # Muon keeps less than AdamW, and takes about as much more for a moment: the sum is AdamW's.
        training = Training(rows or self.rows, self.length, dtype=precision, masked=self.packed)
        waiting = self.accumulated if accumulated is None else accumulated
        return plan_training_of(model, training, loss, waiting)

    def flops_per_token(self, model: LanguageModel) -> int:
        """Floating-point operations of training for each position read, for a row of mean length: a multiplication
        and an addition are two, attention counts its whole window, and nothing counts twice that is made twice.

        With an adapter no gradient of frozen weights is counted, and none below the first layer that learns. What a
        frozen base reads counts two operations for each of its parameters.
        """
        length = max(1, round(self.mean_length or self.length))
        target = max(1, round(length * (self.target_length or self.length) / self.length))

        def loss(played: LanguageModel) -> Tensor:
            return self._loss(played, 1, length, target, _plain_losses)

        positions = length + (target if isinstance(_body(model), EncoderDecoder) else 0)
        read = 2 * outline_of(_body(model).config)[1] * self.frozen_share if self.frozen_share else 0
        return round(play_training_flops(model, loss) / positions + read)

    def score_bytes(self, model: LanguageModel) -> int:
        """The table of scores of one part, in float32: the largest single thing where the vocabulary is large."""
        positions = (
            (self.target_length or self.length) if isinstance(_body(model), EncoderDecoder) else self.length
        )
        return 4 * round(self.scored * self.rows * positions) * model.config.vocab_size

    def largest_micro_batch(self, model: LanguageModel, precision: Precision, available: int) -> int | None:
        """The most rows of `micro_batch_size` that fit in so many bytes; None where not even one does."""

        def peak(rows: int) -> int:
            return self.memory(model, precision, rows * self.rows_each, True).peak_bytes + self.held_bytes

        one, low, high = peak(1), 1, max(1, self.rows // self.rows_each)
        if one > available:
            return None
        if high > 1:
            each = max(1, (peak(high) - one) // (high - 1))
            low = min(high, 1 + (available - one) // each)
            while peak(low) > available:
                low = max(1, low - max(1, low // 16))
        return low

    def _loss(
        self, model: LanguageModel, rows: int, length: int, target_length: int, losses: _Losses
    ) -> Tensor:
        """A loss as training has it, of rows without content."""
        body = _body(model)
        hidden_BTD = self._hidden(body, rows, length, target_length)
        vectors = hidden_BTD.flatten(0, 1)
        loss = model.scores(vectors).mean() if isinstance(model, ScoredModel) else vectors.new_zeros(())
        if count := round(self.scored * len(vectors)):
            if count < len(vectors):
                vectors = vectors.index_select(0, torch.arange(count))
            loss = loss + losses(body, vectors, torch.zeros(count, dtype=torch.int64)).mean()
        return loss

    def _hidden(
        self, body: CausalModel | EncoderDecoder, rows: int, length: int, target_length: int
    ) -> Tensor:
        ids_BT = torch.zeros(rows, length, dtype=torch.int64)
        if isinstance(body, CausalModel):
            marks_BT = torch.ones_like(ids_BT) if self.packed else None
            return first_playable(
                lambda: body.hidden(ids_BT, segment_ids_BT=marks_BT), lambda: body.hidden(ids_BT)
            )
        target_BT = torch.zeros(rows, target_length, dtype=torch.int64)
        mask_BS = torch.ones_like(ids_BT)

        def read(mask: Tensor | None) -> Tensor:
            return body.decode(target_BT, body.encode(ids_BT, mask), mask)

        return first_playable(lambda: read(mask_BS), lambda: read(None))


def _body(model: LanguageModel) -> CausalModel | EncoderDecoder:
    """The model that writes, without the matrix for values that may be beside it."""
    body = model.body if isinstance(model, ScoredModel) else model
    assert isinstance(body, CausalModel | EncoderDecoder)
    return body


def _plain_losses(model: CausalModel | EncoderDecoder, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    return F.cross_entropy(model.logits(hidden_ND).float(), targets_N, reduction="none")
