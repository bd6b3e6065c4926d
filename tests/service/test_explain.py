"""Explanations as arithmetic: what adds up adds up, what changes with the class changes, and nothing breaks
on a blank picture."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import explain
from service.artifact import Head

TOKENS = np.array([[1, 2], [3, -1]], np.float32)  # two patches, two channels
HEAD = Head(np.array([[1, 0], [0, 1], [2, 1]], np.float32), np.array([0.5, -0.5, 0.0], np.float32))
LOGITS = np.array([2.5, 0.0, 4.5], np.float32)  # mean token (2, 0.5) times the head, plus the bias


@pytest.fixture(autouse=True)
def _every_bad_number_raises() -> Iterator[None]:
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        yield


def network(
    seed: int, patches: tuple[int, int] = (5, 7), channels: int = 11, classes: int = 13
) -> tuple[np.ndarray, Head, np.ndarray]:
    """(tokens, head, logits) of a random last layer."""
    rng = np.random.default_rng(seed)
    tokens = rng.standard_normal((patches[0] * patches[1], channels)).astype(np.float32)
    head = Head(
        rng.standard_normal((classes, channels)).astype(np.float32),
        rng.standard_normal(classes).astype(np.float32),
    )
    return tokens, head, tokens.mean(0) @ head.weight.T + head.bias


def assignment(seed: int, clusters: int = 17, grid: tuple[int, int] = (10, 14)) -> np.ndarray:
    """(M, H, W), each cluster a distribution over the patches."""
    scores = np.exp(2 * np.random.default_rng(seed).standard_normal((clusters, *grid)))
    return (scores / scores.sum((1, 2), keepdims=True)).astype(np.float32)


class TestStageMaps:
    def test_are_the_outputs_named_after_a_stage_and_no_others(self):
        found = explain.stage_maps({"map_2": TOKENS, "map_10": HEAD.weight, "effect_2": HEAD.bias})
        assert {stage: values.shape for stage, values in found.items()} == {2: (2, 2), 10: (3, 2)}


class TestContributions:
    def test_are_each_patch_times_the_class_direction_over_the_number_of_patches(self):
        assert explain.contributions(TOKENS, (1, 2), HEAD, explain.class_weights(3, 0)).tolist() == [
            [0.5, 1.5]
        ]
        assert explain.contributions(TOKENS, (2, 1), HEAD, explain.class_weights(3, 2)).tolist() == [
            [2.0],
            [2.5],
        ]

    @pytest.mark.parametrize("target", range(13))
    def test_and_the_bias_are_the_logit_for_every_class(self, target: int):
        tokens, head, logits = network(1)
        weights = explain.class_weights(13, target)
        account = explain.completeness(
            explain.contributions(tokens, (5, 7), head, weights), head, weights, logits
        )
        assert account.sum_contributions + account.bias == pytest.approx(float(logits[target]), abs=1e-5)
        assert account.residual == pytest.approx(0, abs=1e-5)

    @given(a=st.integers(0, 12), b=st.integers(0, 12), seed=st.integers(0, 20))
    def test_of_a_contrast_swap_their_sign_with_the_classes(self, a: int, b: int, seed: int):
        tokens, head, logits = network(seed)
        one, other = explain.class_weights(13, a, b), explain.class_weights(13, b, a)
        cam = explain.contributions(tokens, (5, 7), head, one)
        np.testing.assert_array_equal(cam, -explain.contributions(tokens, (5, 7), head, other))
        account = explain.completeness(cam, head, one, logits)
        assert account.logit == pytest.approx(float(logits[a]) - float(logits[b]), abs=1e-5)
        assert account.residual == pytest.approx(0, abs=2e-5)

    def test_of_a_class_against_itself_are_nothing(self):
        assert not explain.contributions(TOKENS, (1, 2), HEAD, explain.class_weights(3, 1, 1)).any()

    def test_change_when_the_head_is_another(self):
        tokens, head, _ = network(2)
        shuffled = Head(
            np.random.default_rng(3).permutation(head.weight.ravel()).reshape(head.weight.shape), head.bias
        )
        one, other = (
            explain.contributions(tokens, (5, 7), h, explain.class_weights(13, 4)).ravel().argsort().argsort()
            for h in (head, shuffled)
        )
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.5


def test_the_runner_up_is_the_best_class_but_the_target():
    assert explain.runner_up(LOGITS, 2) == 0
    assert explain.runner_up(LOGITS, 1) == 2


class TestHeatmap:
    CAM = np.array([[1, -1], [2, 0]], np.float32)
    MAP = np.array([[2, 2], [-2, 6]], np.float32)

    def test_focus_keeps_evidence_that_earlier_stages_hold_too(self):
        exact = explain.Tuning(smooth=1)
        np.testing.assert_allclose(explain.focus(self.CAM, {1: self.MAP}, exact), [[1, 0], [0, 0]])
        np.testing.assert_allclose(explain.focus(self.CAM, {1: -self.MAP}, exact), [[0, 0], [1, 0]])

    def test_focus_lies_on_the_finest_map(self):
        maps = {1: np.ones((12, 20), np.float32), 2: np.ones((6, 10), np.float32)}
        assert explain.focus(np.ones((3, 5), np.float32), maps).shape == (12, 20)

    def test_fine_adds_maps_of_equal_spread(self):
        found = explain.fine(
            np.array([[3.0, -3.0]]),
            {1: np.array([[1.0, -1.0]]), 2: np.array([[-500.0, 500.0]])},
            explain.Tuning(smooth=1),
        )
        np.testing.assert_allclose(found, [[1, -1]])

    @pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
    def test_of_a_constant_picture_has_no_nan(self, value: float):
        cam, maps = np.full((3, 3), value, np.float32), {1: np.full((6, 6), value, np.float32)}
        for values in (cam, explain.focus(cam, maps), explain.fine(cam, maps)):
            assert np.isfinite(values).all()
            explain.mask(values)
        assert not explain.focus(np.full((3, 3), -1, np.float32), maps).any()


class TestMask:
    def test_is_the_largest_part_above_the_threshold(self):
        values = np.zeros((4, 8), np.float32)
        values[1:3, 1:4] = 0.6
        values[3, 7] = 1.0
        found = explain.mask(values, 0.5, explain.Tuning(detail=8))
        assert found.region.astype(int).tolist() == [
            [0] * 8,
            [0, 1, 1, 1, 0, 0, 0, 0],
            [0, 1, 1, 1, 0, 0, 0, 0],
            [0] * 8,
        ]
        assert found.bbox == (0.125, 0.25, 0.5, 0.75)
        assert found.threshold == 0.5

    def test_follows_the_numbers_between_the_cells(self):
        found = explain.mask(np.array([[1.0, 0.0]]), 0.5)
        assert found.region.shape == (64, 128)
        assert found.bbox == (0.0, 0.0, 0.5, 1.0)

    def test_is_empty_where_nothing_speaks_for_the_class(self):
        found = explain.mask(np.full((3, 3), -1.0))
        assert not found.region.any()
        assert found.bbox is None


class TestClusters:
    # Two clusters on 2x2 patches: the first looks at the upper row only, the second everywhere.
    PAIR = np.array([[[0.5, 0.5], [0, 0]], [[0.25, 0.25], [0.25, 0.25]]], np.float32)

    def test_a_patch_belongs_to_clusters_in_proportion_to_their_assignment(self):
        np.testing.assert_allclose(explain.membership(self.PAIR)[0], [[2 / 3, 2 / 3], [0.0, 0.0]])

    def test_a_patch_that_no_cluster_takes_belongs_to_all_alike(self):
        assert explain.membership(np.zeros((4, 1, 1), np.float32)).ravel().tolist() == [0.25] * 4

    def test_shares_hand_the_evidence_out_by_membership(self):
        assert explain.shares(np.array([[3.0]], np.float32), self.PAIR) == pytest.approx([1.0, 2.0])

    @given(
        seed=st.integers(0, 20),
        target=st.integers(0, 12),
        grid=st.sampled_from([(10, 14), (5, 7), (20, 28), (9, 13)]),
    )
    def test_shares_of_a_stage_and_the_bias_are_the_logit(
        self, seed: int, target: int, grid: tuple[int, int]
    ):
        tokens, head, logits = network(seed)
        cam = explain.contributions(tokens, (5, 7), head, explain.class_weights(13, target))
        assert explain.shares(cam, assignment(seed, grid=grid)).sum() + head.bias[target] == pytest.approx(
            float(logits[target]), abs=2e-5
        )

    def test_every_patch_is_segmented_once(self):
        z = assignment(5)
        assert explain.segment(self.PAIR).tolist() == [[0, 0], [1, 1]]
        assert explain.areas(z).sum() == pytest.approx(1)
        assert np.bincount(explain.segment(z).ravel()).sum() == 140

    def test_the_strongest_are_sorted_by_share_and_described(self):
        first, second = explain.strongest(self.PAIR, 5, np.array([[3.0]], np.float32), np.array([0.1, -0.2]))
        assert (first.cluster, first.share, first.effect, first.area) == (1, pytest.approx(2.0), -0.2, 0.5)
        assert (second.cluster, second.share, second.effect, second.area) == (0, pytest.approx(1.0), 0.1, 0.5)
        assert second.centroid == (0.5, 0.25)
        assert second.bbox == (0.0, 0.0, 1.0, 0.5)
        assert first.centroid == pytest.approx((0.5, 0.625))
        np.testing.assert_allclose(second.values, [[2 / 3, 2 / 3], [0.0, 0.0]], atol=1e-6)

    def test_clusters_against_the_class_come_last_with_a_negative_share(self):
        shares = [
            view.share for view in explain.strongest(assignment(1), 17, network(1)[0][:, :1].reshape(5, 7))
        ]
        assert shares == sorted(shares, key=lambda share: share or 0, reverse=True)
        assert shares[-1] < 0

    def test_without_a_class_the_strongest_take_the_most_of_the_picture(self):
        views = explain.strongest(self.PAIR, 1)
        assert [view.cluster for view in views] == [1]
        assert views[0].share is None

    def test_a_constant_assignment_has_no_nan(self):
        views = explain.strongest(np.full((3, 4, 4), 1 / 16, np.float32), 3, np.zeros((2, 2), np.float32))
        assert [view.centroid for view in views] == [(0.5, 0.5)] * 3
        assert all(np.isfinite(view.values).all() for view in views)
