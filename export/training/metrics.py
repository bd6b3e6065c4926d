"""What logits are worth: accuracy, per-class scores, calibration, and the temperature that makes scores
believable. numpy only, no network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

BINS = 15


@dataclass(frozen=True)
class ClassScores:
    """One class; support: how many pictures of it there were. What is 0/0 (nothing predicted, nothing there)
    is 0."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Scores:
    """precision, recall, f1: means over classes. ece: expected calibration error. confidence: mean top score.
    nll: nats a picture. confusion[i][j]: pictures of class i called class j."""

    pictures: int
    accuracy: float
    top5: float
    precision: float
    recall: float
    f1: float
    ece: float
    nll: float
    confidence: float
    temperature: float
    classes: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> dict[str, float]:
        """The single numbers, without tables per class."""
        return {key: value for key, value in asdict(self).items() if key not in ("classes", "confusion")}


def log_softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """(n, K) → log probabilities (n, K) in float64."""
    x = logits.astype(np.float64) / temperature
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def score(
    logits: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], temperature: float = 1.0
) -> Scores:
    """logits (n, K), labels (n,) → all numbers. Temperature changes only ece, nll and confidence."""
    log_p = log_softmax(logits, temperature)
    count = len(classes)
    confusion = np.bincount(labels * count + log_p.argmax(1), minlength=count * count).reshape(count, count)
    hits = np.diag(confusion).astype(float)
    precision = _ratio(hits, confusion.sum(0))
    recall = _ratio(hits, confusion.sum(1))
    f1 = _ratio(2 * precision * recall, precision + recall)
    best = np.argsort(-log_p, axis=1, kind="stable")[:, :5]
    return Scores(
        pictures=len(labels),
        accuracy=float(hits.sum() / max(len(labels), 1)),
        top5=float((best == labels[:, None]).any(1).mean()),
        precision=float(precision.mean()),
        recall=float(recall.mean()),
        f1=float(f1.mean()),
        ece=expected_calibration_error(np.exp(log_p), labels),
        nll=float(-log_p[np.arange(len(labels)), labels].mean()),
        confidence=float(np.exp(log_p.max(1)).mean()),
        temperature=temperature,
        classes=tuple(
            ClassScores(name, float(precision[i]), float(recall[i]), float(f1[i]), int(confusion[i].sum()))
            for i, name in enumerate(classes)
        ),
        confusion=tuple(tuple(int(v) for v in row) for row in confusion),
    )


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Mean over pictures of |accuracy - top score| of the picture's bin of top scores, equal-width bins (Guo
    et al. 2017)."""
    top, right = probabilities.max(1), probabilities.argmax(1) == labels
    which = np.clip(np.ceil(top * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(which, right, bins) - np.bincount(which, top, bins)
    return float(np.abs(gaps).sum() / len(labels))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature in 0.05..20 with the least negative log likelihood on held-out pictures: one number, so
    a golden-section search of its logarithm.

    Where every picture is right the likelihood has no best temperature but the smallest; then, and with no
    picture, 1 is returned.
    """
    if not len(labels) or (logits.argmax(1) == labels).all():
        return 1.0
    rows = np.arange(len(labels))
    return float(
        np.exp(
            _golden(
                lambda log_t: -log_softmax(logits, np.exp(log_t))[rows, labels].mean(),
                np.log(0.05),
                np.log(20.0),
            )
        )
    )


def _golden(function: Callable[[float], float], low: float, high: float, steps: int = 60) -> float:
    """The minimum of a function with one valley between low and high."""
    ratio = (5**0.5 - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(steps):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = function(right)
    return (low + high) / 2
