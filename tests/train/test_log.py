import json
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from broken_off import StopAt, log, run_folder

from yunque.train import finish, pretrain, schedule
from yunque.train import log as log_module
from yunque.train.checkpoint import Position
from yunque.train.curves import draw_curves
from yunque.train.log import Speed, shown, utilization
from yunque.train.tensorboard import checksum

PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Known:
    flops_per_token: int
    matmul_gflops: float


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars by name, read back by TensorBoard itself."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = reader.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return {
        name: [(event.step, event.value) for event in read.Scalars(name)] for name in read.Tags()["scalars"]
    }


def test_utilization_is_the_share_of_the_products_that_the_machine_could_do() -> None:
    cost = Known(flops_per_token=6_000_000, matmul_gflops=60.0)
    speed = Speed(Position())
    # 1,000 tokens of 6 MFLOP in half a second are 12 GFLOP/s.
    measured = speed.measure(Position(step=1, tokens=1000, seconds=0.5), cost)
    assert measured == {"tokens_per_second": 2000.0, "mfu": pytest.approx(0.2)}
    # Negative control: a machine twice as fast is used half as well.
    assert utilization(2000.0, replace(cost, matmul_gflops=120.0)) == pytest.approx(0.1)


def test_speed_is_that_of_the_last_steps_of_this_process() -> None:
    cost = Known(1, 1.0)
    speed = Speed(Position(step=100, tokens=10**9, seconds=50.0))
    for step in range(1, 41):
        seconds = 50.0 + min(step, 20) + 2.0 * max(0, step - 20)  # from the 20th step on half as fast
        found = speed.measure(Position(100 + step, 10**9 + 100 * step, seconds), cost)
    assert found["tokens_per_second"] == 50.0


def test_what_is_shown_of_a_step_leaves_out_what_is_not_known() -> None:
    line = {"loss": 2.0, "tokens_per_second": 1234.5, "mfu": 0.61}
    assert shown(line) == "loss 2.000 · 1,234 tokens/s · MFU 61%"
    assert "MFU" not in shown({**line, "mfu": 0.0})


def test_the_log_of_a_run_has_a_utilization_that_follows_from_its_plan(workspace, settings) -> None:
    done = pretrain(workspace, settings)
    plan = json.loads((run_folder(workspace) / "run.json").read_text())["plan"]
    line = log(workspace, done)[-1]
    expected = line["tokens_per_second"] * plan["flops_per_token"] / plan["matmul_gflops"] / 1e9
    assert line["mfu"] == pytest.approx(expected, abs=1e-4)
    assert 0 < line["mfu"] < 1


def test_checksums_are_those_of_the_standard() -> None:
    # RFC 3720, B.4: CRC-32C of 32 zero bytes, before it is masked as TFRecord wants it.
    crc = 0x8A9136AA
    assert checksum(bytes(32)) == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert checksum(bytes(32)) != checksum(bytes(31))


def test_tensorboard_reads_what_the_log_says(workspace, settings) -> None:
    done = pretrain(workspace, settings.model_copy(update={"tensorboard": True}))
    lines, read = log(workspace, done), events(run_folder(workspace))
    assert set(read) >= {"loss", "learning_rate", "gradient_norm", "mfu", "validation_loss", "tokens"}
    losses = [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in lines]
    assert read["loss"] == losses
    assert [step for step, _ in read["validation_loss"]] == [10, 20]
    assert read["loss"] != [(step, value * 1.001) for step, value in read["learning_rate"]]


def test_a_run_that_goes_on_repeats_no_step_and_may_ask_for_tensorboard_later(workspace, settings) -> None:
    with pytest.raises(RuntimeError, match="crash"):
        pretrain(workspace, settings, StopAt(15))
    folder = run_folder(workspace)
    assert not list(folder.glob("*tfevents*"))
    # The last checkpoint is of step 12: the steps after it are done again.
    with pytest.raises(RuntimeError, match="crash"):
        pretrain(workspace, settings.model_copy(update={"tensorboard": True}), StopAt(5))
    begun = next(folder.glob("*tfevents*")).read_bytes()[13:21]
    done = pretrain(workspace, settings.model_copy(update={"tensorboard": True, "checkpoint_every": 7}))
    assert [path.name for path in workspace.runs.iterdir()] == [folder.name]
    assert [step for step, _ in events(folder)["loss"]] == list(range(1, 21))
    assert len(log(workspace, done)) == 20
    # Times go on from when the run began.
    (written,) = folder.glob("*tfevents*")
    assert struct.unpack("<d", written.read_bytes()[13:21]) == struct.unpack("<d", begun)


def lines(count: int) -> list[dict]:
    return [
        {
            "step": step,
            "tokens": 100 * step,
            "loss": 5.0 / step,
            "learning_rate": 1e-3,
            "gradient_norm": 1.0 / step,
        }
        for step in range(1, count + 1)
    ]


@pytest.mark.parametrize("count", [1, 2, 500])
def test_curves_are_drawn_of_few_steps_and_of_many(count: int) -> None:
    drawn = draw_curves(lines(count), "año-nuevo $1 avión-0123")
    assert drawn.startswith(PNG)


def test_curves_need_neither_norms_nor_validation() -> None:
    bare = [{name: line[name] for name in ("step", "tokens", "loss")} for line in lines(3)]
    assert draw_curves(bare, "mini").startswith(PNG)
    assert draw_curves([*lines(2), {**lines(3)[2], "gradient_norm": 0.0}], "mini").startswith(PNG)


def test_processes_that_share_a_machine_count_its_speed_once(workspace, settings, monkeypatch) -> None:
    # Of two processes each measures 30 GFLOP/s: together they could do 60, and no more.
    monkeypatch.setattr(log_module, "world_size", lambda: 2)
    monkeypatch.setattr(finish, "world_size", lambda: 2)
    monkeypatch.setattr(finish, "added_up", lambda numbers: [2 * number for number in numbers])
    monkeypatch.setattr(schedule, "measure_matmul", lambda *_: 30.0)
    done = pretrain(workspace, settings)
    plan = json.loads((run_folder(workspace) / "run.json").read_text())["plan"]
    line = log(workspace, done)[-1]
    assert line["mfu"] == pytest.approx(
        line["tokens_per_second"] * plan["flops_per_token"] / 60e9, rel=0.02, abs=1e-4
    )
