"""A step's gradient does not depend on how many parts its batch is read in."""

import pytest
import torch
from torch.testing import assert_close

from yunque.generate.conversation import Written
from yunque.model import Llama, LlamaConfig
from yunque.train import loss as loss_module
from yunque.train.corpus import Corpus
from yunque.train.loop import train_step
from yunque.train.loss import IGNORED, token_losses
from yunque.train.mixture import Batches
from yunque.train.objective import Part, PartLoss
from yunque.train.objectives.answers import Answers, Example
from yunque.train.objectives.next_token import NextToken
from yunque.train.objectives.replay import Replay
from yunque.train.settings import OptimizerSettings

CONFIG = LlamaConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=16,
)


class Plan:
    steps, precision, threads = 10, "float32", 1


class Recorder(torch.optim.SGD):
    """Keeps the gradients that it is given."""

    def step(self, closure=None) -> None:
        del closure
        self.seen = [p.grad.clone() for group in self.param_groups for p in group["params"]]


def model() -> Llama:
    torch.set_num_threads(1)
    return Llama(CONFIG, torch.Generator().manual_seed(0))


def corpus(seed: int = 0) -> Corpus:
    documents = [[3 + (i * j) % 40 for j in range(5 + i % 9)] for i in range(40)]
    return Corpus(documents, [("d", str(i)) for i in range(40)], 0, 16, seed)


def answers(micro_batch_size: int, replay: bool = True) -> Answers:
    rows = []
    for i in range(11):
        ids = [3 + (i * j) % 40 for j in range(6 + i % 5)]
        rows.append(Example(("d", str(i)), "t", Written(ids[:4], [*ids[4:], 1])))
    batches = Batches(["t"] * 11, [row.written.length for row in rows], 7, 0)
    text = NextToken(corpus(), None, 3, min(3, micro_batch_size))
    return Answers(rows, [], batches, micro_batch_size, Replay(text) if replay else None)


def gradients(objective, step: int = 0) -> list[torch.Tensor]:
    net = model()
    optimizer = Recorder(net.parameters(), lr=1.0)
    # No clipping: it would hide a gradient of the wrong size.
    train_step(net, optimizer, objective, OptimizerSettings(clip_norm=1e9), Plan(), step)
    return optimizer.seen


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_accumulated_gradients_of_windows_equal_those_of_the_whole_batch(size: int) -> None:
    whole = gradients(NextToken(corpus(), None, 5, 5))
    for ours, theirs in zip(gradients(NextToken(corpus(), None, 5, size)), whole, strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_accumulated_gradients_of_ragged_answers_equal_those_of_the_whole_batch(size: int, step: int) -> None:
    """Step 1 is the ragged last batch: 4 of the 11 rows."""
    whole = gradients(answers(7), step)
    parts = answers(size).parts(model(), step)
    assert sum(part.weight for part in parts if part.group == "main") == (7, 4)[step] or step == 0
    for ours, theirs in zip(gradients(answers(size), step), whole, strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_plain_mean_of_unequal_parts_would_be_another_gradient() -> None:
    """Negative control: parts must count by what they hold."""

    class Unweighted(NextToken):
        def parts(self, model, step):
            return [Part(part.batch, 1.0, part.tokens) for part in super().parts(model, step)]

    whole, wrong = gradients(NextToken(corpus(), None, 5, 5)), gradients(Unweighted(corpus(), None, 5, 3))
    with pytest.raises(AssertionError):
        for ours, theirs in zip(wrong, whole, strict=True):
            assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_figures_of_parts_are_averaged_by_weight() -> None:
    class Counting:
        def parts(self, *_):
            return [Part(1.0, 1, 3), Part(4.0, 3, 5)]

        def loss(self, model, part):
            mean = model.norm.weight.sum() * 0 + part.batch
            return PartLoss(mean, {"twice": torch.tensor(2 * part.batch)})

    net = model()
    done = train_step(
        net, torch.optim.SGD(net.parameters(), lr=0.0), Counting(), OptimizerSettings(), Plan(), 0
    )
    assert (done["loss"], done["twice"], done["tokens"]) == (3.25, 6.5, 8)


def test_losses_in_pieces_equal_losses_at_once(monkeypatch) -> None:
    hidden = torch.randn(23, 32, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(23) + 5
    targets[4] = IGNORED

    def run() -> tuple[torch.Tensor, ...]:
        net, inputs = model(), hidden.clone().requires_grad_(True)
        losses = token_losses(net, inputs, targets)
        losses.sum().backward()
        return losses.detach(), inputs.grad, net.head.weight.grad

    whole = run()
    assert whole[0][4] == 0
    monkeypatch.setattr(loss_module, "_SCORES_AT_ONCE", 50 * 4)
    for ours, theirs in zip(run(), whole, strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
