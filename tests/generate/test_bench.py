"""`yunque bench`: what it measures, and that its floor is one."""

import json

import pytest
import torch

from yunque.cli.main import run
from yunque.errors import UserError
from yunque.generate import bench
from yunque.generate.bench import Machine, measure, model_of_shape
from yunque.model import quantize_model

# A machine so slow that memory or products alone decide.
SLOW_MEMORY = Machine(1, None, 1e3, 1e30, 1e30)
SLOW_PRODUCTS = Machine(1, None, 1e30, 1e3, 1e3)


@pytest.fixture(autouse=True)
def shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_SECONDS", 0.0)


def test_the_floor_is_what_memory_and_products_take() -> None:
    model = model_of_shape("tiny")
    linear = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 160)
    table = 512 * 64
    by_memory = {(one.kind, one.task): one.floor_seconds for one in measure(model, SLOW_MEMORY)}
    assert by_memory["float32", "decode 1"] == pytest.approx(4 * (linear + table) / 1e3)
    assert by_memory["float32", "decode 1"] == by_memory["float32", "prefill 512"]
    rows = 2 * (64 + 32 + 32 + 64 + 160 + 160 + 64) + 512
    assert by_memory["int8", "decode 16"] == pytest.approx((linear + table + 4 * rows) / 1e3)
    assert by_memory["int4", "decode 1"] < by_memory["int8", "decode 1"]
    by_products = {(one.kind, one.task): one.floor_seconds for one in measure(model, SLOW_PRODUCTS)}
    assert by_products["int8", "decode 16"] == pytest.approx(16 * (linear + table) / 1e3)
    # Of a prompt only the last token is scored.
    assert by_products["int8", "prefill 512"] == pytest.approx((512 * linear + table) / 1e3)


def test_a_quantized_model_is_measured_as_it_is() -> None:
    small = quantize_model(model_of_shape("tiny"), "int8")
    found = list(measure(small, SLOW_MEMORY))
    assert [one.kind for one in found] == ["int8"] * 3
    assert all(one.seconds > 0 and one.tokens_per_second > 0 for one in found)
    with pytest.raises(UserError, match="decoder-only"):
        list(measure(torch.nn.Linear(2, 2), SLOW_MEMORY))


def test_the_command_prints_a_table_and_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "measure_machine", lambda _: SLOW_MEMORY)
    arguments = ["bench", "--shape", "tiny", "--threads", "1"]
    with pytest.raises(SystemExit, match="0"):
        run(arguments)
    printed = capsys.readouterr().out
    assert "decode 16" in printed and "of the floor" in printed and "PyTorch" in printed
    with pytest.raises(SystemExit, match="0"):
        run([*arguments, "--json"])
    value = json.loads(capsys.readouterr().out)
    assert len(value["measured"]) == 9 and value["machine"]["threads"] == 1
    assert all(one["of_the_floor"] > 0 for one in value["measured"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--shape", "vast"], "there is no shape"), (["--shape", "tiny", "--model", "x"], "one or the other")],
)
def test_what_cannot_be_measured_is_told(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(["bench", *arguments])
    assert told in capsys.readouterr().err
