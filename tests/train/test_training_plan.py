import copy
import json
from dataclasses import replace

import pytest
import small_alignments as small
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from yunque.model.lora import LoraSettings, add_lora
from yunque.model.quantize import quantize_model
from yunque.train import plan_pretraining
from yunque.train.align import DpoSettings, RewardSettings, plan_dpo, plan_reward, train_dpo
from yunque.train.align_rollouts import GrpoSettings, PpoSettings, plan_rollouts
from yunque.train.loss import token_losses
from yunque.train.optimizer import make_optimizer
from yunque.train.workload import Workload

WORKLOAD = Workload(64.0, 640.0, rows=4, length=32, packed=False)
SHORT = {"rollouts": 3, "reward": "small_alignments:share_of_vowels", "max_new_tokens": 4, "batch_size": 4}


def model(**adapter) -> torch.nn.Module:
    made = small.model(num_hidden_layers=7)
    if adapter:
        add_lora(made, LoraSettings(**adapter), torch.Generator().manual_seed(0))
    return made.train()


def loss_of(made: torch.nn.Module, rows: int, length: int) -> torch.Tensor:
    ids = torch.zeros(rows, length, dtype=torch.int64)
    return token_losses(made, made.hidden(ids).flatten(0, 1), ids.flatten()).mean()


def counted_flops(made: torch.nn.Module) -> float:
    """What torch counts of a real step, for each token."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss_of(made, 1, 32).backward()
    return counter.get_total_flops() / 32


@pytest.mark.parametrize(
    "adapter", [{}, {"targets": "all-linear"}, {"targets": "all-linear", "last_layers": 2}]
)
def test_flops_are_those_that_torch_counts_of_what_is_trained(adapter) -> None:
    made = model(**adapter)
    planned = WORKLOAD.flops_per_token(made)
    assert planned == pytest.approx(counted_flops(made), rel=1e-3)
    with pytest.raises(AssertionError):
        assert planned == pytest.approx(counted_flops(model(**{**adapter, "rank": 3})), rel=1e-3)


def test_flops_of_answers_leave_out_scores_that_nobody_makes() -> None:
    made = model()
    all_scored, few = (replace(WORKLOAD, scored=share).flops_per_token(made) for share in (1.0, 0.25))
    head = 6 * made.config.hidden_size * made.config.vocab_size
    assert all_scored - few == pytest.approx(0.75 * head, rel=1e-6)


def kept_bytes(made: torch.nn.Module) -> int:
    weights = {part.untyped_storage().data_ptr() for part in (*made.parameters(), *made.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            alive.append(tensor)
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    alive: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of(made, 4, 32)
    return sum(kept.values())


@pytest.mark.parametrize("adapter", [{"rank": 4}, {"targets": "all-linear"}, {"last_layers": 2}])
def test_memory_under_an_adapter_is_that_of_the_adapter(adapter) -> None:
    made = model(**adapter)
    planned = WORKLOAD.memory(made, "float32")
    learned = [weight for weight in made.parameters() if weight.requires_grad]
    assert planned.trained_parameters == sum(weight.numel() for weight in learned)
    assert planned.gradient_bytes == sum(weight.nbytes for weight in learned)
    assert planned.activation_bytes == pytest.approx(kept_bytes(made), rel=0.001)
    assert planned.activation_bytes != pytest.approx(kept_bytes(model()), rel=0.001)
    assert planned.peak_bytes < WORKLOAD.memory(model(), "float32").peak_bytes


def test_memory_of_a_quantized_base_is_that_of_its_numbers() -> None:
    plain, few = model(rank=4), small.model(num_hidden_layers=7)
    few = quantize_model(few, "int8")
    add_lora(few, LoraSettings(rank=4), torch.Generator().manual_seed(0))
    less = WORKLOAD.memory(few.train(), "float32")
    assert less.weight_bytes < WORKLOAD.memory(plain, "float32").weight_bytes


def test_parts_of_a_batch_take_less_and_their_gradients_wait() -> None:
    made = model()
    whole, part = WORKLOAD.memory(made, "float32"), WORKLOAD.memory(made, "float32", 1, accumulated=True)
    alone = WORKLOAD.memory(made, "float32", 1, accumulated=False)
    assert alone.peak_bytes < part.peak_bytes < whole.peak_bytes
    assert part.peak_bytes <= alone.peak_bytes + alone.gradient_bytes


def test_the_largest_part_that_fits_is_found() -> None:
    made = model()
    workload = replace(WORKLOAD, rows=24, rows_each=2)
    for rows in (1, 5, 12):
        available = workload.memory(made, "float32", 2 * rows, True).peak_bytes
        assert workload.largest_micro_batch(made, "float32", available) == rows
    least = workload.memory(made, "float32", 2, True).peak_bytes
    assert workload.largest_micro_batch(made, "float32", least - 1) is None


def test_planning_leaves_the_run_as_it_would_be(workspace) -> None:
    base, data = small.put_base(workspace), small.put_data(workspace)
    settings = DpoSettings(precision="float32", epochs=1.0, batch_size=4)
    before = {ref.ref for ref in workspace.list("model")}
    plan = plan_dpo(workspace, base.ref, data, settings)
    assert {ref.ref for ref in workspace.list("model")} == before
    assert not list(workspace.runs.glob("*"))
    made = train_dpo(workspace, base.ref, data, settings)
    assert plan.steps == made.figures["steps"]
    (run,) = workspace.runs.iterdir()
    kept = json.loads((run / "run.json").read_text())["plan"]
    assert (kept["memory_bytes"], kept["flops"]) == (plan.memory_bytes, plan.flops)


def test_every_alignment_tells_its_plan(workspace) -> None:
    base, data = small.put_base(workspace), small.put_data(workspace)
    in_full = plan_dpo(workspace, base.ref, data, DpoSettings(epochs=1.0))
    adapted = plan_dpo(workspace, base.ref, data, DpoSettings(epochs=1.0, lora=LoraSettings(rank=2)))
    reward = plan_reward(workspace, base.ref, data, RewardSettings(epochs=1.0))
    ppo = plan_rollouts(workspace, base.ref, data, PpoSettings(**SHORT))
    grpo = plan_rollouts(workspace, base.ref, data, GrpoSettings(**SHORT, lora=LoraSettings(rank=2)))
    assert adapted.flops < in_full.flops and adapted.optimizer_bytes < in_full.optimizer_bytes
    assert reward.flops < in_full.flops  # no scores of a vocabulary
    assert ppo.held_bytes == in_full.weight_bytes  # its reference
    assert (grpo.held_bytes, in_full.held_bytes) == (0, 0)
    assert ppo.steps == 3 * PpoSettings(**SHORT).plan.steps
    for plan in (in_full, adapted, reward, ppo, grpo):
        told = " ".join(plan.sentences())
        assert all(word in told for word in ("parameters", "Memory: about", "TFLOP", "MFU", "Expected time"))
        assert plan.parameters == sum(weight.numel() for weight in small.model().parameters())


def test_timing_a_model_leaves_its_weights_alone(settings) -> None:
    made = model()
    before = copy.deepcopy(made.state_dict())
    for kind in ("adamw", "muon"):
        standing = settings.optimizer.model_copy(update={"learning_rate": 0.0, "kind": kind})
        optimizer = make_optimizer(made, standing)
        loss_of(made, 2, 8).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert all(torch.equal(before[name], value) for name, value in made.state_dict().items())


def test_a_plan_says_how_much_of_the_memory_there_is(workspace, settings) -> None:
    plan = plan_pretraining(workspace, settings)
    assert plan.machine_bytes and f"{plan.rows} x {plan.length} positions" in plan.sentences()[1]
    assert plan.flops == plan.tokens * plan.flops_per_token
    assert "learn" not in plan.sentences()[0]
    assert "; 7 learn" in replace(plan, trained_parameters=7).sentences()[0]
