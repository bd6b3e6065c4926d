"""Fits what `service.novelty` scores with: from known pictures alone, or against foreign ones. numpy only.

The scorer owns the formula, so that what is fitted is what is served.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from service.novelty import Statistics, energy

DIMENSIONS = 16  # kept of the pooled token where no foreign pictures are given
SHRINKAGE = 0.05  # of covariances towards the identity
RIDGE = 1.0  # of the probe
STEPS = 12  # of Newton's method
FEWEST = 50  # held-out pictures


Outputs = tuple[np.ndarray, np.ndarray]  # logits (n, K), pooled tokens (n, C)


def fit(
    known: Outputs, labels: np.ndarray, held_out: Outputs, foreign: Outputs | None = None
) -> Statistics | None:
    """Statistics from training pictures with their labels, held-out ones and, where there are any, foreign
    ones. None where too few are held out to say how rare a value is."""
    if len(held_out[0]) < FEWEST:
        return None
    if foreign is not None:
        known_so_far = Statistics(_UNIT, _NONE, probe=_probe(known[1], foreign[1]))
    else:
        means, axes, precision = _mahalanobis(known[1], labels)
        known_so_far = Statistics(_UNIT, _NONE, means=means, axes=axes, precision=precision)
    terms = np.stack([energy(held_out[0]), known_so_far.term(held_out[1])])
    scaled = dataclasses.replace(known_so_far, scale=np.stack([terms.mean(1), terms.std(1) + 1e-12]))
    return dataclasses.replace(scaled, sorted_scores=np.sort(scaled.raw(*held_out)))


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


def _mahalanobis(pooled: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(means, axes, precision) of the distance to the nearest class relative to that to all (Ren et al.
    2021), in the principal directions."""
    x = pooled.astype(np.float64)
    _, axes = np.linalg.eigh(np.cov(x.T))
    axes = axes[:, -DIMENSIONS:]
    x = x @ axes
    means = np.stack([*(x[labels == k].mean(0) for k in np.unique(labels)), x.mean(0)])
    own = means[np.searchsorted(np.unique(labels), labels)]
    return means, axes, np.stack([_precision(x - own), _precision(x - means[-1])])


def _precision(apart: np.ndarray) -> np.ndarray:
    covariance = apart.T @ apart / len(apart)
    even = np.eye(len(covariance)) * np.trace(covariance) / len(covariance)
    return np.linalg.inv((1 - SHRINKAGE) * covariance + SHRINKAGE * even)
