"""The check of a map: what it shows is hidden, and as much elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from service.check import CONTROLS, check
from service.results import Check

PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def detail(batch: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """(n, 1) logits of a network that answers to detail in one place."""
    return np.stack([[picture[rows, columns].std() / 80] for picture in batch.astype(np.float32)])


def scores(logits: np.ndarray) -> np.ndarray:
    return logits[:, 0]


def run(values: np.ndarray) -> Check:
    corner = slice(0, 16), slice(0, 16)
    steps = check(PICTURE, values, float(scores(detail(PICTURE[None], *corner))[0]), scores)
    batch = next(steps)
    assert len(batch) == 1 + CONTROLS
    try:
        steps.send(detail(batch, *corner))
    except StopIteration as done:
        found: Check = done.value
        return found
    raise AssertionError("the check runs one batch")


def at(row: int, column: int) -> np.ndarray:
    values = np.zeros((4, 4), np.float32)
    values[row, column] = 1
    return values


def test_a_map_that_shows_what_the_network_looks_at_passes() -> None:
    found = run(at(0, 0))
    assert found.passed
    assert found.drop > 2 * max(found.random_drop, 0)


def test_a_map_that_shows_another_place_fails() -> None:
    found = run(at(2, 3))
    assert not found.passed
    assert abs(found.drop) < 0.05


def test_a_map_without_a_positive_place_fails_without_a_run() -> None:
    steps = check(PICTURE, np.zeros((4, 4), np.float32), 0.9, scores)
    with pytest.raises(StopIteration) as done:
        next(steps)
    assert done.value.value == Check(0.9, 0.0, 0.0, passed=False)
