"""The objective of instruction tuning: the loss of the answer alone, in the chat format that serving uses."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yunque.data.instructions import InstructionRow
from yunque.model import CausalModel, LanguageModel
from yunque.tokenizer import Tokenizer
from yunque.train.corpus import Corpus, RowKey, Windows
from yunque.train.loss import IGNORED, next_token_loss, padded, summed_loss
from yunque.train.objective import Part, PartLoss
from yunque.train.objectives.next_token import window_part

# Rows are sorted by length inside pools of this many batches: little padding, and still a new mixture each epoch.
_POOL = 8


@dataclass(frozen=True)
class Example:
    """A row as ids; the target of each position is the next id where that is the model's to write."""

    id: str
    input_ids: list[int]
    targets: list[int]


def encode_example(tokenizer: Tokenizer, row: InstructionRow) -> tuple[list[int], list[int]]:
    """Ids and targets of a row: only the answer and its end token are targets."""
    ids, written = tokenizer.encode_chat([("user", row.question), ("assistant", row.answer)], False)
    targets = [next_id if mine else IGNORED for next_id, mine in zip(ids[1:], written[1:], strict=True)]
    return ids[:-1], targets


@dataclass
class Answers:
    """The mean over rows of each row's mean loss on its answer, and the loss of replayed windows.

    A row counts the same whether its answer is one word or three sentences.
    """

    examples: Sequence[Example]
    pad_id: int
    batch_size: int
    seed: int
    replayed: Corpus | None
    replay: int
    micro_batch_size: int

    def __post_init__(self) -> None:
        self.batches_per_epoch = -(-len(self.examples) // self.batch_size)
        self._epoch = -1
        self._batches: list[list[int]] = []

    def batch(self, step: int) -> list[Example]:
        """The rows of a step, about equally long; a function of seed and step only."""
        epoch, position = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch])
            order = [int(number) for number in random.permutation(len(self.examples))]
            batches = []
            for start in range(0, len(order), pool := self.batch_size * _POOL):
                by_length = sorted(
                    order[start : start + pool], key=lambda number: len(self.examples[number].input_ids)
                )
                batches += [
                    by_length[i : i + self.batch_size] for i in range(0, len(by_length), self.batch_size)
                ]
            self._batches = [batches[int(number)] for number in random.permutation(len(batches))]
            self._epoch = epoch
        return [self.examples[number] for number in self._batches[position]]

    def parts(self, model: LanguageModel, step: int) -> Sequence[Part]:
        """The rows of a step, and its replayed windows."""
        del model
        rows, found = self.batch(step), list[Part]()
        for start in range(0, len(rows), self.micro_batch_size):
            some = rows[start : start + self.micro_batch_size]
            batch = padded([(example.input_ids, example.targets) for example in some], self.pad_id)
            found.append(Part(batch, len(some), batch[0].numel()))
        if self.replayed is not None:
            windows = self.replayed.windows(step * self.replay, self.replay)
            found += [window_part(part, "replay") for part in windows.split(self.micro_batch_size)]
        return found

    def loss(self, model: LanguageModel, part: Part) -> PartLoss:
        """Of rows the mean of their means; of replayed windows the mean over positions."""
        assert isinstance(model, CausalModel)
        if isinstance(part.batch, Windows):
            return PartLoss(next_token_loss(model, part.batch))
        summed_B, count_B = summed_loss(model, *part.batch)
        return PartLoss((summed_B / count_B).mean())

    def validation_loss(self, model: LanguageModel) -> float | None:
        """None: held-out answers are for the evaluation, not for choosing when to stop."""
        del model
        return None

    def rows_seen(self, dataset: str, steps: int) -> Counter[RowKey]:
        """How many times each row was in a batch of the first `steps`, and in how many windows it was replayed."""
        seen = Counter((dataset, example.id) for step in range(steps) for example in self.batch(step))
        if self.replayed is not None:
            seen.update(self.replayed.rows_seen(steps * self.replay))
        return seen
