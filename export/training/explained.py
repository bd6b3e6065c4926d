"""How true the explanations of an exported model are on labelled pictures: what `paca evaluate --explain`
measures, on the server's engine and by its own methods. Needs no torch.

The arithmetic is the work of `map_metrics`, the check that of `service.check`, the boxes that of `boxes`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from service import explain
from service.artifact import FIRST_ORDER
from service.check import check
from service.engine import Device, Engine, GradientEngine
from service.geometry import resample
from service.hiding import GRID, blurred, hidden
from service.methods import GRADIENTS, TOKENS, Evidence, Method, available
from service.plan import offers
from service.results import Heatmap

from . import served
from .boxes import read_boxes, seen
from .data import DataError, Pictures
from .map_metrics import Fractions, area, boxes, points, revealed, spearman
from .metrics import log_softmax
from .progress import Track, plainly

MOST = 200  # pictures, evenly spaced: some minutes on one core
STEPS = 5  # in which cells are shown or hidden
BATCH = 16
RANDOM = "random places"  # the row that asks no model
T = TypeVar("T")
Values = dict[str, dict[str, list[float]]]  # method → measure → one number a picture


@dataclass(frozen=True)
class Measured:
    """One method. pictures: those that the model names rightly. insertion, deletion: areas under the class's
    probability while places are shown or hidden, most relevant first; difference: the first less the second.
    passed: share whose check passes. random_head: rank correlation with the map of a class that is none.
    pointing: share whose highest place lies in a box; boxed: of so many pictures."""

    method: str
    pictures: int
    insertion: float | None
    deletion: float | None
    difference: float | None
    passed: float | None
    random_head: float | None
    pointing: float | None
    boxed: int


@dataclass(frozen=True)
class Explained:
    """pictures: looked at, `right` of them named rightly."""

    model: str
    data: str
    precision: str
    pictures: int
    right: int
    methods: tuple[Measured, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    model: Path, data: Path, most: int = MOST, device: str = "auto", track: Track = plainly
) -> Explained:
    """Every class-specific method of one run that the model has (`occlusion` where it has no other), and
    random places, on up to `most` pictures.

    Raises DataError for data that does not fit, BadArtifact for a model that cannot be read.
    """
    subject = Subject(model, device)
    pictures = served.read(data, subject.labels, subject.engine.manifest.preprocessing)
    rows = np.linspace(0, len(pictures), min(len(pictures), most), endpoint=False).astype(int)
    pictures = pictures.take(rows)
    regions = _regions(data, pictures, subject)
    values: Values = defaultdict(lambda: defaultdict(list))
    for i in track(range(len(pictures)), len(pictures), "explaining"):
        for name, found in _one(subject, pictures, i, regions.get(i)).items():
            for key, value in found.items():
                values[name][key].append(value)
    right = len(values[RANDOM]["insertion"])
    if not right:
        raise DataError(f"{data}: the model names no picture rightly, so there is nothing to explain")
    rows_ = tuple(_measured(name, found) for name, found in values.items())
    part = served.scored_part(data).name
    return Explained(model.name, part, subject.engine.manifest.precision, len(pictures), right, rows_)


def _one(
    subject: Subject, pictures: Pictures, i: int, region: np.ndarray | None
) -> dict[str, dict[str, float]]:
    """Method → measure → number, of picture `i`. region: (H, W), the pixels in its boxes."""
    picture, target = pictures.images[i], int(pictures.labels[i])
    logits, arrays = subject.see(picture)
    maps = subject.maps(picture, logits, arrays, subject.weights(target))
    shown = maps | {RANDOM: np.random.default_rng(i).random((GRID, GRID)).astype(np.float32)}
    found: dict[str, dict[str, float]] = {name: {} for name in shown}
    if region is not None:
        for name, values in shown.items():
            found[name]["pointing"] = points(values, region)
    if int(logits.argmax()) != target:
        return found
    for name, values in subject.maps(picture, logits, arrays, subject.no_class(target, i)).items():
        found[name]["random_head"] = spearman(values, maps[name])
    for name, measured in faithfulness(subject, picture, target, shown).items():
        found[name] |= measured
    return found


def _measured(name: str, found: dict[str, list[float]]) -> Measured:
    means = {key: round(float(np.mean(found[key])), 4) if found.get(key) else None for key in _KEYS}
    return Measured(name, pictures=len(found["insertion"]), boxed=len(found["pointing"]), **means)


_KEYS = ("insertion", "deletion", "difference", "passed", "random_head", "pointing")


class Subject:
    """The model and what explains it."""

    def __init__(self, path: Path, device: str) -> None:
        where = Device(device)
        self.engine = Engine(path, where)
        manifest = self.engine.manifest
        self.labels = manifest.labels
        explain_file = path.with_name("explain.onnx")
        self.gradients: GradientEngine | None = None
        if manifest.explain and explain_file.is_file():
            self.gradients = GradientEngine(explain_file, where)
            self.gradients.self_test(self.engine)
        has = offers(manifest, self.gradients is not None)
        named = [method for method in available(has) if method.class_specific]
        self.methods = [method for method in named if method.heatmap] or named
        self.first_order = TOKENS in has and manifest.head == FIRST_ORDER
        self.uses_gradients = self.first_order or any(GRADIENTS in method.needs for method in self.methods)
        self.batch = min(BATCH, self.engine.max_batch or BATCH)

    def see(self, picture: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        tokens = ["tokens"] if self.engine.manifest.has_tokens else []
        features = ["features"] if self.uses_gradients else []
        out = self.engine.run(picture[None], (*tokens, *features)).row(0)
        return out.logits, out.arrays

    def logits(self, pictures: np.ndarray) -> np.ndarray:
        starts = range(0, len(pictures), self.batch)
        return np.concatenate([self.engine.run(pictures[i : i + self.batch]).logits for i in starts])

    def scores(self, logits: np.ndarray, target: int) -> np.ndarray:
        """(n, K) → (n,), as the server scores."""
        return np.exp(log_softmax(logits, self.engine.manifest.temperature)[:, target])

    def weights(self, target: int) -> np.ndarray:
        return explain.class_weights(len(self.labels), target)

    def no_class(self, target: int, seed: int) -> np.ndarray:
        """(K,): a random mixture of the head's rows, less what it has of the target's: what a class would be
        that was never learned."""
        weights = np.random.default_rng(seed).normal(size=len(self.labels)).astype(np.float32)
        if self.engine.head is None:
            weights[target] = 0
            return weights
        head = self.engine.head.weight.astype(np.float64)
        own = head[target]
        weights[target] -= float((weights @ head) @ own / max(own @ own, 1e-12))
        return weights

    def maps(
        self, picture: np.ndarray, logits: np.ndarray, arrays: dict[str, np.ndarray], weights: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Method → map (h, w)."""
        stages = {}
        if self.gradients and self.uses_gradients:
            out = self.gradients.run(arrays["features"][None], weights[None])
            stages = explain.stage_maps({name: values[0] for name, values in out.items()})
        cam = self._cam(arrays, stages, weights)
        evidence = Evidence(cam, stages, weights, logits, picture, not self.first_order)
        found = {method.name: self._map(method, evidence) for method in self.methods}
        return {name: heat.values for name, heat in found.items() if heat is not None}

    def _cam(
        self, arrays: dict[str, np.ndarray], stages: dict[int, np.ndarray], weights: np.ndarray
    ) -> np.ndarray | None:
        """What the last patches contribute, where the model tells."""
        head, last = self.engine.head, self.engine.manifest.stages[-1:]
        if self.first_order:
            return stages.get(last[0].stage)
        if head is None or "tokens" not in arrays:
            return None
        return explain.contributions(arrays["tokens"], last[0].grid, head, weights)

    def _map(self, method: Method, evidence: Evidence) -> Heatmap | None:
        if method.probe is not None:
            return self.run(method.probe(evidence))
        return method.heatmap(evidence) if method.heatmap else None

    def run(self, probe: Generator[np.ndarray, np.ndarray, T]) -> T:
        """What a generator of pictures to run returns."""
        try:
            pictures = next(probe)
            while True:
                pictures = probe.send(self.logits(pictures))
        except StopIteration as done:
            result: T = done.value
            return result


def faithfulness(
    subject: Subject, picture: np.ndarray, target: int, maps: dict[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Method → measure → number, of one picture. Shown on the blurred picture, hidden by the mean colour."""
    mean = np.round(255 * np.array(subject.engine.manifest.preprocessing.mean)).astype(np.uint8)
    nothing, soft = np.broadcast_to(mean, picture.shape), blurred(picture)
    places = {
        name: revealed(resample(values, (GRID, GRID)), STEPS, np.random.default_rng(0))
        for name, values in maps.items()
    }
    inner = [place for found in places.values() for place in found[1:-1]]
    stack = [picture, soft, nothing, *(hidden(picture, soft, ~p) for p in inner)]
    stack += [hidden(picture, nothing, place) for place in inner]
    logits = subject.logits(np.stack(stack))
    (whole, blank, empty), rest = subject.scores(logits, target)[:3], subject.scores(logits, target)[3:]
    shown, hid = (part.reshape(len(maps), STEPS - 1) for part in np.split(rest, 2))
    measured = {}
    for i, (name, values) in enumerate(maps.items()):
        insertion, deletion = (
            area(np.array([blank, *shown[i], whole])),
            area(np.array([whole, *hid[i], empty])),
        )
        steps = check(picture, values, float(whole), lambda found: subject.scores(found, target))
        measured[name] = {
            "insertion": insertion,
            "deletion": deletion,
            "difference": insertion - deletion,
            "passed": float(subject.run(steps).passed),
        }
    return measured


def _regions(data: Path, pictures: Pictures, subject: Subject) -> dict[int, np.ndarray]:
    """Row → (H, W) bool, the pixels in its boxes as the network sees them."""
    drawn = read_boxes(data) if data.is_dir() else {}
    part, how = served.scored_part(data), subject.engine.manifest.preprocessing
    found: dict[int, np.ndarray] = {}
    for i, name in enumerate(pictures.names if drawn else ()):
        file = part / name
        mine: list[Fractions] | None = drawn.get(file.relative_to(data).as_posix())
        if mine:
            found[i] = boxes(seen(file, mine, how), how.size)
    if drawn and not found:
        raise DataError(f"{data / 'boxes.csv'} names none of the pictures that are looked at")
    return found
