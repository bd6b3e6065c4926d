"""Drawn pictures are what their seed says, and the two families are not the same."""

from __future__ import annotations

import numpy as np

from export.training.drawings import TRAINED, UNSEEN, draw, draw_unseen


def test_a_seed_and_a_number_are_a_picture() -> None:
    few, more = draw(9, 32), draw(18, 32)
    assert few.shape == (9, 32, 32, 3)
    assert few.dtype == np.uint8
    assert np.array_equal(few, more[:9])
    assert not np.array_equal(few, draw(9, 32, seed=2))


def test_what_judges_is_not_what_is_trained_on() -> None:
    assert not set(TRAINED) & set(UNSEEN)
    assert len(np.unique(draw_unseen(12, 32).reshape(12, -1), axis=0)) > 8
