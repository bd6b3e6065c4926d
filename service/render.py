"""From numbers over a picture to pixels of that picture: overlays, heatmaps, masks, segmentations, encoded.
Numpy and Pillow; no model words.

A `Canvas` is prepared once for a request (the photo resized once) and draws everything for it. Maps are drawn
where they lie on the original (`geometry`): a mark at a pixel of the photo is at that pixel of the overlay,
whatever was cropped or stretched on the way to the network. Overlays are plain alpha compositing
with an alpha in proportion to relevance: places without relevance stay the photo, as bright as it was.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from .colours import CLUSTERS, COLOUR_MAPS, DEFAULT_COLOUR_MAP, DIVERGING
from .geometry import Window, product, taps
from .results import Heatmap, Picture

# What is passed to Pillow per format: speed first. JPEG is closer to the pixels than the fastest WebP and
# takes a seventh of its time, for a quarter more bytes (docs/performance.md has the figures). WebP stays the
# default because clients were promised it.
ENCODINGS: dict[str, dict[str, int]] = {
    "webp": {"quality": 75, "method": 0},
    "png": {"compress_level": 1},
    "jpeg": {"quality": 80},
}
DEFAULT_FORMAT = "webp"
NEAR = 0.8  # of the longest side that is allowed: a smaller canvas may be this much smaller to be made faster
# the alpha of an overlay is relevance x this, at most `alpha`: two thirds of the strongest are already as
# opaque as allowed
GAIN = 1.5
UNSEEN = (128, 128, 128)  # of a bare heatmap, where the network did not look
OUTLINE = (255, 255, 255)
FAINTEST = 1e-30  # of a map's largest number: below, it is a map of zeros, and dividing by it could overflow


def fit(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """(width, height) scaled so that the longer side is `longest`, the aspect kept as well as whole pixels
    can."""
    scale = longest / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def encode(image: Image.Image, fmt: str) -> Picture:
    """An image as a file of the format: "webp", "png" or "jpeg". Equal pixels give equal bytes."""
    buffer = io.BytesIO()
    image.save(buffer, fmt.upper(), **ENCODINGS[fmt])
    return Picture(f"image/{fmt}", image.width, image.height, buffer.getvalue())


class Canvas:
    """The photo at the size to draw, and how to draw on it. Several threads may draw at once.

    photo: (H, W, 3) uint8, the upright original. window: where on it, in its pixels, the network looked (the
    box of `images.Placement`). size: (width, height) of every picture drawn. colormap: a name of
    `colours.COLOUR_MAPS`. alpha: opacity at the strongest place, 0..1.
    """

    def __init__(
        self,
        photo: np.ndarray,
        window: Window,
        size: tuple[int, int],
        *,
        colormap: str = DEFAULT_COLOUR_MAP,
        alpha: float = 0.6,
        fmt: str = DEFAULT_FORMAT,
    ) -> None:
        self._draw_on(Image.fromarray(photo), window, size)
        self.colormap, self.alpha, self.fmt = colormap, alpha, fmt

    def _draw_on(self, photo: Image.Image, window: Window, size: tuple[int, int]) -> None:
        across, down = size[0] / photo.width, size[1] / photo.height
        self.window = (window[0] * across, window[1] * down, window[2] * across, window[3] * down)
        self.size = size
        self._photo = photo if photo.size == size else _resized(photo, size)
        self._taps: dict[tuple[int, int, bool], tuple[np.ndarray, np.ndarray]] = {}

    def smaller(self, longest: int) -> Canvas:
        """The same canvas with its longer side at most `longest`, and at least `NEAR` of it where this canvas
        is larger: a whole fraction of it, where there is one, costs the least."""
        if max(self.size) <= longest:
            return self
        factor = -(-max(self.size) // longest)
        whole = max(self.size) >= NEAR * longest * factor
        photo = self._photo.reduce(factor) if whole else _resized(self._photo, fit(self.size, longest))
        across, down = photo.width / self.size[0], photo.height / self.size[1]
        left, top, right, bottom = self.window
        small = Canvas.__new__(Canvas)
        small._draw_on(photo, (left * across, top * down, right * across, bottom * down), photo.size)
        small.colormap, small.alpha, small.fmt = self.colormap, self.alpha, self.fmt
        return small

    @property
    def image(self) -> Image.Image:
        """The photo at the size to draw; not to be changed."""
        return self._photo

    def photo(self) -> Picture:
        """The photo alone."""
        return encode(self._photo, self.fmt)

    def overlay(
        self, values: np.ndarray, *, signed: bool = False, limit: float | None = None, strength: float = 1.0
    ) -> Picture:
        """The photo with a map (h, w) laid over it. signed: blue against, orange for, around 0; else the
        colour map from 0 up. limit: the number shown at full strength, by default the largest magnitude; give
        it to compare pictures. strength: of the whole map, 0 to 1; below 1 it is drawn paler."""
        levels, table = self._levels(values, signed, limit)
        alpha = levels.point(_opacities(self.alpha * strength, signed))
        return encode(Image.composite(_coloured(levels, table), self._photo, alpha), self.fmt)

    def heatmap(self, values: np.ndarray, *, signed: bool = False, limit: float | None = None) -> Picture:
        """The map alone, in full colour; grey where the network did not look. Arguments as for `overlay`."""
        levels, table = self._levels(values, signed, limit)
        seen = Image.fromarray(self._sample(np.full((1, 1), 255, np.float32)).astype(np.uint8))
        return encode(
            Image.composite(_coloured(levels, table), Image.new("RGB", self.size, UNSEEN), seen), self.fmt
        )

    def mask(self, region: np.ndarray) -> Picture:
        """A boolean map (h, w) as a 1-bit picture, white = inside. Always PNG: a lossy mask would be none."""
        return encode(Image.fromarray(self._sample(region) >= 0.5), "png")

    def masked(self, region: np.ndarray) -> Picture:
        """The photo inside a boolean map (h, w); outside it, grey and pale."""
        inside = Image.fromarray((self._sample(region) >= 0.5).astype(np.uint8) * 255)
        pale = self._photo.convert("L").point([200 + v // 6 for v in range(256)]).convert("RGB")
        return encode(Image.composite(self._photo, pale, inside), self.fmt)

    def segmentation(self, labels: np.ndarray) -> Picture:
        """The photo tinted by label (h, w): 0..7 take the colours of `colours.CLUSTERS` in order, any other
        number stays untinted; white outlines."""
        shown = [label for label in range(len(CLUSTERS)) if (labels == label).any()]
        winner = np.zeros(
            (self.size[1], self.size[0]), np.uint8
        )  # 0 = untinted, also where the network did not look
        best = self._sample(~np.isin(labels, shown))
        for label in shown:
            votes = self._sample(labels == label)
            np.copyto(winner, label + 1, where=votes > best)
            np.maximum(best, votes, out=best)
        drawn = Image.fromarray(winner)
        opacity = drawn.point([0] + [round(255 * self.alpha)] * 255)
        tint = _coloured(drawn, np.concatenate([np.zeros((1, 3), np.uint8), CLUSTERS]))
        picture = Image.composite(tint, self._photo, opacity)
        picture.paste(OUTLINE, mask=outline(winner))
        return encode(picture, self.fmt)

    def _levels(
        self, values: np.ndarray, signed: bool, limit: float | None
    ) -> tuple[Image.Image, np.ndarray]:
        """Every pixel's row in a colour table, and the table."""
        limit = float(np.abs(values).max()) if limit is None else limit
        scaled = values * ((127.5 if signed else 255) / limit) if limit > FAINTEST else np.zeros_like(values)
        levels = self._sample(scaled, cubic=True)
        levels += 128 if signed else 0.5  # the cut to integers below then rounds
        np.clip(levels, 0, 255, out=levels)
        return Image.fromarray(levels.astype(np.uint8)), self._table(signed)

    def _table(self, signed: bool) -> np.ndarray:
        return DIVERGING if signed else COLOUR_MAPS[self.colormap].table

    def _sample(self, values: np.ndarray, cubic: bool = False) -> np.ndarray:
        """(h, w) → float32 (height, width) of the canvas; 0 outside the window."""
        key = (*values.shape, cubic)
        if key not in self._taps:
            left, top, right, bottom = self.window
            down = taps(values.shape[0], self.size[1], top, bottom, cubic=cubic)
            self._taps[key] = down, taps(values.shape[1], self.size[0], left, right, cubic=cubic).T.copy()
        down, across = self._taps[key]
        return product(product(down, values.astype(np.float32)), across)


def _resized(photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    kernel = Image.Resampling.HAMMING if size[0] < photo.width else Image.Resampling.BICUBIC
    return photo.resize(size, kernel, reducing_gap=1.0)


@lru_cache(maxsize=64)
def _opacities(alpha: float, signed: bool) -> tuple[int, ...]:
    """The alpha of each of 256 levels, 0 to 255; `alpha`: at most, 0 to 1."""
    relevance = np.abs(np.arange(256) - 128) / 127 if signed else np.arange(256) / 255
    return tuple((255 * alpha * np.minimum(1, GAIN * relevance)).round().astype(int).tolist())


def _coloured(levels: Image.Image, table: np.ndarray) -> Image.Image:
    """The levels in the colours of a table. They are used up."""
    levels.putpalette(table.tobytes())
    return levels.convert("RGB")


def outline(labels: np.ndarray) -> Image.Image:
    """White lines between different labels, about 1/250 of the longer side wide."""
    edges = np.zeros(labels.shape, bool)
    edges[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edges[:-1] |= labels[:-1] != labels[1:]
    for _ in range(round(max(labels.shape) / 250) - 1):  # each step widens the lines by a pixel
        edges[:, 1:] |= edges[:, :-1].copy()
        edges[1:] |= edges[:-1].copy()
    return Image.fromarray(edges)


@dataclass(frozen=True)
class Layers:
    """What is drawn of one explanation. heatmap, region: a map and the boolean map of its mask; labels,
    parts: the cluster and the part of each patch, for `Canvas.segmentation`. None where the explanation has
    none. strength: of the overlay, 0 to 1."""

    heatmap: Heatmap | None = None
    region: np.ndarray | None = None
    labels: np.ndarray | None = None
    parts: np.ndarray | None = None
    strength: float = 1.0


@dataclass(frozen=True)
class Render:
    """One kind of picture. caption: for people. draw: gives None where an explanation has nothing of the
    kind; absent for pictures that belong to the clusters and not to the explanation."""

    name: str
    caption: str
    draw: Callable[[Canvas, Layers], Picture | None] | None = None


def _overlay(canvas: Canvas, layers: Layers) -> Picture | None:
    heat = layers.heatmap
    return None if heat is None else canvas.overlay(heat.values, signed=heat.signed, strength=layers.strength)


def _heatmap(canvas: Canvas, layers: Layers) -> Picture | None:
    heat = layers.heatmap
    return None if heat is None else canvas.heatmap(heat.values, signed=heat.signed)


def _mask(canvas: Canvas, layers: Layers) -> Picture | None:
    return None if layers.region is None else canvas.mask(layers.region)


def _masked(canvas: Canvas, layers: Layers) -> Picture | None:
    return None if layers.region is None else canvas.masked(layers.region)


def _segmentation(canvas: Canvas, layers: Layers) -> Picture | None:
    return None if layers.labels is None else canvas.segmentation(layers.labels)


def _parts(canvas: Canvas, layers: Layers) -> Picture | None:
    return None if layers.parts is None else canvas.segmentation(layers.parts)


# By name, in the order of the documentation. A new one is a row here and its test.
RENDERS = {
    row.name: row
    for row in (
        Render("overlay", "the photo with the map laid over it", _overlay),
        Render("heatmap", "the map alone", _heatmap),
        Render("mask", "mask: the largest connected place above the threshold", _mask),
        Render("masked", "the photo inside the mask", _masked),
        Render(
            "segmentation",
            "segmentation: the strongest cluster of each patch, the clusters below in their colours, others "
            "untinted",
            _segmentation,
        ),
        Render("clusters", "each cluster on the photo"),
        Render("parts", "parts: groups of the model's own tokens, in the colours of the table below", _parts),
    )
}
