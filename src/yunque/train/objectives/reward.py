"""A reward model: a number for each answer, such that the better of two gets the higher one.

Bradley and Terry 1952: the probability that y+ is preferred to y- is sigmoid(r(y+) - r(y-)); the loss is minus the
logarithm of it (Ouyang et al. 2022, arXiv:2203.02155).

Shapes: B pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from yunque.data.preferences import Message
from yunque.errors import UserError
from yunque.generate.conversation import Written
from yunque.model import LanguageModel
from yunque.model.scored import ScoredModel
from yunque.tokenizer import Tokenizer
from yunque.train.objective import Part, PartLoss
from yunque.train.objectives.pairs import Pair, PairOrder, mean_figures, pair_parts


def judged_text(tokenizer: Tokenizer, prompt: Sequence[Message], answer: str) -> list[int]:
    """A conversation and its answer as a reward model reads them; its number is read at the last of these ids.

    Where a tokenizer fills up batches with its end token there is none at the end: what looks for the last token that
    is not padding, as transformers does, would not see it.
    """
    ids, _ = tokenizer.encode_chat([*prompt, ("assistant", answer)], False)
    last = len(ids)
    while last and ids[last - 1] == tokenizer.pad_id:
        last -= 1
    if not last:
        raise UserError("the chat template makes nothing of a conversation")
    return ids[:last]


def judged_pair(tokenizer: Tokenizer, id: str, prompt: Sequence[Message], answers: Sequence[str]) -> Pair:
    """A pair whose answers are the last tokens of what a reward model reads."""
    chosen, rejected = (judged_text(tokenizer, prompt, answer) for answer in answers)
    return Pair(id, Written(chosen[:-1], chosen[-1:]), Written(rejected[:-1], rejected[-1:]))


def bradley_terry_losses(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """The loss [B] of pairs, from the numbers of their two answers."""
    return -F.logsigmoid(chosen_B - rejected_B)


@dataclass(frozen=True)
class PairwiseReward:
    """The mean loss over pairs. `held_out` pairs are read by no step."""

    pairs: Sequence[Pair]
    held_out: Sequence[Pair]
    order: PairOrder
    together: int

    def parts(self, model: LanguageModel, step: int) -> Sequence[Part]:
        """The pairs of a step."""
        del model
        return pair_parts(self.pairs, self.order.batch(step), self.together)

    def loss(self, model: LanguageModel, part: Part) -> PartLoss:
        """The mean over pairs. Figures: `margin`, how much higher chosen answers are; `accuracy`, the share of pairs
        where they are higher."""
        assert isinstance(model, ScoredModel)
        pairs = [self.pairs[number] for number in part.batch]
        rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        scores = model.text_scores([row.prompt + row.answer for row in rows])
        chosen_B, rejected_B = scores[: len(pairs)], scores[len(pairs) :]
        margin_B = (chosen_B - rejected_B).detach()
        figures = {"margin": margin_B.mean(), "accuracy": (margin_B > 0).float().mean()}
        return PartLoss(bradley_terry_losses(chosen_B, rejected_B).mean(), figures)

    @torch.inference_mode()
    def held_out_figures(self, model: LanguageModel) -> dict[str, float]:
        """Loss, margin and accuracy on the pairs held out; none where there are none."""
        held_out = PairwiseReward(self.held_out, (), self.order, self.together)
        return mean_figures(
            held_out, model, pair_parts(self.held_out, range(len(self.held_out)), self.together)
        )

    def validation_loss(self, model: LanguageModel) -> float | None:
        """The mean loss on the pairs held out."""
        return self.held_out_figures(model).get("loss")
