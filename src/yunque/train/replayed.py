"""What is replayed while a model is tuned: what it read before, and the rows that it was tuned on earlier.

Rows of an earlier tuning are replayed as they were learned, in the chat format: as plain text they would hold little
of what they taught.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from yunque.data.instructions import read_instruction_split
from yunque.data.texts import holds_text
from yunque.generate.conversation import encode_answer
from yunque.model import CausalModel
from yunque.progress import Progress
from yunque.tokenizer import Tokenizer
from yunque.train.corpus import Corpus, RowKey, Windows, training_corpus
from yunque.train.own_text import own_documents
from yunque.train.tune_settings import TuneSettings
from yunque.workspace import Artifact, Workspace


@dataclass(frozen=True)
class Alternating:
    """The windows of two corpora by turns."""

    text: Corpus
    tasks: Corpus

    def windows(self, first: int, count: int) -> Windows:
        """`count` windows from number `first` on: an even number is a window of the text."""
        found = [self._corpus(n).windows(n // 2, 1) for n in range(first, first + count)]
        columns = ([getattr(one, name) for one in found] for name in ("input_ids", "targets", "segment_ids"))
        return Windows(*(torch.cat(column) for column in columns))

    def _corpus(self, number: int) -> Corpus:
        return self.tasks if number % 2 else self.text

    def rows_seen(self, count: int) -> Counter[RowKey]:
        """In how many of the first `count` windows some of each row was read."""
        return self.text.rows_seen(-(-count // 2)) + self.tasks.rows_seen(count // 2)


def replayed_corpus(
    workspace: Workspace,
    text: Sequence[Artifact],
    tasks: Sequence[Artifact],
    settings: TuneSettings,
    tokenizer: Tokenizer,
    model: CausalModel,
    context: int,
    folder: Path | None,
    progress: Progress,
) -> Corpus | Alternating | None:
    """The windows to replay: of `text`, or of what the model writes itself, by turns with the rows of `tasks`.

    The model's own text is kept in `folder`; a plan, which has none, needs to know only how much a step reads.
    """
    general = None
    if text:
        general = training_corpus(workspace, text, tokenizer, context, settings.seed)
    elif settings.own_text:
        with nullcontext(folder) if folder else TemporaryDirectory() as place:
            tokens = max(settings.own_text if folder else 0, 2 * context)
            keys, documents = own_documents(Path(place), model, tokenizer, tokens, settings.seed, progress)
        general = Corpus(documents, keys, tokenizer.end_id, context, settings.seed)
    if not tasks:
        return general
    rows = task_corpus(workspace, tasks, tokenizer, model, context, settings.seed)
    return Alternating(general, rows) if general else rows


def learned_datasets(workspace: Workspace, base: Artifact) -> tuple[list[Artifact], list[Artifact]]:
    """The text that a model and those above it were trained on, and the instructions that they were tuned on.

    Preferences and prompts are neither.
    """
    text, tasks = dict[str, Artifact](), dict[str, Artifact]()
    waiting, seen = [base], set[str]()
    while waiting:
        model = waiting.pop(0)
        seen.add(model.ref)
        for ref in model.parents:
            parent = workspace.get(ref)
            if parent.kind == "model" and ref not in seen:
                waiting.append(parent)
            elif parent.kind == "dataset" and holds_text(parent):
                (tasks if model.config.get("objective") == "instruct" else text)[ref] = parent
    return list(text.values()), [each for each in tasks.values() if "train.jsonl" in each.files]


def task_corpus(
    workspace: Workspace,
    datasets: Sequence[Artifact],
    tokenizer: Tokenizer,
    model: CausalModel,
    context: int,
    seed: int,
) -> Corpus:
    """The training rows of instructions, as the model learned them, packed into windows."""
    keys, documents = list[RowKey](), list[list[int]]()
    for dataset in datasets:
        for row in read_instruction_split(workspace, dataset, "train"):
            written = encode_answer(tokenizer, model, [("user", row.question)], row.answer)
            keys.append((dataset.ref, row.id))
            documents.append([*written.prompt, *written.answer])
    # Few rows may be shorter than one window: they are read more than once in it.
    times = 1 + context // max(1, sum(len(ids) + 1 for ids in documents))
    return Corpus(documents * times, keys * times, tokenizer.end_id, context, seed)
