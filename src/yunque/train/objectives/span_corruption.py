"""The objective of pre-training an encoder-decoder: to write the spans that were taken out of a text.

Encoders read a row as a whole, so each row is a piece of one document: nothing of another one can be seen. Rows of
about the same length are read together.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from yunque.errors import UserError
from yunque.generate.conversation import Written
from yunque.model import EncoderDecoder, LanguageModel
from yunque.tokenizer import Tokenizer
from yunque.train.corpus import RowKey
from yunque.train.corruption import CorruptionSettings, Ids, add_sentinels, corrupt, noise_mask
from yunque.train.loss import token_losses
from yunque.train.mixture import batches_by_length
from yunque.train.objective import Part, PartLoss, in_parts
from yunque.train.objectives.written import answer_vectors
from yunque.train.workload import Workload

Documents = Sequence[Sequence[int] | npt.NDArray[np.int32]]
"""Texts as ids."""

# Pieces are sorted by length inside pools of this many batches.
_POOL = 32
# So many batches tell how much a step reads.
_COUNTED = 256
# Corruption of held-out pieces is drawn as in an epoch that no training comes to.
_VALIDATION_EPOCH = 2**32


class Corruption:
    """How a text becomes a source and a target: sentinels, and what the tokenizer puts around a text.

    `longest` is the most tokens of a piece for a model that reads and writes `context` tokens.
    """

    def __init__(self, tokenizer: Tokenizer, context: int, settings: CorruptionSettings) -> None:
        self.settings = settings
        self._before, self._behind = _around(tokenizer)
        longest = settings.longest(context - len(self._before) - len(self._behind), context)
        if longest is None:
            raise UserError(
                f"model.context: {context} tokens are too few for span corruption: take 16 or more"
            )
        self.longest = longest
        self.tokenizer, self.sentinels = add_sentinels(tokenizer, settings.counts(longest)[1])

    def apply(self, ids: Ids, random: np.random.Generator) -> Written:
        """A text of two tokens or more as a source and a target."""
        source, target = corrupt(ids, noise_mask(len(ids), self.settings, random), self.sentinels)
        return Written(
            [*self._before, *source.tolist(), *self._behind], [*target.tolist(), self.tokenizer.end_id]
        )

    def lengths(self, length: int) -> tuple[int, int]:
        """How long source and target of a text are."""
        source, target = self.settings.lengths(length)
        return len(self._before) + source + len(self._behind), target

    def check(self, keys: Sequence[RowKey], documents: Documents) -> None:
        """Raise UserError for a row with a sentinel in it, which only a vocabulary that came with some can give."""
        if int(self.sentinels.min()) > max((int(np.max(ids)) for ids in documents if len(ids)), default=0):
            return
        own = set(self.sentinels.tolist())
        for (dataset, row), ids in zip(keys, documents, strict=True):
            if not own.isdisjoint(np.asarray(ids).tolist()):
                raise UserError(
                    f"{dataset}: the row {row} has a sentinel (<extra_id_0> and so on) in its text: leave it out, "
                    "or use a tokenizer without sentinels"
                )


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What stands before and behind a text, as the finished model is asked."""
    inside, whole = tokenizer.encode("a"), tokenizer.encode_prompt("a")
    start = next(n for n in range(len(whole)) if whole[n : n + len(inside)] == inside)
    return whole[:start], whole[start + len(inside) :]


class Pieces:
    """Documents cut into pieces of about equal length, `longest` tokens at most, and the order they are read in."""

    def __init__(
        self,
        documents: Documents,
        keys: Sequence[RowKey],
        longest: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.batch_size, self.seed = batch_size, seed
        self._keys = keys
        self._documents = [np.asarray(ids, dtype=np.int32) for ids in documents]
        places = [
            (number, start, stop)
            for number, ids in enumerate(documents)
            # Of one token nothing can be taken out.
            if len(ids) > 1
            for start, stop in _cuts(len(ids), longest)
        ]
        self._places = np.array(places, dtype=np.int64).reshape(-1, 3)
        # How many tokens each piece has.
        self.lengths = self._places[:, 2] - self._places[:, 1]
        self.batches_per_epoch = -(-len(places) // batch_size)
        self._epoch = -1
        self._batches: list[npt.NDArray[np.int64]] = []

    def piece(self, number: int) -> Ids:
        """The tokens of a piece."""
        document, start, stop = self._places[number].tolist()
        ids: Ids = self._documents[document][start:stop].astype(np.int64)
        return ids

    def key(self, number: int) -> RowKey:
        """The row that a piece is from."""
        return self._keys[int(self._places[number, 0])]

    def batch(self, step: int) -> tuple[int, list[int]]:
        """The epoch of a step, and the pieces that it reads: about equally long; the last of an epoch may be few."""
        epoch, position = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            every = np.arange(len(self._places), dtype=np.int64)
            random = np.random.default_rng([self.seed, epoch])
            self._batches = batches_by_length(every, self.lengths, self.batch_size, _POOL, random)
            self._epoch = epoch
        return epoch, self._batches[position].tolist()


def _cuts(length: int, longest: int) -> list[tuple[int, int]]:
    """Where each piece of a document begins and ends: as few as possible, and about equally long."""
    count = -(-length // longest)
    ends = [length * number // count for number in range(count + 1)]
    return list(itertools.pairwise(ends))


@dataclass(frozen=True)
class SpanCorruption:
    """Mean loss over the targets' tokens of `batch_size` pieces a step, `micro_batch_size` of them at once.

    What is taken out of a piece is a function of seed, epoch and piece.
    """

    corruption: Corruption
    pieces: Pieces
    held_out: Pieces
    validation_pieces: int
    micro_batch_size: int

    def _written(self, pieces: Pieces, epoch: int, numbers: Sequence[int]) -> list[Written]:
        return [
            self.corruption.apply(
                pieces.piece(number), np.random.default_rng([pieces.seed, epoch, number, 1])
            )
            for number in numbers
        ]

    def rows(self, step: int) -> list[Written]:
        """The sources and targets of a step."""
        return self._written(self.pieces, *self.pieces.batch(step))

    @cached_property
    def validation(self) -> list[Written]:
        """Held-out sources and targets, the same at every call."""
        count = len(self.held_out.lengths)
        chosen = np.random.default_rng(self.held_out.seed).permutation(count)[: self.validation_pieces]
        return self._written(self.held_out, _VALIDATION_EPOCH, sorted(chosen.tolist()))

    def parts(self, model: LanguageModel, step: int) -> Sequence[Part]:
        """The rows of a step."""
        del model
        return [
            Part(some, sum(len(row.answer) for row in some), _positions(some))
            for some in in_parts(self.rows(step), self.micro_batch_size)
        ]

    def loss(self, model: LanguageModel, part: Part) -> PartLoss:
        """The mean over the targets' tokens."""
        assert isinstance(model, EncoderDecoder)
        return PartLoss(token_losses(model, *answer_vectors(model, part.batch)).mean())

    def validation_loss(self, model: LanguageModel) -> float | None:
        """Mean loss over the tokens of the held-out targets."""
        assert isinstance(model, EncoderDecoder)
        if not self.validation:
            return None
        total = sum(
            token_losses(model, *answer_vectors(model, some)).double().sum().item()
            for some in in_parts(self.validation, self.micro_batch_size)
        )
        return total / sum(len(row.answer) for row in self.validation)

    def workload(self) -> Workload:
        """What a step takes, by the first batches of an epoch."""
        count = min(self.pieces.batches_per_epoch, _COUNTED)
        tokens = 0
        for step in range(count):
            lengths = [
                self.corruption.lengths(int(self.pieces.lengths[number]))
                for number in self.pieces.batch(step)[1]
            ]
            sources, targets = zip(*lengths, strict=True)
            tokens += len(lengths) * (max(sources) + max(targets))
        source, target = self.corruption.lengths(int(self.pieces.lengths.max()))
        mean, _ = self.corruption.lengths(int(self.pieces.lengths.mean()))
        rows = min(self.pieces.batch_size, len(self.pieces.lengths))
        return Workload(
            tokens / count,
            tokens / count * self.pieces.batches_per_epoch,
            rows=min(rows, self.micro_batch_size),
            length=source,
            packed=True,
            target_length=target,
            mean_length=mean,
            accumulated=rows > self.micro_batch_size,
        )

    def rows_seen(self, steps: int) -> Counter[RowKey]:
        """In how many of the first `steps` a piece of each row was read."""
        return Counter(
            key
            for step in range(steps)
            for key in {self.pieces.key(number) for number in self.pieces.batch(step)[1]}
        )


def _positions(rows: Sequence[Written]) -> int:
    """Positions that the model reads of rows that are padded to the longest source and the longest target."""
    longest = max(len(row.prompt) for row in rows) + max(len(row.answer) for row in rows)
    return len(rows) * longest
