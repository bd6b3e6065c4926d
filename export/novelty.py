"""How unlike the known pictures one is, from the outputs of one forward pass. numpy only.

The raw value is the energy (Liu et al. 2020) plus one linear or quadratic term on the pooled token, each
scaled by its spread over held-out pictures. The score is one minus the conformal p-value (Bates et al. 2023):
the share of held-out known pictures that are less novel. It is no promise to notice everything foreign.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DIMENSIONS = 16  # kept of the pooled token where no foreign pictures are given
SHRINKAGE = 0.05  # of covariances towards the identity
RIDGE = 1.0  # of the probe
STEPS = 12  # of Newton's method
FEWEST = 50  # held-out pictures


@dataclass(frozen=True)
class Statistics:
    """What scoring needs. scale: (2, 2), mean and spread of energy and of the term on held-out pictures.
    sorted_scores: their raw values, ascending. probe: (C + 1,), where foreign pictures were given. means,
    axes, precision: (K + 1, R), (C, R), (2, R, R) of the relative Mahalanobis distance, where not."""

    scale: np.ndarray
    sorted_scores: np.ndarray
    probe: np.ndarray | None = None
    means: np.ndarray | None = None
    axes: np.ndarray | None = None
    precision: np.ndarray | None = None


def score(logits: np.ndarray, pooled: np.ndarray, known: Statistics) -> np.ndarray:
    """logits (n, K), pooled tokens (n, C) → (n,), each the share of known pictures that are less novel."""
    below = np.searchsorted(known.sorted_scores, raw(logits, pooled, known), side="left")
    return below / (len(known.sorted_scores) + 1)


def raw(logits: np.ndarray, pooled: np.ndarray, known: Statistics) -> np.ndarray:
    """(n,), higher = more novel; the two terms after their scales."""
    terms = np.stack([_energy(logits), _term(pooled, known)])
    return ((terms - known.scale[0][:, None]) / known.scale[1][:, None]).sum(0)


def _energy(logits: np.ndarray) -> np.ndarray:
    top = logits.max(1)
    return -(top + np.log(np.exp(logits - top[:, None]).sum(1)))


def _term(pooled: np.ndarray, known: Statistics) -> np.ndarray:
    if known.probe is not None:
        return pooled @ known.probe[:-1] + known.probe[-1]
    assert known.axes is not None
    assert known.means is not None
    assert known.precision is not None
    apart = (pooled @ known.axes)[:, None] - known.means  # (n, K + 1, R), the last from the mean of all
    within = np.einsum("nkr,rs,nks->nk", apart[:, :-1], known.precision[0], apart[:, :-1]).min(1)
    return within - np.einsum("nr,rs,ns->n", apart[:, -1], known.precision[1], apart[:, -1])


Outputs = tuple[np.ndarray, np.ndarray]  # logits (n, K), pooled tokens (n, C)


def fit(
    known: Outputs, labels: np.ndarray, held_out: Outputs, foreign: Outputs | None = None
) -> Statistics | None:
    """Statistics from training pictures with their labels, held-out ones and, where there are any, foreign
    ones. None where too few are held out to say how rare a value is."""
    if len(held_out[0]) < FEWEST:
        return None
    zero = np.zeros((2, 2)), np.zeros(0)
    if foreign is not None:
        found = Statistics(*zero, probe=_probe(known[1], foreign[1]))
    else:
        found = Statistics(*zero, None, *_mahalanobis(known[1], labels))
    terms = np.stack([_energy(held_out[0]), _term(held_out[1], found)])
    scale = np.stack([terms.mean(1), terms.std(1) + 1e-12])
    values = (terms - scale[0][:, None]) / scale[1][:, None]
    return Statistics(scale, np.sort(values.sum(0)), found.probe, found.means, found.axes, found.precision)


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
