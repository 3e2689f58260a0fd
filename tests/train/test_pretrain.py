import importlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from broken_off import StopAt, log, run_folder, weights
from safetensors.torch import load_file

from yunque.errors import UserError
from yunque.model import load_model
from yunque.tokenizer import Tokenizer
from yunque.train import PretrainSettings, plan_pretraining, pretrain
from yunque.train.run import open_run
from yunque.workspace import Artifact, Workspace

GOLDEN = Path(__file__).with_name("golden_losses.json")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def done(workspace, settings) -> Artifact:
    return pretrain(workspace, settings)


def test_the_losses_of_a_fixed_run_are_those_kept_in_the_repository(workspace, done) -> None:
    losses = [line["loss"] for line in log(workspace, done)]
    golden = json.loads(GOLDEN.read_text())
    assert losses == pytest.approx(golden, rel=1e-4)
    # Negative control: the golden run learns, so a model that stood still would not pass.
    assert golden[0] - golden[-1] > 100 * golden[0] * 1e-4


def test_the_model_artifact_holds_what_its_making_left(workspace, done) -> None:
    assert set(done.files) == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "loss.jsonl",
        "curves.png",
        "rows_seen.json",
    }
    assert done.parents == ("tokenizer/bpe@1", "dataset/animals@1")
    assert done.config["data"] == ["dataset/animals@1"]
    assert workspace.file(done, "curves.png").read_bytes().startswith(PNG)
    lines = log(workspace, done)
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert lines[-1]["tokens"] == 20 * 4 * 32 == done.figures["tokens"]
    assert [line["step"] for line in lines if "validation_loss" in line] == [10, 20]
    # A processor that tells what it takes adds its joules.
    assert set(lines[0]) - {"joules"} == {
        "step",
        "tokens",
        "loss",
        "learning_rate",
        "gradient_norm",
        "tokens_per_second",
        "mfu",
        "seconds",
        "cpu_seconds",
    }
    assert done.figures["validation_loss"] < 5.7  # ln 300: a model that learned nothing
    net = load_model(workspace.files(done))
    assert net.config.eos_token_id == Tokenizer.load(workspace.file(done, "tokenizer.json")).end_id


def test_the_rows_of_the_lineage_are_training_rows_of_the_dataset(workspace, done) -> None:
    seen = json.loads(workspace.file(done, "rows_seen.json").read_text())
    assert seen["run"] == done.config["run"]
    dataset = workspace.get("animals", "dataset")
    ids = {
        split: {json.loads(line)["id"] for line in workspace.file(dataset, f"{split}.jsonl").open()}
        for split in ("train", "validation", "test")
    }
    counted = seen["datasets"]["dataset/animals@1"]
    assert counted and set(counted) <= ids["train"]
    assert not set(counted) & (ids["validation"] | ids["test"])
    assert all(count >= 1 for count in counted.values())


@pytest.mark.parametrize("step", [3, 6, 7, 19, 20])
def test_a_run_that_crashed_and_went_on_ends_with_the_same_bits(workspace, settings, done, step) -> None:
    from_start = weights(workspace, done)
    golden = [line["loss"] for line in log(workspace, done)]
    twin = settings.model_copy(update={"name": "twin"})
    with pytest.raises(RuntimeError, match="crash"):
        pretrain(workspace, twin, StopAt(step))
    told: list[str] = []
    again = pretrain(workspace, twin, tell=told.append)
    assert weights(workspace, again) == from_start
    assert [line["loss"] for line in log(workspace, again)] == golden
    assert bool(told) == (step > 6)  # a crash at step 6 comes before its checkpoint


def test_another_seed_ends_with_other_bits(workspace, settings, done) -> None:
    other = pretrain(workspace, settings.model_copy(update={"seed": 1}))
    assert weights(workspace, other) != weights(workspace, done)


SCRIPT = """
import sys, time
from yunque.train import PretrainSettings, pretrain
from yunque.workspace import Workspace
settings = PretrainSettings.model_validate_json(sys.argv[2])
print(pretrain(Workspace.open(sys.argv[1]), settings).ref)
"""


@pytest.mark.slow
def test_a_process_killed_at_a_random_step_goes_on_to_the_same_bits(workspace, settings) -> None:
    settings = settings.model_copy(update={"steps": 200, "checkpoint_every": 5})
    whole = weights(workspace, pretrain(workspace, settings))
    twin = settings.model_copy(update={"name": "twin"})
    command = [sys.executable, "-c", SCRIPT, str(workspace.root), twin.model_dump_json()]
    kill_at = random.randint(8, 150)
    killed = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and killed.poll() is None:
        logs = list(workspace.runs.glob("twin-*/loss.jsonl"))
        if logs and logs[0].read_bytes().count(b"\n") >= kill_at:
            break
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(timeout=30) == -signal.SIGKILL, "the process was over before it could be killed"
    told: list[str] = []
    again = pretrain(workspace, twin, tell=told.append)
    assert any("Going on from step" in sentence for sentence in told), kill_at
    assert weights(workspace, again) == whole, kill_at


def test_a_half_written_checkpoint_is_never_picked_up(workspace, settings, done) -> None:
    twin = settings.model_copy(update={"name": "twin"})
    with pytest.raises(RuntimeError):
        pretrain(workspace, twin, StopAt(14))
    (folder,) = workspace.runs.glob("twin-*")
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000012"]
    half = folder / "checkpoints" / ".step-00000018.x1y2"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    told: list[str] = []
    assert weights(workspace, pretrain(workspace, twin, tell=told.append)) == weights(workspace, done)
    assert told == ["Going on from step 12 of 20."]


def test_checkpoints_hold_no_pickle(workspace, settings) -> None:
    with pytest.raises(RuntimeError):
        pretrain(workspace, settings, StopAt(8))
    checkpoint = run_folder(workspace) / "checkpoints" / "step-00000006"
    suffixes = {path.suffix for path in checkpoint.iterdir()}
    assert suffixes == {".safetensors", ".json"}
    moments = load_file(checkpoint / "optimizer.safetensors")
    assert "embedding.weight:exp_avg_sq" in moments
    assert json.loads((checkpoint / "position.json").read_text())["step"] == 6


def test_the_same_command_again_gives_the_model_that_was_made(workspace, settings, done) -> None:
    begin = time.monotonic()
    told: list[str] = []
    assert pretrain(workspace, settings, tell=told.append).ref == done.ref
    assert "finished" in told[0]
    assert time.monotonic() - begin < 20
    assert not (run_folder(workspace) / "checkpoints").exists()


def test_another_configuration_is_another_run(workspace, settings, done) -> None:
    other = pretrain(workspace, settings.model_copy(update={"batch_size": 2}))
    assert other.ref != done.ref
    assert len(list(workspace.runs.iterdir())) == 2


def test_two_processes_cannot_train_the_same_run(workspace, settings, done) -> None:
    assert done.config["name"] == "tiny"
    identity = json.loads((run_folder(workspace) / "run.json").read_text())["configuration"]
    with open_run(workspace, "tiny", identity), pytest.raises(UserError, match="trained by another process"):
        pretrain(workspace, settings)


def test_ctrl_c_leaves_a_checkpoint_and_a_sentence(workspace, settings, done) -> None:
    twin = settings.model_copy(update={"name": "twin", "checkpoint_every": 1000, "steps": 20})
    told: list[str] = []
    # A shell lets what it starts in the background ignore Ctrl-C.
    before = signal.getsignal(signal.SIGINT)

    class PressAt(StopAt):
        def strike(self) -> None:
            signal.raise_signal(signal.SIGINT)

    assert threading.current_thread() is threading.main_thread()
    with pytest.raises(KeyboardInterrupt):
        pretrain(workspace, twin, PressAt(9), told.append)
    assert "Stopped after step 9 of 20" in told[-1] and "same command again" in told[-1]
    assert weights(workspace, pretrain(workspace, twin)) == weights(workspace, done)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_time_budget_becomes_a_number_of_steps_before_the_start(workspace, settings) -> None:
    timed = PretrainSettings(**{**settings.model_dump(), "steps": None, "seconds": 1.0})
    with pytest.raises(RuntimeError):
        pretrain(workspace, timed, StopAt(7))
    record = json.loads((run_folder(workspace) / "run.json").read_text())
    fixed = record["plan"]["steps"]
    assert fixed >= 7
    assert record["plan"]["expected_seconds"] == pytest.approx(1.0, abs=0.5)
    made = pretrain(workspace, timed)
    assert made.figures["steps"] == fixed


def test_the_plan_tells_what_the_run_then_does(workspace, settings, done) -> None:
    plan = plan_pretraining(workspace, settings)
    assert plan.parameters == done.figures["parameters"]
    assert plan.tokens == done.figures["tokens"]
    assert plan.matmul_gflops > 0 and plan.step_seconds > 0
    text = " ".join(plan.sentences())
    assert "20 steps, 2,560 tokens" in text
    assert len(list(workspace.runs.iterdir())) == 1


def test_a_gradient_that_is_not_a_number_stops_the_run(workspace, settings, monkeypatch) -> None:
    module = importlib.import_module("yunque.train.objectives.next_token")
    monkeypatch.setattr(module, "next_token_loss", lambda model, _: model.norm.weight.sum() * float("nan"))
    with pytest.raises(UserError, match=r"step 1: the gradient is not a number.*optimizer\.learning_rate"):
        pretrain(workspace, settings)


def test_absent_data_and_tokenizers_name_the_command_to_run(tmp_path, workspace, settings) -> None:
    empty = Workspace.open(tmp_path / "empty")
    with pytest.raises(UserError, match="yunque tokenizer train"):
        pretrain(empty, settings)
    with pytest.raises(UserError, match="yunque data add"):
        pretrain(workspace, settings.model_copy(update={"data": ("nothing",)}))


def test_bfloat16_learns_too(workspace, settings, done) -> None:
    made = pretrain(workspace, settings.model_copy(update={"precision": "bfloat16"}))
    assert made.figures["loss"] == pytest.approx(done.figures["loss"], rel=0.02)
    assert weights(workspace, made) != weights(workspace, done)


def test_a_checkpoint_is_written_when_its_time_has_come(workspace, settings, done) -> None:
    late = settings.model_copy(update={"name": "late", "checkpoint_every": 1000, "checkpoint_seconds": 1e-9})
    with pytest.raises(RuntimeError):
        pretrain(workspace, late, StopAt(7))
    told: list[str] = []
    assert weights(workspace, pretrain(workspace, late, tell=told.append)) == weights(workspace, done)
    assert any("Going on from step" in sentence for sentence in told)


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(workspace, settings, done) -> None:
    hurt = settings.model_copy(update={"name": "hurt", "checkpoint_every": 3})
    with pytest.raises(RuntimeError):
        pretrain(workspace, hurt, StopAt(8))
    newest = sorted(workspace.runs.glob("hurt-*/checkpoints/step-*"))[-1]
    (newest / "model.safetensors").write_bytes(b"cut")
    told: list[str] = []
    assert weights(workspace, pretrain(workspace, hurt, tell=told.append)) == weights(workspace, done)
    assert any("Going on from step 3" in sentence for sentence in told)
    assert any(f"{newest.name} is damaged" in sentence for sentence in told)


def test_a_run_without_a_whole_checkpoint_does_not_start_over_in_silence(workspace, settings) -> None:
    hurt = settings.model_copy(update={"name": "all-hurt", "checkpoint_every": 3})
    with pytest.raises(RuntimeError):
        pretrain(workspace, hurt, StopAt(8))
    for checkpoint in workspace.runs.glob("all-hurt-*/checkpoints/step-*"):
        (checkpoint / "position.json").write_bytes(b"cut")
    with pytest.raises(UserError, match="no checkpoint can be read"):
        pretrain(workspace, hurt)


def test_a_name_that_leaves_the_workspace_is_refused_before_any_step(workspace, settings) -> None:
    with pytest.raises(UserError, match="cannot be a name"):
        pretrain(workspace, settings.model_copy(update={"name": "../../x"}))


def test_a_model_that_does_not_fit_is_refused_before_it_is_made(workspace, settings) -> None:
    huge = settings.model.model_copy(update={"layers": 900, "hidden_size": 65536, "heads": 2})
    with pytest.raises(UserError, match="GB of memory"):
        pretrain(workspace, settings.model_copy(update={"name": "huge", "model": huge}))
