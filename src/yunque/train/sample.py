"""Some tokens to take a model of any family through: from rows of text, or, where there are none, from the model.

Shapes: B texts, T positions, N positions that are no padding, D hidden_size, V vocab_size.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from yunque.data.row import Row
from yunque.generate.state import open_state
from yunque.model import CausalModel, Encoder, EncoderDecoder, LanguageModel
from yunque.progress import Progress, silent
from yunque.tokenizer import Tokenizer
from yunque.train.loss import IGNORED, evaluate_loss, padded

# Fields of a record that are the two sides of a task.
_PAIRS = (("input", "output"), ("source", "target"), ("question", "answer"))
_BATCH = 8
_LONGEST = 256
# What a model writes for itself, where there is no text: so many texts, and tokens of each.
_OWN_TEXTS, _OWN_TOKENS = 32, 128


@dataclass(frozen=True)
class Batch:
    """Texts as ids, padded on the right; an encoder-decoder's are sources, with `targets_BT` (IGNORED in padding)."""

    ids_BT: Tensor
    mask_BT: Tensor
    targets_BT: Tensor | None = None


def run(model: LanguageModel, batch: Batch) -> Tensor:
    """What the model makes of a batch: scores [N, V], or of an encoder vectors [N, D]."""
    if isinstance(model, EncoderDecoder):
        assert batch.targets_BT is not None
        logits_BTV: Tensor = model(batch.ids_BT, _shifted(model, batch.targets_BT), batch.mask_BT)
        return logits_BTV[batch.targets_BT != IGNORED]
    outputs: Tensor = model(batch.ids_BT, batch.mask_BT)
    return outputs[batch.mask_BT.bool()]


def _shifted(model: EncoderDecoder, targets_BT: Tensor) -> Tensor:
    """What the decoder reads while it writes these targets."""
    start_B1 = torch.full_like(targets_BT[:, :1], model.config.decoder_start_token_id)
    # Behind the last target nothing is scored: any token does for padding.
    return torch.cat((start_B1, targets_BT[:, :-1].clamp(min=0)), 1)


def text_batches(
    model: LanguageModel, tokenizer: Tokenizer, rows: Iterable[Row], most_tokens: int
) -> list[Batch]:
    """The first rows as batches, `most_tokens` positions in all; empty where no row has what the model reads."""
    longest = min(model.config.context or _LONGEST, _LONGEST)
    texts: list[tuple[list[int], list[int]]] = []
    left = most_tokens
    for row in rows:
        if left <= 0:
            break
        if isinstance(model, EncoderDecoder):
            pairs = _encoded_pair(tokenizer, row, model.config.context)
            texts += pairs
            left -= sum(len(source) + len(target) for source, target in pairs)
            continue
        ids = tokenizer.encode_prompt(row.text)
        # A word or two say little, and cost a row of a batch.
        pieces = [ids[start : start + longest] for start in range(0, min(len(ids), left), longest)]
        texts += [(piece, piece) for piece in pieces if len(piece) > 1]
        left -= len(ids)
    return [_batch(texts[start : start + _BATCH], model) for start in range(0, len(texts), _BATCH)]


def _batch(texts: list[tuple[list[int], list[int]]], model: LanguageModel) -> Batch:
    sources = [source for source, _ in texts]
    longest = max(map(len, sources))
    ids_BT = torch.tensor([source + [0] * (longest - len(source)) for source in sources])
    mask_BT = torch.tensor([[1] * len(source) + [0] * (longest - len(source)) for source in sources])
    if not isinstance(model, EncoderDecoder):
        return Batch(ids_BT, mask_BT)
    _, targets_BT = padded([(target, target) for _, target in texts], 0)
    return Batch(ids_BT, mask_BT, targets_BT)


def _encoded_pair(tokenizer: Tokenizer, row: Row, context: int | None) -> list[tuple[list[int], list[int]]]:
    """The two sides of a row (none, or one pair), where it has fields that are."""
    for first, second in _PAIRS:
        source, target = row.fields.get(first), row.fields.get(second)
        if isinstance(source, str) and isinstance(target, str) and source.strip() and target.strip():
            ids = tokenizer.encode_prompt(source), [*tokenizer.encode(target), tokenizer.end_id]
            return [(ids[0][:context], ids[1][:context])]
    return []


@torch.inference_mode()
def own_batches(model: LanguageModel) -> list[Batch]:
    """Where there is no text: what a decoder-only model writes itself, else tokens drawn at random."""
    generator = torch.Generator().manual_seed(0)
    tokens = min(_OWN_TOKENS, (model.config.context or _OWN_TOKENS) - 1)
    shape = (_OWN_TEXTS, max(tokens, 1))
    ids_BT = torch.randint(model.config.vocab_size, shape, generator=generator)
    if isinstance(model, CausalModel):
        start = model.config.bos_token_id
        state = open_state(model, [[0 if start is None else start]] * _OWN_TEXTS, shape[1])
        logits_BV = state.next_logits()
        for position in range(shape[1]):
            ids_BT[:, position] = torch.multinomial(logits_BV.softmax(-1), 1, generator=generator)[:, 0]
            logits_BV = state.next_logits(ids_BT[:, position])
    targets_BT = ids_BT.flip(0) if isinstance(model, EncoderDecoder) else None
    return [Batch(ids_BT, torch.ones_like(ids_BT), targets_BT)]


def measured_perplexity(
    model: LanguageModel,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    most_tokens: int,
    progress: Progress = silent,
) -> float | None:
    """Perplexity on rows: of their text, or for an encoder-decoder of the target after its source.

    None where it has no meaning: for an encoder, for rows without text, or without a source and a target.
    """
    if isinstance(model, CausalModel):
        if not any(row.text for row in rows):
            return None
        return math.exp(evaluate_loss(model, tokenizer, rows, most_tokens, progress=progress))
    if isinstance(model, Encoder):
        return None
    losses = list(_target_losses(model, text_batches(model, tokenizer, rows, most_tokens)))
    return math.exp(float(torch.cat(losses).double().mean())) if losses else None


@torch.inference_mode()
def _target_losses(model: LanguageModel, batches: Iterable[Batch]) -> Iterator[Tensor]:
    for batch in batches:
        assert batch.targets_BT is not None
        targets_N = batch.targets_BT[batch.targets_BT != IGNORED]
        yield torch.nn.functional.cross_entropy(run(model, batch).float(), targets_N, reduction="none")
