"""What an exported .onnx says about itself: one JSON manifest in its metadata, read here and written by
`export.annotate`.

The server needs no file but the model, so everything it must know stands in the manifest. The reader owns the
format: a schema number it does not know is refused with both numbers named. Only the standard library and
numpy; reading the metadata out of the file is the engine's work.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from .errors import BadArtifact

SCHEMA = 1
MANIFEST_KEY = "paca.manifest"
HEAD_KEY = "paca.head"
RESIZES = ("stretch", "shortest")
INTERPOLATIONS = ("bilinear", "bicubic")


@dataclass(frozen=True)
class Preprocessing:
    """size: (H, W) of the network's input. resize: "stretch" = the whole picture to size, aspect not kept;
    "shortest" = the shorter side to size / crop, then the centre. mean, std: of pixel values in 0..1, applied
    inside the graph when the input is uint8."""

    size: tuple[int, int]
    resize: str
    crop: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def to_float(self, images: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3) → normalised float32 (B, 3, H, W): what a graph with the input kind float32
        wants."""
        scaled = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
        return (scaled - np.array(self.mean, np.float32)[:, None, None]) / np.array(self.std, np.float32)[
            :, None, None
        ]


@dataclass(frozen=True)
class StageInfo:
    """stage: from 1. grid: (H_s, W_s) at the manifest's size. clusters: M, 0 where the stage does not
    cluster. output: its graph output, or None."""

    stage: int
    grid: tuple[int, int]
    dim: int
    blocks: int
    clusters: int
    clustering: str | None
    output: str | None


@dataclass(frozen=True)
class ExplainInfo:
    """Where explain.onnx takes over: the graph output `features` holds the normed tokens of `stage`. maps:
    the stages its outputs `map_<stage>` are of; effects: the stages whose clusters' effects `effect_<stage>`
    it gives."""

    stage: int
    maps: tuple[int, ...]
    effects: tuple[int, ...] = ()


@dataclass(frozen=True)
class Golden:
    """A self-test: `golden_picture(size, seed)` must give `top` and these logits (the first ones) within
    `tolerance`."""

    seed: int
    top: int
    logits: tuple[float, ...]
    tolerance: float


@dataclass(frozen=True)
class Manifest:
    """The whole. precision: fp32, fp16 or int8. input: uint8 or float32. temperature: logits are divided by
    it before the softmax (1 = uncalibrated). verification: what the exporter checked, as name → measured
    value. accuracy: measured figures of this model, if known."""

    name: str
    variant: str
    config: dict[str, Any]
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    stages: tuple[StageInfo, ...]
    input: str
    dynamic_size: bool
    precision: str
    opset: int
    attention_nodes: int
    parameters: int
    macs: int
    checkpoint_sha256: str | None
    tools: dict[str, str]
    golden: Golden | None = None
    explain: ExplainInfo | None = None
    temperature: float = 1.0
    verification: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def clustered_stages(self) -> tuple[StageInfo, ...]:
        return tuple(stage for stage in self.stages if stage.output)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Reads a manifest; BadArtifact says what is wrong with it."""
        try:
            values = json.loads(text)
            schema = values.get("schema")
        except (ValueError, AttributeError):
            raise BadArtifact(
                "the model's manifest is not a JSON object; export it again with `paca export`"
            ) from None
        if schema != SCHEMA:
            raise BadArtifact(
                f"the model's manifest has schema {schema!r}, this server reads schema {SCHEMA}; export it "
                "again, or use a matching server"
            )
        known = {f.name for f in fields(cls)}
        try:
            values = {key: value for key, value in values.items() if key in known}
            values["labels"] = tuple(values["labels"])
            values["preprocessing"] = _build(Preprocessing, values["preprocessing"])
            values["stages"] = tuple(_build(StageInfo, stage) for stage in values["stages"])
            values["golden"] = _build(Golden, values.get("golden"))
            values["explain"] = _build(ExplainInfo, values.get("explain"))
            manifest = cls(**values)
        except (KeyError, TypeError) as error:
            raise BadArtifact(
                f"the model's manifest is incomplete ({error}); export it again with `paca export`"
            ) from None
        manifest._check()
        return manifest

    @classmethod
    def from_metadata(cls, metadata: dict[str, str]) -> Manifest:
        """From a model's metadata map; BadArtifact where it carries no manifest."""
        if MANIFEST_KEY not in metadata:
            raise BadArtifact("this ONNX file carries no PaCa manifest; make one with `paca export`")
        return cls.from_json(metadata[MANIFEST_KEY])

    def _check(self) -> None:
        p = self.preprocessing
        if not self.labels or len(set(map(str, self.labels))) < 1:
            raise BadArtifact("the model's manifest lists no labels")
        if p.resize not in RESIZES or p.interpolation not in INTERPOLATIONS or not 0 < p.crop <= 1:
            raise BadArtifact(
                f"the model's manifest asks for a preprocessing this server does not know: {p.resize}, "
                f"{p.interpolation}, crop {p.crop}"
            )
        if self.input not in ("uint8", "float32"):
            raise BadArtifact(f"the model's manifest names an unknown input kind {self.input!r}")
        if not self.temperature > 0:
            raise BadArtifact(f"the model's temperature must be positive, not {self.temperature}")


def _build(cls: type, values: dict[str, Any] | None) -> Any:
    if values is None:
        return None
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


@dataclass(frozen=True)
class Head:
    """The classifier on top of the mean token: logits = mean(tokens) · weightᵀ + bias. weight: (K, C), bias:
    (K,), float32."""

    weight: np.ndarray
    bias: np.ndarray

    def to_text(self) -> str:
        return base64.b64encode(
            np.concatenate([self.weight.astype("<f4").ravel(), self.bias.astype("<f4")]).tobytes()
        ).decode()

    @classmethod
    def from_metadata(cls, metadata: dict[str, str], classes: int) -> Head:
        """From the metadata's base64 float32 (weights row by row, then biases); BadArtifact where it is
        absent or does not fit."""
        try:
            values = np.frombuffer(base64.b64decode(metadata[HEAD_KEY], validate=True), "<f4")
        except (KeyError, ValueError):
            raise BadArtifact(
                "the model carries no readable head weights; export it again with `paca export`"
            ) from None
        if values.size % classes or values.size <= classes:
            raise BadArtifact(
                f"the model's head weights do not fit its {classes} labels; export it again with `paca "
                "export`"
            )
        width = values.size // classes - 1
        return cls(values[: classes * width].reshape(classes, width), values[classes * width :])


def golden_picture(size: tuple[int, int], seed: int) -> np.ndarray:
    """(H, W, 3) uint8, the same on every machine: smooth colour waves, so that a network gives it an
    ordinary, finite answer."""
    height, width = size
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi, (3, 2))
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [
        127.5 + 127 * np.sin(6 * (c + 1) * x + phase[c, 0]) * np.cos(5 * (c + 1) * y + phase[c, 1])
        for c in range(3)
    ]
    return np.round(np.stack(waves, -1)).astype(np.uint8)
