"""MODEL.onnx → one verified artifact: read, recognise its end, operate, verify, and only then release it.

Where a file fixes its batch, the graph is first made free of that; if it then fails, it stays at batch 1 and
the report says so. A claim about the head that does not hold in numbers is dropped, never written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from service.artifact import (
    FIRST_ORDER,
    NO_HEAD,
    RESIZES,
    ExplainInfo,
    Manifest,
    Preprocessing,
    StageInfo,
)
from service.errors import PacaError

from ..annotate import outputs
from ..errors import ExportError, VerificationError
from ..finish import (
    Format,
    Say,
    Written,
    calibration,
    golden_of,
    reduce,
    save,
    scratch_beside,
    version_of,
    with_novelty,
)
from ..labels import IMAGENET, numbered, read_labels
from ..pictures import DataError
from ..reference import Reference, read_reference
from ..release import EXPLAIN, Draft, release
from ..training.split import SPLIT
from .graph import Graph, Size, float_tensors, opset, read_model
from .linearise import STAGE, linearised
from .recognise import End, recognise
from .surgery import Picture, find_picture, macs, parameters, served
from .verify import BATCHES, DIFFERENCE, NotExactError, Original, compare, compare_slopes

TOOLS = ("onnx", "onnxruntime", "paca-serve")
# mean and std of pixel values in 0..1
PRESETS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
ROLES = {"logits": "logits", "tokens": "tokens", "features": "features"}
IMAGENET_NAMES = "imagenet"  # in place of a file of labels
Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Sight:
    """How a picture becomes the network's input. size: the side where the file leaves it free. preset: of
    PRESETS. mean, std: in place of it, of pixel values in 0..1. resize, crop: as in `Preprocessing`."""

    size: int | None = None
    preset: str | None = None
    mean: Triple | None = None
    std: Triple | None = None
    resize: str = "shortest"
    crop: float = 0.875

    def preprocessing(self, picture: Picture) -> Preprocessing:
        """ExportError where it says what cannot be."""
        for what, value, known in (("preset", self.preset, PRESETS), ("resize", self.resize, RESIZES)):
            if value is not None and value not in known:
                raise ExportError(f"--{what} {value} is not known; choose one of: {', '.join(known)}")
        if (self.mean is None) != (self.std is None):
            raise ExportError("--mean and --std belong together; give both, or a --preset")
        if self.mean and self.preset:
            raise ExportError("--preset and --mean exclude each other; give one of them")
        if picture.takes_bytes and (self.mean or self.preset):
            raise ExportError(
                "the model takes bytes (uint8) and normalises itself; leave out --preset and --mean"
            )
        mean, std = PRESETS["unit" if picture.takes_bytes else self.preset or "imagenet"]
        mean, std = self.mean or mean, self.std or std
        if min(std) <= 0 or not all(map(math.isfinite, (*mean, *std))):
            raise ExportError("--std must be three numbers above 0, and --mean three numbers")
        if not 0 < self.crop <= 1:
            raise ExportError(f"--crop {self.crop} must be above 0 and at most 1")
        crop = self.crop if self.resize == "shortest" else 1.0
        return Preprocessing(picture.size, self.resize, crop, "bilinear", mean, std)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call of `paca import`. labels: a file, or IMAGENET_NAMES. name: of the model; by default the
    repository folder's, or the file's. trained_on: in the user's words, for the card."""

    source: Path
    labels: str | None = None
    sight: Sight = dataclasses.field(default_factory=Sight)
    format: Format = dataclasses.field(default_factory=Format)
    name: str | None = None
    trained_on: str | None = None
    out: Path = Path("model.onnx")


@dataclass(frozen=True)
class ImportReport:
    """What came out. end: how the model ends, and so how it can be explained."""

    path: Path
    manifest: Manifest
    end: End
    size: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        m = self.manifest
        return {
            "file": self.path.name,
            "bytes": self.size,
            "name": m.name,
            "explained": self.end.reason,
            "classes": len(m.labels),
            "image_size": list(m.preprocessing.size),
            "precision": m.precision,
            "parameters": m.parameters,
            "macs": m.macs,
            "weights_id": m.weights_id,
            **m.verification,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class _Foreign:
    """What is known of the file before anything is changed."""

    request: Request
    model: onnx.ModelProto
    picture: Picture
    preprocessing: Preprocessing
    original: Original
    sha256: str


def run(request: Request, say: Say = lambda text: None) -> ImportReport:
    """What `paca import` does. ExportError, VerificationError or BadArtifact with one line; then nothing was
    written."""
    request.format.check()
    say("reading the model")
    foreign = _read(request)
    with scratch_beside(request.out) as scratch:
        written, end = _full_precision(foreign, scratch, say)
        labels, how = written.manifest.labels, foreign.preprocessing
        if request.format.precision != "fp32":
            if len(written.manifest.verification["batches"]) == 1:
                raise ExportError(
                    "the graph runs one picture at a time, and smaller formats are judged on many; keep fp32"
                )
            pictures = calibration(request.format, how, labels)
            written = reduce(written, request.format.precision, pictures, say)
        if reference := _reference(request.format, how, end):
            written = with_novelty(written, reference, say)
        say("testing the files as they will be served")
        remarks = release(written.draft, request.out, request.trained_on)
    notes = (*written.notes, *remarks)
    return ImportReport(request.out, written.manifest, end, request.out.stat().st_size, notes)


def _read(request: Request) -> _Foreign:
    model = read_model(request.source)
    picture = find_picture(model, request.sight.size)
    preprocessing = request.sight.preprocessing(picture)
    original = Original(model, picture, preprocessing)
    sha256 = hashlib.sha256(request.source.read_bytes()).hexdigest()
    return _Foreign(request, model, picture, preprocessing, original, sha256)


def _full_precision(foreign: _Foreign, scratch: Path, say: Say) -> tuple[Written, End]:
    """The fp32 files, with as much as holds: any batch before batch 1, the recognised end before none."""
    batch: Size = "batch"
    doubt = ""
    while True:
        try:
            say("recognising how the model ends")
            graph = Graph(foreign.model, foreign.picture.name, foreign.picture.shape(batch))
            end = recognise(graph)
            if doubt:
                reason = f"no exact map: {doubt}"
                end = dataclasses.replace(end, head=NO_HEAD, reason=reason, mean=None, weights=None)
            return _written(foreign, graph, end, scratch, say), end
        except NotExactError as error:
            doubt = str(error)
        except (ExportError, VerificationError, PacaError):
            if batch == 1:
                raise
            batch, doubt = 1, ""


def _written(foreign: _Foreign, graph: Graph, end: End, scratch: Path, say: Say) -> Written:
    part, explain = scratch / "model.onnx", None
    proto = served(graph, end, foreign.picture, foreign.preprocessing)
    manifest = _manifest(foreign, graph, end, proto)
    save(proto, manifest, end.weights, part)
    say("verifying the original against the result")
    free = isinstance(graph.shape[0], str)
    measured = compare(part, foreign.original, end, BATCHES if free else (1,))
    if end.head == FIRST_ORDER:
        explain = scratch / EXPLAIN
        gradients = linearised(graph, end)
        onnx.save(gradients, explain)
        measured["slopes"] = compare_slopes(part, explain, end, _forward(gradients, end))
    verification = {"against": "the original file", "nodes": len(proto.graph.node), **measured}
    tolerance = {"logits": DIFFERENCE}
    manifest = dataclasses.replace(
        manifest,
        outputs=outputs(proto, ROLES, tolerance),
        verification=verification,
        golden=golden_of(part, "fp32"),
    )
    save(proto, manifest, end.weights, part)
    return Written(Draft(part, explain), manifest, _notes(foreign, end, free))


def _manifest(foreign: _Foreign, graph: Graph, end: End, proto: onnx.ModelProto) -> Manifest:
    """What is known before anything is run."""
    request, mean = foreign.request, end.mean
    version_folder = request.out.absolute().parent
    in_repository = version_folder.parent.name if version_folder.name.isdecimal() else ""
    return Manifest(
        name=request.name or in_repository or request.source.stem,
        variant=request.source.stem,
        config={
            "imported_from": request.source.name,
            "producer": f"{foreign.model.producer_name} {foreign.model.producer_version}".strip(),
            "explained": end.reason,
            "softmax_taken_off": end.softmax,
        },
        labels=_labels(request, end.classes),
        preprocessing=foreign.preprocessing,
        stages=(StageInfo(STAGE, mean.grid, mean.width, 0, 0, None, None),) if mean else (),
        input="uint8",
        dynamic_size=False,
        precision="fp32",
        opset=opset(graph.model),
        attention_nodes=sum(node.op_type == "Attention" for node in proto.graph.node),
        parameters=parameters(graph),
        macs=macs(graph),
        checkpoint_sha256=foreign.sha256,
        tools={tool: version_of(tool) for tool in TOOLS},
        explain=ExplainInfo(STAGE, (STAGE,)) if end.head == FIRST_ORDER else None,
        outputs=outputs(proto, ROLES, {}),
        weights_id=_weights_id(graph),
        head=end.head,
    )


def _labels(request: Request, classes: int) -> tuple[str, ...]:
    if request.labels is None:
        return numbered(classes)
    try:
        labels = read_labels(IMAGENET if request.labels == IMAGENET_NAMES else Path(request.labels))
    except ValueError as error:
        raise ExportError(str(error)) from None
    if len(labels) != classes:
        raise ExportError(
            f"{len(labels)} labels for {classes} classes; give one label a line, in the order of the model's "
            "scores, with --labels"
        )
    return labels


def _weights_id(graph: Graph) -> str:
    """SHA-256 of the float weights in their order."""
    digest = hashlib.sha256()
    for tensor in float_tensors(graph.model.graph.initializer):
        digest.update(f"{tensor.shape} ".encode())
        digest.update(tensor.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def _notes(foreign: _Foreign, end: End, free: bool) -> tuple[str, ...]:
    """What the user should know of what was decided for him."""
    sight, notes = foreign.request.sight, [end.reason]
    if end.softmax:
        notes.append(f"the final {end.softmax} was taken off: the server has its own")
    if not free:
        notes.append("the graph runs one picture at a time only")
    if not (foreign.picture.takes_bytes or sight.preset or sight.mean):
        notes.append(
            "took ImageNet's mean and std; if the model was trained with others, give --preset or --mean"
        )
    if foreign.request.labels is None:
        notes.append("the classes have no names; give them with --labels")
    return tuple(notes)


def _forward(gradients: onnx.ModelProto, end: End) -> Callable[[np.ndarray], np.ndarray]:
    """tokens (1, N, C) → logits (1, K), by the copy of the head in explain.onnx."""
    copy = onnx.ModelProto()
    copy.CopyFrom(gradients)
    copy.graph.output.append(helper.make_tensor_value_info(end.logits, onnx.TensorProto.FLOAT, None))
    try:
        session = onnxruntime.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:  # what ONNX Runtime raises is no contract
        raise NotExactError(f"the linearised head does not run: {str(error).splitlines()[0][:120]}") from None
    weights = np.zeros((1, end.classes), np.float32)

    def forward(tokens: np.ndarray) -> np.ndarray:
        logits = session.run([end.logits], {"features": tokens, "weights": weights})[0]
        return np.asarray(logits).reshape(1, -1)

    return forward


def _reference(format: Format, how: Preprocessing, end: End) -> Reference | None:
    """What novelty is measured against."""
    if format.reference is None:
        return None
    if end.mean is None:
        raise ExportError(f"no novelty without tokens ({end.reason}); leave out --reference")
    try:
        return read_reference(format.reference, format.foreign, how, format.reference.parent / SPLIT)
    except DataError as error:
        raise ExportError(f"cannot use the reference pictures: {error}") from None
