import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import small_alignments as small
import torch

from yunque.errors import UserError
from yunque.model.memory import Training, TrainingMemory
from yunque.train import PretrainSettings, out_of_memory, plan_pretraining, pretrain, schedule
from yunque.train.log import read_log
from yunque.train.objectives.next_token import NextToken
from yunque.train.out_of_memory import is_out_of_memory, room_of, told_when_out_of_memory
from yunque.train.settings import LoopSettings
from yunque.train.workload import Workload
from yunque.workspace import Artifact, Workspace

PLAN = {
    "memory_bytes": 1_900_000_000,
    "machine_bytes": 2_000_000_000,
    "weight_bytes": 400_000_000,
    "gradient_bytes": 400_000_000,
    "optimizer_bytes": 800_000_000,
    "activation_bytes": 300_000_000,
    "score_bytes": 50_000_000,
    "held_bytes": 0,
    "rows": 8,
    "length": 512,
}


def weights(workspace: Workspace, model: Artifact) -> bytes:
    return workspace.file(model, "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried..."
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."),
    ],
)
def test_memory_that_runs_out_is_explained_by_the_plan(settings, error: Exception) -> None:
    assert is_out_of_memory(error)
    with pytest.raises(UserError) as told, told_when_out_of_memory(settings, PLAN, ". Kept"):
        raise error
    sentence = str(told.value)
    for part in ("1.9 GB", "optimizer 800 MB, weights 400 MB", "activations 300 MB", "8 x 512", "2.0 GB"):
        assert part in sentence
    assert "micro_batch_size=2 (it is 4)" in sentence
    assert "model.context" in sentence
    assert sentence.endswith(". Kept")


def test_other_errors_stay_what_they_are(settings) -> None:
    with pytest.raises(RuntimeError, match="shapes"), told_when_out_of_memory(settings, PLAN):
        raise RuntimeError("shapes do not match")


def test_a_run_that_finds_no_memory_keeps_its_checkpoints_and_goes_on(
    workspace, settings, monkeypatch
) -> None:
    whole = weights(workspace, pretrain(workspace, settings.model_copy(update={"name": "whole"})))
    compute, left = NextToken.loss, [40]

    def fail(self, model, part):
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return compute(self, model, part)

    with monkeypatch.context() as patch:
        patch.setattr(NextToken, "loss", fail)
        left[0] = 25  # some are spent on the plan, the others on steps after the first checkpoint
        with pytest.raises(UserError, match="the same command goes on from the newest one"):
            pretrain(workspace, settings)
    assert left[0] == 0
    done = pretrain(workspace, settings)
    assert [line["step"] for line in read_log(workspace.file(done, "loss.jsonl"))] == list(range(1, 21))
    assert weights(workspace, done) == whole


def test_a_plan_beyond_the_memory_is_refused_with_the_largest_part_that_fits(
    workspace, settings: PretrainSettings, monkeypatch
) -> None:
    settings = settings.model_copy(update={"batch_size": 64})
    plan = plan_pretraining(workspace, settings)
    few = plan_pretraining(workspace, settings.model_copy(update={"micro_batch_size": 20}))
    assert few.memory_bytes < plan.memory_bytes
    monkeypatch.setattr(out_of_memory, "machine_memory", lambda: few.memory_bytes)
    with pytest.raises(UserError, match=r"machine has .*: try micro_batch_size=20$"):
        plan_pretraining(workspace, settings)
    fits = settings.model_copy(update={"micro_batch_size": 20})
    assert plan_pretraining(workspace, fits).memory_bytes == few.memory_bytes
    # Negative control: one more does not.
    with pytest.raises(UserError, match="micro_batch_size=20"):
        plan_pretraining(workspace, settings.model_copy(update={"micro_batch_size": 21}))
    monkeypatch.setattr(out_of_memory, "machine_memory", lambda: 1000)
    with pytest.raises(UserError, match=r"model\.context.* a single row at once does not fit either"):
        plan_pretraining(workspace, settings)


def test_memory_is_counted_in_the_precision_of_the_run(
    workspace, settings: PretrainSettings, monkeypatch
) -> None:
    settings = settings.model_copy(update={"batch_size": 64})
    half = settings.model_copy(update={"precision": "bfloat16"})
    least = plan_pretraining(workspace, half).memory_bytes
    assert least < plan_pretraining(workspace, settings).memory_bytes
    monkeypatch.setattr(out_of_memory, "machine_memory", lambda: least)
    assert plan_pretraining(workspace, half).precision == "bfloat16"
    with pytest.raises(UserError, match="the machine has"):
        plan_pretraining(workspace, settings)
    # What is advised is counted alike: all but one of the 64 rows.
    monkeypatch.setattr(out_of_memory, "machine_memory", lambda: least - 1)
    with pytest.raises(UserError) as told:
        plan_pretraining(workspace, half)
    rows = int(str(told.value).rsplit("micro_batch_size=", 1)[1])
    plan_pretraining(workspace, half.model_copy(update={"micro_batch_size": rows}))
    with pytest.raises(UserError):
        plan_pretraining(workspace, half.model_copy(update={"micro_batch_size": rows + 1}))


def test_processes_on_one_machine_share_its_memory(
    workspace, settings: PretrainSettings, monkeypatch
) -> None:
    needed = plan_pretraining(workspace, settings.model_copy(update={"batch_size": 2})).memory_bytes
    monkeypatch.setattr(out_of_memory, "machine_memory", lambda: 2 * needed - 1)
    plan_pretraining(workspace, settings)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert room_of(torch.device("cpu")).available == needed - 1
    with pytest.raises(UserError, match="each of the 2 processes on the machine has"):
        schedule.check_fits(*fitting(settings), room_of(torch.device("cpu")))
    # The other two are on another machine; without it being told all are on this one.
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert room_of(torch.device("cpu")).available == (2 * needed - 1) // 4


def fitting(settings: PretrainSettings) -> tuple:
    """What `check_fits` is given for a model of a gigabyte."""
    shape = small.model()
    workload = Workload(64, 64, rows=2, length=16, packed=False, held_bytes=10**9)
    return workload, shape, workload.memory(shape, "float32"), settings


def test_on_a_gpu_its_own_memory_counts(settings: PretrainSettings, monkeypatch) -> None:
    monkeypatch.setattr(out_of_memory, "machine_memory", lambda: 10**15)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (300 + device.index, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 40)
    room = room_of(torch.device("cuda", 1))
    assert room.available == 341
    with pytest.raises(UserError, match="the GPU of this process has 0 MB"):
        schedule.check_fits(*fitting(settings), room)
    # The control: the machine's memory would do.
    schedule.check_fits(*fitting(settings), room_of(torch.device("cpu")))


def test_with_fsdp_the_whole_model_counts_beside_its_slices(monkeypatch) -> None:
    memory = TrainingMemory(Training(1, 8), 10, 1, 1000, 10, 20, 50, 1100)
    workload = Workload(64, 64, rows=2, length=16, packed=False)
    cpu, sliced = torch.device("cpu"), LoopSettings(parallel="fsdp")

    def held(settings: LoopSettings, device: torch.device = cpu) -> int:
        return schedule._with_whole_model(workload, memory, settings, device).held_bytes

    assert held(sliced) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert held(sliced) == (1000 + 20) // 2 - 20
    assert held(LoopSettings()) == held(sliced, torch.device("cuda", 0)) == 0
    # What is measured before the first step is more than all slices where everything is trained.
    memory = replace(memory, optimizer_bytes=2000)
    assert held(sliced) == 0


@pytest.mark.slow
def test_a_limit_that_no_plan_knows_ends_in_one_sentence(tmp_path) -> None:
    # A limit on address space, set when torch is loaded already: what a step takes is too much, and is told.
    program = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        import torch
        from conftest import fill
        from yunque.errors import UserError
        from yunque.train import PretrainSettings, pretrain
        from yunque.workspace import Workspace
        torch.set_num_threads(1)
        workspace = fill(Workspace.open(Path(sys.argv[1])))
        shape = dict(hidden_size=64, intermediate_size=128, layers=2, heads=2, key_value_heads=1, context=256)
        def settings(rows):
            return PretrainSettings(name="tiny", steps=2, batch_size=rows, precision="float32", model=shape)
        pretrain(workspace, settings(1))
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 300_000_000, -1))
        try:
            pretrain(workspace, settings(1024))
        except UserError as error:
            print(error)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "ws")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("memory ran out: the plan counts")
    assert "micro_batch_size=512 (it is 1024)" in done.stdout
