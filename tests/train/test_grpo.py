import math

import pytest
import torch
from small_alignments import model
from test_ppo import Plan, rollouts
from torch.testing import assert_close

from yunque.train.loop import train_step
from yunque.train.objectives.grpo import GroupRelativePolicy, GrpoLoss, answer_means, group_advantages
from yunque.train.objectives.rollouts import RolloutPlan
from yunque.train.settings import OptimizerSettings

GROUPS = RolloutPlan(2, 4, 2, 4, 3, 8, 0)


def test_advantages_of_a_group_sum_to_0_and_are_those_of_the_paper() -> None:
    rewards = torch.randn(5 * 8, generator=torch.Generator().manual_seed(0)) * 3 + 100
    found = group_advantages(rewards, 8)
    assert found.view(5, 8).sum(1).abs().max() < 1e-5
    wanted = []
    for group in rewards.double().view(5, 8).tolist():
        mean = sum(group) / 8
        deviation = math.sqrt(sum((each - mean) ** 2 for each in group) / 7)
        wanted += [(each - mean) / (deviation + 1e-4) for each in group]
    assert_close(found, torch.tensor(wanted), rtol=1e-6, atol=1e-6)
    # Negative controls: other groups, and rewards that are not normalized.
    for wrong in (group_advantages(rewards, 10), rewards, rewards - rewards.mean()):
        with pytest.raises(AssertionError):
            assert_close(wrong, torch.tensor(wanted), rtol=1e-3, atol=1e-3)


def test_nobody_has_an_advantage_where_all_earn_the_same() -> None:
    assert group_advantages(torch.full((8,), 0.1), 4).abs().max() == 0


def test_the_loss_of_a_part_is_that_of_its_answers_written_out() -> None:
    before, net, reference = model(), model(1), model(2)
    ours = GroupRelativePolicy(rollouts(before, reference, GROUPS), GrpoLoss(kl_coefficient=0.2, clip=0.1))
    part = ours.parts(before, 0)[0]
    rows, rewards = ours.rollouts.written(range(8)), ours.rollouts.current.rewards.double()

    def logs(net, row) -> torch.Tensor:
        scores = net.double()(torch.tensor([row.prompt + row.answer]))[0].log_softmax(-1)
        return torch.stack([scores[len(row.prompt) - 1 + i, token] for i, token in enumerate(row.answer)])

    wanted = []
    for number in part.batch:
        group = rewards[number // 4 * 4 : number // 4 * 4 + 4]
        gain = ((rewards[number] - group.mean()) / (group.std() + 1e-4)).item()
        old, now, ref = (logs(each, rows[number]) for each in (model(), model(1), model(2)))
        each = []
        for o, p, r in zip(old.tolist(), now.tolist(), ref.tolist(), strict=True):
            ratio = math.exp(p - o)
            clipped = min(ratio * gain, max(0.9, min(1.1, ratio)) * gain)
            each.append(-clipped + 0.2 * (math.exp(r - p) - (r - p) - 1))
        wanted.append(sum(each) / len(each))
    wanted = sum(wanted) / len(wanted)
    done = ours.loss(net, part)
    assert done.mean.item() == pytest.approx(wanted, rel=1e-5)
    # Negative controls: no price for leaving the reference, another reference.
    free = GroupRelativePolicy(ours.rollouts, GrpoLoss(kl_coefficient=0.0, clip=0.1))
    assert free.loss(net, part).mean.item() != pytest.approx(wanted, rel=1e-2)
    other = GroupRelativePolicy(rollouts(before, before, GROUPS), ours.settings)
    assert other.loss(net, other.parts(before, 0)[0]).mean.item() != pytest.approx(wanted, rel=1e-2)


def test_an_answer_counts_the_same_however_long_it_is() -> None:
    means = answer_means(torch.tensor([1.0, 3.0, 10.0]), [2, 1])
    assert means.tolist() == [2.0, 10.0]


def test_the_first_ratio_is_1_and_the_divergence_0_to_the_bit() -> None:
    net = model()
    ours = GroupRelativePolicy(rollouts(net, model(), GROUPS), GrpoLoss())
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    first = train_step(net, optimizer, ours, OptimizerSettings(learning_rate=0.01), Plan(), 0)
    assert (first["ratio"], first["kl"], first["kl_k3"]) == (1.0, 0.0, 0.0)
    second = train_step(net, optimizer, ours, OptimizerSettings(learning_rate=0.01), Plan(), 1)
    assert second["ratio"] != 1.0


def test_parts_of_a_batch_give_the_gradient_of_the_whole() -> None:
    def gradients(together: int) -> list[torch.Tensor]:
        net = model()
        plan = RolloutPlan(2, 4, 1, 8, together, 8, 0)
        ours = GroupRelativePolicy(rollouts(net, model(1), plan), GrpoLoss())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        seen = []
        optimizer.step = lambda: seen.extend(p.grad.clone() for p in net.parameters())
        train_step(net, optimizer, ours, OptimizerSettings(clip_norm=1e9), Plan(), 0)
        return seen

    for ours, theirs in zip(gradients(3), gradients(8), strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
