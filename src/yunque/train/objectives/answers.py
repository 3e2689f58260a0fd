"""The objective of instruction tuning: the loss of the answer alone, in the format that serving uses.

Shapes: B rows, N tokens of all the answers (or prompts) one after the other, D hidden_size.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from yunque.generate.conversation import Written
from yunque.model import CausalModel, EncoderDecoder, LanguageModel
from yunque.train.corpus import RowKey
from yunque.train.loss import token_losses
from yunque.train.mixture import Batches
from yunque.train.objective import Part, PartLoss, in_parts
from yunque.train.objectives.divergence import base_vectors, divergences
from yunque.train.objectives.replay import GROUP, Replay
from yunque.train.objectives.written import (
    Writer,
    answer_vectors,
    per_answer,
    prompt_and_answer_vectors,
    writer_of,
)


@dataclass(frozen=True)
class Example:
    """A row as ids, with the task that it belongs to."""

    key: RowKey
    task: str
    written: Written


@dataclass(frozen=True)
class PromptDivergence:
    """`weight` times KL(base || model) on the tokens of the prompts; `frozen` as in `Replay`."""

    weight: float
    frozen: Writer | None = None


@dataclass(frozen=True)
class Answers:
    """The mean over rows of each row's mean loss on its answer, and what keeps the model near its base.

    A row counts the same whether its answer is one word or three sentences; so does its prompt.
    """

    examples: Sequence[Example]
    held_out: Sequence[Example]
    batches: Batches
    micro_batch_size: int
    replay: Replay | None = None
    near: PromptDivergence | None = None

    def batch(self, step: int) -> list[Example]:
        """The rows of a step, about equally long."""
        return [self.examples[number] for number in self.batches.batch(step)]

    def parts(self, model: LanguageModel, step: int) -> Sequence[Part]:
        """The rows of a step, and the general text that is read beside them."""
        found = [
            Part(some, len(some), read_positions(model, some))
            for some in in_parts([example.written for example in self.batch(step)], self.micro_batch_size)
        ]
        return found if self.replay is None else [*found, *self.replay.parts(model, step)]

    def loss(self, model: LanguageModel, part: Part) -> PartLoss:
        """Of rows the mean of their means; of replayed text see `Replay.loss`."""
        if part.group == GROUP:
            assert self.replay is not None
            return self.replay.loss(model, part)
        writer = writer_of(model)
        if self.near is None:
            return PartLoss(answer_losses(writer, part.batch).mean())
        return self._near_loss(writer, part.batch, self.near)

    def _near_loss(self, model: Writer, rows: Sequence[Written], near: PromptDivergence) -> PartLoss:
        assert isinstance(model, CausalModel), "an encoder-decoder does not write its prompts"
        prompt_ND, answer_ND, targets_N = prompt_and_answer_vectors(model, rows)
        losses_B = _means(token_losses(model, answer_ND, targets_N), [len(row.answer) for row in rows])

        def read(base: Writer) -> Tensor:
            assert isinstance(base, CausalModel)
            return prompt_and_answer_vectors(base, rows)[0]

        base_ND = base_vectors(model, near.frozen, read)
        kl_N = divergences(model, prompt_ND, near.frozen, base_ND)
        # A prompt of one token has nothing that the base would predict.
        kl = _means(kl_N, [len(row.prompt) - 1 for row in rows]).mean()
        return PartLoss(losses_B.mean() + near.weight * kl, {"prompt_kl": kl})

    def validation_loss(self, model: LanguageModel) -> float | None:
        """The mean over held-out rows of each row's mean loss on its answer; None where none are held out."""
        if not self.held_out:
            return None
        by_length = sorted((example.written for example in self.held_out), key=lambda row: row.length)
        total = sum(
            answer_losses(writer_of(model), some).double().sum().item()
            for some in in_parts(by_length, self.micro_batch_size)
        )
        return total / len(by_length)

    def rows_seen(self, steps: int) -> Counter[RowKey]:
        """How often each row was in a batch of the first `steps`, and in how many windows it was replayed."""
        seen = Counter(example.key for step in range(steps) for example in self.batch(step))
        if self.replay is not None:
            seen.update(self.replay.rows_seen(steps))
        return seen


def answer_losses(model: Writer, rows: Sequence[Written]) -> Tensor:
    """The mean loss [B] of each answer, its end token included, in nats a token."""
    losses_N = token_losses(model, *answer_vectors(model, rows))
    return _means(losses_N, [len(row.answer) for row in rows])


def read_positions(model: LanguageModel, rows: Sequence[Written]) -> int:
    """Positions that the model reads of rows that are padded to the longest."""
    if isinstance(model, EncoderDecoder):
        return len(rows) * (max(len(row.prompt) for row in rows) + max(len(row.answer) for row in rows))
    return len(rows) * max(row.length for row in rows)


def _means(values_N: Tensor, lengths: Sequence[int]) -> Tensor:
    counts_B = torch.tensor(lengths, device=values_N.device).clamp(min=1)
    return per_answer(values_N, lengths) / counts_B
