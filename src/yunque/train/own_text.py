"""Text that a model writes itself, to be replayed where what it was trained on is not at hand.

It is drawn from the model's own probabilities with nothing cut off, so it is spread as the model believes text to be
(the idea of pseudo-rehearsal: Robins 1995, "Catastrophic forgetting, rehearsal and pseudorehearsal"; with language
models Sun et al. 2019, arXiv:1909.03329).

Shapes: B texts, V vocab_size.
"""

import json
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from yunque.errors import UserError
from yunque.generate.state import open_state
from yunque.model import CausalModel, LanguageModel
from yunque.progress import Progress, silent
from yunque.tokenizer import Tokenizer
from yunque.train.corpus import RowKey
from yunque.train.distributed import first_makes
from yunque.train.loss import context_of
from yunque.workspace import atomic_write

OWN = "own"
"""The dataset that stands in the keys of documents which a model wrote itself."""

_FILE = "own_text.jsonl"
_TEXTS = 32
_LONGEST = 256
# After so many batches without a single token no more are tried.
_MOST_EMPTY = 8

_Batch = list[list[int]]
_BATCH = TypeAdapter(_Batch)


def own_documents(
    folder: Path,
    model: LanguageModel,
    tokenizer: Tokenizer,
    tokens: int,
    seed: int,
    progress: Progress = silent,
) -> tuple[list[RowKey], list[list[int]]]:
    """Keys and ids of documents that `model` writes, at least `tokens` tokens in all.

    They are kept in `own_text.jsonl` of `folder` as they come: after a stop those that are there are read back, and
    what follows is the same as without it. Of several processes the first writes them, and all get them. Raises
    UserError for a model that does not go on with text, or that ends every text before its first token.
    """
    if not isinstance(model, CausalModel):
        raise UserError(
            f"a {model.config.model_type} model does not write text of its own: "
            "name what is to be replayed (replay_data)"
        )
    training = model.training
    model.eval()
    try:
        batches = first_makes(
            lambda: _batches(folder / _FILE, model, tokenizer, tokens, seed, progress), list[_Batch]
        )
    finally:
        model.train(training)
    documents = [ids for batch in batches for ids in batch]
    return [(OWN, str(number)) for number in range(len(documents))], documents


def _batches(
    path: Path, model: CausalModel, tokenizer: Tokenizer, tokens: int, seed: int, progress: Progress
) -> list[_Batch]:
    """The batches of the file at `path`, and as many more as it takes."""
    batches = _kept(path)
    # The end of the file may be half a line. What is whole is not lost again if this process dies here.
    atomic_write(path, "".join(json.dumps(batch) + "\n" for batch in batches))
    written = sum(len(ids) for batch in batches for ids in batch)
    with (
        progress("Writing text to replay", total=tokens) as task,
        path.open("a", encoding="utf-8") as file,
    ):
        task.advance(written)
        while written < tokens:
            if len(batches) >= _MOST_EMPTY and not any(batches[-_MOST_EMPTY:]):
                raise UserError(
                    "the model writes nothing by itself: it ends every text at once; "
                    "name what is to be replayed (replay_data)"
                )
            batch = _written(model, tokenizer, seed, len(batches))
            batches.append(batch)
            file.write(json.dumps(batch) + "\n")
            file.flush()
            count = sum(len(ids) for ids in batch)
            written += count
            task.advance(count)
    return batches


def _kept(path: Path) -> list[_Batch]:
    """The batches of the file, in the order in which they were written, up to a line that is damaged."""
    if not path.exists():
        return []
    batches = list[_Batch]()
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            batches.append(_BATCH.validate_json(line, strict=True))
        except ValidationError:
            break
    return batches


@torch.inference_mode()
def _written(model: CausalModel, tokenizer: Tokenizer, seed: int, number: int) -> _Batch:
    """Batch `number` of documents: a function of the model, the seed and the number."""
    # Numbers of another seed must not be met again: a million batches apart.
    generator = torch.Generator().manual_seed(seed * 1_000_000 + number)
    begin = [] if tokenizer.bos_id in (None, tokenizer.end_id) else [tokenizer.bos_id]
    length = max(2, min(_LONGEST, context_of(model) - 1))
    device = next(model.parameters()).device
    state = open_state(model, [begin or [tokenizer.end_id]] * _TEXTS, length)
    ends = set(tokenizer.end_ids)
    never = [id for id in tokenizer.mark_ids if id < model.config.vocab_size and id not in ends]
    never += range(tokenizer.vocab_size, model.config.vocab_size)
    documents: _Batch = [[] for _ in range(_TEXTS)]
    going = set(range(_TEXTS))
    logits_BV = state.next_logits().cpu()
    for _ in range(length):
        logits_BV[:, never] = float("-inf")
        tokens_B = torch.multinomial(logits_BV.softmax(-1), 1, generator=generator)[:, 0]
        for row, token in enumerate(tokens_B.tolist()):
            if row in going and token not in ends:
                documents[row].append(token)
            else:
                going.discard(row)
        if not going:
            break
        logits_BV = state.next_logits(tokens_B.to(device)).cpu()
    return [[*begin, *ids] for ids in documents if ids]
