"""One picture's model outputs → `results.Explanation`: the numbers of `explain` and the pictures of `render`,
put together as the caller asked.

`Plan` is a request checked against one model: names became ids, defaults became values, and whatever cannot
be was refused with what to send instead. Runs in a worker thread, touches no model: gradient maps are handed
in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from . import explain
from .artifact import Head, Manifest
from .errors import BadParameter
from .geometry import Window, to_pixel, to_pixels
from .options import (
    COLORMAPS,
    FORMATS,
    MAX_CLUSTERS,
    MAX_SIDE,
    MAX_TARGETS,
    METHODS,
    RENDERS,
    ExplainOptions,
    Target,
)
from .render import Canvas, fit
from .results import (
    Cluster,
    Explanation,
    Heatmap,
    ImageInfo,
    MaskInfo,
    Picture,
    Prediction,
    Segmentation,
    TargetInfo,
)

CLUSTER_SIDE = 256  # longer side of a cluster overlay, unless a size is asked for
NEEDS_GRADIENTS = ("focus", "fine")


@dataclass(frozen=True)
class Plan:
    """targets: class ids, empty = the top class. contrast: class id, "runner_up" or None. stage: whose
    clusters, None where the model clusters nowhere. gradients: whether explain.onnx must run. outputs: the
    graph outputs that are needed."""

    options: ExplainOptions
    method: str
    targets: tuple[int, ...]
    contrast: int | str | None
    stage: int | None
    gradients: bool
    outputs: tuple[str, ...]


def plan(options: ExplainOptions, manifest: Manifest, has_gradients: bool) -> Plan:
    """Checks `options` against a model; BadParameter says which values are valid."""
    _one_of("method", options.method, (*METHODS, None))
    _one_of("format", options.format, FORMATS)
    _one_of("colormap", options.colormap, COLORMAPS)
    _one_of("arrays", options.arrays, ("none", "f16"))
    for name in options.render:
        _one_of("render", name, RENDERS)
    _within("alpha", options.alpha, 0, 1)
    _within("top_clusters", options.top_clusters, 0, MAX_CLUSTERS)
    if isinstance(options.size, int):
        _within("size", options.size, 16, MAX_SIDE)
    else:
        _one_of("size", options.size, ("original", "model"))
    if len(options.targets) > MAX_TARGETS:
        raise BadParameter(
            f"{len(options.targets)} targets are too many; ask for at most {MAX_TARGETS} in one request",
            limit="targets",
            value=MAX_TARGETS,
        )
    targets = tuple(class_id(target, manifest.labels) for target in options.targets)
    contrast = options.contrast
    if contrast is not None and contrast != "runner_up":
        contrast = class_id(contrast, manifest.labels)
    if options.effect and not (has_gradients and manifest.explain and manifest.explain.effects):
        raise BadParameter(
            "this model comes without cluster effects; leave out effect and use share, the part of the "
            "evidence located in a cluster"
        )
    stage = _stage(options, manifest)
    method = options.method or "focus"
    gradients = has_gradients and (method in NEEDS_GRADIENTS or options.effect)
    outputs = ("tokens", *([f"assignment_{stage}"] if stage else []), *(["features"] if gradients else []))
    return Plan(options, method, targets, contrast, stage, gradients, outputs)


def class_id(target: Target, labels: Sequence[str]) -> int:
    """A class by number or name (letter case does not matter); BadParameter lists names that exist."""
    number = (
        target
        if isinstance(target, int)
        else int(target)
        if target.strip().isdecimal() and len(target) < 8
        else None
    )
    if number is not None:
        if 0 <= number < len(labels):
            return number
        raise BadParameter(
            f"there is no class {number}; ids go from 0 to {len(labels) - 1}",
            limit="class_id",
            value=len(labels) - 1,
        )
    wanted = _folded(str(target))
    for i, label in enumerate(labels):
        if wanted in (_folded(label), *map(_folded, label.split(","))):
            return i
    shown = ", ".join(labels[:20]) + (
        f" and {len(labels) - 20} more (GET /models/<name>)" if len(labels) > 20 else ""
    )
    raise BadParameter(f"there is no class {str(target)[:60]!r}; the model knows: {shown}")


def _folded(name: str) -> str:
    return name.strip().casefold().replace("_", " ")


def _stage(options: ExplainOptions, manifest: Manifest) -> int | None:
    clustering = [s.stage for s in manifest.clustered_stages]
    if options.stage is not None and options.stage not in clustering:
        raise BadParameter(
            f"stage {options.stage} has no clusters; choose one of: "
            f"{', '.join(map(str, clustering)) or 'none, this model does not cluster'}"
        )
    return options.stage or (clustering[-1] if clustering else None)


def _one_of(name: str, value: object, valid: Sequence[object]) -> None:
    if value not in valid:
        raise BadParameter(
            f"{name} {str(value)[:60]!r} is not known; choose one of: "
            f"{', '.join(str(v) for v in valid if v is not None)}"
        )


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise BadParameter(f"{name} must be between {low} and {high}, not {value}", limit=name, value=high)


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


def questions(asked: Plan, logits: np.ndarray) -> list[tuple[int, int | None]]:
    """(target, class it is contrasted with) of every explanation of one picture."""
    targets = asked.targets or (int(np.argmax(logits)),)
    contrast = asked.contrast
    if isinstance(contrast, str):  # "runner_up"
        return [(target, explain.runner_up(logits, target)) for target in targets]
    return [(target, contrast) for target in targets]


def longest_side(size: str | int, model_side: int) -> int:
    """The most pixels along the longer side that pictures of this `size` option have."""
    return size if isinstance(size, int) else model_side if size == "model" else MAX_SIDE


def canvas(asked: Plan, photo: np.ndarray, window: Window, info: ImageInfo, model_side: int) -> Canvas:
    """The canvas of one picture at the size asked for. photo: upright RGB, possibly decoded smaller than
    `info` says; window: in original pixels."""
    o = asked.options
    original = (info.width, info.height)
    longest = (
        min(longest_side(o.size, model_side), max(original))
        if o.size == "original"
        else longest_side(o.size, model_side)
    )
    size = fit(original, longest) if longest != max(original) else original
    across, down = photo.shape[1] / info.width, photo.shape[0] / info.height
    placed = (window[0] * across, window[1] * down, window[2] * across, window[3] * down)
    return Canvas(photo, placed, size, colormap=o.colormap, alpha=o.alpha, fmt=o.format)


def explanation(
    asked: Plan,
    manifest: Manifest,
    head: Head,
    target: int,
    against: int | None,
    logits: np.ndarray,
    arrays: Mapping[str, np.ndarray],
    gradients: Mapping[str, np.ndarray],
    drawing: Canvas,
    window: Window,
    info: ImageInfo,
) -> Explanation:
    """The answer for one target of one picture. arrays: its graph outputs; gradients: its outputs of
    explain.onnx, empty where that did not run."""
    weights = explain.class_weights(len(logits), target, against)
    cam = explain.contributions(arrays["tokens"], manifest.stages[-1].grid, head, weights)
    heat, method = explain.heatmap(asked.method, cam, explain.stage_maps(gradients))
    if asked.options.method is None and method.fallback:
        method = replace(method, fallback=None)  # nobody asked for another one
    assignment = arrays.get(f"assignment_{asked.stage}")
    images: dict[str, Picture] = {}
    size = (info.width, info.height)
    region = None
    if heat is not None:
        region = explain.mask(heat.values)
        images |= _pictures(asked, drawing, heat, region.region)
    views = () if assignment is None else _views(asked, method.class_specific, assignment, cam, gradients)
    if assignment is not None and (
        "segmentation" in asked.options.render or (heat is None and "overlay" in asked.options.render)
    ):
        images["segmentation"] = drawing.segmentation(
            _ranked(explain.segment(assignment), [v.cluster for v in views])
        )
    side = CLUSTER_SIDE if asked.options.size == "original" else max(drawing.size)
    small = drawing.smaller(side)
    clusters = tuple(
        Cluster(
            stage=asked.stage or 0,
            cluster=view.cluster,
            share=view.share,
            area=view.area,
            centroid=to_pixel(view.centroid, window, size),
            bbox=to_pixels(view.bbox, window, size) if view.bbox else None,
            effect=view.effect,
            overlay=small.overlay(view.values) if "clusters" in asked.options.render else None,
            values=view.values,
        )
        for view in views
    )
    return Explanation(
        target=_target(manifest, head, logits, target),
        contrast=None if against is None else _target(manifest, head, logits, against),
        method=method,
        completeness=explain.completeness(cam, head, weights, logits) if method.complete else None,
        heatmap=heat,
        images=images,
        mask=None if region is None else _mask(region, window, size),
        clusters=clusters,
        window=window,
        segmentation=None
        if assignment is None
        else Segmentation(asked.stage or 0, explain.segment(assignment)),
    )


def _pictures(asked: Plan, drawing: Canvas, heat: Heatmap, region: np.ndarray) -> dict[str, Picture]:
    draw = {
        "overlay": lambda: drawing.overlay(heat.values, signed=heat.signed),
        "heatmap": lambda: drawing.heatmap(heat.values, signed=heat.signed),
        "mask": lambda: drawing.mask(region),
        "masked": lambda: drawing.masked(region),
    }
    return {name: draw[name]() for name in asked.options.render if name in draw}


def _views(
    asked: Plan, by_share: bool, assignment: np.ndarray, cam: np.ndarray, gradients: Mapping[str, np.ndarray]
) -> tuple[explain.ClusterView, ...]:
    effects = gradients.get(f"effect_{asked.stage}") if asked.options.effect else None
    if by_share:
        return explain.strongest(assignment, asked.options.top_clusters, cam, effects)
    shares = explain.shares(cam, assignment)
    return tuple(
        replace(v, share=float(shares[v.cluster]))
        for v in explain.strongest(assignment, asked.options.top_clusters, None, effects)
    )


def _ranked(labels: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Cluster numbers → their rank in `order`; clusters that are not in it get a number past every colour."""
    table = np.full(int(labels.max()) + 1, 255)
    for rank, cluster in enumerate(order):
        if cluster < len(table):
            table[cluster] = rank
    return table[labels]


def _mask(found: explain.Mask, window: Window, size: tuple[int, int]) -> MaskInfo:
    return MaskInfo(found.threshold, to_pixels(found.bbox, window, size) if found.bbox else None)


def _target(manifest: Manifest, head: Head, logits: np.ndarray, target: int) -> TargetInfo:
    return TargetInfo(manifest.labels[target], target, float(logits[target]), float(head.bias[target]))
