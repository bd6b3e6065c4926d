"""Hiding places: blurred, exactly where asked, in both layouts of a picture."""

from __future__ import annotations

import numpy as np
import pytest

from service.hiding import GRID, blurred, cell, elsewhere, hidden, strongest

RANDOM = np.random.default_rng(3)
UINT8 = RANDOM.integers(0, 256, (32, 48, 3), dtype=np.uint8)
FLOAT = np.moveaxis(UINT8, -1, 0).astype(np.float32)


@pytest.mark.parametrize("tensor", [UINT8, FLOAT], ids=["uint8", "float32"])
def test_only_the_region_changes_and_the_layout_stays(tensor: np.ndarray) -> None:
    soft = blurred(tensor)
    out = hidden(tensor, soft, cell(1, 2, 4))
    assert (out.shape, out.dtype) == (tensor.shape, tensor.dtype)
    rows, columns = slice(8, 16), slice(24, 36)
    place = (rows, columns) if tensor.dtype == np.uint8 else (slice(None), rows, columns)
    np.testing.assert_array_equal(out[place], soft[place])
    untouched = np.ones(tensor.shape, bool)
    untouched[place] = False
    np.testing.assert_array_equal(out[untouched], tensor[untouched])


def test_blurred_keeps_the_mean_colour_and_loses_detail() -> None:
    soft = blurred(UINT8)
    assert abs(float(soft.mean()) - float(UINT8.mean())) < 3
    assert soft.std() < UINT8.std() / 4


def test_the_strongest_tenth_is_a_tenth_of_the_picture() -> None:
    values = np.arange(64, dtype=np.float32).reshape(8, 8) + 1
    region = strongest(values, 0.1)
    assert region.sum() == round(0.1 * GRID * GRID)
    assert region[-1, -1]
    assert not region[:8].any()


def test_places_against_the_class_are_never_the_strongest() -> None:
    values = np.full((16, 16), -1.0, np.float32)
    values[3, 4] = 1.0
    assert np.argwhere(strongest(values, 0.1)).tolist() == [[3, 4]]
    assert not strongest(-np.ones((4, 4), np.float32), 0.1).any()


def test_random_places_hide_as_much_elsewhere_and_are_the_same_every_time() -> None:
    region = np.zeros((GRID, GRID), bool)
    region[4:9, 4:9] = True
    first, again = elsewhere(region, 4), elsewhere(region, 4)
    for there, repeated in zip(first, again, strict=True):
        np.testing.assert_array_equal(there, repeated)
        assert there.sum() == region.sum()
        assert (there & region).sum() <= region.sum() / 2
