"""Scores: by hand where it is easy, against scikit-learn where it is not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score, top_k_accuracy_score

from export.training.metrics import expected_calibration_error, fit_temperature, log_softmax, score

NAMES = tuple("abcdefg")


def random_logits(seed: int, n: int = 200, k: int = 7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    logits = rng.normal(0, 1, (n, k)) + 1.5 * np.eye(k)[labels]
    return logits.astype(np.float32), labels


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_precision_recall_f1_and_top5_agree_with_scikit_learn(seed: int) -> None:
    logits, labels = random_logits(seed)
    found, called = score(logits, labels, NAMES), logits.argmax(1)
    theirs = {"average": "macro", "labels": range(7), "zero_division": 0}
    assert found.accuracy == pytest.approx((called == labels).mean())
    assert found.precision == pytest.approx(precision_score(labels, called, **theirs))
    assert found.recall == pytest.approx(recall_score(labels, called, **theirs))
    assert found.f1 == pytest.approx(f1_score(labels, called, **theirs))
    assert found.top5 == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(7)))


def test_a_class_never_called_and_a_class_never_there_score_zero() -> None:
    logits = np.eye(3)[[0, 0, 0]]
    found = score(logits, np.array([0, 0, 1]), ("x", "y", "z"))
    assert found.confusion == ((2, 0, 0), (1, 0, 0), (0, 0, 0))
    assert [(c.precision, c.recall, c.f1, c.support) for c in found.classes] == [
        (2 / 3, 1.0, 0.8, 2),
        (0, 0, 0, 1),
        (0, 0, 0, 0),
    ]


def test_top5_of_fewer_than_five_classes_is_always_right() -> None:
    assert score(np.zeros((4, 3)), np.array([0, 1, 2, 0]), ("x", "y", "z")).top5 == 1.0


def test_calibration_error_by_hand() -> None:
    # two pictures of score 0.9, one right: gap 0.4; two of score 0.6, both right: gap 0.4
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    assert expected_calibration_error(probabilities, np.array([0, 1, 0, 0])) == pytest.approx(0.4)


def test_scores_that_tell_the_truth_have_no_calibration_error() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 4))
    p = np.exp(log_softmax(logits))
    labels = (p.cumsum(1) > rng.random((len(p), 1))).argmax(1)
    assert expected_calibration_error(p, labels) < 0.015
    assert fit_temperature(logits, labels) == pytest.approx(1.0, abs=0.05)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3.0, abs=0.15)


def test_temperature_makes_scores_believable_and_changes_no_answer() -> None:
    logits, labels = random_logits(0, n=2000)
    loud = 4 * logits
    temperature = fit_temperature(loud, labels)
    before, after = score(loud, labels, NAMES), score(loud, labels, NAMES, temperature)
    assert after.ece < before.ece / 3
    assert after.accuracy == before.accuracy
    assert after.nll < before.nll


def test_pictures_that_are_all_right_or_absent_leave_the_temperature_at_one() -> None:
    assert fit_temperature(np.eye(3), np.arange(3)) == 1.0
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, int)) == 1.0
