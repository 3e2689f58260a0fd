"""Documents packed into windows of equal length, in an order that any process can work out again.

Every document begins with the end token, so a stream reads `<|end|> text <|end|> text ...`: that token closes one
document and opens the next. The order is a function of seed and epoch only, so there is no state to save.

Shapes: B windows, T positions.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from yunque.data.encoded import encoded_texts
from yunque.errors import UserError
from yunque.progress import Progress, silent
from yunque.tokenizer import Tokenizer
from yunque.workspace import Artifact, Workspace

Ids = npt.NDArray[np.int32]
"""The ids of a text."""

RowKey = tuple[str, str]
"""A dataset's ref and a row's id."""


@dataclass(frozen=True)
class Windows:
    """Windows that documents were packed into: all int64, [B, T].

    `segment_ids` number the documents of a window; a position must see its own document only.
    """

    input_ids: Tensor
    targets: Tensor
    segment_ids: Tensor

    @property
    def borders(self) -> Tensor | None:
        """The segment ids, or None where each window is of one document: attention without a mask is quicker."""
        several = self.segment_ids != self.segment_ids[:, :1]
        return self.segment_ids if bool(several.any()) else None

    def split(self, count: int) -> list["Windows"]:
        """The same windows, at most `count` together."""
        shares = (torch.split(tensor, count) for tensor in (self.input_ids, self.targets, self.segment_ids))
        return [Windows(*share) for share in zip(*shares, strict=True)]

    def to(self, device: torch.device) -> "Windows":
        """The same windows on another device."""
        return Windows(self.input_ids.to(device), self.targets.to(device), self.segment_ids.to(device))


class Corpus:
    """Tokenized documents; `window(number)` counts windows through all epochs, without end."""

    def __init__(
        self,
        documents: Sequence[Sequence[int] | Ids],
        keys: Sequence[RowKey],
        end_id: int,
        context: int,
        seed: int,
    ) -> None:
        self.keys, self.end_id, self.context, self.seed = keys, end_id, context, seed
        lengths = np.array([len(ids) + 1 for ids in documents], dtype=np.int64)
        self._starts = np.concatenate(([0], np.cumsum(lengths)))
        self._tokens = np.full(int(self._starts[-1]), end_id, dtype=np.int32)
        for start, ids in zip(self._starts[:-1], documents, strict=True):
            self._tokens[start + 1 : start + 1 + len(ids)] = ids
        self.windows_per_epoch = (len(self._tokens) - 1) // context
        if self.windows_per_epoch < 1:
            raise UserError(
                f"the data has {len(self._tokens)} tokens, but one window of training needs {context + 1}: "
                "add data, or make model.context smaller"
            )
        self._epoch = -1
        self._stream = self._documents = self._order = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        """How many tokens the corpus has."""
        return len(self._tokens)

    def _enter(self, epoch: int) -> None:
        """Lay out the stream of an epoch: documents in a new order, then windows in a new order."""
        if epoch == self._epoch:
            return
        random = np.random.default_rng([self.seed, epoch])
        documents = random.permutation(len(self._starts) - 1)
        lengths = np.diff(self._starts)[documents]
        self._documents = np.repeat(documents, lengths)
        ends = np.cumsum(lengths)
        places = np.arange(len(self._tokens)) - np.repeat(ends - lengths, lengths)
        self._stream = self._tokens[self._starts[self._documents] + places]
        self._order = random.permutation(self.windows_per_epoch)
        self._epoch = epoch

    def _place(self, number: int) -> slice:
        epoch, position = divmod(number, self.windows_per_epoch)
        self._enter(epoch)
        start = int(self._order[position]) * self.context
        return slice(start, start + self.context)

    def windows(self, first: int, count: int) -> Windows:
        """`count` windows from number `first` on."""
        inputs, targets = [], []
        for number in range(first, first + count):
            place = self._place(number)
            inputs.append(self._stream[place])
            targets.append(self._stream[place.start + 1 : place.stop + 1])
        return pack(np.stack(inputs), np.stack(targets), self.end_id)

    def rows_seen(self, count: int) -> Counter[RowKey]:
        """In how many of the first `count` windows some of each row was read."""
        seen: Counter[RowKey] = Counter()
        for number in range(count):
            place = self._place(number)
            seen.update(self.keys[document] for document in np.unique(self._documents[place]))
        return seen


def pack(inputs_BT: npt.NDArray[np.int32], targets_BT: npt.NDArray[np.int32], end_id: int) -> Windows:
    """Windows whose documents begin at each end token."""
    input_ids = torch.from_numpy(inputs_BT.astype(np.int64))
    return Windows(
        input_ids, torch.from_numpy(targets_BT.astype(np.int64)), (input_ids == end_id).cumsum(dim=1)
    )


def training_corpus(
    workspace: Workspace,
    datasets: Sequence[Artifact],
    tokenizer: Tokenizer,
    context: int,
    seed: int,
    progress: Progress = silent,
) -> Corpus:
    """The training rows of datasets, packed for a model with this context."""
    keys, documents = training_documents(workspace, datasets, tokenizer, progress)
    return Corpus(documents, keys, tokenizer.end_id, context, seed)


def training_documents(
    workspace: Workspace, datasets: Sequence[Artifact], tokenizer: Tokenizer, progress: Progress = silent
) -> tuple[list[RowKey], list[Ids]]:
    """Keys and ids of the training rows of datasets."""
    return _documents(workspace, datasets, tokenizer, "train", progress)


def held_out_documents(
    workspace: Workspace, datasets: Sequence[Artifact], tokenizer: Tokenizer
) -> tuple[list[RowKey], list[Ids]]:
    """Keys and ids of the rows of the validation splits."""
    return _documents(workspace, datasets, tokenizer, "validation", silent)


def _documents(
    workspace: Workspace, datasets: Sequence[Artifact], tokenizer: Tokenizer, split: str, progress: Progress
) -> tuple[list[RowKey], list[Ids]]:
    keys: list[RowKey] = []
    documents: list[Ids] = []
    for dataset in datasets:
        encoded = encoded_texts(workspace, dataset, tokenizer, split, progress)
        keys += [(dataset.ref, row_id) for row_id in encoded.row_ids]
        documents += encoded.documents()
    return keys, documents


def validation_windows(
    workspace: Workspace,
    datasets: Sequence[Artifact],
    tokenizer: Tokenizer,
    context: int,
    most: int,
    seed: int,
) -> Windows | None:
    """At most `most` windows of the validation splits, the same on every call; None where there are too few rows."""
    keys, documents = held_out_documents(workspace, datasets, tokenizer)
    if sum(len(ids) + 1 for ids in documents) <= context:
        return None
    corpus = Corpus(documents, keys, tokenizer.end_id, context, seed)
    return corpus.windows(0, min(most, corpus.windows_per_epoch))
