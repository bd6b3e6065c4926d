"""One picture's model outputs → `results.Explanation`: the numbers of `explain` and the pictures of `render`.

A `Scene` is made once a picture; each target of it then takes one call. Runs in a worker thread and runs no
model: gradient maps and the maps of probing methods are handed in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TypeVar

import numpy as np

from . import explain
from .artifact import Head, Manifest
from .geometry import Fractions, Window, to_pixel, to_pixels
from .options import MAX_SIDE
from .parts import MOST_PATCHES, memberships, parts
from .plan import Plan
from .render import RENDERS, Canvas, Layers, fit
from .results import (
    Box,
    Check,
    Cluster,
    Explanation,
    Fading,
    Heatmap,
    ImageInfo,
    MaskInfo,
    Novelty,
    Part,
    Picture,
    Prediction,
    Segmentation,
    TargetInfo,
)

CLUSTER_SIDE = 256  # longer side of a cluster overlay, unless a size is requested
PALE = 0.4  # strength of an overlay that should not be believed as it stands
FAINTEST = 0.25  # an overlay is never paler than this
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
# encoders leave the interpreter to others, so the pictures of one response are drawn side by side
_DRAWERS = ThreadPoolExecutor(CORES, thread_name_prefix="drawing") if CORES > 1 else None
T = TypeVar("T")


def probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(logits / temperature), float64 (K,)."""
    scaled = logits.astype(np.float64) / temperature
    scaled = np.exp(scaled - scaled.max())
    return scaled / scaled.sum()


def predictions(logits: np.ndarray, manifest: Manifest, top_k: int) -> tuple[Prediction, ...]:
    """The `top_k` classes, most probable first; ties in order of class id."""
    scores = probabilities(logits, manifest.temperature)
    order = np.argsort(-scores, kind="stable")[:top_k]
    return tuple(Prediction(manifest.labels[i], int(i), float(scores[i]), float(logits[i])) for i in order)


def longest_side(size: str | int, model_side: int) -> int:
    """The most pixels along the longer side that pictures of this `size` option have."""
    return size if isinstance(size, int) else model_side if size == "model" else MAX_SIDE


@dataclass(frozen=True)
class Photo:
    """A decoded picture to draw on. rgb: (h, w, 3) uint8, upright, possibly decoded smaller than `info` says.
    window: the part that the network sees, in pixels of the original."""

    rgb: np.ndarray
    window: Window
    info: ImageInfo


class Scene:
    """One picture, ready to be explained: what the network gave for it, and a canvas of the photo."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        head: Head | None,
        photo: Photo,
        outputs: Mapping[str, np.ndarray],
        novelty: Novelty | None = None,
    ) -> None:
        """head: None where the logits are not linear in the tokens. outputs: the picture's graph outputs,
        "logits" (K,) among them. novelty: the picture's."""
        self.plan, self.manifest, self.head, self.novelty = plan, manifest, head, novelty
        self.window, self.size = photo.window, (photo.info.width, photo.info.height)
        self.logits = outputs["logits"]
        self.tokens, self.features = outputs.get("tokens"), outputs.get("features")
        self.assignment = outputs.get(f"assignment_{plan.stage}")
        self.canvas = _canvas(plan, photo, max(manifest.preprocessing.size))
        cluster_side = CLUSTER_SIDE if plan.options.size == "original" else max(self.canvas.size)
        self.small = self.canvas.smaller(cluster_side)

    def contributions(
        self, weights: np.ndarray, gradients: Mapping[str, np.ndarray] | None = None
    ) -> np.ndarray | None:
        """(h, w): what each patch of the last grid adds to weights · logits. gradients: the outputs of
        explain.onnx for these weights, which has it where the head is not linear. None where nothing has."""
        if self.plan.first_order:
            return (gradients or {}).get(f"map_{self.manifest.stages[-1].stage}")
        if self.tokens is None or self.head is None:
            return None
        return explain.contributions(self.tokens, self.manifest.stages[-1].grid, self.head, weights)

    def score(self, class_id: int, logits: np.ndarray) -> np.ndarray:
        """(n,) probabilities of one class, of logits (n, K)."""
        temperature = self.manifest.temperature
        return np.array([probabilities(row, temperature)[class_id] for row in logits])

    @cached_property
    def parts(self) -> tuple[int, np.ndarray] | None:
        """(stage, part of each patch), where parts were requested."""
        if "parts" not in self.plan.render or self.tokens is None:
            return None
        stages, info = self.manifest.stages, self.manifest.explain
        last = self.tokens.reshape(*stages[-1].grid, -1)
        fine = next((stage for stage in stages if info and stage.stage == info.stage), stages[-1])
        if self.features is None or len(self.features) > MOST_PATCHES:
            return stages[-1].stage, parts(last)
        return fine.stage, parts(last, self.features.reshape(*fine.grid, -1))

    @cached_property
    def top_evidence(self) -> float:
        """What speaks for the top class, all patches together, in logits; 0 where no run tells."""
        top = explain.class_weights(len(self.logits), int(np.argmax(self.logits)))
        cam = self.contributions(top)
        return 0.0 if cam is None else float(np.maximum(cam, 0).sum())

    def target(self, class_id: int) -> TargetInfo:
        """A class as a response names it."""
        return TargetInfo(
            self.manifest.labels[class_id],
            class_id,
            float(self.logits[class_id]),
            None if self.head is None else float(self.head.bias[class_id]),
        )


@dataclass(frozen=True)
class Target:
    """One explained quantity of a picture. contrast: the class it is held against, or None. cam: (h, w), its
    contributions, or None. gradients: the outputs of explain.onnx for it, empty where that did not run.
    heatmap: its map by the plan's method, None for methods without a map. check: what hiding places did."""

    class_id: int
    contrast: int | None
    cam: np.ndarray | None
    gradients: Mapping[str, np.ndarray]
    heatmap: Heatmap | None
    check: Check | None = None


def explanation(scene: Scene, target: Target) -> Explanation:
    """The answer for one target of one picture."""
    plan, heat, assignment = scene.plan, target.heatmap, scene.assignment
    region = None if heat is None else explain.mask(heat.values)
    views = () if assignment is None else _views(plan, assignment, target)
    labels = None
    if assignment is not None:
        labels = _ranked(explain.segment(assignment), [view.cluster for view in views])
    weights = explain.class_weights(len(scene.logits), target.class_id, target.contrast)
    fading = None if heat is None else _fading(scene, target)
    of_parts = _part_views(scene, target)
    layers = Layers(
        heat,
        None if region is None else region.region,
        labels,
        None if scene.parts is None else _ranked(scene.parts[1], [view.cluster for view in of_parts]),
        1.0 if fading is None else fading.strength,
    )
    pictures = _begin(partial(_pictures, scene, layers))
    clusters = [_begin(partial(_cluster, scene, view)) for view in views]
    drawn_parts = [_begin(partial(_part, scene, view)) for view in of_parts]
    return Explanation(
        target=scene.target(target.class_id),
        contrast=None if target.contrast is None else scene.target(target.contrast),
        method=plan.info,
        completeness=explain.completeness(target.cam, scene.head, weights, scene.logits)
        if plan.info.complete and target.cam is not None and scene.head is not None
        else None,
        heatmap=heat,
        images=pictures(),
        mask=None if region is None else _mask(region, scene),
        clusters=tuple(drawn() for drawn in clusters),
        window=scene.window,
        segmentation=None
        if assignment is None
        else Segmentation(plan.stage or 0, explain.segment(assignment)),
        parts=tuple(drawn() for drawn in drawn_parts),
        check=target.check,
        fading=fading,
    )


def _fading(scene: Scene, target: Target) -> Fading:
    """How strongly the map is drawn: as strongly as what it shows should be believed."""
    if scene.plan.options.scale == "relative":
        return Fading(1.0)
    doubts: list[tuple[float, str]] = []
    if scene.novelty and scene.novelty.is_novel:
        doubts.append((PALE, "the picture is unlike the training pictures"))
    if target.contrast is None and target.cam is not None and scene.top_evidence > 0:
        part = float(np.maximum(target.cam, 0).sum()) / scene.top_evidence
        if part < 0.95:
            top = scene.manifest.labels[int(np.argmax(scene.logits))]
            doubts.append(
                (max(FAINTEST, part), f"{100 * part:.0f} % as much speaks for this class as for {top}")
            )
    if target.check and not target.check.passed:
        doubts.append((PALE, "hiding what the map shows changes the answer no more than hiding other places"))
    return Fading(min((strength for strength, _ in doubts), default=1.0), tuple(text for _, text in doubts))


def _canvas(plan: Plan, photo: Photo, model_side: int) -> Canvas:
    """The canvas of one picture at the size requested."""
    o, info = plan.options, photo.info
    original = (info.width, info.height)
    longest = longest_side(o.size, model_side)
    if o.size == "original":
        longest = min(longest, max(original))
    size = fit(original, longest) if longest != max(original) else original
    across, down = photo.rgb.shape[1] / info.width, photo.rgb.shape[0] / info.height
    left, top, right, bottom = photo.window
    placed = (left * across, top * down, right * across, bottom * down)
    return Canvas(photo.rgb, placed, size, colormap=o.colormap, alpha=o.alpha, fmt=o.format)


def _begin(draw: Callable[[], T]) -> Callable[[], T]:
    """Begins to draw, where there are several cores in a thread of its own; what it returns gives the
    result."""
    return _DRAWERS.submit(draw).result if _DRAWERS else draw


def _pictures(scene: Scene, layers: Layers) -> dict[str, Picture]:
    """The requested pictures by name. Where there is no map to lay over the photo, its segments are."""
    names = list(scene.plan.render)
    if layers.heatmap is None and "overlay" in names:
        names.append("segmentation")
    drawn = ((name, RENDERS[name].draw) for name in dict.fromkeys(names))
    return {name: picture for name, draw in drawn if draw and (picture := draw(scene.canvas, layers))}


def _views(plan: Plan, assignment: np.ndarray, target: Target) -> tuple[explain.ClusterView, ...]:
    """The clusters to show: by share of the evidence, or for methods of no class by how much they take."""
    count = plan.options.top_clusters
    effects = target.gradients.get(f"effect_{plan.stage}") if plan.options.effect else None
    if plan.method.class_specific or target.cam is None:
        return explain.strongest(assignment, count, target.cam, effects)
    shares = explain.shares(target.cam, assignment)
    views = explain.strongest(assignment, count, None, effects)
    return tuple(replace(view, share=float(shares[view.cluster])) for view in views)


def _cluster(scene: Scene, view: explain.ClusterView) -> Cluster:
    return Cluster(
        stage=scene.plan.stage or 0,
        cluster=view.cluster,
        share=view.share,
        area=view.area,
        centroid=to_pixel(view.centroid, scene.window, scene.size),
        bbox=_box(view.bbox, scene),
        effect=view.effect,
        overlay=scene.small.overlay(view.values) if "clusters" in scene.plan.render else None,
        values=view.values,
    )


def _part_views(scene: Scene, target: Target) -> tuple[explain.ClusterView, ...]:
    """All parts, by their share of the evidence; none where they were not requested."""
    if scene.parts is None:
        return ()
    members = memberships(scene.parts[1])
    return explain.strongest(members, len(members), target.cam)


def _part(scene: Scene, view: explain.ClusterView) -> Part:
    return Part(
        stage=scene.parts[0] if scene.parts else 0,
        part=view.cluster,
        share=view.share or 0.0,
        area=view.area,
        centroid=to_pixel(view.centroid, scene.window, scene.size),
        bbox=_box(view.bbox, scene),
        overlay=scene.small.overlay(view.values),
        values=view.values,
    )


def _box(place: Fractions | None, scene: Scene) -> Box | None:
    return to_pixels(place, scene.window, scene.size) if place else None


def _ranked(labels: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Cluster numbers → their rank in `order`; clusters that are not in it get a number past every colour."""
    table = np.full(int(labels.max()) + 1, 255)
    for rank, cluster in enumerate(order):
        if cluster < len(table):
            table[cluster] = rank
    return table[labels]


def _mask(mask: explain.Mask, scene: Scene) -> MaskInfo:
    return MaskInfo(mask.threshold, _box(mask.bbox, scene))
