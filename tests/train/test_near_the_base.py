"""What holds a model to its base while it is tuned: replayed text, and the divergence from the base."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_writers import ROWS, put_writer, settings_of, tokenizer, writer
from torch.testing import assert_close

from yunque.data.dataset import write_dataset
from yunque.data.row import Row, Source, row_id
from yunque.errors import UserError
from yunque.generate.conversation import encode_answer
from yunque.model import save_model
from yunque.model.lora import LoraSettings, add_lora, lora_parameters
from yunque.train import TuneSettings, TuningRows, plan_tuning, tune
from yunque.train import loss as loss_module
from yunque.train.mixture import Batches
from yunque.train.objectives.answers import Answers, Example, PromptDivergence, answer_losses
from yunque.train.objectives.divergence import divergences
from yunque.train.objectives.written import reference_of
from yunque.train.tune_settings import PROTECTED
from yunque.workspace import Artifact, Workspace


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    made = Workspace.open(tmp_path / "ws")
    rows = []
    for number in range(40):
        text = f"Fila {number}: El perro va a la casa y vuelve. " * 2
        rows.append(Row(row_id("a.md", text), text, "es", Source("a.md", "0" * 64, f"line {number}"), "a.md"))
    write_dataset(made, "texts", {"train": rows, "validation": [], "test": []}, {}, [], {})
    return made


def log(workspace: Workspace, made: Artifact) -> list[dict]:
    return [json.loads(line) for line in workspace.file(made, "loss.jsonl").read_text().splitlines()]


def run(workspace: Workspace, family: str = "llama", **changes) -> tuple[list[dict], Artifact]:
    base = put_writer(workspace, family)
    values = {"epochs": 6, "replay": 2, "replay_data": ("texts",), **changes}
    made = tune(workspace, base.ref, [TuningRows(ROWS)], settings_of(**values))
    return log(workspace, made), made


FULL_KL = {"replayed": 1, "prompts": 1}
LORA = {"rank": 8, "targets": "all-linear", "alpha": 32}


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_divergence_is_nothing_at_the_first_step_and_grows(workspace, lora) -> None:
    lines, _ = run(workspace, lora=lora, kl={"replayed": 1e-6, "prompts": 1e-6}, replay_weight=0.0)
    assert lines[0]["replay_kl"] == lines[0]["prompt_kl"] == 0
    assert lines[-1]["replay_kl"] > 1e-4 and lines[-1]["prompt_kl"] > 1e-4
    assert "replay_loss" not in lines[0]
    # A dear divergence stays small.
    near, _ = run(workspace, lora=lora, kl={"replayed": 30.0, "prompts": 30.0}, replay_weight=0.0)
    assert near[-1]["replay_kl"] < 0.5 * lines[-1]["replay_kl"]
    assert near[-1]["prompt_kl"] < 0.5 * lines[-1]["prompt_kl"]


def test_the_loss_of_a_step_is_the_sum_of_what_counts(workspace) -> None:
    plain, _ = run(workspace, replay=0)
    twice, _ = run(workspace, replay_weight=2.0)
    once, made = run(workspace)
    assert once[0]["replay_loss"] == pytest.approx(twice[0]["replay_loss"])
    assert once[0]["loss"] == pytest.approx(plain[0]["loss"] + once[0]["replay_loss"], rel=1e-6)
    assert twice[0]["loss"] == pytest.approx(plain[0]["loss"] + 2 * once[0]["replay_loss"], rel=1e-6)
    assert twice[0]["loss"] != pytest.approx(once[0]["loss"], rel=1e-2)
    assert once[-1]["replay_loss"] < once[0]["replay_loss"]
    seen = json.loads(workspace.file(made, "rows_seen.json").read_text())["datasets"]
    assert set(seen) == {"rows", "dataset/texts@1"}


def test_an_encoder_decoder_replays_spans_if_it_has_sentinels(workspace) -> None:
    base = put_writer(workspace, "t5")
    told: list[str] = []
    settings = settings_of(epochs=2, replay=2, replay_data=("texts",))
    tune(workspace, base.ref, [TuningRows(ROWS)], settings, tell=told.append)
    assert any("Nothing is replayed" in sentence for sentence in told)
    spans = tokenizer().with_tokens([f"<extra_id_{number}>" for number in range(100)])
    files = {**save_model(writer("t5", spans)), **spans.to_files()}
    ready = workspace.put("model", "ready", files)
    settings = settings_of(epochs=4, replay=2, replay_data=("texts",), kl={"replayed": 1.0})
    made = tune(workspace, ready.ref, [TuningRows(ROWS)], settings)
    lines = log(workspace, made)
    # Not 0: where no gradient is wanted torch takes another kernel, which rounds otherwise.
    assert abs(lines[0]["replay_kl"]) < 1e-6 < 1e-4 < lines[-1]["replay_kl"]
    assert lines[-1]["replay_loss"] < lines[0]["replay_loss"]
    with pytest.raises(UserError, match="does not write its prompts"):
        tune(workspace, ready.ref, [TuningRows(ROWS)], settings_of(kl={"prompts": 1.0}))


GOLDEN = {
    "kl": ("llama", {"replay_weight": 0.5, "kl": {"replayed": 1.0, "prompts": 0.5}}),
    "seq2seq": ("t5", {"replay": 0, "replay_data": ()}),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_losses_of_a_fixed_run_are_those_kept_in_the_repository(workspace, name) -> None:
    family, changes = GOLDEN[name]
    lines, _ = run(workspace, family, epochs=50, **changes)
    losses = [line["loss"] for line in lines]
    golden = json.loads(Path(__file__).with_name(f"golden_answers_{name}.json").read_text())
    assert losses == pytest.approx(golden, rel=2e-3, abs=1e-4)
    # Negative control: the losses of one step later are others.
    assert losses[1:] != pytest.approx(golden[:-1], rel=2e-3, abs=1e-4)


def test_the_divergence_is_that_of_the_definition_in_pieces_too(monkeypatch) -> None:
    tokens = tokenizer()
    model, base = writer("llama", tokens), writer("llama", tokens)
    with torch.no_grad():
        base.head.weight.mul_(1.5)
    ours, theirs = (torch.randn(9, 32, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    p, q = base.logits(theirs).softmax(-1), model.logits(ours).softmax(-1)
    expected = (p * (p.log() - q.log())).sum(-1)
    assert_close(divergences(model, ours, base, theirs), expected, rtol=1e-4, atol=1e-5)
    reverse = (q * (q.log() - p.log())).sum(-1)
    with pytest.raises(AssertionError):
        assert_close(divergences(model, ours, base, theirs), reverse, rtol=1e-4, atol=1e-5)
    gradient = torch.autograd.grad(divergences(model, ours, base, theirs).sum(), model.head.weight)[0]
    monkeypatch.setattr(loss_module, "_SCORES_AT_ONCE", tokens.vocab_size * 4)
    again = torch.autograd.grad(divergences(model, ours, base, theirs).sum(), model.head.weight)[0]
    assert_close(again, gradient, rtol=1e-5, atol=1e-6)


def test_a_prompt_counts_once_however_long_it_is() -> None:
    tokens = tokenizer()
    model = writer("llama", tokens)
    add_lora(model, LoraSettings(rank=4), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for weight in lora_parameters(model).values():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    rows = [
        encode_answer(tokens, model, [("user", each.question * (1 + number))], each.answer)
        for number, each in enumerate(ROWS[:2])
    ]
    examples = [Example(("d", str(number)), "t", written) for number, written in enumerate(rows)]
    order = Batches(["t"] * 2, [row.length for row in rows], 2, 0)
    objective = Answers(examples, [], order, 2, None, PromptDivergence(0.5))
    (part,) = objective.parts(model, 0)
    found = objective.loss(model, part)
    expected = []
    for row in part.batch:
        ids = torch.tensor([row.prompt])
        ours = model(ids)[0, :-1].log_softmax(-1)
        with reference_of(model, None) as base:
            theirs = base(ids)[0, :-1].log_softmax(-1)
        expected.append(F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1).mean())
    kl = torch.stack(expected).mean()
    assert kl > 1e-3
    assert_close(found.figures["prompt_kl"], kl, rtol=1e-4, atol=1e-6)
    assert_close(found.mean, answer_losses(model, part.batch).mean() + 0.5 * kl, rtol=1e-5, atol=1e-6)
    with pytest.raises(AssertionError):
        assert_close(found.mean, answer_losses(model, part.batch).mean() + kl, rtol=1e-5, atol=1e-6)


def test_protection_fills_in_what_is_not_said() -> None:
    protected = TuneSettings(protect=True).model_dump()
    for name, value in PROTECTED.items():
        held = (
            protected[name] if not isinstance(value, dict) else {key: protected[name][key] for key in value}
        )
        assert held == value
    assert protected != TuneSettings().model_dump() | {"protect": True}
    assert TuneSettings.model_validate({"protect": True, "replay": 9}).replay == 9
    with pytest.raises(ValueError, match="exclude each other"):
        TuneSettings(lora={}, prompt={})
    with pytest.raises(ValueError, match="for nothing"):
        TuneSettings(replay_weight=0)
    with pytest.raises(ValueError, match="leaves the model as it is"):
        TuneSettings(prompt={}, kl={"prompts": 1})


def test_a_divergence_without_text_to_read_is_refused(workspace) -> None:
    base = put_writer(workspace, "llama")
    with pytest.raises(UserError, match="replay_data"):
        tune(workspace, base.ref, [TuningRows(ROWS)], settings_of(replay=1, kl={"replayed": 1}))


def plan(workspace: Workspace, **changes):
    base = put_writer(workspace, "llama")
    values = {"replay": 2, "replay_data": ("texts",), **changes}
    return plan_tuning(workspace, base.ref, [TuningRows(ROWS, ROWS)], settings_of(**values))


def test_what_the_frozen_base_reads_is_among_the_operations(workspace) -> None:
    plain = plan(workspace)
    replayed, prompts, both = (plan(workspace, kl=kl) for kl in ({"replayed": 1}, {"prompts": 1}, FULL_KL))
    # Two operations for each parameter and position; a step reads two windows of 64, and the rest are rows.
    forward, step_tokens = 2 * plain.parameters, plain.tokens / plain.steps
    assert plain.tokens == both.tokens
    more = [each.flops_per_token - plain.flops_per_token for each in (replayed, prompts, both)]
    share = 2 * 64 / step_tokens
    assert more == pytest.approx([share * forward, (1 - share) * forward, forward], rel=1e-3)
    # The control: it does not read everything each time.
    with pytest.raises(AssertionError):
        assert more == pytest.approx([forward] * 3, rel=1e-3)


def test_the_best_weights_of_early_stopping_are_among_what_is_held(workspace) -> None:
    stopping = {"patience": 2}
    plain, kept = plan(workspace), plan(workspace, early_stopping=stopping)
    assert (plain.held_bytes, kept.held_bytes) == (0, kept.gradient_bytes)
    assert kept.memory_bytes == plain.memory_bytes + kept.held_bytes
    assert f"other weights {kept.held_bytes / 1e6:.0f} MB" in kept.sentences()[1]
    # Under an adapter they are the adapter's.
    adapted = plan(workspace, early_stopping=stopping, lora=LORA)
    assert 0 < adapted.held_bytes == adapted.gradient_bytes < kept.held_bytes
