"""Logits on a coarse grid → which class takes each pixel of the photo, and everything said and drawn of it.

Logits are resized, never labels: class by class and band by band, so that memory stays at a few megabytes
beside the map whatever the photo's size. What is resized are log-probabilities: they differ from logits by
the same number for every class, so the same class wins, and the winner's is the score. Numpy and Pillow; runs
no model.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .artifact import MAX_SEGMENTS, Manifest
from .assemble import CLUSTER_SIDE, Photo
from .options import MAX_SIDE, SegmentOptions
from .plan import class_id
from .render import Canvas, encode, fit, outline
from .results import Box, Picture, RunLengths, Segment

BAND_PIXELS = 1 << 20  # of the map that are decided at a time
ROUNDING = 1e-8  # of an area as it is answered: who asks for as much gets the segment
SLACK = 1e-4  # of a log-probability: what rounding may make of a class that cannot win


@dataclass(frozen=True)
class Plan:
    """A request checked against one model. classes: ids to tell of, empty = all. outputs: needed beside the
    logits."""

    options: SegmentOptions
    classes: frozenset[int]
    outputs: tuple[str, ...]

    @property
    def draws(self) -> bool:
        """Whether the photo is needed at more than the network's size."""
        return bool(self.options.render)


def make_plan(options: SegmentOptions, manifest: Manifest) -> Plan:
    """BadParameter for a class that the model does not know."""
    classes = frozenset(class_id(name, manifest.labels) for name in options.classes)
    return Plan(options, classes, ("assignment_0",) if "clusters" in options.render else ())


@dataclass(frozen=True)
class LabelMap:
    """labels: (H, W) uint8, the class of each pixel. pixels, scores: (K,), how many each class takes and its
    mean probability there. boxes: (K, 4) x0, y0, x1, y1 around them; of no meaning where there are none."""

    labels: np.ndarray
    pixels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class Segmented:
    """What is answered of one picture."""

    segments: tuple[Segment, ...]
    map: Picture
    images: dict[str, Picture]
    warnings: tuple[str, ...]


def segmented(
    plan: Plan, manifest: Manifest, photo: Photo, outputs: Mapping[str, np.ndarray], max_pixels: int
) -> Segmented:
    """outputs: of the picture, "logits" (K, h, w) among them. max_pixels: of the map; a larger photo gets a
    smaller one, and a warning."""
    original = (photo.info.width, photo.info.height)
    size = within(original, max_pixels)
    logp = log_probabilities(outputs["logits"], manifest.temperature)
    found = label_map(logp, size)
    warnings: tuple[str, ...] = ()
    if size != original:
        warnings = (
            f"the map is {size[0]} x {size[1]} pixels instead of {original[0]} x {original[1]}; pixels and "
            "boxes "
            "are scaled to the photo (PACA_MAX_MAP_PIXELS)",
        )
    canvas = _canvas(plan, photo)
    images = {}
    if "overlay" in plan.options.render:
        labels = found.labels if canvas.size == size else label_map(logp, canvas.size).labels
        images["overlay"] = overlay(canvas, _only(labels, plan.classes), manifest, plan.options.alpha)
    small = canvas.smaller(CLUSTER_SIDE)
    segments = []
    for k in _told(found, plan):
        cluster = outputs.get("assignment_0")
        segments.append(
            Segment(
                label=manifest.labels[k],
                class_id=k,
                area=float(found.pixels[k] / found.labels.size),
                pixels=round(float(found.pixels[k]) * original[0] * original[1] / found.labels.size),
                bbox=_scaled(found.boxes[k], size, original),
                score=float(found.scores[k]),
                colour=manifest.palette[k],
                mask=_mask(found.labels == k, plan.options.masks),
                cluster=None if cluster is None else small.overlay(cluster[k]),
            )
        )
    return Segmented(tuple(segments), map_picture(found.labels, manifest), images, warnings)


def within(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """(width, height), scaled down in proportion to at most `max_pixels`."""
    width, height = size
    if width * height <= max_pixels:
        return size
    scale = (max_pixels / (width * height)) ** 0.5
    return max(1, int(width * scale)), max(1, int(height * scale))


def log_probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """log softmax over the classes of (K, h, w), float32."""
    scaled = logits.astype(np.float32) / np.float32(temperature)
    scaled -= scaled.max(0)
    scaled -= np.log(np.exp(scaled).sum(0))
    return scaled


def label_map(logp: np.ndarray, size: tuple[int, int]) -> LabelMap:
    """The class of every pixel of a picture of `size` (width, height), over whose whole area `logp` (K, h, w)
    lies. Bilinear, corners not aligned; where classes are equal the first one wins."""
    (classes, rows, _), (width, height) = logp.shape, size
    labels = np.empty((height, width), np.uint8)
    pixels, sums = np.zeros(classes, np.int64), np.zeros(classes)
    boxes = np.tile(np.array([width, height, 0, 0]), (classes, 1))
    shrinks = width < logp.shape[2] or height < rows
    may_win = None if shrinks else _may_win(logp)
    step = max(1, BAND_PIXELS // width)
    for top in range(0, height, step):
        bottom = min(top + step, height)
        band = (top * rows / height, bottom * rows / height)
        best = np.full((bottom - top, width), -np.inf, np.float32)
        part = labels[top:bottom]
        chosen = list(range(classes))
        if may_win is not None:
            near = may_win[:, max(0, int(band[0] - 0.5)) : int(band[1] + 0.5) + 1].any(1)
            chosen = np.flatnonzero(near).tolist()
        for k in chosen:
            values = _resized(logp[k], size, (top, bottom))
            better = values > best
            np.copyto(best, values, where=better)
            part[better] = k
        _count(part, np.exp(best, out=best), top, pixels, sums, boxes)
    return LabelMap(labels, pixels, sums / np.maximum(pixels, 1), boxes)


def _resized(values: np.ndarray, size: tuple[int, int], band: tuple[int, int]) -> np.ndarray:
    """Rows `band` of (h, w) resized to `size` (width, height), float32."""
    (rows, columns), (top, bottom) = values.shape, band
    box = (0, top * rows / size[1], columns, min(rows, bottom * rows / size[1]))
    image = Image.fromarray(values).resize((size[0], bottom - top), Image.Resampling.BILINEAR, box=box)
    return np.asarray(image)


def _may_win(logp: np.ndarray) -> np.ndarray:
    """(K, h + 1) whether a class may win a pixel in that row of cells between four places. A mean of four
    values is at most their largest and at least their least: a class whose largest is below the least of
    another is out."""
    padded = np.pad(logp, ((0, 0), (1, 1), (1, 1)), mode="edge")
    sides = (slice(None, -1), slice(1, None))
    corners = [padded[:, y, x] for y in sides for x in sides]
    largest, least = corners[0].copy(), corners[0].copy()
    for corner in corners[1:]:
        np.maximum(largest, corner, out=largest)
        np.minimum(least, corner, out=least)
    return (largest >= least.max(0) - SLACK).any(2)


def _count(
    part: np.ndarray, scores: np.ndarray, top: int, pixels: np.ndarray, sums: np.ndarray, boxes: np.ndarray
) -> None:
    """Adds a band of the map to what is known of each class."""
    counts = np.bincount(part.ravel(), minlength=len(pixels))
    pixels += counts
    for k in np.flatnonzero(counts):
        inside = part == k
        sums[k] += float(scores[inside].sum(dtype=np.float64))
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        low = np.minimum(boxes[k, :2], (columns[0], top + rows[0]))
        high = np.maximum(boxes[k, 2:], (columns[-1] + 1, top + rows[-1] + 1))
        boxes[k] = (*low, *high)


def _told(found: LabelMap, plan: Plan) -> list[int]:
    """The classes to tell of, the largest first."""
    least = max(1.0, (plan.options.min_area - ROUNDING) * found.labels.size)
    there = [int(k) for k in np.argsort(-found.pixels, kind="stable") if found.pixels[k] >= least]
    return [k for k in there if not plan.classes or k in plan.classes]


def _scaled(box: np.ndarray, size: tuple[int, int], original: tuple[int, int]) -> Box:
    across, down = original[0] / size[0], original[1] / size[1]
    x0, y0, x1, y1 = box.tolist()
    return int(x0 * across), int(y0 * down), -int(-x1 * across // 1), -int(-y1 * down // 1)


def _mask(inside: np.ndarray, form: str) -> RunLengths | Picture | None:
    if form == "none":
        return None
    if form == "rle":
        return run_lengths(inside)
    return encode(Image.fromarray(inside), "png")


def run_lengths(inside: np.ndarray) -> RunLengths:
    """A boolean (H, W) as COCO's uncompressed run lengths: column by column, how many pixels are outside,
    then inside, and so on."""
    flat = inside.T.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return RunLengths(inside.shape, tuple([0, *counts] if flat[0] else counts))


def from_run_lengths(runs: RunLengths) -> np.ndarray:
    """The inverse of `run_lengths`: boolean (H, W)."""
    height, width = runs.size
    values = np.arange(len(runs.counts)) % 2 == 1
    return np.repeat(values, runs.counts).reshape(width, height).T


def map_picture(labels: np.ndarray, manifest: Manifest) -> Picture:
    """The map (H, W) as a palette PNG of 8 bits: a pixel is the number of its class, shown in the class's
    colour."""
    image = Image.fromarray(labels)
    image.putpalette(_table(manifest).tobytes())  # all 256 rows: fewer would make Pillow write fewer bits
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return Picture("image/png", image.width, image.height, buffer.getvalue())


def overlay(canvas: Canvas, labels: np.ndarray, manifest: Manifest, alpha: float) -> Picture:
    """The photo tinted by class, with white outlines. labels: (H, W) of the canvas's size; a class whose
    colour is black, and what is no class, stay the photo."""
    table = _table(manifest)
    drawn = Image.fromarray(labels)
    tint = drawn.copy()
    tint.putpalette(table.tobytes())
    strength = [round(255 * alpha) if row.any() else 0 for row in table]
    picture = Image.composite(tint.convert("RGB"), canvas.image, drawn.point(strength))
    picture.paste((255, 255, 255), mask=outline(labels))
    return encode(picture, canvas.fmt)


def _table(manifest: Manifest) -> np.ndarray:
    """(256, 3) uint8: the colour of every number that a map can hold, black where it is no class."""
    table = np.zeros((MAX_SEGMENTS, 3), np.uint8)
    table[: len(manifest.palette)] = manifest.palette
    return table


def _only(labels: np.ndarray, classes: frozenset[int]) -> np.ndarray:
    """The map with all but these classes taken out; all stay where none is named."""
    if not classes:
        return labels
    return np.where(np.isin(labels, list(classes)), labels, np.uint8(255))


def _canvas(plan: Plan, photo: Photo) -> Canvas:
    """The whole photo, at most `MAX_SIDE` pixels long."""
    original = (photo.info.width, photo.info.height)
    size = fit(original, MAX_SIDE) if max(original) > MAX_SIDE else original
    height, width = photo.rgb.shape[:2]
    return Canvas(
        photo.rgb, (0.0, 0.0, float(width), float(height)), size, alpha=plan.options.alpha, fmt="webp"
    )
