"""What an exported .onnx says about itself: JSON in its metadata, read here and written by `export.annotate`.

The server needs no file but the model, so everything it must know stands in the manifest. The reader owns the
format. A schema number that it does not know is refused with both numbers named. A value of the wrong type or
out of range is refused with its place, so that nothing behind the reader meets one.
Reading the metadata out of the file and running it are the engine's work.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from .errors import BadArtifact

SCHEMA = 2
SCHEMAS = (1, 2)  # what is read; 1 has no table of outputs and no weights_id
MANIFEST_KEY = "paca.manifest"
HEAD_KEY = "paca.head"
EXPLAIN_KEY = "paca.explain"
RESIZES = ("stretch", "shortest", "aspect")
INTERPOLATIONS = ("bilinear", "bicubic")
INPUTS = ("uint8", "float32")
PRECISIONS = ("fp32", "fp16", "int8")
LINEAR, FIRST_ORDER, NO_HEAD = HEADS = ("linear", "first_order", "none")
ROLES = ("logits", "tokens", "assignment", "membership", "features")
CHANNELS = 3  # of the pictures that are served: RGB
SAMPLES = 64  # numbers of a golden map, at most
MAX_SEGMENTS = 256  # classes that a label map of one byte a pixel can name


@dataclass(frozen=True)
class Task:
    """What a model is for. jobs: what may be requested of it, the usual one first: names of endpoints.
    outputs: of its graph, whatever else it puts out. dense: it names a class for every place, not for the
    picture."""

    name: str
    jobs: tuple[str, ...]
    outputs: frozenset[str]
    dense: bool


TASKS = {
    row.name: row
    for row in (
        Task("classification", ("classify", "explain"), frozenset({"logits"}), dense=False),
        Task("segmentation", ("segment",), frozenset({"logits", "assignment_0"}), dense=True),
    )
}
DEFAULT_TASK = next(iter(TASKS))


def _one_of(values: tuple[str, ...]) -> AfterValidator:
    """Declares a text that is one of `values`."""

    def check(value: str) -> str:
        if value not in values:
            raise PydanticCustomError("one_of", "Input should be {values}", {"values": " or ".join(values)})
        return value

    return AfterValidator(check)


Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Byte = Annotated[int, Field(ge=0, le=255)]
Side = Annotated[int, Field(ge=1, le=4096)]  # pixels or patches
Shape = tuple[int | str, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Preprocessing:
    """size: (H, W) of the network's input. resize: "stretch" = the whole picture to size, aspect not kept;
    "shortest" = the shorter side to size / crop, then the centre; "aspect" = the whole picture, its shorter
    side to size, the longer one as the aspect asks but at most `longest`, both in multiples of `step`: few
    sizes, so that pictures can share a run. mean, std: of pixel values in 0..1, applied inside the graph when
    the input is uint8."""

    size: tuple[Side, Side]
    resize: Annotated[str, _one_of(RESIZES)]
    crop: Annotated[float, Field(gt=0, le=1)]
    interpolation: Annotated[str, _one_of(INTERPOLATIONS)]
    mean: tuple[Finite, Finite, Finite]
    std: tuple[Positive, Positive, Positive]
    step: Count = 0
    longest: Count = 0

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        """(H, W) of the network's input for a picture of these pixels."""
        if self.resize != "aspect":
            return self.size
        scale = min(min(self.size) / min(width, height), self.longest / max(width, height))
        rows, columns = (self.step * max(1, round(side * scale / self.step)) for side in (height, width))
        return rows, columns

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

    stage: Annotated[int, Field(ge=1)]
    grid: tuple[Side, Side]
    dim: Count
    blocks: Count
    clusters: Count
    clustering: str | None
    output: str | None


@dataclass(frozen=True)
class OutputInfo:
    """One output of the graph. tolerance: the largest difference from the float32 network that the exporter
    allows, relative to max(1, largest number); None where the file was judged otherwise (int8: by its
    answers). shape: a number or the name of a free size each; None in schema 1, which does not say."""

    name: str
    role: Annotated[str, _one_of(ROLES)]
    tolerance: Positive | None = None
    shape: Shape | None = None


@dataclass(frozen=True)
class ExplainInfo:
    """Where explain.onnx takes over: the graph output `features` holds the normed tokens of `stage`. maps:
    the stages its outputs `map_<stage>` are of; effects: the stages whose clusters' effects `effect_<stage>`
    it gives."""

    stage: Count
    maps: tuple[int, ...]
    effects: tuple[int, ...] = ()


@dataclass(frozen=True)
class Golden:
    """A self-test: `golden_picture(size, seed)` must give `top` and these logits (the first ones) within
    `tolerance`, as measured with the file that carries them."""

    seed: Count
    top: Count
    logits: Annotated[tuple[Finite, ...], Field(min_length=1)]
    tolerance: Positive


@dataclass(frozen=True)
class Gates:
    """How a file of smaller numbers compares with fp32 on labelled pictures that calibration did not see.
    pictures: how many. agreement: the share on which both name the same class first. points_lost: accuracy of
    fp32 less its own, in percentage points."""

    pictures: Count
    agreement: Annotated[float, Field(ge=0, le=1)]
    points_lost: Finite


@dataclass(frozen=True)
class Manifest:
    """The whole. precision: fp32, fp16 or int8. input: uint8 or float32. channels: of the picture, always 3.
    weights_id: a hash of the float weights, the same in all files of a version; None in schema 1.
    temperature: logits are divided by it before the softmax (1 = uncalibrated). verification: what the
    exporter checked, as name → measured value. accuracy: measured figures of this model, if known. gates: of
    a file of smaller numbers that was judged on labelled pictures. head: how the logits come from the tokens;
    "linear": their mean times `Head`; "first_order": by more than that, explain.onnx has the contributions;
    "none": not from tokens. Of models that segment only: palette, a colour (R, G, B) a class, black = leave
    the photo as it is; output_stride, pixels of the input to one place of the logits."""

    name: str
    variant: str
    config: dict[str, Any]
    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    preprocessing: Preprocessing
    stages: tuple[StageInfo, ...]
    input: Annotated[str, _one_of(INPUTS)]
    dynamic_size: bool
    precision: Annotated[str, _one_of(PRECISIONS)]
    opset: Count
    attention_nodes: Count
    parameters: Count
    macs: Count
    checkpoint_sha256: str | None
    tools: dict[str, str]
    golden: Golden | None = None
    explain: ExplainInfo | None = None
    temperature: Positive = 1.0
    verification: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)
    task: Annotated[str, _one_of(tuple(TASKS))] = DEFAULT_TASK
    outputs: tuple[OutputInfo, ...] = ()
    channels: int = CHANNELS
    weights_id: str | None = None
    gates: Gates | None = None
    head: Annotated[str, _one_of(HEADS)] = LINEAR
    palette: tuple[tuple[Byte, Byte, Byte], ...] = ()
    output_stride: Count = 0
    schema: int = SCHEMA

    @property
    def purpose(self) -> Task:
        """The row of its task."""
        return TASKS[self.task]

    @property
    def has_tokens(self) -> bool:
        return self.head != NO_HEAD

    @property
    def clustered_stages(self) -> tuple[StageInfo, ...]:
        return tuple(stage for stage in self.stages if stage.output)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Reads a manifest; BadArtifact says what is wrong with it and where."""
        manifest = _read(cls, text, "the model's manifest")
        if manifest.schema == 1:
            manifest = replace(manifest, outputs=_outputs_of_schema_1(manifest))
        manifest._check()
        return manifest

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Manifest:
        """From a model's metadata map; BadArtifact where it carries no manifest."""
        if MANIFEST_KEY not in metadata:
            raise BadArtifact("this ONNX file carries no PaCa manifest; make one with `paca export`")
        return cls.from_json(metadata[MANIFEST_KEY])

    def _check(self) -> None:
        """What one value says against another."""
        if self.channels != CHANNELS:
            raise BadArtifact(
                f"the model takes pictures of {self.channels} channels, this server has {CHANNELS} (RGB)"
            )
        if self.schema > 1 and not self.weights_id:
            raise BadArtifact(f"the model's manifest has schema {self.schema}, but no weights_id")
        named = {output.name for output in self.outputs}
        expected = {*self.purpose.outputs, *(stage.output for stage in self.clustered_stages)}
        expected |= {"tokens"} if self.has_tokens else set()
        expected |= {"features"} if self.explain else set()
        if missing := expected - named:
            raise BadArtifact(
                f"the model's manifest does not list the outputs {', '.join(sorted(map(str, missing)))}"
            )
        if self.has_tokens and not self.stages:
            raise BadArtifact("the model's manifest lists tokens, but no stage whose grid they fill")
        last = self.stages[-1].stage if self.stages else None
        if self.head == FIRST_ORDER and (self.explain is None or last not in self.explain.maps):
            raise BadArtifact(
                "the model's head is of first order, but explain.onnx has no map of its last stage"
            )
        classes = len(self.labels)
        most = SAMPLES if self.purpose.dense else classes
        if self.golden and (self.golden.top >= classes or len(self.golden.logits) > most):
            raise BadArtifact(f"the golden answer in the model's manifest is not one of {classes} classes")
        p = self.preprocessing
        if p.resize == "aspect" and not (
            self.dynamic_size and 0 < p.step <= min(p.size) <= p.longest <= 4096
        ):
            raise BadArtifact(
                "the model's manifest keeps the aspect of pictures; then dynamic_size, step and longest must "
                "be set, with step <= size <= longest"
            )
        if self.purpose.dense:
            self._check_segmentation()

    def _check_segmentation(self) -> None:
        classes = len(self.labels)
        if classes > MAX_SEGMENTS:
            raise BadArtifact(f"the model names {classes} classes; a label map can name {MAX_SEGMENTS}")
        if len(self.palette) != classes:
            raise BadArtifact(
                f"the model's manifest has {len(self.palette)} colours in its palette for {classes} classes"
            )
        if not self.output_stride:
            raise BadArtifact("the model's manifest has no output_stride")

    def check_graph(
        self, inputs: Mapping[str, tuple[str, Sequence[Any]]], outputs: Mapping[str, Any]
    ) -> None:
        """BadArtifact where the file's graph contradicts this manifest. inputs, outputs: by name, ONNX type
        and shape; a free size is a name or None."""
        kind = "tensor(uint8)" if self.input == "uint8" else "tensor(float)"
        accepted = (kind, "tensor(float16)") if self.input == "float32" else (kind,)
        if list(inputs) != ["image"] or inputs["image"][0] not in accepted:
            raise BadArtifact(
                f"the model's input should be 'image' as {kind}, but the file has "
                f"{', '.join(f'{name} {type_}' for name, (type_, _) in inputs.items())}"
            )
        size = self.preprocessing.size
        picture = (*size, self.channels) if self.input == "uint8" else (self.channels, *size)
        if not fits(("batch", *picture), inputs["image"][1]):
            raise BadArtifact(
                f"the model's input is {list(inputs['image'][1])}, but its manifest says "
                f"{['batch', *picture]}"
            )
        if missing := {output.name for output in self.outputs} - set(outputs):
            raise BadArtifact(
                f"the model lacks the outputs {', '.join(sorted(missing))} that its manifest names"
            )
        for output in self.outputs:
            if output.shape is not None and not fits(output.shape, outputs[output.name][1]):
                raise BadArtifact(
                    f"the model's output {output.name} is {list(outputs[output.name][1])}, but its manifest "
                    f"says {list(output.shape)}"
                )
        if (logits := outputs["logits"][1][1]) != len(self.labels):
            raise BadArtifact(
                f"the model has {logits} logits, but its manifest lists {len(self.labels)} labels"
            )


def _outputs_of_schema_1(manifest: Manifest) -> tuple[OutputInfo, ...]:
    """The table that files of schema 1 do not have; what they put out follows from their stages."""
    assignments = [OutputInfo(s.output, "assignment") for s in manifest.clustered_stages if s.output]
    features = [OutputInfo("features", "features")] if manifest.explain else []
    return (OutputInfo("logits", "logits"), OutputInfo("tokens", "tokens"), *assignments, *features)


def fits(expected: Sequence[int | str], found: Sequence[Any]) -> bool:
    """Whether two shapes have as many dimensions and agree in every size that is fixed in both."""
    return len(expected) == len(found) and all(
        a == b for a, b in zip(expected, found, strict=True) if isinstance(a, int) and isinstance(b, int)
    )


@dataclass(frozen=True)
class GoldenMaps:
    """The self-test of explain.onnx with one model file: from the features that this file gives for
    `golden_picture(size, seed)`, the class `target` must get these maps. maps: for each output its `sample`;
    tolerance: relative to the largest number of each."""

    seed: Count
    target: Count
    maps: dict[str, tuple[Finite, ...]]
    tolerance: Positive

    def check(self, maps: Mapping[str, np.ndarray]) -> None:
        """BadArtifact where the maps of the golden picture, (1, ...) by output, are not those that were
        measured at export."""
        for name, numbers in self.maps.items():
            expected = np.array(numbers, np.float32)
            found = sample(maps[name]) if name in maps else expected[:0]
            if found.shape != expected.shape:
                raise BadArtifact(f"self-test failed: explain.onnx's output {name} has another size")
            off, largest = (float(np.abs(a).max(initial=0)) for a in (found - expected, expected))
            if not off <= self.tolerance * max(largest, 1e-6):
                raise BadArtifact(
                    f"self-test failed: explain.onnx's {name} of the golden picture is {off:.3g} off, "
                    f"allowed are {self.tolerance * largest:.3g}; it does not belong to this model"
                )


@dataclass(frozen=True)
class ExplainManifest:
    """What explain.onnx says of itself. weights_id: as in the model files it goes with; golden: for each of
    their precisions what it must give."""

    weights_id: str
    golden: dict[str, GoldenMaps]
    schema: int = SCHEMA

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ExplainManifest | None:
        """From the metadata map of an explain.onnx; None for one of schema 1, which says nothing. BadArtifact
        where it cannot be read."""
        text = metadata.get(EXPLAIN_KEY)
        return None if text is None else _read(cls, text, "explain.onnx's manifest")


def golden_maps(model: Manifest, explain: ExplainManifest | None) -> GoldenMaps | None:
    """What explain.onnx must give with this model file; None where both are of schema 1, which cannot tell.
    BadArtifact where they were made from different weights."""
    ids = model.weights_id, explain.weights_id if explain else None
    if ids[0] != ids[1]:
        told = " and ".join(weights_id[:12] if weights_id else "none" for weights_id in ids)
        raise BadArtifact(
            f"the model and explain.onnx were made from different weights (weights_id {told}); export both "
            "again with `paca export`"
        )
    if explain is None:
        return None
    if model.precision not in explain.golden:
        raise BadArtifact(
            f"explain.onnx goes with {', '.join(explain.golden)} files, not with {model.precision}; export "
            f"both again with `paca export --precision {model.precision}`"
        )
    return explain.golden[model.precision]


def sample(array: np.ndarray) -> np.ndarray:
    """Up to `SAMPLES` numbers spread evenly over `array`, float32: enough to tell two maps apart."""
    flat = np.asarray(array, np.float32).ravel()
    return flat[np.linspace(0, max(flat.size - 1, 0), min(flat.size, SAMPLES)).astype(int)]


def golden_logits(logits: np.ndarray) -> np.ndarray:
    """What a golden answer compares: of a picture's logits (K,) all, of (K, H, W) a `sample`."""
    return logits if logits.ndim == 1 else sample(logits)


def _read(cls: type[T], text: str, what: str) -> T:
    """A dataclass from its JSON, every value checked against its declared type; BadArtifact names `what` is
    wrong and where."""
    try:
        values = json.loads(text)
        schema = values.get("schema")
    except (ValueError, AttributeError, RecursionError):
        raise BadArtifact(f"{what} is not a JSON object; export it again with `paca export`") from None
    if type(schema) is not int or schema not in SCHEMAS:
        raise BadArtifact(
            f"{what} has schema {schema!r}, this server reads schema {' and '.join(map(str, SCHEMAS))}; "
            "export it again, or use a matching server"
        )
    try:
        checked: T = _adapter(cls).validate_json(text, strict=True)
        return checked
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where, given = ".".join(map(str, first["loc"])), first["input"]
        got = "" if first["type"] == "missing" else f" (it is {repr(given)[:60]})"
        raise BadArtifact(
            f"{what} is wrong at {where or 'its start'}: {first['msg']}{got}; export it again with `paca "
            "export`"
        ) from None


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)  # built when first needed, 0.05 s


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


def readable(value: Any) -> str:
    """A value of a manifest for people: four digits of a number that is not whole, a line for each member."""
    if value is None or value in ({}, [], ()):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(readable, value))
    if isinstance(value, dict):
        return "\n".join(
            f"{name.replace('_', ' ')}: {readable(inner).replace(chr(10), ', ')}"
            for name, inner in value.items()
        )
    return str(value)


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
