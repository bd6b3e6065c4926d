"""From one picture's model outputs to answers a person can read: class evidence, heatmaps, masks and
clusters. Pure functions, numpy only.

Every function takes plain arrays of one picture and returns plain arrays, so it can be used on saved outputs;
nothing here runs a model or draws. docs/how-it-explains.md says for each method what it may and may not be
read as.

Symbols: N patches of the last grid (h, w), C channels, K classes, M clusters of a stage with grid (H, W).
`weights` (K,) say what is explained, weights · logits: one-hot for a class, a difference for "why this and
not that".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .artifact import Head
from .geometry import Fractions, bounds, largest_component, resample, smooth, spread
from .results import Completeness


@dataclass(frozen=True)
class Tuning:
    """How maps of several stages become one. smooth: side of the mean filter, in cells of the finest map
    (odd). fine: weights of the parts of `fine`: the contributions, and each gradient map. mask: share of the
    heatmap's maximum from which a place belongs to the mask. detail: cells along the longer side of a
    mask."""

    smooth: int = 3
    fine: tuple[float, float] = (1.0, 1.0)
    mask: float = 0.2
    detail: int = 128


TUNING = Tuning()


def class_weights(classes: int, target: int, against: int | None = None) -> np.ndarray:
    """(K,) float32: 1 at the target, and -1 at the class it is contrasted with. A class against itself asks
    nothing: zeros."""
    weights = np.zeros(classes, np.float32)
    weights[target] += 1
    if against is not None:
        weights[against] -= 1
    return weights


def runner_up(logits: np.ndarray, target: int) -> int:
    """The class with the highest logit but the target's."""
    return int(np.argmax(np.where(np.arange(len(logits)) == target, -np.inf, logits)))


def contributions(tokens: np.ndarray, grid: tuple[int, int], head: Head, weights: np.ndarray) -> np.ndarray:
    """What each patch of the last grid adds to the explained logit: weights · W · token / N, (h, w) float32,
    signed.

    Exact, not a model of the model: the logits are the mean token times the head, so contributions + weights
    · bias = weights · logits (CAM, Zhou et al. 2016; equal to HiResCAM at these tokens). tokens: (N, C), the
    output `tokens`.
    """
    explained = np.flatnonzero(weights)
    direction = np.einsum("k,kc->c", weights[explained].astype(np.float64), head.weight[explained])
    return (np.einsum("nc,c->n", tokens, direction) / len(tokens)).reshape(grid).astype(np.float32)


def completeness(cam: np.ndarray, head: Head, weights: np.ndarray, logits: np.ndarray) -> Completeness:
    """The account: what the patches add up to, what the bias adds, and how far that is from the logit the
    model gave."""
    total, weights = float(cam.sum(dtype=np.float64)), weights.astype(np.float64)
    bias, logit = float(weights @ head.bias), float(weights @ logits)
    return Completeness(total, bias, logit, total + bias - logit)


def stage_maps(outputs: Mapping[str, np.ndarray]) -> dict[int, np.ndarray]:
    """stage → map, of the outputs `map_<stage>` of explain.onnx; its other outputs are left out."""
    return {
        int(name.removeprefix("map_")): values for name, values in outputs.items() if name.startswith("map_")
    }


def focus(cam: np.ndarray, maps: Mapping[int, np.ndarray], tuning: Tuning = TUNING) -> np.ndarray:
    """relu(cam) x relu(smoothed sum of the gradient maps, each over its standard deviation), on the finest
    map's grid.

    Where the last stage sees evidence for the class, sharpened by where earlier stages hold it. Non-negative,
    its maximum 1 (all zeros if nothing speaks for the class). A product is not complete: it has no unit.
    """
    size = max(values.shape for values in maps.values())
    detail = smooth(
        sum((_standardise(resample(values, size)) for values in maps.values()), np.zeros(size)), tuning.smooth
    )
    return _to_unit(np.maximum(resample(cam, size), 0) * np.maximum(detail, 0))


def fine(cam: np.ndarray, maps: Mapping[int, np.ndarray], tuning: Tuning = TUNING) -> np.ndarray:
    """The weighted sum of the contributions and the gradient maps, each over its standard deviation,
    smoothed: sharper, ranks single patches best. Signed, the largest magnitude 1."""
    size = max(values.shape for values in maps.values())
    first, rest = tuning.fine
    total = first * _standardise(resample(cam, size))
    for values in maps.values():
        total = total + rest * _standardise(resample(values, size))
    return _to_unit(smooth(total, tuning.smooth))


def _standardise(values: np.ndarray) -> np.ndarray:
    deviation = float(values.std(dtype=np.float64))
    return values / deviation if deviation > 1e-12 else np.zeros_like(values)


def _to_unit(values: np.ndarray) -> np.ndarray:
    largest = float(np.abs(values).max())
    return (values / largest if largest > 0 else np.zeros_like(values)).astype(np.float32)


@dataclass(frozen=True)
class Mask:
    """region: (H, W) bool over the map's area, one connected part. threshold: relative to the map's maximum.
    bbox: None if the region is empty."""

    region: np.ndarray
    threshold: float
    bbox: Fractions | None


def mask(values: np.ndarray, threshold: float | None = None, tuning: Tuning = TUNING) -> Mask:
    """Where a heatmap is at least `threshold` x its maximum, the largest connected part only; nothing where
    no number is positive.

    The map is first made `tuning.detail` cells long (linear), so that the outline follows the numbers and not
    the grid.
    """
    threshold = tuning.mask if threshold is None else threshold
    factor = max(1, -(-tuning.detail // max(values.shape)))
    values = resample(values, (values.shape[0] * factor, values.shape[1] * factor))
    top = float(values.max())
    region = largest_component(values >= threshold * top) if top > 0 else np.zeros(values.shape, bool)
    return Mask(region, threshold, bounds(region))


def membership(assignment: np.ndarray, clusters: Sequence[int] | None = None) -> np.ndarray:
    """P(cluster | patch) of the `clusters` (default all), (M, H, W) float32: the assignment with every
    patch's column scaled to sum 1; even where no cluster takes a patch at all."""
    total = _taken(assignment)
    chosen = assignment if clusters is None else assignment[list(clusters)]
    return np.where(total > 0, chosen / np.where(total > 0, total, 1), 1 / len(assignment)).astype(np.float32)


def _taken(assignment: np.ndarray) -> np.ndarray:
    """(H, W) float64: how much all clusters together take of each patch."""
    return assignment.sum(0, dtype=np.float64)


def _distribute(patches: np.ndarray, assignment: np.ndarray) -> np.ndarray:
    """(H, W) amounts → (M,): each patch's amount given to the clusters by P(cluster | patch). float64; the
    sum stays."""
    total = _taken(assignment)
    idle = total <= 0
    part = np.where(idle, 0, patches / np.where(idle, 1, total))
    return np.einsum("mhw,hw->m", assignment, part) + patches[idle].sum() / len(assignment)


def segment(assignment: np.ndarray) -> np.ndarray:
    """(H, W) integers: the cluster that takes each patch most strongly."""
    return np.argmax(assignment, axis=0)


def areas(assignment: np.ndarray) -> np.ndarray:
    """(M,): the part of the picture where each cluster is the strongest; sums to 1."""
    labels = segment(assignment)
    return np.bincount(labels.ravel(), minlength=len(assignment)) / labels.size


def shares(cam: np.ndarray, assignment: np.ndarray) -> np.ndarray:
    """(M,) float64, in logits, signed: the part of the class evidence located in each cluster.

    The contributions are distributed over the finer patches of the clusters' stage, and there to the clusters
    by P(cluster | patch). So the shares of a stage sum to the contributions: shares + bias = logit. An
    account of where, not of what would happen without the cluster (that is its effect).
    """
    return _distribute(spread(cam.astype(np.float64), (assignment.shape[1], assignment.shape[2])), assignment)


@dataclass(frozen=True)
class ClusterView:
    """One cluster for showing. share, effect: in logits, None if not requested; area: part of the picture
    where it is the strongest; centroid: (x, y) of its mass and bbox: where it is at least half its maximum
    (largest part), as fractions of the map. values: (H, W) float32, 0..1: how far each patch belongs to it,
    P(cluster | patch)."""

    cluster: int
    share: float | None
    effect: float | None
    area: float
    centroid: tuple[float, float]
    bbox: Fractions | None
    values: np.ndarray


def strongest(
    assignment: np.ndarray, count: int, cam: np.ndarray | None = None, effects: np.ndarray | None = None
) -> tuple[ClusterView, ...]:
    """The `count` clusters that matter most. With `cam`: by share of the evidence, largest first. Without: by
    how much of the picture they take (the sum of P(cluster | patch)), which has nothing to do with any class.
    effects: (M,), of `explain.onnx`."""
    share = None if cam is None else shares(cam, assignment)
    weight = _distribute(np.ones(assignment.shape[1:]), assignment) if share is None else share
    area = areas(assignment)
    order = np.argsort(-weight, kind="stable")[:count].tolist()
    return tuple(
        ClusterView(
            cluster=m,
            share=None if share is None else float(share[m]),
            effect=None if effects is None else float(effects[m]),
            area=float(area[m]),
            centroid=_centroid(belongs),
            bbox=bounds(largest_component(belongs >= 0.5 * belongs.max())),
            values=belongs,
        )
        for m, belongs in zip(order, membership(assignment, order), strict=True)
    )


def _centroid(values: np.ndarray) -> tuple[float, float]:
    height, width = values.shape
    total = float(values.sum(dtype=np.float64))
    if total <= 0:
        return 0.5, 0.5
    x = float(values.sum(0, dtype=np.float64) @ (np.arange(width) + 0.5)) / total / width
    y = float(values.sum(1, dtype=np.float64) @ (np.arange(height) + 0.5)) / total / height
    return x, y
