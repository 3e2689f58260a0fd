import math

import pytest
import torch
from small_alignments import ROWS, model, tokenizer
from torch.testing import assert_close

from yunque.generate.conversation import encode_prompt
from yunque.model.lora import LoraSettings, add_lora
from yunque.model.scored import ScoredModel
from yunque.train.loop import train_step
from yunque.train.objectives.ppo import (
    PpoLoss,
    ProximalPolicy,
    advantages,
    clipped_policy_losses,
    clipped_value_losses,
    token_rewards,
    whitened,
)
from yunque.train.objectives.rollouts import Rollout, RolloutPlan, Rollouts, k1, k3, sample_answers
from yunque.train.settings import OptimizerSettings

TOKENS = tokenizer()
END = (TOKENS.end_id,)


class Plan:
    steps, precision, threads = 40, "float32", 1


def prompts(net) -> list[list[int]]:
    return [encode_prompt(TOKENS, net, row.prompt) for row in ROWS]


def rollouts(net, frozen, plan=None, judge=None) -> Rollouts:
    plan = plan or RolloutPlan(6, 1, 2, 4, 2, 8, 0)
    return Rollouts(plan, prompts(net), judge or share, frozen, END, TOKENS.mark_ids)


def share(_, answers) -> list[float]:
    """The share of tokens below 100: something that a model can learn to earn."""
    return [sum(token < 100 for token in answer) / len(answer) for answer in answers]


def policy(**changes) -> ScoredModel:
    return ScoredModel(model(**changes))


def test_advantages_are_those_of_the_paper() -> None:
    """By the sum over what is to come, written out; in float64."""
    random = torch.Generator().manual_seed(0)
    lengths = [4, 1, 7]
    rewards, values = torch.randn(2, 12, generator=random, dtype=torch.float64)
    gamma, trace, wanted, start = 0.9, 0.8, [], 0
    for length in lengths:
        r, v = rewards[start : start + length].tolist(), [*values[start : start + length].tolist(), 0.0]
        for t in range(length):
            surprises = [r[k] + gamma * v[k + 1] - v[k] for k in range(t, length)]
            wanted.append(sum((gamma * trace) ** k * each for k, each in enumerate(surprises)))
        start += length
    wanted = torch.tensor(wanted, dtype=torch.float64)
    assert_close(advantages(rewards, values, lengths, gamma, trace), wanted, rtol=1e-9, atol=1e-9)
    with pytest.raises(AssertionError):
        # Negative control: answers do not look into one another.
        assert_close(advantages(rewards, values, [12], gamma, trace), wanted, rtol=1e-6, atol=1e-6)


def test_the_clipped_losses_are_those_of_the_paper() -> None:
    random = torch.Generator().manual_seed(0)
    change, gain, value, before, goal = torch.randn(5, 60, generator=random, dtype=torch.float64)
    wanted_policy, wanted_value = [], []
    for d, a, v, b, g in zip(change, gain, value, before, goal, strict=True):
        ratio = math.exp(d)
        wanted_policy.append(-min(ratio * a, max(0.8, min(1.2, ratio)) * a))
        near = b + max(-0.3, min(0.3, v - b))
        wanted_value.append(0.5 * max((v - g) ** 2, (near - g) ** 2))
    ratio = change.exp().float()
    found = clipped_policy_losses(ratio, gain.float(), 0.2)
    assert_close(found.double(), torch.stack(wanted_policy), rtol=1e-6, atol=1e-6)
    found = clipped_value_losses(value.float(), before.float(), goal.float(), 0.3)
    assert_close(found.double(), torch.stack(wanted_value), rtol=1e-6, atol=1e-6)
    with pytest.raises(AssertionError):
        assert_close(-(ratio * gain.float()).double(), torch.stack(wanted_policy), rtol=1e-3, atol=1e-3)


def test_whitened_numbers_have_mean_0_and_variance_1() -> None:
    numbers = torch.tensor([1.0, 5.0, -2.0, 3.0])
    white = whitened(numbers)
    assert white.mean().item() == pytest.approx(0, abs=1e-6)
    assert white.var(correction=0).item() == pytest.approx(1, rel=1e-5)
    assert whitened(torch.full((3,), 2.0)).tolist() == [0, 0, 0]
    with pytest.raises(AssertionError):
        assert_close(white, numbers)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_a_token_earns_minus_its_divergence_and_the_last_one_the_reward(estimator) -> None:
    now, reference = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.5, -2.0, -1.0])
    rollout = Rollout(
        0,
        torch.tensor([0, 1]),
        torch.tensor([2, 1]),
        torch.tensor([10.0, 20.0]),
        torch.tensor([5, 6, 7]),
        now,
        reference,
        torch.zeros(3),
    )
    settings = PpoLoss(kl_coefficient=0.1, kl_estimator=estimator)
    each = [a - b for a, b in zip(now.tolist(), reference.tolist(), strict=True)]
    if estimator == "k3":
        each = [math.exp(-d) - 1 + d for d in each]
    wanted = torch.tensor([-0.1 * each[0], 10 - 0.1 * each[1], 20 - 0.1 * each[2]])
    assert_close(token_rewards(rollout, settings), wanted)
    with pytest.raises(AssertionError):
        # Negative control: a missing reference costs nothing.
        assert_close(token_rewards(rollout, PpoLoss(kl_coefficient=0.0)), wanted)


def test_both_estimates_tell_the_divergence_on_average() -> None:
    random = torch.Generator().manual_seed(0)
    p, r = torch.randn(2, 8, generator=random).log_softmax(-1)
    exact = (p.exp() * (p - r)).sum().item()
    drawn = torch.multinomial(p.exp(), 200_000, replacement=True, generator=random)
    for estimate in (k1, k3):
        assert estimate(p[drawn], r[drawn]).mean().item() == pytest.approx(exact, rel=0.02)
        assert estimate(r[drawn], p[drawn]).mean().item() != pytest.approx(exact, rel=0.02)
    assert k3(p, r).min() >= 0 and k1(p, r).min() < 0


@pytest.mark.parametrize("lora", [False, True])
def test_the_first_ratio_is_1_and_the_divergence_0_to_the_bit(lora) -> None:
    net = policy()
    if lora:
        add_lora(net.body, LoraSettings(), torch.Generator().manual_seed(0))
    ours = ProximalPolicy(rollouts(net, None if lora else model()), PpoLoss())
    optimizer = torch.optim.AdamW((p for p in net.parameters() if p.requires_grad), lr=0.01)
    net.train()
    first = train_step(net, optimizer, ours, OptimizerSettings(learning_rate=0.01), Plan(), 0)
    assert (first["ratio"], first["clipped"]) == (1.0, 0.0)
    assert (first["kl"], first["kl_k3"]) == (0.0, 0.0)
    second = train_step(net, optimizer, ours, OptimizerSettings(learning_rate=0.01), Plan(), 1)
    assert second["ratio"] != 1.0 and second["kl"] == 0.0
    for step in range(2, 5):
        later = train_step(net, optimizer, ours, OptimizerSettings(learning_rate=0.01), Plan(), step)
    assert later["kl_k3"] > 0
    other = ProximalPolicy(rollouts(net, model(1)), PpoLoss())
    other.parts(policy(), 0)
    assert other.rollouts.current.figures()["kl_k3"] > 0.1


def test_the_loss_of_a_part_is_that_of_its_tokens_written_out() -> None:
    before, net = policy(), policy(seed=1)
    torch.nn.init.normal_(before.score.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(net.score.weight, generator=torch.Generator().manual_seed(2))
    settings = PpoLoss(kl_coefficient=0.3, clip=0.1, discount=0.9, value_coefficient=0.7)
    ours = ProximalPolicy(rollouts(before, model(3)), settings)
    part = ours.parts(before, 0)[0]
    rollout = ours.rollouts.current
    lengths = rollout.lengths.tolist()

    def read(scored, other, row):
        tokens = torch.cat((torch.tensor(row.prompt), torch.tensor(row.answer)))[None]
        spots = range(len(row.prompt) - 1, len(row.prompt) + len(row.answer) - 1)
        hidden = other.hidden(tokens)[0]
        scores = other.logits(hidden).log_softmax(-1)
        logs = torch.stack([scores[s, t] for s, t in zip(spots, row.answer, strict=True)])
        return logs, hidden[list(spots)] @ scored.score.weight[0].double() if scored else None

    everything = ours.rollouts.written(range(6))
    old = [read(before.double(), before.body.double(), row) for row in everything]
    reference = [read(None, model(3).double(), row)[0] for row in everything]
    gains, goals = [], []
    for (log, value), ref, reward in zip(old, reference, rollout.rewards.tolist(), strict=True):
        earned = -0.3 * (log - ref)
        earned[-1] += reward
        after = torch.cat((value[1:], torch.zeros(1, dtype=torch.float64)))
        surprise = earned + 0.9 * after - value
        own = [
            sum((0.9 * 0.95) ** (k - t) * surprise[k] for k in range(t, len(log))) for t in range(len(log))
        ]
        gains.append(torch.stack(own))
        goals.append(torch.stack(own) + value)
    flat = torch.cat(gains)
    white = ((flat - flat.mean()) / (flat.var(correction=0) + 1e-8).sqrt()).split(lengths)
    policy_loss, value_loss, count = 0.0, 0.0, 0
    for row in part.batch:
        log, value = read(net.double(), net.body.double(), everything[row])
        for t in range(lengths[row]):
            ratio = math.exp((log[t] - old[row][0][t]).item())
            gain = white[row][t].item()
            policy_loss += -min(ratio * gain, max(0.9, min(1.1, ratio)) * gain)
            b, v, g = old[row][1][t].item(), value[t].item(), goals[row][t].item()
            near = b + max(-0.2, min(0.2, v - b))
            value_loss += 0.5 * max((v - g) ** 2, (near - g) ** 2)
            count += 1
    wanted = policy_loss / count + 0.7 * value_loss / count
    done = ours.loss(net.float(), part)
    assert done.mean.item() == pytest.approx(wanted, rel=1e-4)
    assert done.figures["clipped"] > 0
    # Negative control: without whitening the loss is another.
    ours._advantages_N = flat.float().detach()
    assert ours.loss(net, part).mean.item() != pytest.approx(wanted, rel=1e-2)


def test_answers_do_not_depend_on_what_shares_their_batch() -> None:
    net = model()
    asked, draws = prompts(net), [(0, 0, row) for row in range(20)]
    together = sample_answers(net, asked, draws, 12, END, TOKENS.mark_ids)
    alone = [sample_answers(net, [asked[i]], [draws[i]], 12, END, TOKENS.mark_ids)[0] for i in range(20)]
    assert together == alone
    assert together != sample_answers(net, asked, [(1, 0, row) for row in range(20)], 12, END)


def test_tokens_are_drawn_as_likely_as_the_model_finds_them() -> None:
    net = model()
    (asked, *_), count = prompts(net), 4000
    drawn = sample_answers(net, [asked] * count, [(7, row) for row in range(count)], 1, END, TOKENS.mark_ids)
    logits = net(torch.tensor([asked]))[0, -1].index_fill(0, torch.tensor(TOKENS.mark_ids), float("-inf"))
    wanted = logits.softmax(0)
    found = torch.bincount(torch.tensor(drawn).flatten(), minlength=len(wanted)) / count
    spread = (wanted * (1 - wanted) / count).sqrt() + 1e-9
    assert ((found - wanted).abs() < 5 * spread + 1 / count).all()
    assert not found[list(TOKENS.mark_ids)].any()
    assert not ((found - wanted.roll(1)).abs() < 5 * spread + 1 / count).all()


def test_an_answer_ends_with_the_end_token_or_at_its_longest() -> None:
    net = model()
    with torch.no_grad():
        net.embedding.weight[TOKENS.end_id] = net.embedding.weight.mean(0) * 0 + 0.15
    answers = sample_answers(net, prompts(net) * 4, [(0, row) for row in range(80)], 20, END)
    assert len({len(answer) for answer in answers}) > 2
    for answer in answers:
        assert TOKENS.end_id not in answer[:-1]
        assert answer[-1] == TOKENS.end_id or len(answer) == 20


def test_every_prompt_comes_before_any_comes_again() -> None:
    plan = RolloutPlan(7, 2, 1, 4, 4, 8, 0)
    taken = [prompt for number in range(6) for prompt in plan.chosen(number, 20)[::2]]
    assert sorted(taken[:20]) == sorted(taken[20:40]) == list(range(20))
    assert plan.chosen(0, 20)[::2] == plan.chosen(0, 20)[1::2]
    rows = [row for within in range(plan.steps) for part in plan.batch(0, within) for row in part]
    assert sorted(rows) == list(range(14))


def test_the_state_of_a_rollout_goes_on_with_the_same_loss() -> None:
    net, frozen = policy(), model()
    ours = ProximalPolicy(rollouts(net, frozen), PpoLoss())
    ours.parts(net, 0)
    wanted = [ours.loss(net, part).mean.item() for part in ours.parts(net, 1)]
    again = ProximalPolicy(rollouts(net, frozen, judge=lambda *_: pytest.fail("judged again")), PpoLoss())
    again.restore({name: tensor.clone() for name, tensor in ours.state().items()})
    assert [again.loss(net, part).mean.item() for part in again.parts(net, 1)] == wanted
    assert ProximalPolicy(rollouts(net, frozen), PpoLoss()).state() == {}
    with pytest.raises(AssertionError, match="a checkpoint holds"):
        ProximalPolicy(rollouts(net, frozen), PpoLoss()).parts(net, 1)
