"""Wire models: what every answer looks like in JSON, with description, unit and example of each field, made
from the core's `results`."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from .. import images, results
from ..methods import METHODS
from ..render import RENDERS

Box = tuple[int, int, int, int]
W = TypeVar("W", bound="Wire")


class Wire(BaseModel):
    """Base: read-only, read from attributes of the results' dataclasses, absent fields left out."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    def to_json(self) -> bytes:
        text: bytes = self.__pydantic_serializer__.to_json(self, exclude_none=True)
        return text

    def pieces(self) -> Iterator[bytes]:
        """The JSON in pieces, the largest of them one picture."""
        yield self.to_json()


class Prediction(Wire):
    label: str = Field(description="Class name.", examples=["golf ball"])
    class_id: int = Field(description="Class number, from 0.", examples=[8])
    score: float = Field(
        description="Softmax probability, 0 to 1, given that the picture shows one of the classes.",
        examples=[0.97],
    )
    logit: float = Field(description="The network's output before the softmax.", examples=[9.1])


class ImageInfo(Wire):
    width: int = Field(description="Pixels, after EXIF orientation.", examples=[500])
    height: int = Field(description="Pixels, after EXIF orientation.", examples=[375])
    format: str = Field(
        description=f"What the bytes are: one of {', '.join(images.FORMAT_NAMES)}.", examples=["JPEG"]
    )


class Timings(Wire):
    decode: float = Field(description="Milliseconds from bytes to the network's input.", examples=[2.1])
    queue: float = Field(description="Milliseconds of waiting for the engine.", examples=[0.4])
    inference: float = Field(description="Milliseconds of the run that held this picture.", examples=[9.8])
    explain: float | None = Field(
        None, description="Milliseconds of computing maps; /explain only.", examples=[1.5]
    )
    render: float | None = Field(
        None, description="Milliseconds of drawing pictures; /explain and /segment only.", examples=[8.0]
    )
    total: float = Field(description="Milliseconds from complete body to answer.", examples=[12.9])


class Novelty(Wire):
    """How unlike the training pictures this one is. Only where the model has statistics for it."""

    score: float = Field(
        description="Share of known held-out pictures that look less novel, 0 to 1.", examples=[0.988]
    )
    threshold: float = Field(description="From here on it is called novel.", examples=[0.95])
    is_novel: bool = Field(
        description="Whether the picture may show none of the classes. A picture that is not flagged is not "
        "thereby known.",
        examples=[True],
    )


WARNINGS: list[str] = Field(
    [], description="What the caller should know, e.g. that only the first frame was used.", examples=[[]]
)


class Answered(Wire):
    """What every job answers of one picture."""

    id: str = Field(
        description="The request's id; with several pictures followed by the picture's position.",
        examples=["5f0c9a"],
    )
    model: str = Field(description="Which model answered.", examples=["imagenette"])
    model_version: str = Field(description="Which version of it.", examples=["1"])
    image: ImageInfo


class ClassifyResponse(Answered):
    """The answer to one picture."""

    predictions: list[Prediction] = Field(description="Best first, `top_k` of them.")
    novelty: Novelty | None = None
    timings_ms: Timings
    warnings: list[str] = WARNINGS


class Target(Wire):
    label: str = Field(description="Class name.", examples=["golf ball"])
    class_id: int = Field(description="Class number, from 0.", examples=[8])
    logit: float = Field(description="The network's output for it.", examples=[9.1])
    bias: float | None = Field(
        description="The classifier's bias: the part of the logit that no patch contributes; null where the "
        "classifier is not linear.",
        examples=[0.1],
    )


class Method(Wire):
    name: str = Field(description=f"One of {', '.join(METHODS)}.", examples=["cam"])
    class_specific: bool = Field(description="Whether the map changes with the class.", examples=[True])
    complete: bool = Field(description="Whether the map and the bias sum to the logit.", examples=[True])
    gradients: int = Field(description="Gradient passes it took.", examples=[0])
    fallback: str | None = Field(None, description="Why another method than the one requested answers.")


class Completeness(Wire):
    sum_contributions: float = Field(description="Sum of the map, in logits.", examples=[9.0])
    bias: float = Field(description="Added to it.", examples=[0.1])
    logit: float = Field(description="What both should give.", examples=[9.1])
    residual: float = Field(description="sum_contributions + bias - logit.", examples=[2e-6])


class Scale(Wire):
    min: float = Field(description="Smallest value of the map.", examples=[-0.2])
    max: float = Field(description="Largest value of the map.", examples=[1.4])
    units: str = Field(
        description="`logit` for complete maps. `relative` for others: only their order means something; "
        "of a cluster's map the values are probabilities.",
        examples=["logit"],
    )


class Heatmap(Wire):
    grid: tuple[int, int] = Field(description="Rows and columns of the map.", examples=[[8, 8]])
    scale: Scale
    signed: bool = Field(description="Whether negative values speak against the class.", examples=[True])
    array: str | None = Field(
        None, description="With arrays=f16: the map as base64 of little-endian float16, row by row."
    )


class Picture(Wire):
    mime: str = Field(description="Media type.", examples=["image/webp"])
    width: int = Field(description="Pixels.", examples=[500])
    height: int = Field(description="Pixels.", examples=[375])
    data: str = Field("", description="The file as base64, without `data:` prefix.", examples=["UklGRg=="])
    _file: bytes = PrivateAttr(b"")  # what becomes `data` when the response is written

    @classmethod
    def of(cls, picture: results.Picture) -> Picture:
        made = cls(mime=picture.mime, width=picture.width, height=picture.height)
        made._file = picture.data
        return made

    @property
    def member(self) -> bytes:
        """`data` as it stands in JSON."""
        return b'"data":"' + base64.b64encode(self._file) + b'"'


class Mask(Wire):
    threshold: float = Field(description="Where the map was cut, relative to its maximum.", examples=[0.31])
    bbox: Box | None = Field(
        None,
        description="Box around its largest part: x0, y0, x1, y1 in pixels of the upright original.",
        examples=[[40, 22, 310, 290]],
    )


class Cluster(Wire):
    stage: int = Field(description="The stage it belongs to, from 1.", examples=[2])
    cluster: int = Field(description="Its number in that stage, from 0.", examples=[17])
    share: float | None = Field(
        None,
        description="Part of the class evidence located in it, in logits; the shares of all clusters of a "
        "stage and the bias sum to the target's logit.",
        examples=[0.31],
    )
    area: float = Field(
        description="Part of the picture where it is the strongest cluster, 0 to 1.", examples=[0.11]
    )
    centroid: tuple[int, int] = Field(
        description="x, y in pixels of the upright original.", examples=[[201, 133]]
    )
    bbox: Box | None = Field(
        None, description="x0, y0, x1, y1 in pixels of the upright original.", examples=[[160, 90, 260, 180]]
    )
    effect: float | None = Field(
        None, description="With effect=true: change of the logit per unit of attention to it.", examples=[0.4]
    )
    overlay: Picture | None = Field(None, description="Its heatmap on the picture.")
    heatmap: Heatmap | None = Field(
        None,
        description="With arrays=f16: P(cluster | patch) over the patches of its stage, 0 to 1; over all "
        "clusters it sums to 1 at each patch.",
    )


class Part(Wire):
    """A group of the model's own tokens that look alike to it. The network did not attend to it."""

    stage: int = Field(description="Whose patches it consists of, from 1.", examples=[2])
    part: int = Field(description="Its number, from 0.", examples=[3])
    share: float = Field(
        description="Part of the class evidence located in it, in logits; the shares of all parts and the "
        "bias sum to the target's logit.",
        examples=[3.1],
    )
    area: float = Field(description="Part of the picture that it takes, 0 to 1.", examples=[0.24])
    centroid: tuple[int, int] = Field(
        description="x, y in pixels of the upright original.", examples=[[201, 133]]
    )
    bbox: Box | None = Field(
        None, description="x0, y0, x1, y1 in pixels of the upright original.", examples=[[160, 90, 260, 180]]
    )
    overlay: Picture | None = Field(None, description="Where it lies on the picture.")
    heatmap: Heatmap | None = Field(
        None, description="With arrays=f16: 1 where a patch belongs to it, else 0."
    )


class Check(Wire):
    """What hiding places of the picture did to the score of the class."""

    score: float = Field(description="Before anything was hidden.", examples=[0.93])
    drop: float = Field(
        description="How much lower it is without the map's strongest tenth of the picture.", examples=[0.72]
    )
    random_drop: float = Field(
        description="How much lower it is, on average, without as much of the picture at random places.",
        examples=[0.03],
    )
    passed: bool = Field(
        description="Whether the map did better than each of the random places.", examples=[True]
    )


class Fading(Wire):
    """How strongly the overlay is drawn. `scale=relative` draws it in full."""

    strength: float = Field(description="0 to 1.", examples=[0.4])
    reasons: list[str] = Field(
        description="Why it is not drawn in full.", examples=[["the picture is unlike the training pictures"]]
    )


class Segmentation(Wire):
    """Which cluster takes each patch most strongly."""

    stage: int = Field(description="The stage whose clusters these are, from 1.", examples=[2])
    grid: tuple[int, int] = Field(description="Rows and columns of patches.", examples=[[16, 16]])
    array: str = Field(
        description="Cluster numbers as base64 of little-endian uint16, row by row.", examples=["EQARAA=="]
    )


class Explanation(Wire):
    """Why one class."""

    target: Target | None = Field(
        None,
        description="The explained class; for methods of no class the one whose evidence `share` counts.",
    )
    contrast: Target | None = Field(None, description="The class it is held against, if one was requested.")
    method: Method
    completeness: Completeness | None = Field(None, description="Only for methods that are complete.")
    heatmap: Heatmap | None = None
    images: dict[str, Picture] = Field(
        {}, description=f"By name: {', '.join(row.name for row in RENDERS.values() if row.draw)}."
    )
    mask: Mask | None = None
    clusters: list[Cluster] = Field([], description="Strongest first.")
    window: tuple[float, float, float, float] | None = Field(
        None,
        description="Where the maps lie: x0, y0, x1, y1 in pixels of the upright original; may reach beyond "
        "it.",
        examples=[[0, 0, 500, 375]],
    )
    segmentation: Segmentation | None = Field(
        None, description="With arrays=f16: the strongest cluster of each patch."
    )
    parts: list[Part] | None = Field(
        None, description="With render=parts: all parts, by their share of the evidence."
    )
    check: Check | None = Field(None, description="With check=true.")
    fading: Fading | None = Field(None, description="Absent where no map is drawn.")


class ExplainResponse(ClassifyResponse):
    """Everything /classify answers, and one explanation for each target."""

    explanations: list[Explanation]

    def pieces(self) -> Iterator[bytes]:
        """The JSON in pieces, the largest of them one picture."""
        pictures = [
            picture
            for explanation in self.explanations
            for picture in (
                *explanation.images.values(),
                *(cluster.overlay for cluster in explanation.clusters if cluster.overlay),
                *(part.overlay for part in explanation.parts or () if part.overlay),
            )
        ]
        yield from _with_files(self.to_json(), pictures)


def _with_files(text: bytes, pictures: Iterable[Picture]) -> Iterator[bytes]:
    """A response in pieces. pictures: in the order in which they stand in its text, where no string can hold
    the bytes `"data":""`, whose quotes would be escaped: each is where a picture's file belongs."""
    first, *rest = text.split(b'"data":""')
    yield first
    for picture, following in zip(pictures, rest, strict=True):
        yield picture.member
        yield following


class RunLengths(Wire):
    """A mask as COCO's uncompressed run lengths."""

    size: tuple[int, int] = Field(description="Height and width of the map.", examples=[[375, 500]])
    counts: list[int] = Field(
        description="Column by column: pixels outside, then inside, and so on.", examples=[[40, 3, 184]]
    )


class Segment(Wire):
    """One class of the map."""

    label: str = Field(description="Class name.", examples=["animal"])
    class_id: int = Field(description="Class number: the value of its pixels.", examples=[1])
    area: float = Field(description="Part of the picture, 0 to 1.", examples=[0.41])
    pixels: int = Field(description="Pixels of the upright original.", examples=[76875])
    bbox: Box = Field(
        description="x0, y0, x1, y1 in pixels of the upright original.", examples=[[66, 40, 310, 290]]
    )
    score: float = Field(description="Mean probability over the pixels that it takes.", examples=[0.93])
    mask: RunLengths | Picture | None = Field(None, description="With `masks`: where it is on the map.")
    cluster: Picture | None = Field(
        None, description="With `render=clusters`: the places that its cluster gathers, on the picture."
    )


class SegmentResponse(Answered):
    """The answer to one picture."""

    segments: list[Segment] = Field(description="The largest first.")
    map: Picture = Field(
        description="8-bit palette PNG of the upright original's size: a pixel's value is its class number."
    )
    images: dict[str, Picture] = Field({}, description="By name: `overlay`, if requested.")
    timings_ms: Timings
    warnings: list[str] = WARNINGS

    def pieces(self) -> Iterator[bytes]:
        """The JSON in pieces, the largest of them one picture or one mask's run lengths."""
        own = (part for segment in self.segments for part in (segment.mask, segment.cluster))
        pictures = [part for part in (*own, self.map, *self.images.values()) if isinstance(part, Picture)]
        yield from _with_files(self.to_json(), pictures)


class Problem(BaseModel):
    """RFC 9457. Some problems add the limit that was broken (`limit`, `value`) or the parameter
    (`parameter`)."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(
        description="Stable name of the kind of problem.", examples=["urn:paca:problem:not-an-image"]
    )
    title: str = Field(description="The kind in words.", examples=["Not an accepted image format"])
    status: int = Field(description="The HTTP status.", examples=[415])
    detail: str = Field(
        description="What was wrong and what to do.",
        examples=[f"this is a PDF; send a {images.accepted()} file"],
    )
    request_id: str = Field(
        description="Also in the header X-Request-ID and in the log.", examples=["5f0c9a"]
    )


class SeveralClassified(BaseModel):
    """Several pictures: one answer or problem each, in order."""

    results: list[ClassifyResponse | Problem]


class SeveralExplained(BaseModel):
    """Several pictures: one answer or problem each, in order."""

    results: list[ExplainResponse | Problem]


class SeveralSegmented(BaseModel):
    """Several pictures: one answer or problem each, in order."""

    results: list[SegmentResponse | Problem]


def classified(result: results.Classification, request_id: str) -> ClassifyResponse:
    return ClassifyResponse(**_common(result, request_id), **_classes(result))


def explained(result: results.ExplainResult, request_id: str, arrays: str = "none") -> ExplainResponse:
    return ExplainResponse(
        **_common(result, request_id, ("explain", "render")),
        **_classes(result),
        explanations=[_explanation(e, arrays) for e in result.explanations],
    )


def segmented(result: results.SegmentResult, request_id: str) -> SegmentResponse:
    return SegmentResponse(
        **_common(result, request_id, ("render",)),
        segments=[_segment(segment) for segment in result.segments],
        map=Picture.of(result.map),
        images={name: Picture.of(picture) for name, picture in result.images.items()},
    )


def _segment(s: results.Segment) -> Segment:
    mask = s.mask
    return Segment(
        label=s.label,
        class_id=s.class_id,
        area=round(s.area, 8),
        pixels=s.pixels,
        bbox=s.bbox,
        score=round(s.score, 6),
        mask=Picture.of(mask) if isinstance(mask, results.Picture) else _maybe(RunLengths, mask),
        cluster=Picture.of(s.cluster) if s.cluster else None,
    )


def _common(result: results.Result, request_id: str, steps: tuple[str, ...] = ()) -> dict[str, Any]:
    """steps: that are timed beside those of every job."""
    timed = ("decode", "queue", "inference", "total", *steps)
    return {
        "id": request_id,
        "model": result.model,
        "model_version": result.model_version,
        "image": ImageInfo.model_validate(result.image),
        "timings_ms": Timings(**{name: round(getattr(result.timings, name), 3) for name in timed}),
        "warnings": list(result.warnings),
    }


def _classes(result: results.Classification) -> dict[str, Any]:
    return {
        "predictions": [
            Prediction(
                label=p.label,
                class_id=p.class_id,
                score=round(float(p.score), 8),
                logit=round(float(p.logit), 6),
            )
            for p in result.predictions
        ],
        "novelty": _maybe(Novelty, result.novelty),
    }


def _explanation(e: results.Explanation, arrays: str) -> Explanation:
    return Explanation(
        target=_maybe(Target, e.target),
        contrast=_maybe(Target, e.contrast),
        method=Method.model_validate(e.method),
        completeness=_maybe(Completeness, e.completeness),
        heatmap=_heatmap(e.heatmap, arrays) if e.heatmap else None,
        images={name: Picture.of(picture) for name, picture in e.images.items()},
        mask=_maybe(Mask, e.mask),
        clusters=[_cluster(c, arrays) for c in e.clusters],
        window=e.window,
        segmentation=_segmentation(e.segmentation) if e.segmentation and arrays == "f16" else None,
        parts=[_part(part, arrays) for part in e.parts] or None,
        check=_maybe(Check, e.check),
        fading=_maybe(Fading, e.fading),
    )


def _maybe(kind: type[W], value: object) -> W | None:
    return None if value is None else kind.model_validate(value)


def _heatmap(heatmap: results.Heatmap, arrays: str) -> Heatmap:
    values = heatmap.values
    return Heatmap(
        grid=heatmap.grid,
        scale=Scale(min=float(values.min()), max=float(values.max()), units=heatmap.units),
        signed=heatmap.signed,
        array=base64.b64encode(np.ascontiguousarray(values, "<f2").tobytes()).decode()
        if arrays == "f16"
        else None,
    )


def _segmentation(s: results.Segmentation) -> Segmentation:
    rows, columns = s.values.shape
    return Segmentation(
        stage=s.stage, grid=(rows, columns), array=base64.b64encode(s.values.astype("<u2").tobytes()).decode()
    )


def _cluster(c: results.Cluster, arrays: str) -> Cluster:
    return Cluster(cluster=c.cluster, effect=c.effect, **_group(c, arrays))


def _part(p: results.Part, arrays: str) -> Part:
    return Part(part=p.part, **_group(p, arrays))


def _group(g: results.Cluster | results.Part, arrays: str) -> dict[str, Any]:
    """What clusters and parts have in common; heatmap: how far each patch belongs to it."""
    return {
        "stage": g.stage,
        "share": g.share,
        "area": g.area,
        "centroid": g.centroid,
        "bbox": g.bbox,
        "overlay": Picture.of(g.overlay) if g.overlay else None,
        "heatmap": _heatmap(results.Heatmap(g.values, signed=False, units="relative"), arrays)
        if g.values is not None and arrays == "f16"
        else None,
    }
