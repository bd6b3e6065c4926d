"""The last step of an export: the files of a version belong together, each is tested as the very bytes that
will be served, and no watcher serves a mixed pair.

Every file names the float weights that it was made from. explain.onnx goes into place first: until the model
follows, the two carry different weights_ids and a server refuses them together, so the old version keeps
serving. How the files are made is the work of `pipeline`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from service.artifact import ExplainManifest, GoldenMaps, sample
from service.engine import Device, Engine, GradientEngine
from service.repository import FILES

from .annotate import annotate_explain
from .card import ModelFile, card, is_users_own, measured_part
from .errors import ExportError

CPU = Device("cpu")
EXPLAIN, CARD = "explain.onnx", "README.md"
# of a golden map's largest number: processors round differently, most in 8 and 16 bits; the maps of other
# weights are further off by an order of magnitude
MAP_TOLERANCE = {"fp32": 0.05, "fp16": 0.1, "int8": 0.1}


@dataclass(frozen=True)
class Draft:
    """Finished files in a scratch folder on the target's disk. explain: explain.onnx, or None."""

    model: Path
    explain: Path | None


def release(draft: Draft, out: Path, trained_on: str | None = None) -> tuple[str, ...]:
    """Tests the draft together with what lies beside `out`, renames it into place and writes the model card.
    trained_on: what the user says of the training data. Returns remarks for the report.

    Raises ExportError where files of other weights lie beside `out`, BadArtifact where a self-test fails;
    then nothing was replaced.
    """
    engine = Engine(draft.model, CPU)
    engine.self_test()
    beside = {path: Engine(path, CPU) for path in _files_beside(out)}
    for path, other in beside.items():
        _check_same_version(path, other, engine)
    if draft.explain:
        _tie(draft.explain, [*beside.values(), engine])
    pairs = {draft.model: out}
    if draft.explain:
        pairs = {draft.explain: out.with_name(EXPLAIN), **pairs}
    readme = out.with_name(CARD)
    remarks: tuple[str, ...] = ()
    if is_users_own(readme):
        remarks = (f"{CARD} beside it is not a card of paca export and was left as it is",)
    else:
        files = [
            ModelFile(path.name, path.stat().st_size, other.manifest, other.novelty)
            for path, other in beside.items()
        ]
        newest = ModelFile(out.name, draft.model.stat().st_size, engine.manifest, engine.novelty)
        text = draft.model.with_name(CARD)
        earlier = readme.read_text(encoding="utf-8") if readme.exists() else ""
        measured = measured_part(earlier, engine.manifest.weights_id)
        text.write_text(card([*files, newest], trained_on) + measured, encoding="utf-8")
        pairs[text] = readme
    _place(pairs)
    return remarks


def _files_beside(out: Path) -> list[Path]:
    """The model files of other precisions in the folder of `out`."""
    found = (out.with_name(name) for name in FILES.values())
    return [path for path in found if path != out and path.is_file()]


def _check_same_version(path: Path, other: Engine, engine: Engine) -> None:
    if other.manifest.weights_id != engine.manifest.weights_id:
        reason = "was made from other weights"
    elif other.manifest.explain != engine.manifest.explain:
        reason = "was made with another explain.onnx"
    else:
        return
    raise ExportError(
        f"{path} {reason}, and all files of a version belong together; give --out a new version's folder, or "
        f"remove {path.name} first"
    )


def _tie(explain: Path, engines: list[Engine]) -> None:
    """Writes into explain.onnx which weights and precisions it goes with, and what it gives with each, then
    proves it as a server will."""
    gradients = GradientEngine(explain, CPU)
    proto = onnx.load(explain)
    golden = {engine.manifest.precision: _golden_maps(gradients, engine) for engine in engines}
    annotate_explain(proto, ExplainManifest(str(engines[-1].manifest.weights_id), golden))
    onnx.save(proto, explain)
    gradients = GradientEngine(explain, CPU)
    for engine in engines:
        gradients.self_test(engine)


def _golden_maps(gradients: GradientEngine, engine: Engine) -> GoldenMaps:
    golden = engine.manifest.golden
    seed, target = (golden.seed, golden.top) if golden else (0, 0)
    maps = gradients.run_golden(engine, seed, target)
    numbers = {name: tuple(float(f"{v:.6g}") for v in sample(array)) for name, array in maps.items()}
    return GoldenMaps(seed, target, numbers, MAP_TOLERANCE[engine.manifest.precision])


def _place(pairs: Mapping[Path, Path]) -> None:
    """Renames every finished file into place, in this order, after flushing all to disk: a full disk shows
    before anything is replaced."""
    for part in pairs:
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.chmod(0o644)
    for part, target in pairs.items():
        part.replace(target)
