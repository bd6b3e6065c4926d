"""What a result is worth, in words."""

import numpy as np
import pytest

from export.training.metrics import Scores, score
from export.training.verdict import decimals, in_words, judge, wilson


def scores(right: int, wrong: int, classes: int = 2) -> Scores:
    """Pictures spread evenly over the classes, the first `right` of them named rightly."""
    labels = np.arange(right + wrong) % classes
    named = np.where(np.arange(right + wrong) < right, labels, (labels + 1) % classes)
    return score(np.eye(classes)[named] * 5, labels, tuple(f"class {i}" for i in range(classes)))


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)],
)
def test_the_interval_is_wilsons(hits: int, count: int, low: float, high: float) -> None:
    """The last two: Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I."""
    assert wilson(hits, count) == pytest.approx((low, high), abs=1e-4)


def test_of_no_picture_anything_may_be_true() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_figures_have_the_decimals_that_the_pictures_carry() -> None:
    assert in_words(scores(25, 5)) == "83 % (25 of 30 pictures; 66 to 93 % of new ones)"
    assert in_words(scores(9000, 1000)) == "90.0 % (9000 of 10000 pictures; 89.4 to 90.6 % of new ones)"
    assert (decimals(scores(25, 5)), decimals(scores(9000, 1000))) == (0, 1)


def test_a_good_result_is_worth_serving_and_needs_no_words() -> None:
    verdict = judge(scores(900, 100))
    assert (verdict.worth_serving, verdict.lines) == (True, ())


def test_chance_is_called_a_guess() -> None:
    verdict = judge(scores(52, 48))
    assert not verdict.worth_serving
    assert "no better than a guess" in verdict.lines[0]
    assert "right for 50 %" in verdict.lines[0]


def test_always_saying_the_commonest_class_is_no_merit() -> None:
    labels = np.array([0] * 95 + [1] * 5)
    verdict = judge(score(np.tile([5.0, 0.0], (100, 1)), labels, ("common", "rare")))
    assert not verdict.worth_serving
    assert "always says 'common' is right for 95 %" in verdict.lines[0]
    assert "never right: 1 of 2 classes (rare)" in verdict.lines[-1]


def test_a_weak_result_is_called_weak_and_more_epochs_are_advised_while_they_help() -> None:
    verdict = judge(scores(610, 390, 10), improving=True)
    assert not verdict.worth_serving
    assert verdict.lines[0].startswith("weak: only 61 % (610 of 1000 pictures")
    assert "more --epochs" in verdict.lines[-1]
    assert judge(scores(900, 100), improving=True).lines == ()


def test_few_pictures_are_said_to_say_little() -> None:
    verdict = judge(scores(11, 1))
    assert verdict.worth_serving
    assert verdict.lines == (
        "12 pictures say little: hold out more before you trust any figure of this model",
    )
