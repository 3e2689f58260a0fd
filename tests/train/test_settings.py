import pytest

from yunque.configuration import resolve
from yunque.errors import UserError
from yunque.train.settings import LoopSettings, OptimizerSettings


def test_the_rate_warms_up_to_its_peak_and_falls_to_its_last_share() -> None:
    settings = OptimizerSettings(learning_rate=1.0, warmup_share=0.1, final_share=0.1)
    rates = [settings.learning_rate_at(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.55)
    assert 0.1 < rates[99] < 0.101


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_have_a_rate_too(steps: int) -> None:
    assert all(OptimizerSettings().learning_rate_at(step, steps) > 0 for step in range(steps))


def test_a_trapezoid_stays_at_its_peak_and_falls_along_a_line() -> None:
    settings = OptimizerSettings(
        learning_rate=1.0, warmup_share=0.1, schedule="trapezoid", decay_share=0.5, final_share=0.0
    )
    rates = [settings.learning_rate_at(step, 100) for step in range(100)]
    assert rates[:10] == sorted(rates[:10]) and rates[0] == pytest.approx(0.1)
    assert set(rates[9:51]) == {1.0}
    assert rates[75] == pytest.approx(0.5) and rates[99] == pytest.approx(0.02)
    cosine = settings.model_copy(update={"schedule": "cosine"})
    assert cosine.learning_rate_at(40, 100) < 0.9


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_trapezoids_have_a_rate_too(steps: int) -> None:
    settings = OptimizerSettings(schedule="trapezoid", decay_share=0.0)
    assert all(settings.learning_rate_at(step, steps) > 0 for step in range(steps))


def test_muon_is_refused_where_matrices_are_in_pieces() -> None:
    with pytest.raises(UserError, match=r"optimizer\.kind=muon needs them whole: take parallel=ddp"):
        resolve(LoopSettings, overrides=["parallel=fsdp", "optimizer.kind=muon"])
    assert resolve(LoopSettings, overrides=["parallel=ddp", "optimizer.kind=muon"]).parallel == "ddp"
