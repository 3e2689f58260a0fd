import pytest

from yunque.train.settings import OptimizerSettings


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
