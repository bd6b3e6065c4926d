"""checkpoint → one verified artifact: load, trace, annotate, verify, and only then put the file in place.

A failure at any step leaves whatever stood at the target untouched: everything is written beside it and
renamed at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch

from service.artifact import ExplainInfo, Golden, Manifest, golden_picture
from service.engine import Device, Engine

from .annotate import annotate, head, preprocessing, stages
from .attention_node import OPSET, node_counts
from .calibration import read_pictures
from .checkpoints import load
from .gradients import export_gradients
from .labels import assumed, numbered, read_labels
from .paca.config import variant
from .paca.cost import macs, parameters
from .paca.model import PaCaViT
from .quantise import QuantisationError, to_fp16, to_int8
from .trace import Served, trace
from .verify import Verification, VerificationError, verify

TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "paca-serve")
GOLDEN_TOLERANCE = 2e-3
GOLDEN_REDUCED = 0.1
FP16_TOLERANCE = 2e-2
PRECISIONS = ("fp32", "fp16", "int8")
INPUTS = ("uint8", "float32")
Say = Callable[[str], None]


class ExportError(Exception):
    """The export cannot be done; the message is one line that says why and what to do."""


@dataclass(frozen=True)
class Source:
    """What is exported: a network with its labels and what is known about it."""

    model: PaCaViT
    name: str
    labels: tuple[str, ...]
    temperature: float = 1.0
    checkpoint_sha256: str | None = None
    accuracy: dict = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportReport:
    """What came out. explain: the report of explain.onnx, None where none was written and `explain_missing`
    says why."""

    path: Path
    manifest: Manifest
    verification: Verification
    size: int
    explain: dict | None
    explain_missing: str | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict:
        m = self.manifest
        return {
            "file": self.path.name,
            "bytes": self.size,
            "name": m.name,
            "variant": m.variant,
            "classes": len(m.labels),
            "image_size": list(m.preprocessing.size),
            "dynamic_size": m.dynamic_size,
            "precision": m.precision,
            "input": m.input,
            "parameters": m.parameters,
            "macs": m.macs,
            **self.verification.to_dict(),
            "explain": self.explain or self.explain_missing,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Request:
    """One call of `paca export`. variant: a name, or "auto"; name: of the model, by default the repository
    folder's if `out` lies in one. explain_from: the stage after which explain.onnx takes over, None for
    `explain_stage`."""

    variant: str
    checkpoint: Path | None = None
    labels: Path | None = None
    num_classes: int | None = None
    image_size: int | None = None
    dynamic_size: bool = False
    precision: str = "fp32"
    input_kind: str = "uint8"
    calibration: Path | None = None
    name: str | None = None
    out: Path = Path("model.onnx")
    explain_from: int | None = None


def run(request: Request, say: Say = lambda text: None) -> ExportReport:
    """What `paca export` does. ExportError, CheckpointError or VerificationError with one line; then nothing
    was written."""
    if request.precision not in PRECISIONS:
        raise ExportError(
            f"precision {request.precision!r} is not known; choose one of: {', '.join(PRECISIONS)}"
        )
    if request.input_kind not in INPUTS:
        raise ExportError(f"input {request.input_kind!r} is not known; choose one of: {', '.join(INPUTS)}")
    if request.precision == "int8" and request.calibration is None:
        raise ExportError("int8 needs --calibration: a folder with pictures like those to come, at least 32")
    source = load_source(request)
    export = partial(
        export_model,
        source,
        input_kind=request.input_kind,
        dynamic_size=request.dynamic_size,
        explain_from=request.explain_from,
        say=say,
    )
    if request.precision == "fp32":
        return export(request.out)
    with tempfile.TemporaryDirectory(dir=_folder(request.out), prefix=".paca-export-") as scratch:
        full = export(Path(scratch) / "model.onnx")
        return reduce_precision(full, request, say)


def reduce_precision(full: ExportReport, request: Request, say: Say) -> ExportReport:
    """The verified fp32 file of `full` in float16 or 8 bits at `request.out`, compared with it through the
    server's engine; explain.onnx beside it."""
    manifest = full.manifest
    proto = onnx.load(full.path)
    if request.precision == "fp16":
        say("converting to float16")
        reduced, judged = to_fp16(proto), {}
        pictures = np.random.default_rng(0).integers(0, 256, (16, *manifest.preprocessing.size, 3), np.uint8)
    else:
        assert request.calibration is not None
        pictures = read_pictures(request.calibration, manifest.preprocessing)
        tensors = pictures if manifest.input == "uint8" else manifest.preprocessing.to_float(pictures)
        try:
            found = to_int8(proto, tensors, say)
        except QuantisationError as error:
            raise ExportError(str(error)) from None
        reduced = found.model
        judged = {
            "agreement": found.agreement,
            "judged": found.judged,
            "calibrated": found.calibrated,
            "kept_float": list(found.kept_float),
        }
    say(f"verifying {request.precision} against fp32")
    if (attention := node_counts(reduced)["Attention"]) != manifest.attention_nodes:
        raise VerificationError(
            f"the {request.precision} graph has {attention} Attention nodes for {manifest.attention_nodes} "
            "blocks"
        )
    part = full.path.with_name("reduced.onnx")
    head_weights = Engine(full.path, Device("cpu")).head
    annotate(reduced, dataclasses.replace(manifest, precision=request.precision, golden=None), head_weights)
    _save(reduced, part, request.out)
    expected, got = (Engine(path, Device("cpu")).run(pictures[:64]).logits for path in (full.path, part))
    difference = float(np.abs(expected - got).max())
    scale = max(1.0, float(np.abs(expected).max()))
    if request.precision == "fp16" and not difference <= FP16_TOLERANCE * scale:
        raise VerificationError(
            f"logits of fp16 and fp32 differ by {difference:.2g}, allowed are {FP16_TOLERANCE * scale:.2g}; "
            "keep fp32"
        )
    checked = {**manifest.verification, "reduced_from": "fp32", "logits_difference": difference, **judged}
    golden = _golden_of(part, manifest, GOLDEN_REDUCED * scale)
    final = dataclasses.replace(manifest, precision=request.precision, golden=golden, verification=checked)
    annotate(reduced, final, head_weights)
    _save(reduced, part, request.out)
    beside = full.path.with_name("explain.onnx")
    place(
        [
            (part, request.out),
            *([(beside, request.out.with_name("explain.onnx"))] if beside.is_file() else []),
        ]
    )
    notes = (
        *full.notes,
        f"{request.precision}: logits differ from fp32 by at most {difference:.3g}",
        *(f"{k}: {v}" for k, v in judged.items()),
    )
    return dataclasses.replace(
        full, path=request.out, manifest=final, size=request.out.stat().st_size, notes=notes
    )


def _golden_of(path: Path, manifest: Manifest, tolerance: float) -> Golden:
    """The golden picture's logits as this very file gives them here; other processors may round 8 and 16 bits
    differently, hence the tolerance."""
    logits = Engine(path, Device("cpu")).run(golden_picture(manifest.preprocessing.size, 0)[None]).logits[0]
    return Golden(0, int(logits.argmax()), tuple(round(float(v), 6) for v in logits[:16]), tolerance)


def load_source(request: Request) -> Source:
    """The network with its labels: from the checkpoint, or random weights where none is given."""
    changes: dict = {"image_size": request.image_size} if request.image_size else {}
    name = request.name or _name_in_repository(request.out) or request.variant
    try:
        labels = read_labels(request.labels) if request.labels else None
    except ValueError as error:
        raise ExportError(str(error)) from None
    if request.checkpoint is None:
        if request.variant == "auto":
            raise ExportError("variant 'auto' needs a --checkpoint to recognise")
        classes = request.num_classes or (len(labels) if labels else None)
        try:
            config = variant(request.variant, **changes, **({"num_classes": classes} if classes else {}))
        except KeyError as error:
            raise ExportError(error.args[0]) from None
        torch.manual_seed(0)
        return Source(PaCaViT(config), name, labels or numbered(config.num_classes))
    loaded = load(
        request.checkpoint, None if request.variant == "auto" else request.variant, request.num_classes
    )
    if changes:
        loaded.model.config = dataclasses.replace(loaded.model.config, **changes)
    labels, notes = labels or loaded.labels, loaded.notes
    if labels is None:
        labels, remark = assumed(loaded.model.config)
        notes = (*notes, remark)
    return Source(loaded.model, name, labels, loaded.temperature, loaded.sha256, loaded.accuracy, notes)


def _name_in_repository(out: Path) -> str | None:
    """<name> where `out` is <repository>/<name>/<version>/<file>."""
    folder = out.absolute().parent
    return folder.parent.name if folder.name.isdecimal() else None


def explain_stage(model: PaCaViT) -> int | None:
    """Where the gradient graph takes over: the second last stage (the cheapest cut with a finer grid than the
    last); 0, the patch embedding, with a teacher, which reads that and speaks to every stage. None for a
    single stage, whose map is exact without gradients."""
    if len(model.config.stages) == 1:
        return None
    return 0 if model.config.teacher_depths else len(model.config.stages) - 1


def check_size(model: PaCaViT, dynamic_size: bool) -> None:
    """Refuses a picture size that would leave the last grid smaller than 2x2."""
    config = model.config
    smallest = 2 * config.patch_size * 2 ** (len(config.stages) - 1)
    if config.image_size < smallest or config.image_size > 2048:
        raise ExportError(
            f"image size {config.image_size} does not fit {config.name}: it needs {smallest} to 2048 pixels"
        )


def export_model(
    source: Source,
    out: Path,
    *,
    input_kind: str = "uint8",
    dynamic_size: bool = False,
    with_explain: bool = True,
    explain_from: int | None = None,
    say: Say = lambda text: None,
) -> ExportReport:
    """Writes the fp32 artifact to `out` and explain.onnx beside it, both verified. explain_from: as in
    `Request`.

    Raises ExportError or VerificationError; then nothing is written.
    """
    model = source.model.eval()
    check_size(model, dynamic_size)
    for module in model.modules():
        if reason := getattr(module, "not_exportable", None):
            raise ExportError(f"{source.name} cannot be exported: {reason}")
    if len(source.labels) != model.config.num_classes:
        raise ExportError(
            f"{len(source.labels)} labels for {model.config.num_classes} classes; give one label a line with "
            "--labels"
        )
    with tempfile.TemporaryDirectory(dir=_folder(out), prefix=".paca-export-") as scratch:
        part = Path(scratch) / "model.onnx"
        gradients, missing, info = None, None, None
        cut = explain_stage(model) if explain_from is None else explain_from
        if with_explain and cut is not None:
            say("tracing the gradient graph")
            try:
                with _writing(out):
                    gradients = export_gradients(model, cut, Path(scratch) / "explain.onnx")
                info = ExplainInfo(cut, tuple(gradients["maps"]), tuple(gradients.get("effects", ())))
            except (ValueError, NotImplementedError) as reason:
                if explain_from is not None:
                    raise ExportError(str(reason)) from None
                missing = str(reason)
        say("tracing the served graph")
        cut = cut if info else None
        proto = trace(model, input_kind=input_kind, dynamic_size=dynamic_size, explain_stage=cut)
        manifest = _manifest(source, input_kind, dynamic_size, info)
        annotate(proto, manifest, head(model))
        _save(proto, part, out)
        say("verifying torch against ONNX Runtime")
        verification = verify(proto, part, model, cut, dynamic_size)
        manifest = dataclasses.replace(
            manifest, attention_nodes=verification.attention_nodes, verification=verification.to_dict()
        )
        annotate(proto, manifest, head(model))
        _save(proto, part, out)
        place(
            [
                (part, out),
                *([(Path(scratch) / "explain.onnx", out.with_name("explain.onnx"))] if info else []),
            ]
        )
    return ExportReport(out, manifest, verification, out.stat().st_size, gradients, missing, source.notes)


def _folder(out: Path) -> Path:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"cannot write to {out.parent}: {error.strerror}") from None
    if not os.access(out.parent, os.W_OK):
        raise ExportError(f"cannot write to {out.parent}: permission denied")
    return out.parent


def _save(proto: onnx.ModelProto, part: Path, out: Path) -> None:
    with _writing(out):
        onnx.save(proto, part)


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Says of a failure to write, such as a full disk, that it cost nothing."""
    try:
        yield
    except OSError as error:
        raise ExportError(
            f"cannot write {out.name}: {error.strerror}; what stood there is untouched"
        ) from None


def place(pairs: Iterable[tuple[Path, Path]]) -> None:
    """Renames every finished file into place, after flushing it to disk; a full disk shows before anything is
    replaced."""
    pairs = list(pairs)
    with _writing(pairs[0][1]):
        for part, _ in pairs:
            with part.open("rb") as file:
                os.fsync(file.fileno())
        for part, target in pairs:
            part.replace(target)
            target.chmod(0o644)


def _manifest(source: Source, input_kind: str, dynamic_size: bool, info: ExplainInfo | None) -> Manifest:
    config = source.model.config
    return Manifest(
        name=source.name,
        variant=config.name,
        config=config.to_dict(),
        labels=source.labels,
        preprocessing=preprocessing(config),
        stages=stages(config),
        input=input_kind,
        dynamic_size=dynamic_size,
        precision="fp32",
        opset=OPSET,
        attention_nodes=config.blocks,
        parameters=parameters(source.model),
        macs=macs(config),
        checkpoint_sha256=source.checkpoint_sha256,
        tools={tool: _version(tool) for tool in TOOLS},
        golden=_golden(source.model),
        explain=info,
        temperature=source.temperature,
        accuracy=source.accuracy,
        schema=1,
    )


def _golden(model: PaCaViT, seed: int = 0) -> Golden:
    size = (model.config.image_size, model.config.image_size)
    picture = torch.from_numpy(golden_picture(size, seed)[None])
    with torch.no_grad():
        logits = Served(model, "uint8", None)(picture)[0][0].double().numpy()
    return Golden(
        seed,
        int(logits.argmax()),
        tuple(round(float(v), 6) for v in logits[:16]),
        GOLDEN_TOLERANCE * max(1.0, float(np.abs(logits).max())),
    )


def _version(tool: str) -> str:
    try:
        return importlib.metadata.version(tool)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
