"""What the core answers, as frozen dataclasses. The HTTP layer shapes them into JSON; nothing here knows how
they were computed.

Coordinates are pixels of the upright original picture, origin top left, boxes as (x0, y0, x1, y1). Times are
milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Prediction:
    """score: softmax probability; logit: what the network said before it."""

    label: str
    class_id: int
    score: float
    logit: float


@dataclass(frozen=True)
class ImageInfo:
    """Of the upright original picture; format is JPEG, PNG or WEBP."""

    width: int
    height: int
    format: str


@dataclass(frozen=True)
class Timings:
    """Milliseconds of each step of one request; batch_size: how many pictures shared the run."""

    decode: float
    queue: float
    inference: float
    total: float
    explain: float = 0.0
    render: float = 0.0
    batch_size: int = 1


@dataclass(frozen=True)
class Novelty:
    """score: share of known held-out pictures that look less novel. is_novel: whether it reaches
    `threshold`."""

    score: float
    threshold: float

    @property
    def is_novel(self) -> bool:
        return self.score >= self.threshold


@dataclass(frozen=True, kw_only=True)
class Result:
    """What every job answers of one picture."""

    model: str
    model_version: str
    image: ImageInfo
    timings: Timings
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Classification(Result):
    predictions: tuple[Prediction, ...]
    novelty: Novelty | None = None  # None where the model has no statistics


@dataclass(frozen=True)
class TargetInfo:
    """The explained class; bias: the head's bias, the part of the logit that no token contributes; None where
    the head is not linear."""

    label: str
    class_id: int
    logit: float
    bias: float | None


@dataclass(frozen=True)
class MethodInfo:
    """class_specific: the map changes with the class. complete: it sums to the logit. gradients: gradient
    passes it took. fallback: why another method than the one requested answers, if so."""

    name: str
    class_specific: bool
    complete: bool
    gradients: int
    fallback: str | None = None


@dataclass(frozen=True)
class Completeness:
    """sum_contributions + bias - logit = residual; with a contrast, bias and logit are differences between
    the two classes."""

    sum_contributions: float
    bias: float
    logit: float
    residual: float


@dataclass(frozen=True)
class Heatmap:
    """Numbers over the picture. values: (rows, columns) float32 on the model's grid; units: "logit" for
    complete maps, else "relative"."""

    values: np.ndarray
    signed: bool
    units: str

    @property
    def grid(self) -> tuple[int, int]:
        return (self.values.shape[0], self.values.shape[1])


@dataclass(frozen=True)
class Picture:
    """An encoded image file."""

    mime: str
    width: int
    height: int
    data: bytes


@dataclass(frozen=True)
class MaskInfo:
    """threshold on the map relative to its maximum; bbox of the largest component."""

    threshold: float
    bbox: Box | None


@dataclass(frozen=True)
class Check:
    """What hiding the map's strongest places did to the score of the class, and what hiding as much elsewhere
    did on average. score: before. passed: whether the map did better than every random place."""

    score: float
    drop: float
    random_drop: float
    passed: bool


@dataclass(frozen=True)
class Fading:
    """How strongly an overlay is drawn, and why not at full strength. strength: 0 to 1."""

    strength: float
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cluster:
    """One cluster of one stage. share: part of the class evidence located in it, in logits; area: part of
    the picture where it is the strongest; effect: first-order change of the logit per unit of attention
    bias, if computed; overlay: its heatmap on the picture; values: (H_s, W_s) float32, P(cluster | patch),
    0 to 1."""

    stage: int
    cluster: int
    share: float | None
    area: float
    centroid: tuple[int, int]
    bbox: Box | None
    effect: float | None = None
    overlay: Picture | None = None
    values: np.ndarray | None = None


@dataclass(frozen=True)
class Part:
    """A group of the model's own tokens; fields as of `Cluster`. stage: whose patches it consists of; part:
    its number, from 0; values: (H_s, W_s) float32, 1 where a patch belongs to it, else 0."""

    stage: int
    part: int
    share: float
    area: float
    centroid: tuple[int, int]
    bbox: Box | None
    overlay: Picture | None = None
    values: np.ndarray | None = None


@dataclass(frozen=True)
class Segmentation:
    """Which cluster of a stage takes each patch most strongly. values: (H_s, W_s) integers."""

    stage: int
    values: np.ndarray


@dataclass(frozen=True)
class Explanation:
    """One target's answer. images: by render name ("overlay", "heatmap", "mask", "masked", "segmentation",
    "parts"). window: (x0, y0, x1, y1) in pixels of the upright original, where the grids of its maps lie; may
    reach beyond the picture. segmentation: None where the model does not cluster. parts: all of them, by
    share, where they were requested. check: None unless requested. fading: None where no map is drawn."""

    target: TargetInfo | None
    method: MethodInfo
    completeness: Completeness | None
    heatmap: Heatmap | None
    images: dict[str, Picture] = field(default_factory=dict)
    mask: MaskInfo | None = None
    clusters: tuple[Cluster, ...] = ()
    contrast: TargetInfo | None = None
    window: tuple[float, float, float, float] | None = None
    segmentation: Segmentation | None = None
    parts: tuple[Part, ...] = ()
    check: Check | None = None
    fading: Fading | None = None


@dataclass(frozen=True, kw_only=True)
class ExplainResult(Classification):
    explanations: tuple[Explanation, ...] = ()


@dataclass(frozen=True)
class RunLengths:
    """A binary mask as COCO's uncompressed run lengths: size (height, width); counts: column by column,
    pixels outside, then inside, and so on."""

    size: tuple[int, int]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Segment:
    """One class of a label map. area: part of the picture; pixels: of the original. score: mean probability
    over the pixels that the class takes. colour: of the class in maps. mask: where it is, if requested.
    cluster: the places that its cluster gathers, drawn on the picture, if requested."""

    label: str
    class_id: int
    area: float
    pixels: int
    bbox: Box
    score: float
    colour: tuple[int, int, int]
    mask: RunLengths | Picture | None = None
    cluster: Picture | None = None


@dataclass(frozen=True, kw_only=True)
class SegmentResult(Result):
    """segments: the largest first. map: 8-bit palette PNG of the original's size, a pixel is its class's id.
    images: by render name ("overlay")."""

    segments: tuple[Segment, ...]
    map: Picture
    images: dict[str, Picture] = field(default_factory=dict)
