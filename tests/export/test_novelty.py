"""Scores are shares of known pictures that are less novel, whatever the statistics are made of."""

from __future__ import annotations

import numpy as np
import pytest

from export.novelty import DIMENSIONS, FEWEST, MAX_BYTES, MAX_SCORES, Outputs, auroc, fit, rescored

CLASSES, CHANNELS = 4, 24


def outputs(count: int, seed: int, foreign: bool = False) -> Outputs:
    """Pooled tokens around class means, or elsewhere; logits from the first channels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    pooled = rng.normal(0, 1, (count, CHANNELS))
    if foreign:
        pooled[:, -1] += 3
    else:
        pooled[np.arange(count), labels] += 6
    return pooled[:, :CLASSES].copy(), pooled


@pytest.mark.parametrize("with_foreign", [True, False])
def test_a_score_is_uniform_on_known_pictures_and_high_on_foreign_ones(with_foreign: bool) -> None:
    known, held_out, new = outputs(800, 0), outputs(500, 1), outputs(1000, 2)
    strange = outputs(300, 3, foreign=True)
    statistics = fit(known, held_out, outputs(400, 4, foreign=True) if with_foreign else None)
    assert statistics is not None
    fresh = statistics.score(*new)
    assert (fresh >= 0.95).mean() == pytest.approx(0.05, abs=0.025)
    assert fresh.mean() == pytest.approx(0.5, abs=0.05)
    assert (statistics.score(*strange) >= 0.95).mean() > 0.6


def test_the_scores_of_held_out_pictures_are_kept_in_order_and_none_reaches_one() -> None:
    held_out = outputs(500, 1)
    statistics = fit(outputs(800, 0), held_out)
    assert statistics is not None
    assert np.array_equal(np.sort(statistics.raw(*held_out)), statistics.sorted_scores)
    assert statistics.axes is not None
    assert statistics.axes.shape == (CHANNELS, DIMENSIONS[0])
    assert statistics.score(*outputs(50, 5, foreign=True)).min() >= 0
    assert statistics.score(*outputs(50, 5, foreign=True)).max() < 1


def test_too_few_held_out_pictures_give_none() -> None:
    assert fit(outputs(100, 0), outputs(FEWEST - 1, 1)) is None
    assert fit(outputs(100, 0), outputs(FEWEST, 1)) is not None


def test_another_files_answers_move_the_scores_and_not_the_terms() -> None:
    """As rounding to 8 bits does: known pictures stay uniform."""
    statistics = fit(outputs(800, 0), outputs(500, 1))
    assert statistics is not None
    logits, pooled = outputs(500, 1)
    shifted = rescored(statistics, (logits + 2, pooled + 0.3))
    assert shifted.axes is statistics.axes
    new = outputs(1000, 2)
    assert (shifted.score(new[0] + 2, new[1] + 0.3) >= 0.95).mean() == pytest.approx(0.05, abs=0.025)
    assert not np.allclose(shifted.sorted_scores, statistics.sorted_scores)


def test_what_is_stored_stays_small_whatever_the_model() -> None:
    """A thousand classes of 2,048 numbers: fewer dimensions are kept; many held-out pictures: ranks."""
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(3000, 1000)), rng.normal(size=(3000, 2048)).astype(np.float32)
    statistics = fit(wide, wide)
    assert statistics is not None
    assert statistics.axes is not None
    assert statistics.axes.shape[1] < DIMENSIONS[0]
    assert len(statistics.to_text()) <= MAX_BYTES
    assert len(statistics.sorted_scores) == MAX_SCORES


def test_auroc_by_hand() -> None:
    assert auroc(np.array([0.0, 1.0]), np.array([2.0, 3.0])) == 1
    assert auroc(np.array([0.0, 2.0]), np.array([1.0, 2.0])) == pytest.approx(2.5 / 4)
