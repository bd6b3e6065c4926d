"""The exported model as the benchmark sees it: ONNX Runtime through the server's own engines, one run on
every core, and the maps that the server shows."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service import explain
from service.artifact import Head
from service.engine import Device, Engine, GradientEngine
from service.methods import METHODS, Evidence

Maps = dict[str, np.ndarray]  # row of the table → (H, W) relevance, finer or coarser as the method gives it
GradientMaps = Callable[[np.ndarray], dict[int, np.ndarray]]  # question (K,) → stage → (H_s, W_s)
BATCH = 16
OURS = ("focus", "cam", "fine", "contrast")


@dataclass(frozen=True)
class Seen:
    """What one forward pass says of one picture: logits (K,) and the graph outputs `tokens`, `features`,
    `assignment_s`."""

    logits: np.ndarray
    arrays: dict[str, np.ndarray]


class Served:
    """model.onnx and explain.onnx. Runs of one thread each, several at once: `pool` maps over pictures."""

    def __init__(self, path: Path) -> None:
        one = Device("cpu", threads=1)
        self.engine = Engine(path, one)
        self.gradients = GradientEngine(path.with_name("explain.onnx"), one)
        self.manifest = self.engine.manifest
        self.head: Head = self.engine.head
        self.names = ("tokens", "features", *(s.output for s in self.manifest.clustered_stages if s.output))
        self.pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def probabilities(self, pictures: np.ndarray, target: int) -> np.ndarray:
        """(B, H, W, 3) uint8 → (B,) softmax probability of `target`."""
        logits = self.logits(pictures).astype(np.float64)
        exp = np.exp(logits - logits.max(1, keepdims=True))
        return exp[:, target] / exp.sum(1)

    def logits(self, pictures: np.ndarray) -> np.ndarray:
        """(B, K), in batches that fit the cache."""
        return np.concatenate(
            [self.engine.run(pictures[i : i + BATCH]).logits for i in range(0, len(pictures), BATCH)]
        )

    def see(self, picture: np.ndarray) -> Seen:
        """One forward pass with everything an explanation needs."""
        out = self.engine.run(picture[None], self.names).row(0)
        return Seen(out.logits, out.arrays)

    def gradient_maps(self, seen: Seen, weights: np.ndarray) -> dict[int, np.ndarray]:
        """stage → (H_s, W_s) of explain.onnx."""
        out = self.gradients.run(seen.arrays["features"][None], weights[None])
        return explain.stage_maps({name: values[0] for name, values in out.items()})

    def maps(self, seen: Seen, target: int) -> Maps:
        """Our rows for one class, by the very functions that answer requests."""
        info = self.manifest.explain
        assert info is not None, "this model comes without explain.onnx"
        return shown(
            self.manifest.stages[-1].grid, self.head, seen, target, lambda w: self.gradient_maps(seen, w)
        )


def shown(grid: tuple[int, int], head: Head, seen: Seen, target: int, gradient_maps: GradientMaps) -> Maps:
    """focus, cam, fine, focus against the runner-up, and two maps made of clusters, from one picture's
    outputs."""
    classes = len(seen.logits)
    single = explain.class_weights(classes, target)
    against = explain.class_weights(classes, target, explain.runner_up(seen.logits, target))
    cam = explain.contributions(seen.arrays["tokens"], grid, head, single)
    found = gradient_maps(single)
    maps: Maps = {method: _values(method, cam, found) for method in OURS[:3]}
    maps["contrast"] = _values(
        "focus", explain.contributions(seen.arrays["tokens"], grid, head, against), gradient_maps(against)
    )
    if clustered := [name for name in seen.arrays if name.startswith("assignment_")]:
        assignment = seen.arrays[max(clustered)]
        maps["raw clusters (max)"] = assignment.max(0)
        share = np.maximum(explain.shares(cam, assignment), 0)
        maps["clusters by share"] = np.einsum("m,mhw->hw", share, explain.membership(assignment))
    return maps


def _values(method: str, cam: np.ndarray, found: dict[int, np.ndarray]) -> np.ndarray:
    heat = METHODS[method].heatmap(Evidence(cam, found))
    assert heat is not None
    return heat.values
