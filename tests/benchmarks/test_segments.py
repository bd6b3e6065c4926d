"""The measures of clusters as segments, on maps whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.segments import mean, pieces, plain_grid, quality


def test_a_segment_that_is_the_object_has_every_pixel() -> None:
    mask = np.zeros((16, 16), bool)
    mask[:, :4] = True
    labels = np.zeros((4, 4), int)
    labels[:, 0] = 7
    found = quality(labels, mask, np.ones_like(mask))
    assert found.iou == pytest.approx(1)
    assert (found.pieces, found.segments) == (2, 2)
    assert found.above_grid == pytest.approx(0.25)
    assert mean([found, found]).above_grid == pytest.approx(found.above_grid, abs=1e-3)


def test_pieces_touch_by_their_sides() -> None:
    assert pieces(np.eye(3, dtype=int)) == 5
    assert pieces(np.zeros((3, 3), int)) == 1


def test_pixels_that_do_not_count_change_nothing() -> None:
    mask, valid = np.zeros((8, 8), bool), np.ones((8, 8), bool)
    mask[:4], valid[4] = True, False
    labels = np.zeros((8, 8), int)
    labels[:4], labels[4] = 1, 2
    assert quality(labels, mask, valid).iou == pytest.approx(1)
    assert quality(labels, mask, valid).segments == 2


def test_a_plain_grid_has_about_as_many_cells() -> None:
    assert [len(np.unique(plain_grid(count, 32))) for count in (1, 4, 6, 9, 12)] == [1, 4, 6, 9, 12]
