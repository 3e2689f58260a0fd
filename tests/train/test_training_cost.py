"""What a run costs: read from the processor where it tells, else estimated, and added up over a stop."""

from pathlib import Path

import pytest

from yunque.errors import UserError
from yunque.train.cost import Meter, cost_of, read_counters, spent, watts_per_core

PLAN = {"threads": 2, "flops": 6_000_000, "tokens": 1_000}


def processor(root: Path, number: int, microjoules: int, limit: int = 10_000_000) -> None:
    for name in (f"intel-rapl:{number}", f"intel-rapl:{number}:0"):
        place = root / name
        place.mkdir(exist_ok=True)
        (place / "energy_uj").write_text(f"{microjoules}\n")
        (place / "max_energy_range_uj").write_text(f"{limit}\n")


def test_energy_is_processor_seconds_times_watts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YUNQUE_WATTS_PER_CORE", "36")
    cost = cost_of({"seconds": 70.0, "tokens": 500, "cpu_seconds": 100.0}, PLAN, {})
    # 100 s at 36 W are 3,600 J, which is one watt-hour; half of the tokens are half of the operations.
    assert (cost.energy_wh, cost.energy_method, cost.watts_per_core) == (1.0, "estimated", 36.0)
    assert (cost.seconds, cost.tokens, cost.flops) == (70.0, 500, 3_000_000)
    assert "1 Wh (estimated: 100.0 s of a core at 36 W)" in cost.sentence()
    monkeypatch.setenv("YUNQUE_WATTS_PER_CORE", "18")
    with pytest.raises(AssertionError):
        assert cost_of({"seconds": 70.0, "tokens": 500, "cpu_seconds": 100.0}, PLAN, {}).energy_wh == 1.0


def test_measured_energy_needs_no_watts() -> None:
    cost = cost_of({"seconds": 70.0, "tokens": 500, "cpu_seconds": 100.0, "joules": 7200.0}, PLAN, {})
    assert (cost.energy_wh, cost.energy_method, cost.watts_per_core) == (2.0, "measured", None)
    assert "read from the processor" in cost.sentence()


def test_what_goes_before_the_first_step_is_part_of_the_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YUNQUE_WATTS_PER_CORE", "36")
    last = {"seconds": 70.0, "tokens": 500, "cpu_seconds": 100.0}
    cost = cost_of(last, PLAN, {"seconds": 30.0, "cpu_seconds": 50.0})
    assert (cost.seconds, cost.preparing_seconds, cost.cpu_seconds) == (100.0, 30.0, 150.0)
    assert (cost.energy_wh, cost.flops) == (1.5, 3_000_000)
    assert "100.0 s (30.0 s of it before the first step)" in cost.sentence()
    assert "before the first step" not in cost_of(last, PLAN, {}).sentence()
    measured = cost_of(
        last | {"joules": 7200.0}, PLAN, {"seconds": 1.0, "cpu_seconds": 1.0, "joules": 3600.0}
    )
    assert (measured.energy_wh, measured.energy_method) == (3.0, "measured")
    # A part that was not read from the processor makes all of it an estimate.
    mixed = cost_of(last | {"joules": 7200.0}, PLAN, {"seconds": 30.0, "cpu_seconds": 50.0})
    assert (mixed.energy_wh, mixed.energy_method) == (1.5, "estimated")


def test_wall_time_stands_in_where_processor_time_was_not_counted() -> None:
    assert cost_of({"seconds": 10.0, "tokens": 1}, PLAN, {}).cpu_seconds == 20.0


def test_watts_that_are_no_number_are_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("much", "0", "-3", "inf", "nan"):
        monkeypatch.setenv("YUNQUE_WATTS_PER_CORE", text)
        with pytest.raises(UserError, match="YUNQUE_WATTS_PER_CORE"):
            Meter()
    monkeypatch.setenv("YUNQUE_WATTS_PER_CORE", "")
    assert watts_per_core() == 10.0


def test_a_counter_that_began_anew_is_followed(tmp_path: Path) -> None:
    processor(tmp_path, 0, 9_000_000)
    processor(tmp_path, 1, 1_000_000)
    meter = Meter(cpu_seconds=5.0, joules=100.0, powercap=tmp_path)
    processor(tmp_path, 0, 2_000_000)  # 1 J up to the limit of 10, and 2 J after it
    processor(tmp_path, 1, 4_000_000)
    # The parts of a processor (intel-rapl:0:0) are in it already.
    assert meter.joules == pytest.approx(100.0 + 3.0 + 3.0)
    assert meter.joules == pytest.approx(106.0)
    assert meter.cpu_seconds >= 5.0


def test_what_cannot_be_read_is_not_guessed(tmp_path: Path) -> None:
    assert read_counters(tmp_path / "absent") == {}
    assert Meter(powercap=tmp_path).joules is None
    processor(tmp_path, 0, 1)
    # A run of which a part went by without a counter has no figure, though there is a counter now.
    assert Meter(joules=None, powercap=tmp_path).joules is None
    assert spent(1.23456, None) == {"cpu_seconds": 1.235}
    assert spent(1.0, 2.0) == {"cpu_seconds": 1.0, "joules": 2.0}
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("nothing")
    assert read_counters(tmp_path) == {}
