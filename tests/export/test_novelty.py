"""Scores are shares of known pictures that are less novel, whatever the statistics are made of."""

from __future__ import annotations

import numpy as np
import pytest

from export.novelty import DIMENSIONS, FEWEST, Outputs, fit

CLASSES, CHANNELS = 4, 24


def outputs(count: int, seed: int, foreign: bool = False) -> tuple[Outputs, np.ndarray]:
    """Pooled tokens around class means, or elsewhere; logits from the first channels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    pooled = rng.normal(0, 1, (count, CHANNELS))
    if foreign:
        pooled[:, -1] += 3
    else:
        pooled[np.arange(count), labels] += 6
    return (pooled[:, :CLASSES].copy(), pooled), labels


@pytest.mark.parametrize("with_foreign", [True, False])
def test_a_score_is_uniform_on_known_pictures_and_high_on_foreign_ones(with_foreign: bool) -> None:
    known, labels = outputs(800, 0)
    held_out, new, strange = outputs(500, 1)[0], outputs(1000, 2)[0], outputs(300, 3, foreign=True)[0]
    statistics = fit(known, labels, held_out, outputs(400, 4, foreign=True)[0] if with_foreign else None)
    assert statistics is not None
    fresh = statistics.score(*new)
    assert (fresh >= 0.95).mean() == pytest.approx(0.05, abs=0.025)
    assert fresh.mean() == pytest.approx(0.5, abs=0.05)
    assert (statistics.score(*strange) >= 0.95).mean() > 0.6


def test_the_scores_of_held_out_pictures_are_kept_in_order_and_none_reaches_one() -> None:
    known, labels = outputs(800, 0)
    held_out = outputs(500, 1)[0]
    statistics = fit(known, labels, held_out)
    assert statistics is not None
    assert np.array_equal(np.sort(statistics.raw(*held_out)), statistics.sorted_scores)
    assert statistics.axes is not None
    assert statistics.axes.shape == (CHANNELS, DIMENSIONS)
    assert statistics.score(*outputs(50, 5, foreign=True)[0]).min() >= 0
    assert statistics.score(*outputs(50, 5, foreign=True)[0]).max() < 1


def test_too_few_held_out_pictures_give_none() -> None:
    known, labels = outputs(100, 0)
    assert fit(known, labels, outputs(FEWEST - 1, 1)[0]) is None
