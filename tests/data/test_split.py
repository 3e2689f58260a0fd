"""No text and no near duplicate is shared between splits, and a split stays when the data grows."""

import random
from collections import Counter

import pytest

from yunque.data.duplicates import THRESHOLD, Shingler, jaccard, minhash
from yunque.data.split import SPLITS, SplitSettings, assign_splits
from yunque.errors import UserError

SETTINGS = SplitSettings()


def assign(groups: list[str], texts: list[str], settings: SplitSettings = SETTINGS) -> list[str]:
    return assign_splits(groups, minhash(map(Shingler().shingles, texts)), texts.__getitem__, settings)


@pytest.fixture(scope="module")
def rows() -> tuple[list[str], list[str]]:
    """200 groups of 3 rows; every tenth group holds a near copy (with another number) of a row of the next."""
    rng = random.Random(11)
    vocabulary = ["".join(rng.choices("abcdefgh", k=5)) for _ in range(2000)]
    groups, texts = [], []
    for number in range(200):
        for _ in range(3):
            groups.append(f"group {number}")
            texts.append(" ".join(rng.choices(vocabulary, k=60)))
    for number in range(0, 190, 10):
        texts[3 * number] = texts[3 * number + 4] + f" {number}"
    return groups, texts


def test_near_duplicates_and_groups_are_never_divided(rows: tuple[list[str], list[str]]) -> None:
    groups, texts = rows
    chosen = assign(groups, texts, SplitSettings(train=0.5, validation=0.25, test=0.25))
    assert set(chosen) == set(SPLITS)
    assert len({(group, split) for group, split in zip(groups, chosen, strict=True)}) == 200
    shingler = Shingler()
    sets = [shingler.shingles(text) for text in texts]
    near = [
        (first, second)
        for first in range(len(texts))
        for second in range(first)
        if jaccard(sets[first], sets[second]) >= THRESHOLD
    ]
    assert len(near) == 19
    assert all(chosen[first] == chosen[second] for first, second in near)
    # Negative control: groups alone would have divided some of them.
    alone = assign(
        groups,
        [f"{number} texto" for number in range(len(texts))],
        SplitSettings(train=0.5, validation=0.25, test=0.25),
    )
    assert any(alone[first] != alone[second] for first, second in near)


def test_a_group_stays_in_its_split_when_the_data_grows(rows: tuple[list[str], list[str]]) -> None:
    groups, texts = rows
    fewer, more = assign(groups[:450], texts[:450]), assign(groups, texts)
    assert fewer == more[:450]


def test_shares_are_about_those_asked_for() -> None:
    groups = [f"module {number}" for number in range(2000)]
    counts = Counter(assign(groups, [""] * 2000, SplitSettings(train=0.7, validation=0.2, test=0.1)))
    assert counts["train"] == pytest.approx(1400, abs=80)
    assert counts["validation"] == pytest.approx(400, abs=70)
    assert counts["test"] == pytest.approx(200, abs=50)


@pytest.mark.parametrize("count", [3, 4, 7])
def test_every_split_gets_something_where_there_is_enough(count: int) -> None:
    for salt in range(20):
        chosen = assign([f"{salt}-{number}" for number in range(count)], [""] * count)
        assert set(chosen) == set(SPLITS)


def test_one_group_is_all_for_training() -> None:
    assert set(assign(["one"] * 3, ["a", "b", "c"])) == {"train"}


def test_a_share_of_nothing_gets_nothing() -> None:
    chosen = assign(
        [str(number) for number in range(300)], [""] * 300, SplitSettings(train=0.8, validation=0.2, test=0.0)
    )
    assert set(chosen) == {"train", "validation"}


def test_shares_must_be_the_whole() -> None:
    from yunque.configuration import resolve

    with pytest.raises(UserError, match="must be 1"):
        resolve(SplitSettings, train=0.5)
