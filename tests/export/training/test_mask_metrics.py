"""Scores of label maps, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from export.training.mask_data import IGNORED
from export.training.mask_metrics import count, iou, outline, summarise


def test_iou_is_both_over_either_over_all_pixels() -> None:
    true = np.array([[0, 0, 1, 1]], np.uint8)
    found = np.array([[0, 1, 1, 1]], np.uint8)
    scores = summarise([count(found, true, 3)], ("a", "b", "c"))
    assert scores.confusion == ((1, 1, 0), (0, 2, 0), (0, 0, 0))
    assert [c.iou for c in scores.classes] == [pytest.approx(1 / 2), pytest.approx(2 / 3), None]
    assert scores.miou == pytest.approx(7 / 12)
    assert scores.pixel_accuracy == pytest.approx(3 / 4)


def test_pixels_that_are_not_judged_count_nowhere() -> None:
    true = np.array([[0, IGNORED, 1]], np.uint8)
    scores = summarise([count(np.array([[0, 1, 1]], np.uint8), true, 2)], ("a", "b"))
    assert scores.miou == 1


def test_the_interval_comes_from_drawing_pictures_again_and_narrows_with_their_number() -> None:
    rng = np.random.default_rng(0)

    def pictures(n: int) -> list:
        made = []
        for _ in range(n):
            true = (rng.random((8, 8)) < 0.5).astype(np.uint8)
            wrong = rng.random((8, 8)) < rng.uniform(0, 0.4)
            made.append(count(np.where(wrong, 1 - true, true), true, 2))
        return made

    few, many = (summarise(pictures(n), ("a", "b")) for n in (5, 100))
    assert few.interval[0] <= few.miou <= few.interval[1]
    assert many.interval[1] - many.interval[0] < few.interval[1] - few.interval[0]
    assert summarise(pictures(5), ("a", "b"), seed=1).interval == pytest.approx(
        summarise(pictures(5), ("a", "b"), seed=1).interval, abs=0.5
    )


def test_an_outline_is_what_lies_near_the_outside_or_the_picture_s_edge() -> None:
    inside = np.zeros((9, 9), bool)
    inside[2:7, 2:7] = True
    line = outline(inside, 1)
    assert line.sum() == 25 - 9
    assert not line[3:6, 3:6].any()
    assert outline(np.ones((5, 5), bool), 1).sum() == 25 - 9


def test_boundary_iou_sees_what_iou_hardly_does() -> None:
    true = np.zeros((100, 100), np.uint8)
    true[10:90, 10:90] = 1
    found = np.zeros_like(true)
    found[13:87, 13:87] = 1
    scores = summarise([count(found, true, 2)], ("a", "b"))
    assert scores.classes[1].iou > 0.85
    assert scores.classes[1].boundary_iou < 0.2


def test_a_class_that_occurs_nowhere_is_left_out_of_the_mean() -> None:
    assert np.isnan(iou(np.diag([3, 0])))[1]
