"""Guesses that are verified change nothing but the speed: the same greedy tokens, the same distribution of others."""

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from yunque.generate import speculation
from yunque.generate.config import ChoiceFormat, GenerationConfig, JsonFormat
from yunque.generate.grammar_compiling import grammar_of, validate
from yunque.generate.runner import Work
from yunque.generate.sampler import Sampler
from yunque.generate.speculation import ModelDraft, PromptLookup, Proposal, verify
from yunque.generate.turn import Turn
from yunque.tokenizer import Tokenizer

V = 4


def toy(seed: int, size: int = V):
    """Scores of the next token, which depend on the last two."""
    table = torch.randn(size, size, size, generator=torch.Generator().manual_seed(seed)) * 1.5
    return lambda ids: table[ids[-2] % size, ids[-1] % size] if len(ids) > 1 else table[0, ids[-1] % size]


TARGET, BAD = toy(1), toy(2)


class ToyText:
    def __init__(self, unread: list[int]) -> None:
        self.unread, self.ids, self.closed = unread, list[int](), False

    @property
    def length(self) -> int:
        return len(self.ids)

    def truncate(self, length: int) -> None:
        assert length <= len(self.ids)
        del self.ids[length:]

    def close(self) -> None:
        self.closed = True


class ToyRunner:
    """A runner that computes a toy; it counts its runs."""

    can_truncate = True

    def __init__(self, scores) -> None:
        self.scores, self.runs, self.texts = scores, 0, list[ToyText]()

    def open(self, prompt: Sequence[int], fresh: int, adapter: str | None = None) -> ToyText:  # noqa: ARG002
        self.texts.append(ToyText(list(prompt)))
        return self.texts[-1]

    def run(self, works: Sequence[Work]) -> list[torch.Tensor]:
        self.runs += 1
        rows = []
        for work in works:
            at = len(work.text.ids)
            work.text.ids += work.ids
            ends = range(at + len(work.ids) - work.wanted + 1, at + len(work.ids) + 1)
            rows.append(torch.stack([self.scores(work.text.ids[:end]) for end in ends]))
        return rows


def write(
    prompt: list[int], config: GenerationConfig, draft=None, scores=TARGET, k: int = 3
) -> tuple[int, ...]:
    """A text of config.max_new_tokens, with proposals where there is a draft."""
    runner = ToyRunner(scores)
    sampler = Sampler(config, prompt, V)
    text, ids, written = runner.open(prompt, 99), list(prompt), list[int]()
    pending = text.unread
    while len(written) < config.max_new_tokens:
        left = config.max_new_tokens - len(written)
        proposal = draft.propose(ids, min(k, left - 1), sampler) if draft and left > 1 else Proposal(())
        count = len(proposal.ids)
        rows = runner.run([Work(text, [*pending, *proposal.ids], count + 1)])[0]
        chosen = [one.token_id for one in verify(proposal, rows, sampler, left)]
        text.truncate(text.length - (count + 1 - len(chosen)))
        pending = chosen[-1:]
        written += chosen
        ids += chosen
    assert len(written) == config.max_new_tokens
    return tuple(written)


class Reciter:
    """A draft that proposes by a toy: drawn from it, or its likeliest without a chance in it."""

    def __init__(self, scores, certain: bool = False) -> None:
        self.scores, self.certain = scores, certain
        self.draws = np.random.default_rng(5)

    def propose(self, ids: Sequence[int], count: int, sampler: Sampler) -> Proposal:  # noqa: ARG002
        said, rows = list(ids), []
        for _ in range(count):
            row = self.scores(said).softmax(0).numpy()
            rows.append(row)
            said.append(int(row.argmax() if self.certain else self.draws.choice(V, p=row / row.sum())))
        return Proposal(tuple(said[len(ids) :]), None if self.certain else tuple(rows))


def config(**fields) -> GenerationConfig:
    return GenerationConfig(**{"max_new_tokens": 3, "temperature": 1.0, **fields})


def expected(settings: GenerationConfig, prompt: list[int]) -> dict[tuple[int, ...], float]:
    """The probability of each text of three tokens."""
    found = {}
    for text in itertools.product(range(V), repeat=3):
        sampler, chance, ids = Sampler(settings, prompt, V), 1.0, list(prompt)
        for token in text:
            chance *= float(sampler.distribution(TARGET(ids))[token])
            sampler.advance(token)
            ids.append(token)
        found[text] = chance
    return found


def p_value(settings: GenerationConfig, draft, count: int = 1500) -> float:
    """How likely texts of the model's own distribution are at least as far from it as those that were written."""
    chances = expected(settings, [1, 2])
    seen = Counter(write([1, 2], settings.model_copy(update={"seed": seed}), draft) for seed in range(count))
    # Texts that are hardly ever written are counted together.
    likely = [text for text in chances if chances[text] * count >= 8]
    told = np.array([chances[text] for text in likely])
    counts = np.array([seen[text] for text in likely])
    told, counts = np.append(told, 1 - told.sum()), np.append(counts, count - counts.sum())
    if told[-1] * count < 1:
        assert counts[-1] <= 3
        told, counts = told[:-1] / told[:-1].sum(), counts[:-1]
    return float(chisquare(counts, told / told.sum() * counts.sum()).pvalue)


PENALTIES = {"repetition_penalty": 1.6, "presence_penalty": 0.7, "frequency_penalty": 0.4}


@pytest.mark.parametrize("certain", [False, True])
@pytest.mark.parametrize("fields", [{}, PENALTIES, {"temperature": 0.7, "top_k": 3, "top_p": 0.95}])
def test_drawn_texts_have_the_distribution_of_the_model_alone(fields: dict, certain: bool) -> None:
    assert p_value(config(**fields), Reciter(BAD, certain)) > 1e-4


def test_a_small_model_that_draws_with_the_same_settings_changes_no_distribution() -> None:
    settings = config(**PENALTIES)

    class Fresh:
        def propose(self, *given) -> Proposal:
            return ModelDraft(ToyRunner(BAD), 9, 999, Turn()).propose(*given)

    assert p_value(settings, Fresh()) > 1e-4


@pytest.mark.parametrize("wrong", ["always kept", "drawn again from all"])
def test_a_wrong_rule_would_be_found_out(wrong: str, monkeypatch) -> None:
    def always(proposed, target, draft, sampler) -> int:  # noqa: ARG001
        return proposed

    def again(proposed, target, draft, sampler) -> int:
        if sampler.uniform() * draft[proposed] < target[proposed]:
            return proposed
        return sampler.draw(target)

    monkeypatch.setattr(speculation, "_settled", always if wrong == "always kept" else again)
    assert p_value(config(), Reciter(BAD)) < 1e-9


@pytest.mark.parametrize("fields", [{}, PENALTIES, {"logit_bias": {2: -3.0}}])
@pytest.mark.parametrize("draft", ["lookup", "model", "bad"])
def test_greedy_tokens_are_those_of_the_model_alone(fields: dict, draft: str) -> None:
    settings = config(temperature=0.0, max_new_tokens=40, **fields)
    drafts = {
        "lookup": PromptLookup(3, 1),
        "model": ModelDraft(ToyRunner(TARGET), 99, 999, Turn()),
        "bad": Reciter(BAD, certain=True),
    }
    alone = write([0, 3, 1], settings)
    assert write([0, 3, 1], settings, drafts[draft]) == alone
    assert alone != write([0, 3, 1], settings, scores=BAD)


def test_a_draft_that_is_the_model_has_every_token_kept() -> None:
    for fields in ({"temperature": 0.0}, {"seed": 3}, {"seed": 4, **PENALTIES}):
        runner = ToyRunner(TARGET)
        draft, sampler = ModelDraft(runner, 99, 999, Turn()), Sampler(config(**fields), [1], V)
        ids = [1]
        while len(ids) < 17:
            proposal = draft.propose(ids, 3, sampler)
            said = [*ids, *proposal.ids]
            rows = torch.stack([TARGET(said[: len(ids) + place]) for place in range(4)])
            chosen = [one.token_id for one in verify(proposal, rows, sampler, 99)]
            assert tuple(chosen[:3]) == proposal.ids and len(chosen) == 4
            ids += chosen
        assert len(runner.texts) == 1
        draft.close()
        assert runner.texts[0].closed


def test_the_small_model_reads_each_token_once() -> None:
    runner = ToyRunner(BAD)
    draft, sampler = ModelDraft(runner, 99, 999, Turn()), Sampler(config(seed=1), [], V)
    draft.propose([1, 2, 3], 3, sampler)
    [text] = runner.texts
    assert text.length == 5
    draft.propose([1, 2, 3, 0], 2, sampler)
    assert text.ids[:4] == [1, 2, 3, 0] and text.length == 5


def test_lookup_proposes_what_followed_last_time() -> None:
    sampler, lookup = Sampler(config(), [], 99), PromptLookup(3, 2)
    assert lookup.propose([1, 2, 3, 4, 5], 3, sampler).ids == ()
    assert lookup.propose([1, 2, 3, 4, 5, 2, 3], 3, sampler).ids == (4, 5, 2)
    assert lookup.propose([1, 2, 3, 4, 5, 2, 3, 9, 2, 3], 2, sampler).ids == (9, 2)
    assert lookup.propose([1, 2, 3, 4, 5, 2, 3, 9, 2, 3, 4, 5], 2, sampler).ids == (2, 3)
    assert PromptLookup().propose([7], 3, sampler).ids == ()


def test_nothing_is_written_behind_an_end_nor_past_the_length() -> None:
    sampler = Sampler(config(temperature=0.0), [], V)
    rows = torch.eye(V)[[1, 2, 3, 0]]
    told = verify(Proposal((1, 2, 3)), rows, sampler, 9)
    assert [one.token_id for one in told] == [1, 2, 3, 0]
    assert [one.token_id for one in verify(Proposal((1, 2, 3)), rows, sampler, 9, ends={2})] == [1, 2]
    assert [one.token_id for one in verify(Proposal((1, 2, 3)), rows, sampler, 2)] == [1, 2]
    assert [one.token_id for one in verify(Proposal((1, 3, 3)), rows, sampler, 9)] == [1, 2]


def test_log_probabilities_are_told_of_each_token() -> None:
    sampler = Sampler(config(temperature=0.0, logprobs=1), [], V)
    rows = torch.eye(V)[[1, 2]]
    told = verify(Proposal((1,)), rows, sampler, 9)
    assert [one.scored.logprob for one in told] == pytest.approx([-0.7436684] * 2)
    assert [one.likeliest[0].token_id for one in told] == [1, 2]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(['{"a": 1, "b": "sí"} sí, no'] * 3, 270)


def test_what_a_grammar_forbids_is_not_kept(tokenizer) -> None:
    size = tokenizer.vocab_size
    grammar = grammar_of(ChoiceFormat(options=("sí señor", "no")), tokenizer, size)
    sampler = Sampler(config(seed=1), [], size)
    wanted = tokenizer.encode("sí")
    proposal = Proposal((*wanted, tokenizer.encode("x")[0]))
    rows = torch.zeros(len(proposal.ids) + 1, size)
    for row, token in zip(rows, proposal.ids, strict=False):
        row[token] = 50.0
    told = [one.token_id for one in verify(proposal, rows, sampler, 999, (), grammar)]
    assert told[: len(wanted)] == wanted
    assert tokenizer.decode(told) in ("sí ", "sí s", "sí se")
    assert tokenizer.encode("sí señor".removeprefix(tokenizer.decode(told)))[0] in grammar.allowed()


def test_answers_with_a_form_stay_valid_and_whole_with_proposals(tokenizer) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    form, size = JsonFormat(json_schema=schema), tokenizer.vocab_size
    table = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    for seed in range(12):
        grammar = grammar_of(form, tokenizer, size)
        sampler, ids, lookup = Sampler(config(seed=seed), [], size), [5], PromptLookup(2, 1)
        left = 60
        while left and not grammar.finished and ids[-1] != tokenizer.end_id:
            proposal = lookup.propose(ids, 4, sampler)
            said = [*ids, *proposal.ids]
            rows = table[said[len(ids) - 1 :]]
            told = [one.token_id for one in verify(proposal, rows, sampler, left, tokenizer.end_ids, grammar)]
            ids += told
            left -= len(told)
        assert left >= 0
        assert validate(form, tokenizer.decode(ids[1:])) is None


def test_beyond_the_context_of_the_small_model_nothing_is_proposed() -> None:
    draft, sampler = ModelDraft(ToyRunner(TARGET), 99, 6, Turn()), Sampler(config(), [], V)
    assert len(draft.propose([1, 2, 3, 4], 5, sampler).ids) == 2
    assert draft.propose([1, 2, 3, 4, 1, 2], 5, sampler).ids == ()
