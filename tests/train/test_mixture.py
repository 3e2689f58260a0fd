"""The law of a mixture: how often each task is read, and every row of it."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from yunque.train.mixture import Batches, MixtureSettings

counts = st.lists(st.integers(1, 400), min_size=1, max_size=6)


def law(**fields) -> MixtureSettings:
    return MixtureSettings.model_validate(fields)


def batches(sizes: list[int], batch_size: int = 4, seed: int = 0, **fields) -> Batches:
    tasks = [f"t{task}" for task, size in enumerate(sizes) for _ in range(size)]
    lengths = [5 + number % 7 for number in range(len(tasks))]
    return Batches(tasks, lengths, batch_size, seed, law(**fields) if fields else None)


@settings(deadline=None)
@given(counts, st.floats(1, 50), st.integers(1, 500))
def test_the_shares_are_those_of_the_law(sizes, temperature, cap) -> None:
    rows = np.array(sizes, dtype=float)
    capped = np.minimum(rows, cap)
    powers = capped ** (1 / temperature)
    expected = {
        "proportional": rows / rows.sum(),
        "capped": capped / capped.sum(),
        "temperature": powers / powers.sum(),
        "equal": np.full(len(rows), 1 / len(rows)),
    }
    for kind, shares in expected.items():
        more = {"cap": cap} if kind in ("capped", "temperature") else {}
        found = law(kind=kind, temperature=temperature, **more).rates(sizes)
        assert found.sum() == pytest.approx(1)
        np.testing.assert_allclose(found, shares, rtol=1e-9)


@settings(deadline=None)
@given(counts)
def test_temperature_goes_from_proportional_to_equal(sizes) -> None:
    proportional, equal = (law(kind=kind).rates(sizes) for kind in ("proportional", "equal"))
    np.testing.assert_allclose(law(kind="temperature", temperature=1).rates(sizes), proportional, rtol=1e-9)
    np.testing.assert_allclose(law(kind="temperature", temperature=1e9).rates(sizes), equal, rtol=1e-6)
    # A warmer mixture never gives less to the smallest task, nor more to the largest.
    smallest, largest = int(np.argmin(sizes)), int(np.argmax(sizes))
    shares = np.array([law(kind="temperature", temperature=t).rates(sizes) for t in (1, 2, 4, 8)])
    assert (np.diff(shares[:, smallest]) > -1e-12).all() and (np.diff(shares[:, largest]) < 1e-12).all()


@settings(deadline=None)
@given(counts)
def test_a_cap_beyond_every_task_is_none_and_a_cap_of_one_makes_them_equal(sizes) -> None:
    np.testing.assert_allclose(
        law(kind="capped", cap=max(sizes)).rates(sizes), law(kind="proportional").rates(sizes)
    )
    np.testing.assert_allclose(law(kind="capped", cap=1).rates(sizes), law(kind="equal").rates(sizes))


@settings(deadline=None, max_examples=30)
@given(counts, st.sampled_from(["proportional", "equal", "temperature"]), st.integers(0, 3))
def test_an_epoch_has_the_share_of_each_task_to_within_one_row(sizes, kind, seed) -> None:
    mixed = batches(sizes, kind=kind, seed=seed)
    tasks = [task for task, size in enumerate(sizes) for _ in range(size)]
    total, epochs = Counter[int](), 5
    for epoch in range(epochs):
        rows = mixed.epoch(epoch)
        assert len(rows) == mixed.rows_per_epoch == len(tasks)
        read = Counter(tasks[row] for row in rows)
        for task, rate in enumerate(mixed.rates.values()):
            assert abs(read[task] - rate * len(rows)) < 1 + 1e-6
        total.update(rows)
    # The rows of a task take turns.
    for task in range(len(sizes)):
        often = [total[row] for row in range(len(tasks)) if tasks[row] == task]
        assert max(often) - min(often) <= 1


def test_over_many_epochs_the_share_is_exact_though_an_epoch_has_less_than_a_row_of_it() -> None:
    mixed = batches([1, 1, 300], kind="temperature", temperature=1.0, cap=300)
    read = Counter(row for epoch in range(60) for row in mixed.epoch(epoch))
    assert read[0] == read[1] == 60
    rare = batches([300, 3], kind="temperature", temperature=1.5)
    read = sum(row >= 300 for epoch in range(200) for row in rare.epoch(epoch))
    expected = 200 * rare.rows_per_epoch * rare.rates["t1"]
    assert read == pytest.approx(expected, rel=0.02)
    # Negative control: the law without the temperature gives another number.
    assert read != pytest.approx(200 * 3, rel=0.2)


def test_without_a_mixture_every_row_is_read_once_an_epoch() -> None:
    plain = batches([10, 3])
    for epoch in range(3):
        steps = range(epoch * plain.batches_per_epoch, (epoch + 1) * plain.batches_per_epoch)
        assert sorted(row for step in steps for row in plain.batch(step)) == list(range(13))
    assert plain.rows_per_step == 13 / 4


def test_a_step_is_a_function_of_seed_and_step_only() -> None:
    one, other = batches([9, 30, 5], kind="equal"), batches([9, 30, 5], kind="equal")
    steps = list(range(40))
    forward = [one.batch(step) for step in steps]
    assert [other.batch(step) for step in reversed(steps)][::-1] == forward
    another = batches([9, 30, 5], kind="equal", seed=1)
    assert [another.batch(step) for step in steps] != forward


def test_an_epoch_of_a_capped_mixture_is_as_long_as_its_capped_tasks() -> None:
    mixed = batches([100, 5, 8], kind="capped", cap=10)
    assert mixed.rows_per_epoch == 23
    assert sorted(row for row in mixed.epoch(3) if row >= 100) == list(range(100, 113))
    assert mixed.mean([1.0] * 100 + [3.0] * 13) == pytest.approx((10 * 1 + 13 * 3) / 23)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "capped"}, "how many rows"),
        ({"kind": "equal", "cap": 3}, "has no cap"),
        ({"temperature": 0.5}, "greater than or equal to 1"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(fields, words) -> None:
    with pytest.raises(ValidationError, match=words):
        law(**fields)
