"""`paca export` of any task: a checkpoint of a segmenter takes the way that stands here, any other
`pipeline`'s.

A segmenter's file takes pictures of many sizes, puts out logits at a quarter of the input's size and the
head's clusters, and says in its manifest how pictures come to size and which colours its classes have.
Resizing logits to the photo in the graph would cost half as much again, so the server does it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from service.artifact import MAX_SEGMENTS, NO_HEAD, Manifest, StageInfo
from service.colours import class_colours

from . import finish, pipeline, segmenters
from .annotate import outputs, segmenter_preprocessing, weights_id
from .attention_node import OPSET
from .calibration import read_calibration
from .errors import ExportError
from .finish import Format, Say
from .labels import numbered, read_labels
from .paca.config import VARIANTS, variant
from .paca.cost import parameters, segmenter_macs
from .paca.segmentation import OUTPUT_STRIDE, PaCaSegmenter, SegmenterConfig, published
from .pictures import Calibration
from .pipeline import Checked, ExportReport, Request
from .release import Draft, release
from .trace import ServedSegmenter, trace_segmenter
from .verify import verify_segmenter

TASK = "segmentation"
PREFIX = "pacahead_"  # of a published segmenter's name; the backbone's follows
PICTURES = 4  # of noise, for fp16


@dataclasses.dataclass(frozen=True)
class Source:
    """What is exported; members as in `pipeline.Source`."""

    model: PaCaSegmenter
    name: str
    labels: tuple[str, ...]
    checkpoint_sha256: str | None = None
    accuracy: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    trained_on: str | None = None


def run(request: Request, say: Say = lambda text: None) -> ExportReport:
    """What `paca export` does, for any task. Raises as `pipeline.run` does; then nothing was written."""
    request.format.check()
    if source := load_source(request):
        return export_segmenter(source, request.out, request.format, say)
    return pipeline.run(request, say)


def load_source(request: Request) -> Source | None:
    """The segmenter that is asked for, with its labels; None where the request is of another task."""
    if request.checkpoint is None:
        trunk = request.variant.removeprefix(PREFIX)
        if not request.variant.startswith(PREFIX) or trunk not in VARIANTS:
            return None
        torch.manual_seed(0)
        backbone = variant(trunk)
        loaded = segmenters.LoadedSegmenter(
            PaCaSegmenter(published(backbone, request.num_classes or 150)), None, "", ("random weights",)
        )
    else:
        found = segmenters.load(request.checkpoint, None if request.variant == "auto" else request.variant)
        if found is None:
            return None
        loaded = found
    try:
        labels = read_labels(request.labels) if request.labels else loaded.labels
    except ValueError as error:
        raise ExportError(str(error)) from None
    model, notes = loaded.model, loaded.notes
    if request.image_size:
        model.config = _resized(model.config, request.image_size)
    if labels is None:
        labels = numbered(model.config.num_classes)
        notes = (*notes, "the classes have no names; give them with --labels")
    return Source(
        model,
        pipeline.default_name(request, model.config.name),
        labels,
        loaded.sha256 or None,
        loaded.accuracy,
        notes,
        request.trained_on,
    )


def _resized(config: SegmenterConfig, side: int) -> SegmenterConfig:
    """The same network for pictures of another shorter side, in as many steps."""
    scale = side / config.backbone.image_size
    step = max(32, round(config.step * scale / 32) * 32)
    backbone = dataclasses.replace(config.backbone, image_size=round(side / step) * step or step)
    longest = round(config.longest * scale / step) * step
    return dataclasses.replace(
        config, backbone=backbone, step=step, longest=max(longest, backbone.image_size)
    )


def check_source(source: Source) -> None:
    """ExportError for a segmenter that cannot be served."""
    config = source.model.config
    if len(source.labels) != config.num_classes:
        raise ExportError(
            f"{len(source.labels)} labels for {config.num_classes} classes; give one label a line with "
            "--labels"
        )
    if config.num_classes > MAX_SEGMENTS:
        raise ExportError(f"{config.num_classes} classes; a label map can name {MAX_SEGMENTS}")
    if not 64 <= config.backbone.image_size <= 1024:
        raise ExportError(
            f"image size {config.backbone.image_size} does not fit {config.name}: it needs 64 to 1024 pixels"
        )


def export_segmenter(
    source: Source, out: Path, format: Format = Format(), say: Say = lambda text: None
) -> ExportReport:
    """Writes the artifact to `out` and the model card beside it, all verified. Raises as
    `pipeline.export_model` does."""
    format.check()
    check_source(source)
    pictures = _calibration(format, source)
    with finish.scratch_beside(out) as scratch:
        written = _full_precision(source, scratch, format, say)
        if format.precision != "fp32":
            written = finish.reduce(written, format.precision, pictures, say)
        say("testing the file as it will be served")
        remarks = release(written.draft, out, source.trained_on)
        return ExportReport(
            out,
            written.manifest,
            written.verification,
            out.stat().st_size,
            None,
            written.explain_missing,
            (*written.notes, *remarks),
        )


def _calibration(format: Format, source: Source) -> Calibration:
    """The pictures that int8 is calibrated and judged on, all of one size; noise where none are needed."""
    config = source.model.config
    how = dataclasses.replace(segmenter_preprocessing(config), resize="stretch", step=0, longest=0)
    if format.precision != "int8" or format.calibration is None:
        noise = np.random.default_rng(0).integers(0, 256, (PICTURES, *how.size, 3), np.uint8)
        return Calibration(noise, noise)
    folder = format.calibration
    try:
        return read_calibration(
            folder / "images" if (folder / "images").is_dir() else folder, how, source.labels
        )
    except (OSError, ValueError) as error:
        raise ExportError(f"cannot calibrate: {error}") from None


def _full_precision(source: Source, scratch: Path, format: Format, say: Say) -> Checked:
    model, part = source.model.eval(), scratch / "model.onnx"
    say("tracing the served graph")
    proto = trace_segmenter(model, input_kind=format.input_kind)
    roles = ServedSegmenter(model, format.input_kind).roles
    manifest = dataclasses.replace(_manifest(source, format), outputs=outputs(proto, roles, {}))
    finish.save(proto, manifest, None, part)
    say("verifying torch against ONNX Runtime")
    verification = verify_segmenter(proto, part, model)
    manifest = dataclasses.replace(
        manifest,
        attention_nodes=verification.attention_nodes,
        outputs=outputs(proto, roles, verification.tolerance),
        verification=verification.to_dict(),
        golden=finish.golden_of(part, "fp32"),
    )
    finish.save(proto, manifest, None, part)
    return Checked(
        Draft(part, None),
        manifest,
        source.notes,
        verification=verification,
        explain=None,
        explain_missing="a segmenter has none",
    )


def _manifest(source: Source, format: Format) -> Manifest:
    """What is known before anything is traced."""
    config, trunk = source.model.config, source.model.config.backbone
    return Manifest(
        name=source.name,
        variant=config.name,
        config=config.to_dict(),
        labels=source.labels,
        preprocessing=segmenter_preprocessing(config),
        stages=tuple(
            StageInfo(i, grid, s.dim, s.depth, s.clusters, s.clustering if s.clusters else None, None)
            for i, (s, grid) in enumerate(zip(trunk.stages, trunk.grids(), strict=True), 1)
        ),
        input=format.input_kind,
        dynamic_size=True,
        precision="fp32",
        opset=OPSET,
        attention_nodes=trunk.blocks + 1,
        parameters=parameters(source.model),
        macs=segmenter_macs(config),
        checkpoint_sha256=source.checkpoint_sha256,
        tools={tool: finish.version_of(tool) for tool in pipeline.TOOLS},
        accuracy=source.accuracy,
        weights_id=weights_id(source.model),
        task=TASK,
        head=NO_HEAD,
        palette=class_colours(source.labels),
        output_stride=OUTPUT_STRIDE,
    )
