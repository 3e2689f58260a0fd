import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from yunque.errors import UserError
from yunque.model import new_model
from yunque.tokenizer import Tokenizer
from yunque.train.corruption import CorruptionSettings, add_sentinels, corrupt, noise_mask
from yunque.train.loop import train_step
from yunque.train.objective import Part
from yunque.train.objectives.span_corruption import Corruption, Pieces, SpanCorruption
from yunque.train.optimizer import make_optimizer
from yunque.train.settings import OptimizerSettings
from yunque.train.shapes import ModelSettings

GOLDEN = Path(__file__).with_name("golden_span_corruption.json")
FAMILIES = ("t5", "transformer", "rnn-seq2seq")
TEXT = "el avión despega a las nueve y llega de noche the parrot flies over sea with an old map"


class Plan:
    steps, precision, threads = 50, "float32", 1


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 4, 300)


@pytest.fixture(scope="module")
def documents() -> list[list[int]]:
    lengths = (1, 2, 3, 9, 30, 64, 65, 200, 17, 40, 5)
    return [
        [5 + (number + 3 * place) % 40 for place in range(length)] for number, length in enumerate(lengths)
    ]


def made(
    tokenizer, documents, micro_batch_size: int = 4, batch_size: int = 4, seed: int = 0
) -> SpanCorruption:
    corruption = Corruption(tokenizer, 32, CorruptionSettings())
    keys = [("dataset/x@1", str(number)) for number in range(len(documents))]
    held_out = Pieces(documents[4:7], keys, corruption.longest, batch_size, seed)
    pieces = Pieces(documents, keys, corruption.longest, batch_size, seed)
    return SpanCorruption(corruption, pieces, held_out, 3, micro_batch_size)


def model(family: str, objective: SpanCorruption):
    settings = ModelSettings(family=family, hidden_size=32, layers=1, context=32)
    dropout = {"dropout": 0.0} if family == "transformer" else {}
    config = settings.model_copy(update=dropout).configuration(objective.corruption.tokenizer)
    return new_model(config, torch.Generator().manual_seed(0))


def put_back(source: list[int], target: list[int], sentinels: list[int]) -> list[int]:
    """The text that a source and a target were made of."""
    spans: dict[int, list[int]] = {}
    for id in target:
        if id in sentinels:
            spans[id] = []
        else:
            spans[list(spans)[-1]].append(id)
    return [token for id in source for token in spans.get(id, [id])]


SHAPES = [(0.15, 3.0), (0.5, 1.0), (0.9, 1.0), (0.01, 10.0), (0.3, 8.0)]


@pytest.mark.parametrize(("share", "span"), SHAPES)
def test_source_and_target_put_together_are_the_text(share, span) -> None:
    settings = CorruptionSettings(noise_share=share, mean_span=span)
    for length in (2, 3, 7, 20, 111, 512):
        random = np.random.default_rng(length)
        ids, sentinels = random.integers(0, 50, size=length), np.arange(100, 400)
        mask = noise_mask(length, settings, random)
        source, target = (part.tolist() for part in corrupt(ids, mask, sentinels))
        assert put_back(source, target, sentinels.tolist()) == ids.tolist()
        tokens, spans = settings.counts(length)
        used = sentinels[:spans].tolist()
        assert [id for id in source if id >= 100] == used == [id for id in target if id >= 100]
        assert (len(source), len(target) + 1) == settings.lengths(length)
        # Negative control: a span in another place is another text.
        if tokens > 1:
            swapped = [*target[:1], *target[1:][::-1]]
            assert swapped == target or put_back(source, swapped, used) != ids.tolist()


def reference_counts(length: int, share: float, mean: float) -> tuple[int, int]:
    """The law in its authors' words: rounded, at least one of each, and not all of the text."""
    noise = int(np.round(length * share))
    noise = min(max(noise, 1), length - 1)
    return noise, max(int(np.round(noise / mean)), 1)


def test_how_much_is_taken_out_is_the_law_of_the_paper() -> None:
    settings = CorruptionSettings()
    for length in range(2, 600):
        mask = noise_mask(length, settings, np.random.default_rng(length))
        begins = mask & ~np.concatenate(([False], mask[:-1]))
        assert (int(mask.sum()), int(begins.sum())) == reference_counts(length, 0.15, 3.0)
        assert not mask[0] and mask[-1]
    # Figures that the paper's authors give for a source of 512 (with its end token): 568 tokens, a target of 114.
    longest = settings.longest(511, 512)
    assert longest == 568
    assert settings.lengths(568) == (511, 114)


def test_every_division_into_spans_is_as_likely() -> None:
    settings = CorruptionSettings(noise_share=0.5, mean_span=2.0)
    random = np.random.default_rng(0)
    counts: dict[bytes, int] = {}
    for _ in range(6000):
        mask = noise_mask(8, settings, random).tobytes()
        counts[mask] = counts.get(mask, 0) + 1
    # Four taken in two spans and four kept in two: 3 x 3 ways.
    assert len(counts) == 9
    expected = 6000 / 9
    assert (
        sum((count - expected) ** 2 / expected for count in counts.values()) < 26.1
    )  # chi-squared, 8: p = 0.001


def test_a_step_reads_the_same_whatever_was_read_before(tokenizer, documents) -> None:
    straight, jumping = made(tokenizer, documents), made(tokenizer, documents)
    wanted = [straight.rows(step) for step in range(12)]
    assert [jumping.rows(step) for step in (11, 3, 7)] == [wanted[11], wanted[3], wanted[7]]
    assert [made(tokenizer, documents, seed=1).rows(step) for step in range(12)] != wanted


def test_an_epoch_reads_every_token_once_and_takes_other_spans_the_next_time(tokenizer, documents) -> None:
    objective = made(tokenizer, documents)
    sentinels, end = objective.corruption.sentinels.tolist(), tokenizer.end_id
    count = objective.pieces.batches_per_epoch

    def texts(first: int) -> list[list[int]]:
        rows = [row for step in range(first, first + count) for row in objective.rows(step)]
        for row in rows:
            assert row.prompt[0] == end == row.answer[-1]
            assert max(len(row.prompt), len(row.answer)) <= 32
        return sorted(put_back(row.prompt[1:], row.answer[:-1], sentinels) for row in rows)

    whole = sorted(objective.pieces.piece(number).tolist() for number in range(len(objective.pieces.lengths)))
    assert texts(0) == texts(count) == whole
    assert sum(map(len, whole)) == sum(len(ids) for ids in documents if len(ids) > 1)
    answers = [
        sorted(row.answer for step in range(first, first + count) for row in objective.rows(step))
        for first in (0, count)
    ]
    assert answers[0] != answers[1]


def test_pieces_are_of_one_document_and_its_key_is_kept(tokenizer) -> None:
    documents = [[number] * (20 * number) for number in range(10, 16)]
    objective = made(tokenizer, documents)
    for number in range(len(objective.pieces.lengths)):
        (only,) = set(objective.pieces.piece(number).tolist())
        assert objective.pieces.key(number) == ("dataset/x@1", str(only - 10))
    seen = objective.rows_seen(objective.pieces.batches_per_epoch)
    assert set(seen) == {("dataset/x@1", str(number)) for number in range(6)}


def test_sentinels_are_tokens_behind_the_vocabulary_that_a_text_can_write(tokenizer) -> None:
    extended, sentinels = add_sentinels(tokenizer, 3)
    assert sentinels.tolist() == list(range(tokenizer.vocab_size, tokenizer.vocab_size + 100))
    assert extended.vocab_size == tokenizer.vocab_size + 100
    text = "el avión <extra_id_0> de noche<extra_id_12>"
    ids = extended.encode(text)
    assert [id for id in ids if id >= tokenizer.vocab_size] == sentinels[[0, 12]].tolist()
    assert extended.decode(ids) == text
    assert extended.encode("<|end|>") == tokenizer.encode("<|end|>")  # what is special stays so
    again, same = add_sentinels(extended, 3)
    assert again.vocab_size == extended.vocab_size and same.tolist() == sentinels.tolist()


def test_a_sentinel_in_the_data_is_told_with_its_row(tokenizer) -> None:
    extended, _ = add_sentinels(tokenizer, 3)
    corruption = Corruption(extended, 32, CorruptionSettings())
    keys = [("dataset/x@1", "a"), ("dataset/x@1", "b")]
    corruption.check(keys, [[3, 4], [5]])
    with pytest.raises(UserError, match="the row b has a sentinel"):
        corruption.check(keys, [[3, 4], extended.encode("<extra_id_7>")])


class Recorder(torch.optim.SGD):
    def step(self, closure=None) -> None:
        del closure
        self.seen = [p.grad.clone() for group in self.param_groups for p in group["params"]]


def gradients(family: str, objective: SpanCorruption, step: int) -> list[torch.Tensor]:
    net = model(family, objective)
    optimizer = Recorder(net.parameters(), lr=1.0)
    train_step(net, optimizer, objective, OptimizerSettings(clip_norm=1e9), Plan(), step)
    return optimizer.seen


@pytest.mark.parametrize("family", FAMILIES)
def test_accumulated_gradients_equal_those_of_the_whole_batch(tokenizer, documents, family) -> None:
    whole = made(tokenizer, documents, 5, 5)
    sizes = [len(whole.rows(step)) for step in range(whole.pieces.batches_per_epoch)]
    ragged = sizes.index(min(sizes))
    assert sizes[ragged] < 5
    for step in (ragged, (ragged + 1) % len(sizes)):
        wanted = gradients(family, whole, step)
        for ours, theirs in zip(
            gradients(family, made(tokenizer, documents, 2, 5), step), wanted, strict=True
        ):
            assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_parts_that_do_not_count_by_their_tokens_would_be_another_gradient(tokenizer, documents) -> None:
    class Unweighted(SpanCorruption):
        def parts(self, model, step):
            return [Part(part.batch, 1.0, part.tokens) for part in super().parts(model, step)]

    whole = made(tokenizer, documents, 5, 5)
    step = next(step for step in range(9) if len({len(row.answer) for row in whole.rows(step)}) > 1)
    plain = made(tokenizer, documents, 2, 5)
    wrong = Unweighted(plain.corruption, plain.pieces, plain.held_out, 3, 2)
    with pytest.raises(AssertionError):
        for ours, theirs in zip(gradients("t5", wrong, step), gradients("t5", whole, step), strict=True):
            assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_has_the_same_loss_alone_and_among_longer_ones(tokenizer, documents, family) -> None:
    objective = made(tokenizer, documents)
    net = model(family, objective).eval()
    rows = [row for step in range(objective.pieces.batches_per_epoch) for row in objective.rows(step)]

    def loss(some) -> torch.Tensor:
        return objective.loss(net, Part(some, 1, 1)).mean

    with torch.inference_mode():
        alone = sum(loss([row]) * len(row.answer) for row in rows) / sum(len(row.answer) for row in rows)
        assert_close(loss(rows), alone, rtol=1e-5, atol=1e-5)
        with pytest.raises(AssertionError):
            assert_close(loss(rows), loss(rows[::2]), rtol=1e-5, atol=1e-5)


def fifty_losses(family: str, objective: SpanCorruption) -> list[float]:
    net, settings = model(family, objective), OptimizerSettings()
    optimizer = make_optimizer(net, settings)
    return [train_step(net, optimizer, objective, settings, Plan(), step)["loss"] for step in range(50)]


def test_the_losses_of_fifty_steps_are_those_kept_in_the_repository(tokenizer, documents) -> None:
    golden = json.loads(GOLDEN.read_text())
    objective = made(tokenizer, documents)
    for family in FAMILIES:
        losses = fifty_losses(family, objective)
        assert losses == pytest.approx(golden[family], rel=1e-4)
        # Negative control: it learns, so a model that stood still would not pass.
        assert golden[family][0] - golden[family][-1] > 100 * golden[family][0] * 1e-4


def test_validation_is_the_same_at_every_call(tokenizer, documents) -> None:
    objective = made(tokenizer, documents)
    net = model("t5", objective).eval()
    with torch.inference_mode():
        first = objective.validation_loss(net)
        objective.rows(7)
        assert objective.validation_loss(net) == first
        assert made(tokenizer, documents, 1).validation_loss(net) == pytest.approx(first, abs=1e-5)
        assert made(tokenizer, documents, seed=5).validation_loss(net) != pytest.approx(first, abs=1e-5)


def test_a_context_without_room_for_a_span_is_told(tokenizer) -> None:
    with pytest.raises(UserError, match=r"model\.context: 2 tokens are too few"):
        Corruption(tokenizer, 2, CorruptionSettings())
