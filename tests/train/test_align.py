import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from broken_off import StopAt
from safetensors.torch import load_file
from small_alignments import GOLDEN, ROWS, log, put_base, put_data, share_of_vowels, tokenizer
from typer.testing import CliRunner

from yunque.cli.main import app
from yunque.data.preferences import PreferenceRow, write_preferences
from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.generate.engine import Engine
from yunque.model import load_model, new_model, quantize_model, save_model
from yunque.model.adapter_files import load_adapter
from yunque.model.families.transformer import TransformerConfig
from yunque.model.scored import is_reward_model
from yunque.train.align import DpoSettings, RewardSettings, train_dpo, train_reward
from yunque.train.align_rollouts import GrpoSettings, PpoSettings, train_grpo, train_ppo
from yunque.train.alignment import parted
from yunque.train.objectives.dpo import DirectPreference
from yunque.train.rewards import open_reward
from yunque.workspace import Artifact, Workspace

LN2 = torch.tensor(2.0).log().item()
COMMON = {"precision": "float32", "checkpoint_every": 3, "validate_every": 10}
OF_ROLLOUTS = {"reward": "small_alignments:share_of_vowels", "max_new_tokens": 6, "batch_size": 4}
KINDS = {
    "dpo": (train_dpo, DpoSettings, {"batch_size": 6, "epochs": 4}),
    "reward": (train_reward, RewardSettings, {"batch_size": 6, "epochs": 4}),
    "ppo": (
        train_ppo,
        PpoSettings,
        {**OF_ROLLOUTS, "prompts_per_rollout": 8, "rollouts": 2, "epochs_per_rollout": 3},
    ),
    "grpo": (
        train_grpo,
        GrpoSettings,
        {**OF_ROLLOUTS, "prompts_per_rollout": 2, "answers_per_prompt": 4, "rollouts": 6},
    ),
}
STEPS = 12


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    workspace = Workspace.open(tmp_path / "ws")
    put_base(workspace)
    put_data(workspace)
    return workspace


def settings_of(kind: str, rate: float = 3e-3, **changes):
    _, cls, usual = KINDS[kind]
    return cls.model_validate({**COMMON, **usual, "optimizer": {"learning_rate": rate}, **changes})


def train(workspace: Workspace, kind: str, *arguments, data: str = "pairs", **changes) -> Artifact:
    return KINDS[kind][0](
        workspace, "tiny", workspace.get(data, "dataset"), settings_of(kind, **changes), *arguments
    )


def weights(workspace: Workspace, made: Artifact) -> bytes:
    return workspace.file(made, "model.safetensors").read_bytes()


def files(workspace: Workspace, made: Artifact) -> dict:
    return workspace.files(made)


_LORA = {"targets": "all-linear", "rank": 4}


@pytest.mark.parametrize(
    ("kind", "lora"), [*((kind, None) for kind in KINDS), ("dpo", _LORA), ("ppo", _LORA)]
)
def test_a_run_that_crashed_and_went_on_ends_with_the_same_bits(workspace, kind, lora) -> None:
    whole = train(workspace, kind, name="whole", lora=lora)
    losses = [line["loss"] for line in log(workspace, whole)]
    assert len(losses) == STEPS
    for step in (4, 11) if lora is None else (8,):
        name = f"twin-{step}"
        with pytest.raises(RuntimeError, match="crash"):
            train(workspace, kind, StopAt(step), name=name, lora=lora)
        told: list[str] = []
        again = train(workspace, kind, StopAt(-1), told.append, name=name, lora=lora)
        assert any("Going on from step" in sentence for sentence in told) == (step > 3)
        assert weights(workspace, again) == weights(workspace, whole), step
        assert [line["loss"] for line in log(workspace, again)] == losses, step


def test_another_seed_ends_with_other_bits(workspace) -> None:
    made = [train(workspace, "ppo", name=f"seed-{seed}", seed=seed) for seed in (0, 1)]
    assert weights(workspace, made[0]) != weights(workspace, made[1])


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[4])
import torch
torch.set_num_threads(1)
from test_align import KINDS
from yunque.workspace import Workspace
train, kind, _ = KINDS[sys.argv[2]]
workspace = Workspace.open(sys.argv[1])
train(workspace, "tiny", workspace.get("pairs", "dataset"), kind.model_validate_json(sys.argv[3]))
"""


@pytest.mark.slow
def test_a_process_killed_at_a_random_step_goes_on_to_the_same_bits(workspace) -> None:
    kind, longer = "ppo", {"rollouts": 25}
    whole = weights(workspace, train(workspace, kind, name="whole", checkpoint_every=5, **longer))
    twin = settings_of(kind, name="twin", checkpoint_every=5, **longer)
    here = str(GOLDEN)
    killed = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(workspace.root), kind, twin.model_dump_json(), here],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    kill_at, deadline = random.randint(8, 80), time.monotonic() + 60
    while time.monotonic() < deadline and killed.poll() is None:
        logs = list(workspace.runs.glob("twin-*/loss.jsonl"))
        if logs and logs[0].read_bytes().count(b"\n") >= kill_at:
            break
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(timeout=30) == -signal.SIGKILL, "the process was over before it could be killed"
    told: list[str] = []
    again = train(workspace, kind, StopAt(-1), told.append, name="twin", checkpoint_every=5, **longer)
    assert any("Going on from step" in sentence for sentence in told), kill_at
    assert weights(workspace, again) == whole, kill_at


@pytest.mark.parametrize("kind", KINDS)
def test_the_losses_of_a_fixed_run_are_those_kept_in_the_repository(workspace, kind) -> None:
    fifty = {
        "dpo": {"epochs": 50 / 3},
        "reward": {"epochs": 50 / 3},
        "ppo": {"rollouts": 5, "epochs_per_rollout": 5},
        "grpo": {"rollouts": 25},
    }[kind]
    losses = [line["loss"] for line in log(workspace, train(workspace, kind, **fifty))]
    assert len(losses) == 50
    path = GOLDEN / f"golden_{kind}.json"
    golden = json.loads(path.read_text())
    # Where answers are drawn, another processor's last digit may sooner or later draw another token.
    compared = 10 if kind in ("ppo", "grpo") else 50
    assert losses[:compared] == pytest.approx(golden[:compared], rel=1e-3, abs=1e-5)
    # Negative control: the losses of one step later are others.
    assert losses[1:compared] != pytest.approx(golden[: compared - 1], rel=1e-3, abs=1e-5)


def test_dpo_begins_at_the_logarithm_of_two_and_raises_the_margin(workspace) -> None:
    made = train(workspace, "dpo", epochs=12)
    lines = log(workspace, made)
    assert lines[0]["loss"] == LN2 and lines[0]["margin"] == 0
    assert lines[-1]["margin"] > 1 and lines[-1]["accuracy"] == 1
    figures = made.figures
    assert figures["held_out_accuracy"] == 1 and figures["held_out_rows"] == 2
    assert figures["held_out_margin"] > 0.5 and figures["held_out_loss"] == figures["validation_loss"]
    assert figures["kl_k3"] > 0.01
    assert made.parents == ("model/tiny@1", "dataset/pairs@1")
    assert made.name == "tiny-dpo" and made.config["objective"] == "dpo"
    seen = json.loads(workspace.file(made, "rows_seen.json").read_text())["datasets"]["dataset/pairs@1"]
    assert len(seen) == 18 and set(seen.values()) == {12}
    # A dearer divergence stays nearer to the reference.
    near = train(workspace, "dpo", epochs=12, name="near", loss={"beta": 5.0})
    assert near.figures["kl_k3"] < figures["kl_k3"]


def test_the_reference_is_read_once_and_kept_with_the_run(workspace, monkeypatch) -> None:
    with pytest.raises(RuntimeError):
        train(workspace, "dpo", StopAt(5))
    (path,) = workspace.runs.glob("tiny-dpo-*/reference.safetensors")
    kept = load_file(path)["log_probabilities"]
    assert kept.shape == (20, 2) and (kept < 0).all()
    module = sys.modules["yunque.train.objectives.dpo"]
    monkeypatch.setattr(module.DirectPreference, "find_reference", lambda *_: pytest.fail("read again"))
    train(workspace, "dpo")


def test_the_reference_is_read_with_the_threads_that_the_run_was_planned_with(workspace, monkeypatch) -> None:
    threads, read = list[int](), DirectPreference.find_reference

    def stopped(*arguments):
        threads.append(torch.get_num_threads())
        if len(threads) == 1:
            raise RuntimeError("crash")
        return read(*arguments)

    monkeypatch.setattr(DirectPreference, "find_reference", stopped)
    torch.set_num_threads(1)
    with pytest.raises(RuntimeError, match="crash"):
        train(workspace, "dpo")
    try:
        torch.set_num_threads(2)
        train(workspace, "dpo")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert threads == [1, 1]


def test_what_was_spent_before_the_first_step_counts_once(workspace) -> None:
    with pytest.raises(RuntimeError, match="crash"):
        train(workspace, "dpo", StopAt(5))
    (path,) = workspace.runs.glob("tiny-dpo-*/run.json")
    prepared = json.loads(path.read_text())["preparation"]
    assert prepared["seconds"] > 0 and prepared["cpu_seconds"] > 0
    done = train(workspace, "dpo")
    assert json.loads(path.read_text())["preparation"] == prepared
    last = log(workspace, done)[-1]
    assert done.figures["preparing_seconds"] == prepared["seconds"]
    for name in ("seconds", "cpu_seconds"):
        assert done.figures[name] == pytest.approx(last[name] + prepared[name])
        assert done.figures[name] != pytest.approx(last[name] + 2 * prepared[name])


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_the_reward_rises_and_the_divergence_is_told(workspace, kind) -> None:
    rate, loss, longer = {
        "ppo": (2e-2, {"kl_coefficient": 0.005}, {"rollouts": 16, "prompts_per_rollout": 32}),
        "grpo": (1e-2, {}, {"rollouts": 24, "prompts_per_rollout": 4, "answers_per_prompt": 8}),
    }[kind]
    longer |= {"batch_size": 32, "epochs_per_rollout": {"ppo": 4, "grpo": 1}[kind]}
    made = train(workspace, kind, rate=rate, loss=loss, **longer)
    lines, figures = log(workspace, made), made.figures
    assert lines[0]["kl"] == 0 and lines[0]["ratio"] == 1
    assert lines[-1]["reward"] > lines[0]["reward"] + 0.3
    assert figures["reward_after"] > figures["reward_before"] + 0.3
    assert figures["kl_k3"] > 1 and figures["measured_on"] == "held-out prompts"
    # Negative control: where vowels cost, the same run does not learn to write them.
    other = train(
        workspace, kind, rate=rate, loss=loss, name="other", reward="test_align:consonants", **longer
    )
    assert -other.figures["reward_after"] < figures["reward_before"] + 0.1
    # A price for the divergence keeps it small.
    near = train(workspace, kind, rate=rate, loss={"kl_coefficient": 2.0}, name="near", **longer)
    assert near.figures["kl_k3"] < 0.5 * figures["kl_k3"]


def consonants(prompt: str, answer: str) -> float:
    return -share_of_vowels(prompt, answer)


def test_a_reward_model_teaches_a_policy(workspace) -> None:
    judge = train(workspace, "reward", epochs=12, rate=3e-3)
    assert judge.figures["held_out_accuracy"] == 1
    assert is_reward_model(files(workspace, judge))
    reward = open_reward(workspace, judge.ref)
    better, worse = reward.judge([ROWS[0].prompt] * 2, [ROWS[0].chosen, ROWS[0].rejected])
    assert better > worse + 0.3
    made = train(workspace, "grpo", reward=judge.ref, rollouts=2)
    assert made.parents == ("model/tiny@1", "dataset/pairs@1", judge.ref)
    assert made.config["judged_by"] == {"model": judge.ref, "hash": judge.hash}
    with pytest.raises(UserError, match="is a reward model, which writes nothing"):
        train_dpo(workspace, judge.ref, workspace.get("pairs"), settings_of("dpo"))
    with pytest.raises(UserError, match="model/tiny@1 is no reward model"):
        train(workspace, "ppo", reward="tiny")


def test_an_adapter_is_kept_and_gives_with_its_base_what_the_model_gives(workspace) -> None:
    made = train(workspace, "dpo", lora={"targets": "all-linear"}, epochs=12)
    assert made.parents == ("model/tiny@1", "dataset/pairs@1", "adapter/tiny-dpo@1")
    adapter = workspace.get("tiny-dpo", "adapter")
    base = load_model(files(workspace, workspace.get("tiny", "model")))
    ids = torch.tensor([[5, 6, 7, 8]])
    plain = base(ids)
    together = load_adapter(base, files(workspace, adapter))(ids)
    torch.testing.assert_close(load_model(files(workspace, made))(ids), together, rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(plain, together, rtol=1e-4, atol=1e-4)
    assert log(workspace, made)[0]["loss"] == LN2


def test_an_aligned_model_writes_like_any_other(workspace) -> None:
    made = train(workspace, "dpo")
    engine = Engine.open(workspace, made.ref)
    asked, _ = engine.tokenizer.encode_chat(list(ROWS[0].prompt), True)
    assert list(engine.stream(asked, GenerationConfig(max_new_tokens=4)))


def test_the_same_command_again_gives_the_model_that_was_made(workspace) -> None:
    for kind in ("dpo", "ppo"):
        made = train(workspace, kind)
        told: list[str] = []
        assert train(workspace, kind, StopAt(1), told.append).ref == made.ref
        assert "finished" in told[0]


def test_another_function_of_the_same_name_is_another_run(workspace, tmp_path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def judge(prompt, answer):\n    return len(answer)\n")
    first = open_reward(workspace, f"{path}:judge")
    assert first.judge([ROWS[0].prompt], ["abc"]) == [3.0]
    path.write_text("def judge(prompt, answer):\n    return -len(answer)\n")
    second = open_reward(workspace, f"{path}:judge")
    assert second.judge([ROWS[0].prompt], ["abc"]) == [-3.0]
    assert first.identity != second.identity


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return 'good'", "gave 'good' for the answer 'hola'"),
        ("return float('nan')", "it must give a number"),
        ("return None", "gave 'None'"),
        ("return {}[prompt]", "failed on the answer 'hola' .KeyError"),
    ],
)
def test_a_function_that_gives_no_number_is_told(workspace, tmp_path, body, told) -> None:
    (tmp_path / "mine.py").write_text(f"def judge(prompt, answer):\n    {body}\n")
    reward = open_reward(workspace, f"{tmp_path / 'mine.py'}:judge")
    with pytest.raises(UserError, match=told):
        reward.judge([ROWS[0].prompt], ["hola"])


def test_a_reward_that_does_not_exist_is_told(workspace, tmp_path) -> None:
    (tmp_path / "broken.py").write_text("import nowhere_at_all\n")
    for name, told in (
        ("nothing", "not a reward model of the workspace, nor one of brief, language"),
        ("nowhere_at_all:f", "nowhere_at_all cannot be imported"),
        ("math:f", "math has no function 'f'"),
        (f"{tmp_path}/none.py:f", "no such file"),
        (f"{tmp_path}/broken.py:f", "cannot be imported"),
    ):
        with pytest.raises(UserError, match=told):
            open_reward(workspace, name)


def test_the_built_in_rewards_judge_language_and_length(workspace) -> None:
    asked = [(("user", "¿Qué hora es en Madrid?"),)] * 3
    answers = ["Son las nueve de la mañana en la ciudad.", "It is nine in the morning over there.", ""]
    assert open_reward(workspace, "language").judge(asked, answers) == [1, 0, 0]
    brief = open_reward(workspace, "brief").judge(asked, ["Son las nueve.", "palabra " * 24, ""])
    assert brief == [1, 0.5, 0]


def test_rows_that_do_not_fit_are_told_by_their_ids(workspace) -> None:
    long = PreferenceRow("too-long", (("user", "Hola " * 80),), "Sí, claro.", "No.")
    mixed = write_preferences(workspace, "mixed", {"train": [*ROWS, long]})
    told: list[str] = []
    for kind in ("dpo", "grpo"):
        made = train(workspace, kind, StopAt(-1), told.append, data="mixed")
        assert any("1 rows are longer" in sentence and "too-long" in sentence for sentence in told)
        assert (
            "too-long"
            not in json.loads(workspace.file(made, "rows_seen.json").read_text())["datasets"][mixed.ref]
        )
    write_preferences(workspace, "long", {"train": [long]})
    with pytest.raises(UserError, match="no row to learn from that fits"):
        train(workspace, "dpo", data="long")
    with pytest.raises(UserError, match="no prompt that leaves room for max_new_tokens=6"):
        train(workspace, "ppo", data="long")


def test_a_quantized_base_takes_an_adapter_only(workspace) -> None:
    tiny = workspace.get("tiny", "model")
    small = quantize_base(workspace, tiny)
    data = workspace.get("pairs", "dataset")
    with pytest.raises(UserError, match=r"is quantized: train an adapter on it \(--lora\)"):
        train_dpo(workspace, small.ref, data, settings_of("dpo"))
    made = train_dpo(workspace, small.ref, data, settings_of("dpo", lora={}))
    assert log(workspace, made)[0]["loss"] == LN2
    for train_by, kind in ((train_ppo, "ppo"), (train_grpo, "grpo")):
        first = log(workspace, train_by(workspace, small.ref, data, settings_of(kind, lora={})))[0]
        assert (first["ratio"], first["kl"], first["kl_k3"]) == (1, 0, 0)


def quantize_base(workspace: Workspace, base: Artifact) -> Artifact:
    model = quantize_model(load_model(files(workspace, base)))
    return workspace.put(
        "model", "small", {**save_model(model), "tokenizer.json": workspace.file(base, "tokenizer.json")}
    )


@pytest.mark.parametrize("kind", ["dpo", "ppo", "grpo"])
def test_an_encoder_decoder_learns_too_and_goes_on_with_the_same_bits(workspace, kind) -> None:
    tokens = tokenizer()
    config = TransformerConfig(
        vocab_size=tokens.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    assert config.dropout > 0
    model = new_model(config, torch.Generator().manual_seed(0))
    workspace.put("model", "tiny", {**save_model(model), **tokens.to_files()})
    whole = train(workspace, kind)
    assert whole.parents[0] == "model/tiny@2"
    first = log(workspace, whole)[0]
    assert first["loss"] == LN2 if kind == "dpo" else (first["ratio"], first["kl"]) == (1, 0)
    with pytest.raises(RuntimeError):
        train(workspace, kind, StopAt(5), name="twin")
    assert weights(workspace, train(workspace, kind, name="twin")) == weights(workspace, whole)
    with pytest.raises(UserError, match="is an encoder-decoder"):
        train(workspace, "reward")


def test_the_first_step_is_exact_in_bfloat16_too(workspace) -> None:
    assert log(workspace, train(workspace, "dpo", precision="bfloat16"))[0]["loss"] == LN2
    first = log(workspace, train(workspace, "ppo", precision="bfloat16"))[0]
    assert (first["ratio"], first["kl"]) == (1, 0)


@pytest.fixture
def yunque(workspace, monkeypatch):
    monkeypatch.setenv("YUNQUE_WORKSPACE", str(workspace.root))

    def call(*arguments: str):
        result = CliRunner().invoke(app, ["align", *arguments])
        if isinstance(result.exception, UserError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result

    return call


def test_the_command_counts_bad_lines_and_makes_a_model(yunque, workspace, tmp_path) -> None:
    path = tmp_path / "Mis preferencias.jsonl"
    lines = [json.dumps(row.as_dict(), ensure_ascii=False) for row in ROWS]
    path.write_text("\n".join([*lines, '{"prompt": "¿Y?", "chosen": "Sí."}', "no"]) + "\n")
    with pytest.raises(UserError, match=r"preferencias\.jsonl:21: the field 'rejected' is missing"):
        yunque("dpo", "tiny", "--data", str(path))
    told = yunque(
        "dpo", "tiny", "--data", str(path), "--skip-bad", "--epochs", "1", "--json", "precision=float32"
    )
    value = json.loads(told.stdout)
    assert value["skipped"] == 2 and "preferencias.jsonl:22" in told.stderr
    assert value["parents"] == ["model/tiny@1", "dataset/mis-preferencias@1"]
    shown = yunque("reward", "tiny", "--data", "pairs", "--lora", "epochs=1", "precision=float32").stdout
    assert "accuracy on held-out pairs" in shown and "model/tiny-reward@1" in shown
    made = workspace.get("tiny-reward", "model")
    few = ("--rollouts", "1", "prompts_per_rollout=2", "max_new_tokens=4", "precision=float32")
    shown = yunque("ppo", "tiny", "--data", str(path), "--skip-bad", "--reward", made.ref, *few).stdout
    assert "KL to the reference" in shown and "mean reward after" in shown
    assert "mean reward" in yunque("grpo", "tiny", "--data", "pairs", "reward=brief", *few).stdout


def test_mistakes_on_the_command_line_are_told_in_one_sentence(yunque, tmp_path) -> None:
    for arguments, told in (
        (("ppo", "tiny"), "say what judges answers with --reward"),
        (("dpo", "nothing"), "no model 'nothing'"),
        (("dpo", "tiny", "--data", "none.jsonl"), "none.jsonl: no such file"),
        (("dpo", "tiny", "--held-out", str(tmp_path)), "--held-out is a file beside a file of --data"),
        (("dpo", "tiny", "loss.beta=0"), "loss.beta: Input should be greater than 0"),
        (("grpo", "tiny", "--reward", "nobody"), "'nobody' is not a reward model"),
        (("dpo", "tiny", "--data", "tiny"), "no dataset 'tiny'"),
    ):
        with pytest.raises(UserError, match=told):
            yunque(*arguments)


def test_settings_that_cannot_be_are_refused() -> None:
    for kind, change in (
        ("dpo", {"lora": {"dropout": 0.1}}),
        ("dpo", {"loss": {"kind": "other"}}),
        ("dpo", {"loss": {"label_smoothing": 0.5}}),
        ("grpo", {"answers_per_prompt": 1}),
        ("ppo", {"loss": {"clip": 0}}),
    ):
        with pytest.raises(ValueError):
            settings_of(kind, **change)


def test_rows_to_measure_on_follow_from_their_ids_alone() -> None:
    learn, measure = parted(ROWS, [], 0.2)
    assert len(measure) == 4 and len(learn) == 16
    assert {row.id for row in parted(ROWS[::-1], [], 0.2)[1]} == {row.id for row in measure}
    assert parted(ROWS, ROWS[:1], 0.2) == (ROWS, ROWS[:1])
    assert parted(ROWS, [], 0.0) == (ROWS, [])
    renamed = [replace(row, id=f"x{row.id}") for row in ROWS]
    assert {row.id[1:] for row in parted(renamed, [], 0.2)[1]} != {row.id for row in measure}
