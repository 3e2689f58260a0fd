"""Text that a model writes itself, to be replayed where what it was trained on is not at hand.

It is drawn from the model's own probabilities with nothing cut off, so it is spread as the model believes text to be
(the idea of pseudo-rehearsal: Robins 1995, "Catastrophic forgetting, rehearsal and pseudorehearsal"; with language
models Sun et al. 2019, arXiv:1909.03329).

Shapes: B texts, V vocab_size.
"""

import json
from pathlib import Path

import torch

from yunque.errors import UserError
from yunque.generate.state import open_state
from yunque.model import CausalModel, LanguageModel
from yunque.progress import Progress, silent
from yunque.tokenizer import Tokenizer
from yunque.train.corpus import RowKey
from yunque.train.loss import context_of

OWN = "own"
"""The dataset that stands in the keys of documents which a model wrote itself."""

_FILE = "own_text.jsonl"
_TEXTS = 32
_LONGEST = 256


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
    what follows is the same as without it. Raises UserError for a model that does not go on with text.
    """
    if not isinstance(model, CausalModel):
        raise UserError(
            f"a {model.config.model_type} model does not write text of its own: "
            "name what is to be replayed (replay_data)"
        )
    path = folder / _FILE
    batches = _kept(path)
    written = sum(len(ids) for batch in batches for ids in batch)
    training = model.training
    model.eval()
    try:
        with (
            progress("Writing text to replay", total=tokens) as task,
            path.open("w", encoding="utf-8") as file,
        ):
            # Written anew: the end of the file may be half a line.
            file.writelines(json.dumps(batch) + "\n" for batch in batches)
            task.advance(written)
            while written < tokens:
                batch = _written(model, tokenizer, seed, len(batches))
                batches.append(batch)
                file.write(json.dumps(batch) + "\n")
                file.flush()
                count = sum(len(ids) for ids in batch)
                written += count
                task.advance(count)
    finally:
        model.train(training)
    documents = [ids for batch in batches for ids in batch]
    return [(OWN, str(number)) for number in range(len(documents))], documents


def _kept(path: Path) -> list[list[list[int]]]:
    """The whole batches of the file, in the order in which they were written."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


@torch.inference_mode()
def _written(model: CausalModel, tokenizer: Tokenizer, seed: int, number: int) -> list[list[int]]:
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
    documents: list[list[int]] = [[] for _ in range(_TEXTS)]
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
