"""Logits become predictions."""

from __future__ import annotations

import numpy as np

from service.assemble import predictions, probabilities
from tests.service.test_plan import MANIFEST


def test_scores_are_the_softmax_of_logits_over_temperature() -> None:
    p = probabilities(np.array([0.0, np.log(9.0)]), temperature=1.0)
    np.testing.assert_allclose(p, [0.1, 0.9])
    np.testing.assert_allclose(probabilities(np.array([0.0, 2 * np.log(3.0)]), temperature=2.0), [0.25, 0.75])


def test_huge_logits_do_not_overflow() -> None:
    assert probabilities(np.array([1e4, 0.0, -1e4]), 1.0).tolist() == [1.0, 0.0, 0.0]


def test_predictions_come_most_probable_first_and_ties_by_class() -> None:
    found = predictions(np.array([1.0, 3.0, 1.0]), MANIFEST, top_k=3)
    assert [p.class_id for p in found] == [1, 0, 2]
    assert found[0].label == "golf ball"
    assert found[0].logit == 3.0
