"""The faithfulness benchmark's arithmetic, on cases small enough to do by hand."""

import numpy as np
import pytest

from benchmarks.faithfulness import metrics


def test_the_most_relevant_cells_are_revealed_first_in_squared_parts() -> None:
    assert metrics.parts(4).tolist() == [0, 1 / 16, 1 / 4, 9 / 16, 1]
    shown = metrics.revealed(np.array([[0.1, 0.9], [0.5, 0.2]]), 2, np.random.default_rng(0))
    assert shown.astype(int).tolist() == [[[0, 0], [0, 0]], [[0, 1], [0, 0]], [[1, 1], [1, 1]]]


def test_a_flat_map_ranks_its_cells_at_random() -> None:
    first = [metrics.ranking(np.zeros((4, 4)), np.random.default_rng(seed))[0] for seed in range(40)]
    assert len(set(map(int, first))) > 8


def test_insertion_and_deletion_are_the_trapezoid_area_under_the_probability() -> None:
    assert metrics.area(np.array([0.0, 1.0])) == pytest.approx(0.5)
    assert metrics.area(np.array([0.4, 0.8, 1.0])) == pytest.approx(0.6 * 1 / 4 + 0.9 * 3 / 4)
    assert metrics.area(np.array([1.0, 0.0, 0.0])) == pytest.approx(1 / 8)


def test_rank_correlation_is_spearmans_with_ties_at_their_mean_rank() -> None:
    assert metrics.spearman(np.array([1, 2, 3, 4]), np.array([10, 20, 30, 99])) == pytest.approx(1)
    assert metrics.spearman(np.array([1, 2, 3]), np.array([3, 2, 1])) == pytest.approx(-1)
    assert metrics.spearman(np.array([1, 2, 3, 4]), np.array([1, 3, 2, 4])) == pytest.approx(
        1 - 6 * 2 / (4 * 15)
    )
    assert metrics.spearman(np.array([1, 1, 2]), np.array([1, 2, 3])) == pytest.approx(
        np.sqrt(3) / 2
    )  # ranks 1.5, 1.5, 3


def test_a_constant_map_correlates_with_nothing() -> None:
    assert metrics.spearman(np.ones(5), np.arange(5)) == 0


def test_patch_sums_add_what_lies_in_each_square() -> None:
    values = np.arange(16.0).reshape(4, 4)
    assert metrics.sums(values, 2).tolist() == [
        [0 + 1 + 4 + 5, 2 + 3 + 6 + 7],
        [8 + 9 + 12 + 13, 10 + 11 + 14 + 15],
    ]


def test_grid_pointing_counts_the_positive_relevance_in_the_right_quarter() -> None:
    values = np.array([[3.0, 1.0], [-5.0, 0.0]])
    assert metrics.energy(values, metrics.quarter(0, (2, 2))) == pytest.approx(0.75)
    assert metrics.energy(values, metrics.quarter(1, (2, 2))) == pytest.approx(0.25)
    assert metrics.energy(values, metrics.quarter(2, (2, 2))) == 0


def test_a_map_without_positive_relevance_scores_like_chance() -> None:
    assert metrics.energy(-np.ones((4, 4)), metrics.quarter(3, (4, 4))) == 0.25


def test_a_box_covers_the_pixels_whose_middle_lies_in_it_and_several_boxes_unite() -> None:
    region = metrics.boxes([(0.0, 0.0, 0.5, 0.25), (0.7, 0.7, 1.0, 1.0)], (4, 4))
    assert region.astype(int).tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_energy_in_box_is_the_share_of_positive_relevance_inside() -> None:
    values = np.zeros((4, 4))
    values[0, 0], values[3, 3], values[2, 2] = 2.0, 6.0, -9.0
    assert metrics.energy(values, metrics.boxes([(0, 0, 0.5, 0.5)], (4, 4))) == pytest.approx(0.25)


def test_the_pointing_game_is_won_where_the_highest_place_lies_in_the_box() -> None:
    values = np.zeros((4, 4))
    values[1, 2] = 1.0
    assert metrics.points(values, metrics.boxes([(0.5, 0.0, 1.0, 0.5)], (4, 4))) == 1
    assert metrics.points(values, metrics.boxes([(0.0, 0.0, 0.5, 0.5)], (4, 4))) == 0


def test_several_highest_places_share_the_point() -> None:
    assert metrics.points(np.ones((4, 4)), metrics.boxes([(0, 0, 1, 0.5)], (4, 4))) == 0.5


def test_the_paired_bootstrap_sees_a_steady_difference_and_not_a_random_one() -> None:
    noise = np.random.default_rng(1).normal(size=100)
    mean, low, high, p = metrics.bootstrap(0.5 + 0.1 * noise)
    assert low < mean < high
    assert p < 0.001
    assert metrics.bootstrap(noise - noise.mean())[3] > 0.5


def test_mean_and_standard_error() -> None:
    assert metrics.summary([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1 / np.sqrt(3)))
