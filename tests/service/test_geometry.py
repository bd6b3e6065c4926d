"""Where a map's numbers lie: half-pixel centres, sums that stay, the biggest connected part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.geometry import (
    bounds,
    largest_component,
    product,
    resample,
    smooth,
    spread,
    taps,
    to_pixel,
    to_pixels,
)


def test_two_cells_over_four_pixels_mix_at_half_pixel_centres():
    assert taps(2, 4).tolist() == [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]


def test_the_cubic_kernel_passes_through_the_cells_and_keeps_straight_lines_straight():
    assert taps(5, 5, cubic=True).tolist() == np.eye(5).tolist()
    ramp = np.arange(7.0)
    fine = taps(7, 14, cubic=True) @ ramp
    assert fine[4:10] == pytest.approx([1.75, 2.25, 2.75, 3.25, 3.75, 4.25], abs=1e-6)


@given(cells=st.integers(1, 40), length=st.integers(1, 60), cubic=st.booleans())
def test_every_pixel_gets_all_of_its_value_from_the_cells(cells: int, length: int, cubic: bool):
    assert taps(cells, length, cubic=cubic).sum(1) == pytest.approx(np.ones(length), abs=1e-5)


def test_pixels_outside_the_window_get_nothing():
    inside = taps(3, 10, 2.0, 8.0).sum(1)
    assert inside.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]


def test_a_window_that_reaches_beyond_the_picture_shows_its_middle():
    assert taps(4, 2, -1.0, 3.0).tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 5), (997, 31, 401), (3, 211, 1009)])
def test_the_product_in_slices_is_the_product(shape: tuple[int, int, int]):
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal(shape[:2]), rng.standard_normal(shape[1:])
    np.testing.assert_allclose(product(left, right), left @ right, atol=1e-10)


def test_resampling_doubles_a_small_map():
    assert resample(np.array([[0.0, 4.0]]), (1, 4)).tolist() == [[0, 1, 3, 4]]


@given(
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    down=st.integers(0, 13),
    across=st.integers(0, 13),
    seed=st.integers(0, 99),
)
def test_spreading_over_a_finer_grid_keeps_the_sum(h: int, w: int, down: int, across: int, seed: int):
    values = np.random.default_rng(seed).standard_normal((h, w))
    assert spread(values, (h + down, w + across)).sum() == pytest.approx(values.sum(), abs=1e-9)


def test_spreading_over_a_multiple_is_the_linear_map_over_the_number_of_parts():
    values = np.array([[1.0, 5.0], [-3.0, 2.0]])
    np.testing.assert_allclose(spread(values, (4, 6)), resample(values, (4, 6)) / 6, atol=1e-6)


def test_smoothing_takes_the_mean_of_neighbours_and_repeats_the_border():
    assert smooth(np.array([[3.0, 0.0, 0.0, 9.0]]), 3) == pytest.approx(np.array([[2.0, 1.0, 3.0, 6.0]]))


def test_the_largest_part_is_connected_by_edges_not_by_corners():
    region = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [1, 1, 0, 0], [1, 0, 1, 1]], bool)
    assert largest_component(region).astype(int).tolist() == [
        [0, 0, 0, 0],
        [0, 1, 0, 0],
        [1, 1, 0, 0],
        [1, 0, 0, 0],
    ]


def test_arms_that_meet_only_further_down_are_one_part():
    region = np.array([[1, 0, 1, 0, 1], [1, 0, 1, 0, 0], [1, 1, 1, 0, 1]], bool)
    assert largest_component(region).sum() == 7


@settings(max_examples=50)
@given(
    height=st.integers(1, 9), width=st.integers(1, 9), density=st.floats(0.1, 0.9), seed=st.integers(0, 999)
)
def test_the_largest_part_agrees_with_a_flood_fill(height: int, width: int, density: float, seed: int):
    region = np.random.default_rng(seed).random((height, width)) < density
    sizes, left = [0], {(int(y), int(x)) for y, x in np.argwhere(region)}
    while left:
        front, part = [left.pop()], 1
        while front:
            y, x = front.pop()
            for place in {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left:
                left.remove(place)
                front.append(place)
                part += 1
        sizes.append(part)
    found = largest_component(region)
    assert found.sum() == max(sizes)
    assert not (found & ~region).any()


def test_the_box_of_a_region_is_in_fractions_of_its_map():
    region = np.zeros((4, 5), bool)
    region[1:3, 2] = True
    assert bounds(region) == (0.4, 0.25, 0.6, 0.75)
    assert bounds(np.zeros((2, 2), bool)) is None


def test_a_box_becomes_the_pixels_it_touches_within_the_picture():
    assert to_pixels((0.25, 0.5, 0.75, 1.0), (0, 0, 40, 20), (40, 20)) == (10, 10, 30, 20)
    assert to_pixels((0.1, 0.0, 0.5, 1.0), (5, -2, 16, 32), (15, 30)) == (6, 0, 11, 30)


def test_a_point_becomes_the_pixel_it_falls_into():
    assert to_pixel((0.5, 0.5), (0, 0, 7, 5), (7, 5)) == (3, 2)
    assert to_pixel((1.0, 1.0), (0, 0, 7, 5), (7, 5)) == (6, 4)
