"""Fits what `service.novelty` scores with: from known pictures alone, or against foreign ones. numpy only.

The scorer owns the formula, so that what is fitted is what is served.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from service.novelty import THRESHOLD, Statistics, energy

DIMENSIONS = (16, 8, 4, 2)  # kept of the pooled token where no foreign pictures are given: what fits
MAX_BYTES = 100_000  # of the statistics as they stand in a file
MAX_SCORES = 2000  # of held-out pictures that are stored; evenly spaced ranks of more
SHRINKAGE = 0.05  # of covariances towards the identity
RIDGE = 1.0  # of the probe
STEPS = 12  # of Newton's method
FEWEST = 50  # held-out pictures
MOST = 3000  # pictures of each part: known, held out, foreign, unseen; more change nothing


Outputs = tuple[np.ndarray, np.ndarray]  # logits (n, K), pooled tokens (n, C)


def fit(known: Outputs, held_out: Outputs, foreign: Outputs | None = None) -> Statistics | None:
    """Statistics from training pictures, held-out ones and, where there are any, foreign ones. A known
    picture's class is the one it is given. None where too few are held out to say how rare a value is."""
    if len(held_out[0]) < FEWEST:
        return None
    for fitted in _fitted(known, foreign):
        statistics = rescored(fitted, held_out)
        if len(statistics.to_text()) <= MAX_BYTES:
            return statistics
    raise ValueError(f"{known[0].shape[1]} classes of {known[1].shape[1]} numbers are too many to store")


def rescored(fitted: Statistics, held_out: Outputs) -> Statistics:
    """The same terms with the spread and the sorted scores of these held-out pictures, e.g. as another file
    of the same weights answers them."""
    terms = np.stack([energy(held_out[0]), fitted.term(held_out[1])])
    scaled = dataclasses.replace(fitted, scale=np.stack([terms.mean(1), terms.std(1) + 1e-12]))
    scores = np.sort(scaled.raw(*held_out))
    if len(scores) > MAX_SCORES:
        scores = np.quantile(scores, np.linspace(0, 1, MAX_SCORES))
    return dataclasses.replace(scaled, sorted_scores=scores)


def worth(found: Statistics, held_out: Outputs, drawn: Outputs, unseen: Outputs | None) -> dict[str, float]:
    """What a flag at the usual threshold is worth. drawn: of drawings, unseen: of foreign pictures, where
    there are any; neither was fitted on."""
    measured = {"flagged_drawings": _flagged(found, drawn)}
    if unseen is None or not len(unseen[0]):
        return measured
    return {
        "flagged_foreign": _flagged(found, unseen),
        "auroc_foreign": round(auroc(found.raw(*held_out), found.raw(*unseen)), 4),
        "foreign_pictures": float(len(unseen[0])),
        **measured,
    }


def evenly(count: int) -> np.ndarray:
    """Up to MOST of so many rows, evenly spaced."""
    return np.linspace(0, count, min(count, MOST), endpoint=False).astype(int)


def _flagged(found: Statistics, outputs: Outputs) -> float:
    return round(float((found.score(*outputs) >= THRESHOLD).mean()), 4)


def auroc(known: np.ndarray, foreign: np.ndarray) -> float:
    """How often a foreign picture's value, of (m,), is above a known one's, of (n,); ties count half."""
    values = np.concatenate([known, foreign])
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m = len(known), len(foreign)
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def _fitted(known: Outputs, foreign: Outputs | None) -> Iterator[Statistics]:
    """The terms as they are stored, the best first; later ones take less room."""
    if foreign is not None:
        yield Statistics(_UNIT, _NONE, probe=_probe(known[1], foreign[1]).astype(np.float32))
        return
    for dimensions in DIMENSIONS:
        found = _mahalanobis(known[1], known[0].argmax(1), dimensions)
        means, axes, precision = (array.astype(np.float32) for array in found)
        yield Statistics(_UNIT, _NONE, means=means, axes=axes, precision=precision)


_UNIT, _NONE = np.array([[0.0, 0.0], [1.0, 1.0]]), np.zeros(0)


def _probe(known: np.ndarray, foreign: np.ndarray) -> np.ndarray:
    """Logistic regression, foreign = 1, both sides of equal weight; (C + 1,) with the intercept last."""
    x = np.concatenate([known, foreign]).astype(np.float64)
    middle, spread = x.mean(0), x.std(0) + 1e-6
    x = np.concatenate([(x - middle) / spread, np.ones((len(x), 1))], 1)
    y = np.repeat([0.0, 1.0], [len(known), len(foreign)])
    weight = np.where(y > 0, len(x) / 2 / len(foreign), len(x) / 2 / len(known))
    penalty = RIDGE * np.eye(x.shape[1])
    penalty[-1, -1] = 1e-6
    w = np.zeros(x.shape[1])
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        slope = x.T @ (weight * (p - y)) + penalty @ w
        w -= np.linalg.solve((x * (weight * np.maximum(p * (1 - p), 1e-6))[:, None]).T @ x + penalty, slope)
    return np.append(w[:-1] / spread, w[-1] - (w[:-1] * middle / spread).sum())


def _mahalanobis(
    pooled: np.ndarray, labels: np.ndarray, dimensions: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(means, axes, precision) of the distance to the nearest class relative to that to all (Ren et al.
    2021), in the principal directions."""
    x = pooled.astype(np.float64)
    _, axes = np.linalg.eigh(np.cov(x.T))
    axes = axes[:, -dimensions:]
    x = x @ axes
    means = np.stack([*(x[labels == k].mean(0) for k in np.unique(labels)), x.mean(0)])
    own = means[np.searchsorted(np.unique(labels), labels)]
    return means, axes, np.stack([_precision(x - own), _precision(x - means[-1])])


def _precision(apart: np.ndarray) -> np.ndarray:
    covariance = apart.T @ apart / len(apart)
    even = np.eye(len(covariance)) * np.trace(covariance) / len(covariance)
    return np.linalg.inv((1 - SHRINKAGE) * covariance + SHRINKAGE * even)
