"""Search for likely texts: the likeliest token each time, or several texts side by side (beam search).

Shapes: B texts, K beams of each, V vocab_size.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from yunque.generate.state import open_state
from yunque.model import LanguageModel


@torch.inference_mode()
def greedy_search(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
) -> list[list[int]]:
    """The likeliest token each time, for each prompt, up to and with the first of `stop_ids`.

    Prompts of unequal length share a batch; none may be empty.
    """
    written: list[list[int]] = [[] for _ in prompts]
    if not prompts or max_new_tokens < 1:
        return written
    state = open_state(model, prompts, max_new_tokens)
    logits_BV = state.next_logits()
    while True:
        tokens_B = logits_BV.argmax(-1)
        for ids, token in zip(written, tokens_B.tolist(), strict=True):
            if not ids or ids[-1] not in stop_ids:
                ids.append(token)
        if max(map(len, written)) == max_new_tokens or all(ids[-1] in stop_ids for ids in written):
            return written
        logits_BV = state.next_logits(tokens_B)


@dataclass(frozen=True)
class Beam:
    """A text that was found, its end token included, and its score: log-probability over length to the penalty."""

    ids: list[int]
    score: float


@dataclass
class _Search:
    """The search for one prompt: the texts under way with their log-probabilities, and the best finished ones."""

    num_beams: int
    length_penalty: float
    running: list[list[int]] = field(default_factory=lambda: [[]])
    totals: list[float] = field(default_factory=lambda: [0.0])
    finished: list[Beam] = field(default_factory=list)
    over: bool = False

    def take(self, log_probabilities_KV: Tensor, stop_ids: Collection[int], last: bool) -> list[int]:
        """Go on with the likeliest longer texts, and say which running one each of them continues.

        At the `last` step all of them end, whatever their token.
        """
        # Enough of them, so that `num_beams` are left even if every running text could end.
        count = max(2, 1 + len(stop_ids)) * self.num_beams
        kept: list[tuple[list[int], float, int]] = []
        for rank, (total, beam, token) in enumerate(_likeliest(log_probabilities_KV, self.totals, count)):
            ids = [*self.running[beam], token]
            if not last and token not in stop_ids:
                kept.append((ids, total, beam))
            elif rank < self.num_beams and not self.over:
                # Only what is among the best may end: a poor end would push out texts that still grow.
                self._finish(ids, total)
        kept = kept[: self.num_beams]
        self.running = [ids for ids, _, _ in kept]
        self.totals = [total for _, total, _ in kept]
        # It is over when the best running text, at its present length, could not get among the finished ones.
        if kept and len(self.finished) == self.num_beams:
            attainable = self.totals[0] / len(self.running[0]) ** self.length_penalty
            self.over = self.over or attainable <= self.finished[-1].score
        return [beam for _, _, beam in kept]

    def _finish(self, ids: list[int], total: float) -> None:
        self.finished.append(Beam(ids, total / len(ids) ** self.length_penalty))
        self.finished.sort(key=lambda beam: -beam.score)
        del self.finished[self.num_beams :]


def _likeliest(log_probabilities_KV: Tensor, totals: list[float], count: int) -> list[tuple[float, int, int]]:
    """The likeliest texts one token longer, best first: log-probability, the text it continues, its token."""
    totals_K1 = torch.tensor(totals, device=log_probabilities_KV.device)[:, None]
    sums = (log_probabilities_KV + totals_K1).flatten()
    best, positions = sums.topk(min(count, len(sums)))
    vocab_size = log_probabilities_KV.shape[1]
    return [
        (total, position // vocab_size, position % vocab_size)
        for total, position in zip(best.tolist(), positions.tolist(), strict=True)
    ]


@torch.inference_mode()
def beam_search(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    num_beams: int,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    length_penalty: float = 1.0,
    banned_ids: Sequence[int] = (),
) -> list[list[Beam]]:
    """The `num_beams` best texts found for each prompt, best first (Graves 2012, arXiv:1211.3711).

    At every step each prompt's `num_beams` likeliest texts go on; `banned_ids` are never written. A finished text
    scores its log-probability divided by its length to the `length_penalty`: above 0 favours longer ones. A search
    ends where the best running text, scored at its present length, is below every finished one, as in `transformers`.
    """
    if not prompts or max_new_tokens < 1:
        return [[Beam([], 0.0)] for _ in prompts]
    state = open_state(model, prompts, max_new_tokens)
    searches = [_Search(num_beams, length_penalty) for _ in prompts]
    logits = state.next_logits()
    device = logits.device
    banned = torch.tensor(banned_ids, dtype=torch.int64, device=device)
    for written in range(1, max_new_tokens + 1):
        scores = logits.index_fill(-1, banned, float("-inf")).log_softmax(-1)
        rows, first = list[int](), 0
        for search in searches:
            count = len(search.running)
            taken = search.take(scores[first : first + count], stop_ids, written == max_new_tokens)
            rows += [first + beam for beam in taken]
            first += count
        if not rows or all(search.over for search in searches):
            break
        state.reorder(torch.tensor(rows, device=device))
        last = [ids[-1] for search in searches for ids in search.running]
        logits = state.next_logits(torch.tensor(last, device=device))
    return [search.finished for search in searches]
