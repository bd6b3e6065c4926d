"""The last steps of every export, whatever the network came from: smaller number formats, novelty, the golden
answer, and writing beside the target. Needs onnx and numpy, no torch.

How the float32 file is made and checked is the work of `pipeline` for our networks and of `importing` for
others'; what goes into place, and how, that of `release`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx

from service.artifact import (
    INPUTS,
    PRECISIONS,
    Gates,
    Golden,
    Head,
    Manifest,
    Preprocessing,
    golden_logits,
    golden_picture,
)
from service.engine import Device, Engine
from service.novelty import Statistics
from service.precision import LEAST_PICTURES

from .annotate import annotate
from .calibration import read_calibration
from .errors import ExportError, VerificationError
from .pictures import Calibration
from .quantise import QuantisationError, to_fp16, to_int8
from .reference import Reference, write_novelty
from .release import EXPLAIN, Draft

# of the largest golden logit; other processors may round 8 and 16 bits differently
GOLDEN_TOLERANCE = {"fp32": 2e-3, "fp16": 0.1, "int8": 0.1}
FP16_TOLERANCE = 2e-2
CPU = Device("cpu")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Written:
    """Verified files in the scratch folder, and what is reported of them."""

    draft: Draft
    manifest: Manifest
    notes: tuple[str, ...] = ()
    novelty: Statistics | None = None


W = TypeVar("W", bound=Written)


@dataclass(frozen=True, kw_only=True)
class Format:
    """How the files are to be. precision: one of PRECISIONS; calibration: pictures for int8, class folders
    or a pack. reference, foreign: known and foreign pictures that novelty is measured against, folders or
    packs. input_kind: one of INPUTS. explain_from: the stage after which explain.onnx takes over, None for
    `explain_stage`."""

    precision: str = "fp32"
    calibration: Path | None = None
    reference: Path | None = None
    foreign: Path | None = None
    input_kind: str = "uint8"
    dynamic_size: bool = False
    with_explain: bool = True
    explain_from: int | None = None

    def check(self) -> None:
        """ExportError for what cannot be written."""
        for what, value, known in (
            ("precision", self.precision, PRECISIONS),
            ("input", self.input_kind, INPUTS),
        ):
            if value not in known:
                raise ExportError(f"{what} {value!r} is not known; choose one of: {', '.join(known)}")
        if self.precision == "int8" and self.calibration is None:
            raise ExportError(
                "int8 needs --calibration: a folder with pictures like those to come, at least 32"
            )
        if self.foreign and not self.reference:
            raise ExportError(
                "--foreign needs --reference: the known pictures that foreign ones are told from"
            )


def calibration(format: Format, how: Preprocessing, labels: tuple[str, ...]) -> Calibration:
    """The pictures that int8 is calibrated and judged on; noise where none are needed."""
    if format.precision != "int8" or format.calibration is None:
        noise = np.random.default_rng(0).integers(0, 256, (16, *how.size, 3), np.uint8)
        return Calibration(noise, noise)
    try:
        return read_calibration(format.calibration, how, labels)
    except (OSError, ValueError) as error:
        raise ExportError(f"cannot calibrate: {error}") from None


def with_novelty(written: W, reference: Reference, say: Say) -> W:
    """The finished file with its novelty statistics, as this very file answers the reference pictures."""
    say("scoring the reference pictures")
    found, remark = write_novelty(written.draft.model, reference)
    return dataclasses.replace(written, novelty=found, notes=(*written.notes, remark))


def reduce(full: W, precision: str, pictures: Calibration, say: Say) -> W:
    """The verified fp32 file of `full` in float16 or 8 bits, compared with it through the server's
    engine."""
    proto = onnx.load(full.draft.model)
    head_weights = Engine(full.draft.model, CPU).head
    if precision == "fp16":
        say("converting to float16")
        reduced, judged, gates = to_fp16(proto), dict[str, Any](), None
    else:
        reduced, judged, gates = _int8(proto, full.manifest, pictures, say)
    say(f"verifying {precision} against fp32")
    attention = sum(node.op_type == "Attention" for node in reduced.graph.node)
    if attention != full.manifest.attention_nodes:
        raise VerificationError(
            f"the {precision} graph has {attention} Attention nodes, {full.manifest.attention_nodes} are "
            "needed"
        )
    part = full.draft.model.with_name("reduced.onnx")
    tolerance = {"logits": FP16_TOLERANCE} if precision == "fp16" else {}
    table = tuple(
        dataclasses.replace(output, tolerance=tolerance.get(output.name)) for output in full.manifest.outputs
    )
    manifest = dataclasses.replace(
        full.manifest, precision=precision, outputs=table, golden=None, gates=gates
    )
    save(reduced, manifest, head_weights, part)
    expected, got = (
        Engine(path, CPU).run(pictures.calibrating[:64]).logits for path in (full.draft.model, part)
    )
    difference = float(np.abs(expected - got).max())
    allowed = FP16_TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if precision == "fp16" and not difference <= allowed:
        raise VerificationError(
            f"logits of fp16 and fp32 differ by {difference:.2g}, allowed are {allowed:.2g}; keep fp32"
        )
    checked = {**manifest.verification, "reduced_from": "fp32", "logits_difference": difference, **judged}
    manifest = dataclasses.replace(manifest, golden=golden_of(part, precision), verification=checked)
    save(reduced, manifest, head_weights, part)
    notes = (
        *full.notes,
        f"{precision}: logits differ from fp32 by at most {difference:.3g}",
        *(f"{name}: {value}" for name, value in judged.items()),
        *_not_judged(precision, pictures),
    )
    return dataclasses.replace(full, draft=Draft(part, full.draft.explain), manifest=manifest, notes=notes)


def _not_judged(precision: str, pictures: Calibration) -> tuple[str, ...]:
    """What keeps an int8 file from being served unasked."""
    if precision != "int8":
        return ()
    if pictures.labels is None:
        return (f"only PACA_PRECISION=int8 runs it, as nobody knows the labels: {pictures.unlabelled}",)
    if len(pictures.labels) < LEAST_PICTURES:
        return (
            f"only PACA_PRECISION=int8 runs it: {len(pictures.labels)} labelled pictures judged it, "
            f"{LEAST_PICTURES} are needed",
        )
    return ()


def _int8(
    proto: onnx.ModelProto, manifest: Manifest, pictures: Calibration, say: Say
) -> tuple[onnx.ModelProto, dict[str, Any], Gates | None]:
    """The graph in 8 bits, what was measured of it, and its gates where the pictures have labels."""

    if manifest.input == "float32":
        as_float = manifest.preprocessing.to_float
        calibrating, judging = as_float(pictures.calibrating), as_float(pictures.judging)
        pictures = dataclasses.replace(pictures, calibrating=calibrating, judging=judging)
    try:
        result = to_int8(proto, pictures, say)
    except QuantisationError as error:
        raise ExportError(str(error)) from None
    judged: dict[str, Any] = {
        "agreement": result.agreement,
        "judged": result.judged,
        "calibrated": result.calibrated,
        "kept_float": list(result.kept_float),
        "gelus_in_8_bits": result.gelus,
    }
    if result.points_lost is None:
        return result.model, judged, None
    gates = Gates(result.judged, result.agreement, result.points_lost)
    return result.model, {**judged, "points_lost": result.points_lost}, gates


def golden_of(path: Path, precision: str, seed: int = 0) -> Golden:
    """The golden picture's logits as this very file gives them here."""
    engine = Engine(path, CPU)
    logits = engine.run(golden_picture(engine.manifest.preprocessing.size, seed)[None]).logits[0]
    top = int(
        np.bincount(logits.reshape(len(logits), -1).argmax(0)).argmax()
    )  # of most places, where they are many
    kept = logits[:16] if logits.ndim == 1 else golden_logits(logits)
    return Golden(
        seed,
        top,
        tuple(round(float(v), 6) for v in kept),
        GOLDEN_TOLERANCE[precision] * max(1.0, float(np.abs(logits).max())),
    )


def folder_of(out: Path) -> Path:
    if out.name == EXPLAIN:
        raise ExportError(f"{EXPLAIN} is written beside the model; give --out another name, as model.onnx")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"cannot write to {out.parent}: {error.strerror}") from None
    if not os.access(out.parent, os.W_OK):
        raise ExportError(f"cannot write to {out.parent}: permission denied")
    return out.parent


def save(proto: onnx.ModelProto, manifest: Manifest, head_weights: Head | None, path: Path) -> None:
    annotate(proto, manifest, head_weights)
    onnx.save(proto, path)


@contextlib.contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write in, gone afterwards. ExportError for a failure to write, such as a full
    disk: it cost nothing."""
    try:
        with tempfile.TemporaryDirectory(dir=folder_of(out), prefix=".paca-export-") as scratch:
            yield Path(scratch)
    except OSError as error:
        raise ExportError(
            f"cannot write {out.name}: {error.strerror}; what stood there is untouched"
        ) from None


def version_of(tool: str) -> str:
    try:
        return importlib.metadata.version(tool)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
