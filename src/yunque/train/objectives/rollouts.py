"""Rollouts: answers that the model itself writes, what they earn, and how far they lead away from the reference.

PPO and GRPO learn from answers of the model as it is. A rollout gives answers to some prompts, which several
steps then learn from. It is part of the state of a run: a checkpoint holds it, and a run that goes on does not
write it again.

How far a model p is from the reference r is told by two estimates of their divergence KL(p, r), on tokens that p drew
(Schulman 2020, http://joschu.net/blog/kl-approx.html): k1 = log p - log r, which is right on average and may be
below 0, and k3 = r / p - 1 + k1, which is right too, never below 0, and scatters less.

Shapes: B answers, N tokens of all the answers one after the other, V vocab_size.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from yunque.generate.conversation import Written
from yunque.generate.state import open_state
from yunque.model import LanguageModel
from yunque.model.scored import ScoredModel
from yunque.train.corpus import RowKey
from yunque.train.loop import autocast
from yunque.train.loss import token_losses
from yunque.train.objective import Part
from yunque.train.objectives.pairs import permutation
from yunque.train.objectives.written import Writer, answer_vectors, reference_of, writer_of
from yunque.train.settings import Precision

Judge = Callable[[Sequence[int], Sequence[Sequence[int]]], Sequence[float]]
"""What answers (ids) earn: takes the numbers of their prompts, and the answers."""


def k1(policy: Tensor, reference: Tensor) -> Tensor:
    """The estimate k1 of the divergence, from log-probabilities."""
    return policy - reference


def k3(policy: Tensor, reference: Tensor) -> Tensor:
    """The estimate k3 of the divergence, from log-probabilities."""
    change = reference - policy
    return change.exp() - 1 - change


@torch.no_grad()
def sample_answers(
    model: Writer,
    prompts: Sequence[Sequence[int]],
    draws: Sequence[Sequence[int]],
    max_new_tokens: int,
    end_ids: Collection[int],
    banned_ids: Sequence[int] = (),
) -> list[list[int]]:
    """An answer to each prompt, up to and with the first of `end_ids`, drawn as likely as the model finds each token.

    `draws` are the seeds of each answer: its tokens do not depend on what else is in the batch. `banned_ids` are
    never drawn.
    """
    luck = np.stack([np.random.default_rng(list(seeds)).random(max_new_tokens) for seeds in draws])
    state = open_state(model, prompts, max_new_tokens)
    answers: list[list[int]] = [[] for _ in prompts]
    running = list(range(len(prompts)))
    logits_BV = state.next_logits()
    banned = torch.tensor(banned_ids, dtype=torch.int64, device=logits_BV.device)
    for position in range(max_new_tokens):
        probabilities_BV = logits_BV.index_fill(-1, banned, float("-inf")).double().softmax(-1)
        sums_BV = probabilities_BV.cumsum(-1)
        # By rounding the sum of all is not quite 1.
        luck_B1 = torch.from_numpy(luck[running, position, None]).to(sums_BV) * sums_BV[:, -1:]
        tokens_B = torch.searchsorted(sums_BV, luck_B1, right=True).squeeze(-1)
        tokens = tokens_B.clamp(max=sums_BV.shape[1] - 1).tolist()
        for row, token in zip(running, tokens, strict=True):
            answers[row].append(token)
        kept = [place for place, token in enumerate(tokens) if token not in end_ids]
        running = [running[place] for place in kept]
        if not running or position + 1 == max_new_tokens:
            break
        if len(kept) < len(tokens):
            state.reorder(torch.tensor(kept, device=logits_BV.device))
        left = torch.tensor([tokens[place] for place in kept], device=logits_BV.device)
        logits_BV = state.next_logits(left)
    return answers


@dataclass(frozen=True)
class Rollout:
    """Answers of a model as it was: for each its prompt's number, its length and what it earned [B]; for each
    token [N] its id, its log-probability then and under the reference, and the value of the position that it
    was drawn at."""

    number: int
    prompts: Tensor
    lengths: Tensor
    rewards: Tensor
    tokens: Tensor
    log_probabilities: Tensor
    reference: Tensor
    values: Tensor

    def as_tensors(self) -> dict[str, Tensor]:
        """All of it, by name."""
        tensors = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "number"}
        return {"number": torch.tensor(self.number), **tensors}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Rollout":
        """The rollout that `as_tensors` gave."""
        return cls(**{**tensors, "number": int(tensors["number"])})  # type: ignore[arg-type]

    def figures(self) -> dict[str, Tensor]:
        """For the log: the mean reward and length of an answer, its divergence from the reference (k1 and k3,
        summed over its tokens), and the entropy of a token."""
        answers = len(self.lengths)
        return {
            "reward": self.rewards.mean(),
            "kl": k1(self.log_probabilities, self.reference).sum() / answers,
            "kl_k3": k3(self.log_probabilities, self.reference).sum() / answers,
            "answer_tokens": self.lengths.float().mean(),
            "entropy": -self.log_probabilities.mean(),
        }


@dataclass(frozen=True)
class RolloutPlan:
    """How answers are made and read: each rollout takes `prompts` prompts and writes `answers` to each; steps read
    `batch_size` answers, `together` at once, and all of them `epochs` times."""

    prompts: int
    answers: int
    epochs: int
    batch_size: int
    together: int
    max_new_tokens: int
    seed: int

    @property
    def rows(self) -> int:
        """Answers of a rollout."""
        return self.prompts * self.answers

    @property
    def batches(self) -> int:
        """Steps that read a rollout once."""
        return -(-self.rows // self.batch_size)

    @property
    def steps(self) -> int:
        """Steps that learn from a rollout."""
        return self.epochs * self.batches

    def chosen(self, number: int, count: int) -> list[int]:
        """The prompts of a rollout, of `count`; all of them come before any comes again."""
        places = range(number * self.prompts, (number + 1) * self.prompts)
        chosen = [int(permutation(count, self.seed, place // count)[place % count]) for place in places]
        return [prompt for prompt in chosen for _ in range(self.answers)]

    def batch(self, number: int, within: int) -> list[list[int]]:
        """The answers that step `within` of a rollout's steps reads, in parts."""
        epoch, place = divmod(within, self.batches)
        order = permutation(self.rows, self.seed, number, epoch)
        rows = order[place * self.batch_size : (place + 1) * self.batch_size].tolist()
        return [rows[start : start + self.together] for start in range(0, len(rows), self.together)]


class Rollouts:
    """The rollouts of a run, each written when its first step comes.

    `frozen` is the reference, or None where it is the model with its adapter off. `ids` are the rows that the prompts
    are from. `precision` is that of the loop, so that the log-probabilities are those that the first step finds.
    """

    precision: Precision = "float32"

    def __init__(
        self,
        plan: RolloutPlan,
        prompts: Sequence[list[int]],
        judge: Judge,
        frozen: Writer | None,
        end_ids: Collection[int],
        banned_ids: Sequence[int] = (),
    ) -> None:
        self.plan = plan
        self._prompts = prompts
        self._judge = judge
        self._frozen = frozen
        self._end_ids, self._banned_ids = end_ids, banned_ids
        self._rollout: Rollout | None = None

    @property
    def current(self) -> Rollout:
        """The rollout that steps are learning from."""
        assert self._rollout is not None, "no step was asked for yet"
        return self._rollout

    def state(self) -> dict[str, Tensor]:
        """The rollout that steps are learning from, as tensors; see `restore`."""
        return {} if self._rollout is None else self._rollout.as_tensors()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on with the rollout that `state` gave."""
        self._rollout = Rollout.of(state) if state else None

    def parts(self, model: LanguageModel, step: int) -> list[list[int]]:
        """The answers that a step reads, in parts; writes a rollout where its first step comes."""
        number, within = divmod(step, self.plan.steps)
        if self._rollout is None or self._rollout.number != number:
            assert within == 0, "a checkpoint holds the rollout that its next step reads"
            self._rollout = self._collect(model, number)
        return self.plan.batch(number, within)

    def written(self, rows: Sequence[int]) -> list[Written]:
        """Some answers with their prompts."""
        rollout = self.current
        answers = torch.split(rollout.tokens, rollout.lengths.tolist())
        return [Written(self._prompts[int(rollout.prompts[row])], answers[row].tolist()) for row in rows]

    def of_rows(self, values_N: Tensor, rows: Sequence[int]) -> Tensor:
        """The numbers of the tokens of some answers, one after the other."""
        pieces = torch.split(values_N, self.current.lengths.tolist())
        return torch.cat([pieces[row] for row in rows])

    @torch.no_grad()
    def _collect(self, model: LanguageModel, number: int) -> Rollout:
        """Let the model answer, and read the answers as the first epoch will, in the same parts (sums of floats
        depend on what shares a batch) and as in training (a quantized matrix rounds less there): so the first
        ratio is 1 to the bit."""
        plan, policy, training = self.plan, writer_of(model), model.training
        model.eval()
        prompts = plan.chosen(number, len(self._prompts))
        answers = list[list[int]]()
        with autocast(model, self.precision):
            for start in range(0, len(prompts), plan.together):
                some = prompts[start : start + plan.together]
                draws = [(plan.seed, number, start + place) for place in range(len(some))]
                answers += sample_answers(
                    policy,
                    [self._prompts[prompt] for prompt in some],
                    draws,
                    plan.max_new_tokens,
                    self._end_ids,
                    self._banned_ids,
                )
        rewards = torch.tensor(self._judge(prompts, answers), dtype=torch.float32)
        rows = [
            Written(self._prompts[prompt], answer) for prompt, answer in zip(prompts, answers, strict=True)
        ]
        model.train(training)
        log_probabilities, values, reference = self._read(model, policy, rows, number)
        return Rollout(
            number,
            torch.tensor(prompts),
            torch.tensor([len(answer) for answer in answers]),
            rewards,
            torch.tensor([token for answer in answers for token in answer]),
            log_probabilities,
            reference,
            values,
        )

    def _read(
        self, model: LanguageModel, policy: Writer, rows: Sequence[Written], number: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The log-probability of each token, the value of its position, and its log-probability under the
        reference."""
        found: list[tuple[Tensor, ...]] = [()] * len(rows)
        with torch.set_grad_enabled(model.training), autocast(model, self.precision):
            for within in range(self.plan.batches):
                for part in self.plan.batch(number, within):
                    some = [rows[row] for row in part]
                    log_probabilities, values = read_answers(model, some)
                    with reference_of(policy, self._frozen) as reference:
                        theirs = -token_losses(reference, *answer_vectors(reference, some))
                    lengths = [len(row.answer) for row in some]
                    pieces = (
                        torch.split(each.detach().cpu(), lengths)
                        for each in (log_probabilities, values, theirs)
                    )
                    for row, *three in zip(part, *pieces, strict=True):
                        found[row] = tuple(three)
        columns = zip(*found, strict=True)
        first, second, third = (torch.cat(column) for column in columns)
        return first, second, third

    def rows_seen(self, dataset: str, ids: Sequence[str], steps: int) -> Counter[RowKey]:
        """How many answers to each prompt the first `steps` learned from."""
        seen = Counter[RowKey]()
        for number in range(-(-steps // self.plan.steps)):
            seen.update((dataset, ids[prompt]) for prompt in self.plan.chosen(number, len(ids)))
        return seen


def read_answers(model: LanguageModel, rows: Sequence[Written]) -> tuple[Tensor, Tensor]:
    """The log-probability [N] of each token of the answers, and the value [N] of the position it is drawn at (0 for a
    model without values)."""
    writer = writer_of(model)
    hidden_ND, targets_N = answer_vectors(writer, rows)
    log_probabilities_N = -token_losses(writer, hidden_ND, targets_N)
    if isinstance(model, ScoredModel):
        return log_probabilities_N, model.scores(hidden_ND)
    return log_probabilities_N, torch.zeros_like(log_probabilities_N)


def rollout_parts(parts: Sequence[Sequence[int]], rollouts: Rollouts, by_token: bool) -> list[Part]:
    """Parts of a step from the answers that it reads, each counting by its answers, or by their tokens."""
    found = list[Part]()
    for part in parts:
        rows = rollouts.written(part)
        weight = sum(len(row.answer) for row in rows) if by_token else len(rows)
        found.append(Part(tuple(part), weight, len(rows) * max(row.length for row in rows)))
    return found
