"""checkpoint → one verified artifact: load, trace, annotate, verify, and only then release the files.

A failure at any step leaves whatever stood at the target untouched: everything is written into a scratch
folder beside it, and `release` renames it into place.
"""

from __future__ import annotations

import dataclasses
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import torch

from service.artifact import CHANNELS, ExplainInfo, Manifest
from service.novelty import Statistics

from .annotate import head, outputs, preprocessing, stages, weights_id
from .attention_node import OPSET
from .checkpoints import load
from .errors import ExportError
from .finish import (
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
from .gradients import export_gradients
from .labels import assumed, numbered, read_labels
from .paca.config import variant
from .paca.cost import macs, parameters
from .paca.model import PaCaViT
from .pictures import DataError
from .reference import Reference, of_training, read_reference
from .release import EXPLAIN, Draft, release
from .trace import Served, trace
from .training.split import HELD_OUT, SPLIT
from .verify import Verification, verify

__all__ = [
    "Checked",
    "ExportReport",
    "Format",
    "Request",
    "Source",
    "default_name",
    "explain_stage",
    "export_model",
    "load_source",
    "run",
]
TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "paca-serve")
# what training scripts call their files: no name of a model
NO_NAMES = ("model", "checkpoint", "best", "last", "final", "latest", "weights", "pytorch_model", "ema")


@dataclass(frozen=True)
class Source:
    """What is exported: a network with its labels and what is known about it. trained_on: what it learned
    from, in the user's words. novelty: what training fitted. run: the folder of the training, where it wrote
    down which pictures it held out."""

    model: PaCaViT
    name: str
    labels: tuple[str, ...]
    temperature: float = 1.0
    checkpoint_sha256: str | None = None
    _: KW_ONLY
    accuracy: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    trained_on: str | None = None
    novelty: Statistics | None = None
    run: Path | None = None


@dataclass(frozen=True)
class ExportReport:
    """What came out. explain: the report of explain.onnx, None where none was written and `explain_missing`
    says why. novelty: the statistics in the file."""

    path: Path
    manifest: Manifest
    verification: Verification
    size: int
    explain: dict[str, Any] | None
    explain_missing: str | None = None
    notes: tuple[str, ...] = ()
    novelty: Statistics | None = None

    def to_dict(self) -> dict[str, Any]:
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
            "weights_id": m.weights_id,
            **self.verification.to_dict(),
            "explain": self.explain or self.explain_missing,
            "novelty": self.novelty.facts if self.novelty else None,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Request:
    """One call of `paca export`. variant: a name, or "auto"; name: of the model, by default `default_name`;
    trained_on: what it learned from, in the user's words, for the model card."""

    variant: str
    _: KW_ONLY
    checkpoint: Path | None = None
    labels: Path | None = None
    num_classes: int | None = None
    image_size: int | None = None
    name: str | None = None
    trained_on: str | None = None
    out: Path = Path("model.onnx")
    format: Format = dataclasses.field(default_factory=Format)


def run(request: Request, say: Say = lambda text: None) -> ExportReport:
    """What `paca export` does. ExportError, CheckpointError or VerificationError with one line; then nothing
    was written."""
    request.format.check()
    return export_model(load_source(request), request.out, request.format, say)


def load_source(request: Request) -> Source:
    """The network with its labels: from the checkpoint, or random weights where none is given."""
    changes: dict[str, Any] = {"image_size": request.image_size} if request.image_size else {}
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
        name = default_name(request, config.name)
        return Source(
            PaCaViT(config), name, labels or numbered(config.num_classes), trained_on=request.trained_on
        )
    loaded = load(
        request.checkpoint, None if request.variant == "auto" else request.variant, request.num_classes
    )
    if changes:
        loaded.model.config = dataclasses.replace(loaded.model.config, **changes)
    labels, notes = labels or loaded.labels, loaded.notes
    if labels is None:
        labels, remark = assumed(loaded.model.config)
        notes = (*notes, remark)
    return Source(
        loaded.model,
        default_name(request, loaded.model.config.name),
        labels,
        loaded.temperature,
        loaded.sha256,
        accuracy=loaded.accuracy,
        notes=notes,
        trained_on=request.trained_on,
        novelty=loaded.novelty,
        run=request.checkpoint.parent,
    )


def default_name(request: Request, recognised: str) -> str:
    """The model's name: as asked for; <name> where `out` is <repository>/<name>/<version>/<file>; the
    checkpoint's file name where the variant was left to us and the file has a name of its own; else the
    variant."""
    folder = request.out.absolute().parent
    stem = request.checkpoint.stem if request.checkpoint and request.variant == "auto" else ""
    own = stem if stem.casefold() not in NO_NAMES else ""
    return request.name or (folder.parent.name if folder.name.isdecimal() else "") or own or recognised


def explain_stage(model: PaCaViT) -> int | None:
    """Where the gradient graph takes over: the second last stage (the cheapest cut with a finer grid than the
    last); 0, the patch embedding, with a teacher, which reads that and speaks to every stage. None for a
    single stage, whose map is exact without gradients."""
    if len(model.config.stages) == 1:
        return None
    return 0 if model.config.teacher_depths else len(model.config.stages) - 1


def check_source(source: Source) -> None:
    """Refuses what cannot be served: pictures that are not RGB, or so small that the last grid would be below
    2x2; a network that says it cannot be exported; labels that do not fit."""
    config = source.model.config
    if config.in_channels != CHANNELS:
        raise ExportError(
            f"{config.name} takes pictures of {config.in_channels} channels; only {CHANNELS} (RGB) are served"
        )
    smallest = 2 * config.patch_size * 2 ** (len(config.stages) - 1)
    if config.image_size < smallest or config.image_size > 2048:
        raise ExportError(
            f"image size {config.image_size} does not fit {config.name}: it needs {smallest} to 2048 pixels"
        )
    for module in source.model.modules():
        if reason := getattr(module, "not_exportable", None):
            raise ExportError(f"{source.name} cannot be exported: {reason}")
    if len(source.labels) != config.num_classes:
        raise ExportError(
            f"{len(source.labels)} labels for {config.num_classes} classes; give one label a line with "
            "--labels"
        )


@dataclass(frozen=True, kw_only=True)
class Checked(Written):
    """With what was checked of a network of ours, and what is reported of explain.onnx."""

    verification: Verification
    explain: dict[str, Any] | None
    explain_missing: str | None


def export_model(
    source: Source,
    out: Path,
    format: Format = Format(),
    say: Say = lambda text: None,
) -> ExportReport:
    """Writes the artifact to `out`, explain.onnx and the model card beside it, all verified.

    Raises ExportError, VerificationError or BadArtifact; then nothing is written.
    """
    format.check()
    check_source(source)
    pictures = calibration(format, preprocessing(source.model.config), source.labels)
    reference, remark = _reference(format, source)
    with scratch_beside(out) as scratch:
        written = _full_precision(source, scratch, format, say)
        if format.precision != "fp32":
            written = reduce(written, format.precision, pictures, say)
        written = with_novelty(written, reference, say) if reference else written
        say("testing the files as they will be served")
        remarks = release(written.draft, out, source.trained_on)
        return ExportReport(
            out,
            written.manifest,
            written.verification,
            out.stat().st_size,
            written.explain,
            written.explain_missing,
            (*written.notes, *([remark] if remark else []), *remarks),
            written.novelty,
        )


def _reference(format: Format, source: Source) -> tuple[Reference | None, str | None]:
    """What novelty is measured against, and a remark where training left statistics but no pictures."""
    how = preprocessing(source.model.config)
    if format.reference:
        record = (source.run or format.reference.parent) / SPLIT
        try:
            return read_reference(format.reference, format.foreign, how, record), None
        except DataError as error:
            raise ExportError(f"cannot use the reference pictures: {error}") from None
    if not (source.novelty and source.run):
        return None, None
    found = of_training(source.novelty, source.run / HELD_OUT, how)
    gone = (
        f"no novelty: the training's {HELD_OUT}/ is not beside the checkpoint; name pictures with --reference"
    )
    return found, None if found else gone


def _full_precision(source: Source, scratch: Path, format: Format, say: Say) -> Checked:
    """The fp32 files."""
    model = source.model.eval()
    part, explain = scratch / "model.onnx", scratch / EXPLAIN
    gradients, missing, info = None, None, None
    cut = explain_stage(model) if format.explain_from is None else format.explain_from
    if format.with_explain and cut is not None:
        say("tracing the gradient graph")
        try:
            gradients = export_gradients(model, cut, explain)
            info = ExplainInfo(cut, tuple(gradients["maps"]), tuple(gradients.get("effects", ())))
        except (ValueError, NotImplementedError) as reason:
            if format.explain_from is not None:
                raise ExportError(str(reason)) from None
            missing = str(reason)
    say("tracing the served graph")
    cut = cut if info else None
    proto = trace(model, input_kind=format.input_kind, dynamic_size=format.dynamic_size, explain_stage=cut)
    roles = Served(model, format.input_kind, cut).roles
    manifest = dataclasses.replace(_manifest(source, format), explain=info, outputs=outputs(proto, roles, {}))
    save(proto, manifest, head(model), part)
    say("verifying torch against ONNX Runtime")
    verification = verify(proto, part, model, cut, format.dynamic_size)
    manifest = dataclasses.replace(
        manifest,
        attention_nodes=verification.attention_nodes,
        outputs=outputs(proto, roles, verification.tolerance),
        verification=verification.to_dict(),
        golden=golden_of(part, "fp32"),
    )
    save(proto, manifest, head(model), part)
    draft = Draft(part, explain if info else None)
    return Checked(
        draft, manifest, source.notes, verification=verification, explain=gradients, explain_missing=missing
    )


def _manifest(source: Source, format: Format) -> Manifest:
    """What is known before anything is traced."""
    config = source.model.config
    return Manifest(
        name=source.name,
        variant=config.name,
        config=config.to_dict(),
        labels=source.labels,
        preprocessing=preprocessing(config),
        stages=stages(config),
        input=format.input_kind,
        dynamic_size=format.dynamic_size,
        precision="fp32",
        opset=OPSET,
        attention_nodes=config.blocks,
        parameters=parameters(source.model),
        macs=macs(config),
        checkpoint_sha256=source.checkpoint_sha256,
        tools={tool: version_of(tool) for tool in TOOLS},
        temperature=source.temperature,
        accuracy=source.accuracy,
        weights_id=weights_id(source.model),
    )
