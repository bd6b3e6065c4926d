"""Parts: groups of a model's own tokens, for every model that has tokens.

A part is what looks alike to the network in this picture (deep feature factorisation, Collins et al. 2018,
by k-means). The network did not attend to parts: they are never called clusters. The start is fixed, so
equal pictures give equal parts.
"""

from __future__ import annotations

import numpy as np

from .geometry import product, taps

PARTS = 5
ROUNDS = 12
MOST_PATCHES = 1024  # of the finer tokens: with more, their products take too long
FINE = 0.6  # how much the finer tokens count beside the last ones; tokens have length 1 each


def parts(last: np.ndarray, fine: np.ndarray | None = None, count: int = PARTS) -> np.ndarray:
    """(H, W) integers: the part of each patch, on the grid of `fine`, else of `last`.

    last: (h, w, C), tokens of the last stage. fine: (H, W, D), tokens of an earlier one; give none with more
    than MOST_PATCHES. Numbers go from 0; a picture without detail can have fewer than `count`.
    """
    products = _products(last)
    if fine is not None:
        stretch = _stretch(last.shape[:2], fine.shape[:2])
        products = product(product(stretch, products), stretch.T) + FINE**2 * _products(fine)
    grid = last.shape[:2] if fine is None else fine.shape[:2]
    return _k_means(products, count).reshape(grid)


def memberships(labels: np.ndarray) -> np.ndarray:
    """(count, H, W) float32: 1 where a patch is of the part, else 0."""
    return (labels == np.arange(labels.max() + 1)[:, None, None]).astype(np.float32)


def _products(tokens: np.ndarray) -> np.ndarray:
    """(N, N) scalar products of the tokens (h, w, C), each brought to length 1 first."""
    rows = tokens.reshape(-1, tokens.shape[-1]).astype(np.float32)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return product(rows, rows.T)


def _stretch(size: tuple[int, ...], to: tuple[int, ...]) -> np.ndarray:
    """(H * W, h * w): brings patches of one grid to another, linear."""
    return np.kron(taps(size[0], to[0], 0, to[0]), taps(size[1], to[1], 0, to[1])).astype(np.float32)


def _k_means(products: np.ndarray, count: int) -> np.ndarray:
    """The group of each of n points, of which only the (n, n) scalar products are needed.

    Starts from the point nearest the mean, then from the point farthest from those chosen.
    """
    squares = np.diag(products)
    chosen = [int(np.argmin(squares - 2 * products.mean(1)))]
    apart = np.maximum(squares + squares[chosen[0]] - 2 * products[chosen[0]], 0)
    while len(chosen) < min(count, len(products)) and apart.max() > 1e-6:
        far = int(np.argmax(apart))
        chosen.append(far)
        apart = np.minimum(apart, np.maximum(squares + squares[far] - 2 * products[far], 0))
    weights = np.eye(len(products), dtype=np.float32)[chosen]  # (count, n): a centre as a mean of points
    labels = np.full(len(products), -1)
    for _ in range(ROUNDS):
        to_points = product(weights, products)
        distances = (to_points * weights).sum(1, keepdims=True) - 2 * to_points
        moved = np.argmin(distances, axis=0)
        if (moved == labels).all():
            break
        labels = moved
        members = (labels == np.arange(len(weights))[:, None]).astype(np.float32)
        sizes = members.sum(1, keepdims=True)
        weights = np.where(sizes > 0, members / np.maximum(sizes, 1), weights)
    return np.unique(labels, return_inverse=True)[1]
