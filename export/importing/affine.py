"""What is left of a network after its mean, if that is affine: one matrix and one bias, in float64.

A table of operators, each applied to an affine map of the pooled vector. Operators that are not in it, or not
with constants alone, are not affine: `recognise` then looks for the first order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

VIEWS = ("Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Cast")  # values stay, in order


@dataclass(frozen=True)
class Affine:
    """x → weight x + bias. weight: (K, C), bias: (K,)."""

    weight: np.ndarray
    bias: np.ndarray

    @classmethod
    def identity(cls, width: int) -> Affine:
        return cls(np.eye(width), np.zeros(width))

    def then(self, weight: np.ndarray, bias: np.ndarray | float = 0.0) -> Affine:
        """Followed by a matrix (L, K) and a bias (L,)."""
        return Affine(weight @ self.weight, weight @ self.bias + bias)

    def scaled(self, factor: np.ndarray) -> Affine:
        """factor: (K,), one for each number."""
        return Affine(self.weight * factor[:, None], self.bias * factor)

    def shifted(self, by: np.ndarray) -> Affine:
        return Affine(self.weight, self.bias + by)


@dataclass(frozen=True)
class Step:
    """One node: its attributes, its inputs (None for the one that holds data), and which that is."""

    attributes: Mapping[str, Any]
    inputs: Sequence[np.ndarray | None]
    position: int

    def constant(self, index: int) -> np.ndarray | None:
        value = self.inputs[index] if index < len(self.inputs) else None
        return None if value is None else value.astype(np.float64)

    def vector(self, size: int) -> np.ndarray | None:
        """The other operand of two, one number for each of `size`; None where it is no such vector."""
        value = self.constant(1 - self.position)
        if value is None or value.size not in (1, size):
            return None
        return np.broadcast_to(value.ravel(), (size,))


def _gemm(map_: Affine, step: Step) -> Affine | None:
    matrix = step.constant(1)
    if step.position != 0 or matrix is None or step.attributes.get("transA", 0):
        return None
    matrix = matrix if step.attributes.get("transB", 0) else matrix.T
    bias = step.constant(2)
    added = 0.0 if bias is None else step.attributes.get("beta", 1.0) * bias.ravel()
    return map_.then(step.attributes.get("alpha", 1.0) * matrix, added)


def _matmul(map_: Affine, step: Step) -> Affine | None:
    matrix = step.constant(1)
    if step.position != 0 or matrix is None or matrix.ndim != 2:
        return None
    return map_.then(matrix.T)


def _conv(map_: Affine, step: Step) -> Affine | None:
    """Of a map of 1 x 1."""
    kernel = step.constant(1)
    if step.position != 0 or kernel is None or step.attributes.get("group", 1) != 1:
        return None
    if int(np.prod(kernel.shape[2:])) != 1 or any(step.attributes.get("pads", ())):
        return None
    bias = step.constant(2)
    return map_.then(kernel.reshape(kernel.shape[:2]), 0.0 if bias is None else bias)


def _batch_norm(map_: Affine, step: Step) -> Affine | None:
    parts = [step.constant(i) for i in range(1, 5)]
    if step.position != 0 or any(part is None for part in parts):
        return None
    scale, bias, mean, variance = (np.asarray(part) for part in parts)
    factor = scale / np.sqrt(variance + step.attributes.get("epsilon", 1e-5))
    return map_.scaled(factor).shifted(bias - mean * factor)


def _add(map_: Affine, step: Step) -> Affine | None:
    other = step.vector(len(map_.bias)) if len(step.inputs) == 2 else None
    return None if other is None else map_.shifted(other)


def _sub(map_: Affine, step: Step) -> Affine | None:
    other = step.vector(len(map_.bias))
    if other is None:
        return None
    minus = -np.ones(len(map_.bias))
    return map_.shifted(-other) if step.position == 0 else map_.scaled(minus).shifted(other)


def _mul(map_: Affine, step: Step) -> Affine | None:
    other = step.vector(len(map_.bias))
    return None if other is None else map_.scaled(other)


def _div(map_: Affine, step: Step) -> Affine | None:
    other = step.vector(len(map_.bias))
    return None if other is None or step.position != 0 else map_.scaled(1 / other)


RULES: dict[str, Callable[[Affine, Step], Affine | None]] = {
    **{name: lambda map_, step: map_ if step.position == 0 else None for name in VIEWS},
    "Neg": lambda map_, step: map_.scaled(-np.ones(len(map_.bias))),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    "Add": _add,
    "Sum": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
}
