"""Several processes train as one does: with torch's DDP and FSDP2, over gloo, in processes of their own."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from several_processes import outcome
from small_alignments import put_base, put_data

from conftest import fill
from yunque.data.instructions import InstructionRow, write_instructions
from yunque.errors import UserError
from yunque.train.objective import Part
from yunque.train.parallel import share_out, training_device
from yunque.train.settings import LoopSettings
from yunque.workspace import Workspace

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "layers": 2,
    "heads": 2,
    "key_value_heads": 1,
    "context": 32,
}
TOO_LONG = 600


def pretraining(name: str, **changes) -> dict:
    values = {"steps": 10, "batch_size": 4, "tokenizer": "bpe", "checkpoint_every": 4, "validate_every": 5}
    values |= {"checkpoint_seconds": 1000}
    return {"kind": "pretrain", "settings": {**values, "model": SHAPE, "name": name, **changes}}


def tuning(name: str, **changes) -> dict:
    # 11 rows, five at a time: the last batch of an epoch has one row, which two processes cannot share.
    values = {"epochs": 4, "batch_size": 5, "replay": 1, "replay_data": ["animals"], "checkpoint_every": 4}
    settings = {**values, "name": name, **changes}
    return {"kind": "tune", "base": "model/tiny", "data": "rows", "settings": settings}


def aligning(kind: str, name: str, **changes) -> dict:
    settings = {"batch_size": 7, "name": name, **changes}
    return {"kind": kind, "base": "model/tiny", "data": "pairs", "settings": settings}


LORA = {"rank": 2, "alpha": 4}
ROLLOUTS = {
    "reward": "small_alignments:share_of_vowels",
    "rollouts": 2,
    "prompts_per_rollout": 4,
    "max_new_tokens": 6,
    "batch_size": 4,
    "epochs_per_rollout": 2,
}
SPANS = {"model": {"family": "t5", "hidden_size": 32, "heads": 2, "context": 32}}
# What one process does, and several are to do alike: name -> (job, ways to share it).
ALIKE = {
    "whole": (pretraining, {}, ()),
    "ragged": (pretraining, {"batch_size": 3, "micro_batch_size": 1}, ("ddp", "fsdp")),
    "spans": (pretraining, SPANS, ("ddp", "fsdp")),
    "rows": (tuning, {}, ("ddp", "fsdp")),
    "lora": (tuning, {"lora": LORA, "replay": 0}, ("ddp", "fsdp")),
    "stopping": (tuning, {"early_stopping": {"patience": 2}, "replay": 0}, ("ddp",)),
    "dpo": (aligning, {"epochs": 2}, ("ddp", "fsdp")),
    "reward": (aligning, {"epochs": 2}, ("ddp",)),
    "grpo": (aligning, {**ROLLOUTS, "answers_per_prompt": 2}, ("ddp",)),
    "ppo": (aligning, ROLLOUTS, ("ddp",)),
}
SHARED = [f"{name}-{way}" for name, (_, _, ways) in ALIKE.items() for way in ways]


def job(name: str, way: str) -> dict:
    make, changes, _ = ALIKE[name]
    full = name if way == "alone" else f"{name}-{way}"
    more = changes if way == "alone" else {**changes, "parallel": way}
    return make(name, full, **more) if make is aligning else make(full, **more)


def environment(rank: int, size: int, port: int, workspace: Workspace) -> dict[str, str]:
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "YUNQUE_WORKSPACE": str(workspace.root),
        "PYTHONPATH": os.pathsep.join([str(HERE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }


def start(size: int, workspace: Workspace, *command: str) -> list[subprocess.Popen]:
    """What torchrun does: so many processes, each told which it is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env=environment(rank, size, port, workspace),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def together(size: int, workspace: Workspace, jobs: list[dict]) -> list[str]:
    """What `size` processes end with; all of them say the same."""
    processes = start(size, workspace, str(HERE / "several_processes.py"), str(workspace.root))
    for process in processes:
        process.stdin.write(json.dumps(jobs))
        process.stdin.close()
        process.stdin = None
    ends = [process.communicate(timeout=TOO_LONG) for process in processes]
    for process in processes:
        assert process.returncode == 0, [each[1][-3000:] for each in ends]
    said = [json.loads(output) for output, _ in ends]
    assert all(one == said[0] for one in said)
    return said[0]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    torch.set_num_threads(1)
    workspace = fill(Workspace.open(tmp_path_factory.mktemp("several")))
    put_base(workspace)
    put_data(workspace)
    rows = [
        InstructionRow(
            f"r{n}",
            "kind",
            "es",
            "t1",
            f"¿Qué es {'gato' * (1 + n % 3)}?",
            "",
            "un animal " * (1 + n % 4),
            (),
        )
        for n in range(11)
    ]
    write_instructions(workspace, "rows", {"train": rows})
    return workspace


STOPPED = [f"stopped-{way}-{size}" for way in ("ddp", "fsdp") for size in ("1", "4", "kept")]
REFUSED = {
    "rollouts": aligning("grpo", "no-grpo", parallel="fsdp", **ROLLOUTS, answers_per_prompt=2),
    "stopping": tuning("no-stopping", parallel="fsdp", early_stopping={"patience": 2}),
}


@pytest.fixture(scope="module")
def trained(workspace) -> dict[str, str]:
    """Everything that two processes do, by name."""
    jobs = {name: job(*name.rsplit("-", 1)) for name in SHARED}
    jobs |= {name: {**pretraining(name, parallel=name.split("-")[1]), "stop": 6} for name in STOPPED}
    jobs |= {f"no-{name}": each for name, each in REFUSED.items()}
    unweighted = {"batch_size": 3, "micro_batch_size": 1, "parallel": "ddp"}
    jobs["unweighted"] = {**pretraining("unweighted", **unweighted), "unweighted": True}
    return dict(zip(jobs, together(2, workspace, list(jobs.values())), strict=True))


@pytest.fixture(scope="module")
def alone(workspace) -> dict[str, str]:
    """The same in one process."""
    return {name: outcome(workspace, job(name, "alone")) for name in ALIKE}


def log(workspace: Workspace, ref: str) -> list[dict]:
    artifact = workspace.get(ref, "model")
    return [json.loads(line) for line in workspace.file(artifact, "loss.jsonl").read_text().splitlines()]


def weights(workspace: Workspace, ref: str) -> dict[str, torch.Tensor]:
    return load_file(workspace.file(workspace.get(ref, "model"), "model.safetensors"))


def assert_alike(workspace: Workspace, one: str, other: str) -> None:
    """As many steps, and losses within a millionth: only the order of sums differs."""
    ours, theirs = log(workspace, one), log(workspace, other)
    assert len(ours) == len(theirs)
    for name in ("loss", "gradient_norm", "validation_loss"):
        expected = [line[name] for line in theirs if name in line]
        assert [line[name] for line in ours if name in line] == pytest.approx(expected, rel=1e-6, abs=1e-6), (
            name
        )
    expected = weights(workspace, other)
    for name, weight in weights(workspace, one).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_do_the_steps_that_one_does(workspace, trained, alone, name) -> None:
    assert trained[name].startswith("model/"), trained[name]
    assert_alike(workspace, trained[name], alone[name.rsplit("-", 1)[0]])


def test_without_the_weights_of_the_whole_step_the_comparison_fails(workspace, trained, alone) -> None:
    with pytest.raises(AssertionError):
        assert_alike(workspace, trained["unweighted"], alone["ragged"])


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_checkpoint_of_two_processes_goes_on_in_one(workspace, trained, alone, way) -> None:
    name = f"stopped-{way}-1"
    assert trained[name] == "crash"
    assert_alike(workspace, outcome(workspace, pretraining(name)), alone["whole"])


def test_a_checkpoint_of_two_processes_goes_on_in_four(workspace, trained, alone) -> None:
    del trained
    names = [f"stopped-{way}-4" for way in ("ddp", "fsdp")]
    # What was cut in slices goes on whole, and the other way round.
    others = [
        pretraining(names[0], parallel="fsdp", tensorboard=True),
        pretraining(names[1], parallel="ddp", tensorboard=True),
    ]
    for ref in together(4, workspace, others):
        assert_alike(workspace, ref, alone["whole"])


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_checkpoint_does_not_show_how_many_wrote_it(workspace, trained, way) -> None:
    assert trained[f"stopped-{way}-kept"] == "crash"
    assert outcome(workspace, {**pretraining(f"alone-{way}"), "stop": 6}) == "crash"
    (ours,), (theirs,) = (
        workspace.runs.glob(f"{name}-*/checkpoints/step-*")
        for name in (f"stopped-{way}-kept", f"alone-{way}")
    )
    assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
    for file in ("model.safetensors", "optimizer.safetensors"):
        one, other = load_file(ours / file), load_file(theirs / file)
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5, msg=f"{file} {name}")


@pytest.mark.parametrize("name", REFUSED)
def test_what_slices_cannot_do_is_refused_in_one_sentence(trained, name) -> None:
    assert re.fullmatch(r"error: parallel: .*; set parallel=ddp", trained[f"no-{name}"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told() -> None:
    with pytest.raises(UserError, match="no GPU that torch can use; set device=cpu"):
        training_device(LoopSettings(device="cuda"))
    assert training_device(LoopSettings()).type == "cpu"


def test_muon_is_not_for_slices() -> None:
    with pytest.raises(ValidationError, match="take parallel=ddp"):
        LoopSettings.model_validate({"parallel": "fsdp", "optimizer": {"kind": "muon"}})
    assert LoopSettings.model_validate({"optimizer": {"kind": "muon"}}).parallel == "ddp"


def test_how_a_run_is_shared_is_no_part_of_what_it_is() -> None:
    shared = LoopSettings(parallel="fsdp", device="cpu", compile=True)
    assert shared.model_dump() == LoopSettings().model_dump()
    assert shared.model_dump() != LoopSettings(seed=1).model_dump()


def test_every_process_reads_as_many_parts_of_each_group_and_all_of_them_are_read() -> None:
    parts = [Part(n, weight=1.0 + n, tokens=10 - n) for n in range(5)]
    parts += [Part(9, weight=2.0, tokens=1, group="replay")]
    shares = [share_out(parts, number, 4) for number in range(4)]
    assert [[part.group for _, part in share] for share in shares] == [["main", "main", "replay"]] * 4
    read = sorted(part.batch for share in shares for _, part in share if part.weight)
    assert read == [0, 1, 2, 3, 4, 9]
    assert share_out(parts, 0, 1) == list(enumerate(parts))


COMMAND = (
    "-m",
    "yunque",
    "train",
    "--name",
    "killed",
    "--tokenizer",
    "bpe",
    "--steps",
    "300",
    "precision=float32",
)
COMMAND += (
    "batch_size=4",
    "checkpoint_every=20",
    *(f"model.{name}={value}" for name, value in SHAPE.items()),
)


def wait_for_steps(workspace: Workspace, steps: int, processes: list[subprocess.Popen]) -> None:
    until = time.monotonic() + TOO_LONG
    while time.monotonic() < until and all(process.poll() is None for process in processes):
        logs = list(workspace.runs.glob("killed-*/loss.jsonl"))
        if logs and logs[0].read_bytes().count(b"\n") >= steps:
            return
        time.sleep(0.02)
    pytest.fail(
        f"no step {steps}: {[process.communicate() for process in processes if process.poll() is not None]}"
    )


def test_when_one_process_goes_all_end_and_the_run_goes_on_to_the_same_bits(
    workspace, trained, alone
) -> None:
    del trained, alone
    processes = start(2, workspace, *COMMAND)
    wait_for_steps(workspace, 30, processes)
    processes[1].send_signal(signal.SIGTERM)  # told to one of them, and all stop after the same step
    ends = [process.communicate(timeout=TOO_LONG) for process in processes]
    assert [process.returncode for process in processes] == [130, 130], ends
    assert len(re.findall(r"Stopped after step \d+ of 300, with a checkpoint", ends[0][1] + ends[1][1])) == 1

    processes = start(2, workspace, *COMMAND)
    wait_for_steps(workspace, 120, processes)
    processes[1].kill()
    begin = time.monotonic()
    ends = [process.communicate(timeout=TOO_LONG) for process in processes]
    assert time.monotonic() - begin < 60
    assert processes[0].returncode == 2
    assert ends[0][1].count("another process of this run ended") == 1 and "Traceback" not in ends[0][1]

    once = ("killed", "unbroken")
    for name in once:
        command = [name if word == "killed" else word for word in (*COMMAND, "--json")]
        processes = start(2, workspace, *command)
        ends = [process.communicate(timeout=TOO_LONG) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], ends
        assert ends[1] == ("", "")  # the first process alone writes to the screen
        assert ("Going on from step" in ends[0][1]) == (name == "killed")
    killed, unbroken = (weights(workspace, name) for name in once)
    assert all(torch.equal(killed[name], unbroken[name]) for name in unbroken)
    # Negative control: equal bits are more than the likeness of the other tests.
    one, other = (weights(workspace, name) for name in ("ragged", "ragged-ddp"))
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_torchrun_tunes_and_one_process_reports(workspace) -> None:
    words = ["--data", "rows", "--held-out", "held", "--general", "animals", "--epochs", "2", "--json"]
    rows = [
        InstructionRow(f"h{n}", "kind", "es", "t1", f"¿Qué es esto, {n}?", "", "un pez", ()) for n in range(3)
    ]
    write_instructions(workspace, "held", {"heldout": rows})
    command = [
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "yunque",
        "tune",
        "model/tiny",
    ]
    made = subprocess.run(
        [sys.executable, "-m", *command, *words, "--name", "by-torchrun", "batch_size=4", "replay=0"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "YUNQUE_WORKSPACE": str(workspace.root)},
        capture_output=True,
        text=True,
        timeout=TOO_LONG,
    )
    assert made.returncode == 0, made.stderr[-3000:]
    assert json.loads(made.stdout)["model"] == "model/by-torchrun@1"
    assert workspace.get("model/by-torchrun").version == 1
