import math

import pytest
import torch
from small_alignments import ROWS, model, tokenizer
from torch.testing import assert_close

from yunque.generate.conversation import encode_answer
from yunque.model import new_model
from yunque.model.families.transformer import TransformerConfig
from yunque.model.lora import LoraSettings, add_lora
from yunque.train.loop import train_step
from yunque.train.objectives.dpo import DirectPreference, DpoLoss, dpo_losses
from yunque.train.objectives.pairs import Pair, PairOrder
from yunque.train.objectives.written import per_answer, reference_of, token_log_probabilities
from yunque.train.settings import OptimizerSettings

LN2 = torch.tensor(2.0).log().item()


class Plan:
    steps, precision, threads = 10, "float32", 1


def pairs(net, rows=ROWS) -> list[Pair]:
    tokens = tokenizer()
    return [
        Pair(
            row.id,
            encode_answer(tokens, net, row.prompt, row.chosen),
            encode_answer(tokens, net, row.prompt, row.rejected),
        )
        for row in rows
    ]


def objective(net, settings=None, together=4, reference=None, rows=ROWS, held_out=()) -> DirectPreference:
    found = DirectPreference(
        pairs(net, rows), pairs(net, held_out), PairOrder(len(rows), 4, 0), together, settings or DpoLoss()
    )
    found.reference = found.find_reference(reference or net, lambda _: None)
    return found


def by_hand(net, pair: Pair, mean: bool = False) -> tuple[float, float]:
    """Log-probabilities of a pair's answers, each read alone, in float64."""
    net, found = net.double(), []
    for row in (pair.chosen, pair.rejected):
        ids = torch.tensor([row.prompt + row.answer])
        scores = net(ids)[0].log_softmax(-1)
        each = [scores[len(row.prompt) - 1 + i, token].item() for i, token in enumerate(row.answer)]
        found.append(sum(each) / (len(each) if mean else 1))
    return found[0], found[1]


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "hinge"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_that_of_the_papers(kind: str, smoothing: float) -> None:
    settings = DpoLoss(kind=kind, beta=0.3, label_smoothing=smoothing)
    ours, policy = objective(model(), settings, reference=model(1)), model()
    (part, *_) = ours.parts(policy, 0)
    wanted = []
    for number in part.batch:
        mean = kind == "ipo"
        chosen, rejected = by_hand(model(), ours.pairs[number], mean)
        before = by_hand(model(1), ours.pairs[number], mean)
        h = (chosen - before[0]) - (rejected - before[1])
        sigmoid = 1 / (1 + math.exp(-0.3 * h))
        wanted.append(
            {
                "sigmoid": -(1 - smoothing) * math.log(sigmoid) - smoothing * math.log(1 - sigmoid),
                "ipo": (h - 1 / 0.6) ** 2,
                "hinge": max(0.0, 1 - 0.3 * h),
            }[kind]
        )
    wanted = sum(wanted) / len(wanted)
    assert ours.loss(policy, part).mean.item() == pytest.approx(wanted, rel=1e-5)
    # Negative controls: another reference, and the two answers the other way about, are other losses.
    assert objective(model(), settings).loss(policy, part).mean.item() != pytest.approx(wanted, rel=1e-3)
    swapped = [Pair(pair.id, pair.rejected, pair.chosen) for pair in ours.pairs]
    other = DirectPreference(swapped, [], ours.order, 4, settings)
    other.reference = other.find_reference(model(1), lambda _: None)
    assert other.loss(policy, part).mean.item() != pytest.approx(wanted, rel=1e-3)


def test_the_losses_equal_the_formulas_to_a_millionth() -> None:
    random = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 50, generator=random, dtype=torch.float64) * 3
    h = chosen - rejected
    smooth = DpoLoss(beta=0.5, label_smoothing=0.1)
    sigmoid = 1 / (1 + (-0.5 * h).exp())
    wanted = -0.9 * sigmoid.log() - 0.1 * (1 - sigmoid).log()
    assert_close(dpo_losses(chosen, rejected, smooth), wanted, rtol=1e-6, atol=1e-6)
    assert_close(dpo_losses(chosen.float(), rejected.float(), smooth).double(), wanted, rtol=1e-6, atol=1e-6)
    with pytest.raises(AssertionError):
        assert_close(dpo_losses(rejected, chosen, smooth), wanted, rtol=1e-6, atol=1e-6)
    with pytest.raises(AssertionError):
        assert_close(dpo_losses(chosen, rejected, DpoLoss(beta=0.5)), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("together", [1, 3, 4])
def test_the_first_loss_is_the_logarithm_of_two_to_the_bit(together: int) -> None:
    net = model()
    first = objective(net, together=together)
    for part in first.parts(net, 0):
        done = first.loss(net, part)
        assert done.mean.item() == LN2
        assert done.figures["margin"] == 0
    other = objective(net, together=together, reference=model(1))
    assert other.loss(net, other.parts(net, 0)[0]).mean.item() != LN2


def test_a_fresh_adapter_gives_the_logarithm_of_two_and_is_off_in_the_reference() -> None:
    net, plain = model(), model()
    add_lora(net, LoraSettings(targets="all-linear"), torch.Generator().manual_seed(0))
    ours = objective(net, reference=plain)
    assert ours.loss(net, ours.parts(net, 0)[0]).mean.item() == LN2
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    for step in range(3):
        train_step(net, optimizer, ours, OptimizerSettings(), Plan(), step)
    rows = [pair.chosen for pair in ours.pairs[:4]]
    with torch.no_grad():
        with reference_of(net, None) as reference:
            assert torch.equal(token_log_probabilities(reference, rows), token_log_probabilities(plain, rows))
        assert not torch.equal(token_log_probabilities(net, rows), token_log_probabilities(plain, rows))


def test_only_the_answer_and_its_end_count() -> None:
    tokens, net = tokenizer(), model()
    written = encode_answer(tokens, net, ROWS[0].prompt, ROWS[0].chosen)
    assert written.prompt == tokens.encode_chat(ROWS[0].prompt, True)[0]
    assert written.answer == [*tokens.encode(ROWS[0].chosen), tokens.end_id]
    said = [("user", "a"), ("assistant", "b"), ("user", "c")]
    assert encode_answer(tokens, net, said, "d").prompt == tokens.encode_chat(said, True)[0]


def test_ragged_answers_in_a_batch_are_scored_as_each_alone() -> None:
    net = model()
    rows = [row for pair in pairs(net)[:3] for row in (pair.chosen, pair.rejected)]
    lengths = [len(row.answer) for row in rows]
    assert len(set(lengths)) > 2
    together = per_answer(token_log_probabilities(net, rows), lengths)
    alone = torch.stack([token_log_probabilities(net, [row]).sum() for row in rows])
    assert_close(together, alone, rtol=1e-5, atol=1e-5)
    with pytest.raises(AssertionError):
        assert_close(together.flip(0), alone, rtol=1e-5, atol=1e-5)


def test_an_encoder_decoder_learns_from_preferences_too() -> None:
    torch.set_num_threads(1)
    tokens = tokenizer()
    config = TransformerConfig(
        vocab_size=tokens.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        dropout=0.0,
    )
    net = new_model(config, torch.Generator().manual_seed(0))
    ours = objective(net)
    part = ours.parts(net, 0)[0]
    assert ours.loss(net, part).mean.item() == LN2
    row = ours.pairs[0].chosen
    start = net.config.decoder_start_token_id
    scores = net(torch.tensor([row.prompt]), torch.tensor([[start, *row.answer[:-1]]]))[0].log_softmax(-1)
    wanted = scores[torch.arange(len(row.answer)), torch.tensor(row.answer)]
    others = [row, ours.pairs[1].chosen]
    assert_close(token_log_probabilities(net, others)[: len(row.answer)], wanted, rtol=1e-5, atol=1e-5)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for step in range(20):
        done = train_step(net, optimizer, ours, OptimizerSettings(learning_rate=3e-3), Plan(), 1 + step % 8)
    assert done["margin"] > 0.1


def test_parts_of_a_batch_give_the_gradient_of_the_whole() -> None:
    def gradients(together: int) -> list[torch.Tensor]:
        net = model()
        ours = objective(net, together=together, reference=model(1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        seen = []
        optimizer.step = lambda: seen.extend(p.grad.clone() for p in net.parameters())
        train_step(net, optimizer, ours, OptimizerSettings(clip_norm=1e9), Plan(), 0)
        return seen

    whole = gradients(4)
    for ours, theirs in zip(gradients(3), whole, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_every_pair_is_read_once_an_epoch_in_an_order_of_its_own() -> None:
    order = PairOrder(10, 4, 0)
    epochs = [[n for step in range(3) for n in order.batch(3 * epoch + step)] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1] and epochs[0] != [n for s in range(3) for n in PairOrder(10, 4, 1).batch(s)]


def test_pairs_held_out_are_measured_and_never_read() -> None:
    net = model()
    ours = objective(net, rows=ROWS[:12], held_out=ROWS[12:], reference=model(1))
    figures = ours.held_out_figures(net)
    apart = objective(net, rows=ROWS[12:], reference=model(1))
    losses = [apart.loss(net, part).mean.item() for step in range(2) for part in apart.parts(net, step)]
    assert figures["loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert ours.validation_loss(net) == figures["loss"]
    assert max(n for step in range(9) for part in ours.parts(net, step) for n in part.batch) < 12
    assert objective(net).validation_loss(net) is None
