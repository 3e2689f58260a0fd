"""Position tables: the formula of the paper, and what must follow from it."""

import math

import pytest
import torch
from torch.testing import assert_close

from yunque.errors import UserError
from yunque.lab.positions import Kind, draw_positions, position_table


def test_sinusoids_are_those_of_the_paper() -> None:
    """PE(pos, 2i) = sin(pos / 10000^(2i / d)), PE(pos, 2i + 1) = cos of the same."""
    expected = torch.zeros(40, 24)
    for position in range(40):
        for pair in range(12):
            angle = position / 10000 ** (2 * pair / 24)
            expected[position, 2 * pair] = math.sin(angle)
            expected[position, 2 * pair + 1] = math.cos(angle)
    ours = position_table("sinusoid", 40, 24).values_TD
    assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    halves = torch.cat((expected[:, 0::2], expected[:, 1::2]), dim=1)
    with pytest.raises(AssertionError):
        assert_close(ours, halves, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["sinusoid", "rotary"])
def test_similarity_depends_on_the_distance_alone(kind: Kind) -> None:
    alike = position_table(kind, 50, 32).similarity_TT
    assert_close(alike.diagonal(), torch.ones(50))
    for distance in (1, 7, 30):
        band = alike.diagonal(distance)
        assert_close(band, band[:1].expand_as(band), rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):
        assert_close(alike.diagonal(1)[:20], alike.diagonal(7)[:20], rtol=1e-4, atol=1e-5)


def test_rotary_similarity_is_that_of_turned_vectors() -> None:
    """q.k of equal vectors of ones, turned by rotary positions, over their length squared."""
    from yunque.model.positions import Rope, rotary_angles, rotate

    cos, sin = rotary_angles(torch.arange(20)[None], Rope(), 16, 20)
    turned_TH = rotate(torch.ones(1, 1, 20, 16), cos, sin)[0, 0]
    assert_close(position_table("rotary", 20, 16).similarity_TT, turned_TH @ turned_TH.T / 16)


@pytest.mark.parametrize("positions, size", [(64, 7), (1, 8)])
def test_tables_that_cannot_be_are_refused(positions: int, size: int) -> None:
    with pytest.raises(UserError):
        position_table("sinusoid", positions, size)


@pytest.mark.parametrize("positions, size", [(2, 2), (70, 128)])
@pytest.mark.parametrize("kind", ["sinusoid", "rotary"])
def test_every_size_can_be_drawn(kind: Kind, positions: int, size: int) -> None:
    assert draw_positions(position_table(kind, positions, size)).subfigs
