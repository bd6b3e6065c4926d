"""What `paca evaluate` does: scores an exported model, or a checkpoint, on labelled pictures and prints it.

An exported file needs no torch: it runs on the server's engine. Checkpoints are the work of `evaluate_torch`,
how true explanations are that of `explained`, reading of `served`, numbers of `metrics`, words of `verdict`,
tables of `report`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from service.engine import Device, Engine
from service.files import write_text
from service.folders import summary

from ..card import with_measured
from . import explained, served
from .data import DataError, Pictures
from .metrics import Scores, score
from .progress import Track, plainly, showing
from .report import cluster_rows, explained_rows, print_explained, print_scores, write_report
from .verdict import interval, judge

BATCH = 32
Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Evaluation:
    """model: the file; data: the folder or pack that was scored; runs_on: "onnxruntime cpu", "torch cuda",
    ...; images_per_second: of the network alone, at `batch`. clusters: of checkpoints only, what is left
    without assignments and how many clusters are in use. explanations: how true they are, where that was
    measured."""

    model: str
    data: str
    runs_on: str
    precision: str
    batch: int
    images_per_second: float
    scores: Scores
    skipped: tuple[str, ...] = ()
    clusters: dict[str, Any] = field(default_factory=dict)
    explanations: explained.Explained | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "accuracy_interval": interval(self.scores),
            "verdict": judge(self.scores).lines,
        }


def command(
    model: Path,
    data: Path,
    out: Path | None = None,
    *,
    as_json: bool = False,
    explain: int = 0,
    device: str = "auto",
    console: Console | None = None,
) -> Evaluation:
    """Scores an .onnx or a checkpoint on a pack or a class folder; prints tables or JSON, writes
    evaluation.json and confusion.png into `out`. explain: how true explanations are, on up to so many
    pictures, into the model card too; .onnx only."""
    if explain and model.suffix != ".onnx":
        raise DataError(
            f"--explain measures what is served: export {model.name} with `paca export`, name the .onnx"
        )
    console = console or Console()
    track, say = showing(Console(stderr=True) if as_json else console)
    found = evaluate(model, data, device, track)
    if explain:
        measured = explained.measure(model, data, explain, device, track)
        found = replace(found, explanations=measured)
        say(_into_card(model, measured))
    for line in summary(found.skipped):
        say(f"skipped: {line}")
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        rate = f"{found.images_per_second:.0f} pictures/s, {found.runs_on}, batch {found.batch}"
        extra = {
            "precision of weights": found.precision,
            "speed": rate,
            **cluster_rows(found.clusters, found.scores),
        }
        print_scores(console, f"{found.model} on {found.data}", found.scores, extra)
        for line in judge(found.scores).lines:
            say(line)
        if found.explanations:
            print_explained(console, found.explanations)
    if out:
        say("written: " + ", ".join(str(path) for path in write_report(out, found.to_dict(), found.scores)))
    return found


def _into_card(model: Path, measured: explained.Explained) -> str:
    """Writes the table into the model card beside the model, and says so."""
    path = model.with_name("README.md")
    if not path.is_file():
        return "no model card beside the model; `paca export` writes one"
    head = f"{measured.right} of {measured.pictures} pictures of {measured.data}, {measured.precision}."
    text = with_measured(path.read_text(encoding="utf-8"), explained_rows(measured), head)
    try:
        write_text(path, text)
    except OSError as error:
        return f"{path} cannot be written: {error.strerror}"
    return f"written: {path}"


def evaluate(model: Path, data: Path, device: str = "auto", track: Track = plainly) -> Evaluation:
    """Scores `model` (.onnx through the server's engine, anything else as a checkpoint) on `data`; `track`
    wraps the batches.

    Raises DataError for data that does not fit the model, BadArtifact or DataError for a model that cannot be
    read, ModuleNotFoundError for a checkpoint where torch is absent.
    """
    if model.suffix == ".onnx":
        return evaluate_onnx(model, data, device, track)
    from .evaluate_torch import evaluate_checkpoint

    return evaluate_checkpoint(model, data, device, track)


def evaluate_onnx(model: Path, data: Path, device: str = "auto", track: Track = plainly) -> Evaluation:
    """The exported file on ONNX Runtime, fed as the server feeds it: what is served."""
    engine = Engine(model, Device(device))
    manifest = engine.manifest
    pictures = served.read(data, manifest.labels, manifest.preprocessing)
    logits, rate = timed(lambda batch: engine.run(batch).logits, pictures, track)
    scores = score(logits, pictures.labels, manifest.labels, manifest.temperature)
    return Evaluation(
        model.name,
        named(data),
        f"onnxruntime {engine.provider}",
        manifest.precision,
        BATCH,
        rate,
        scores,
        pictures.skipped,
    )


def named(data: Path) -> str:
    """The data, with the part of it that was scored."""
    part = served.scored_part(data)
    return data.name if part == data else f"{data.name}/{part.name}"


def timed(run: Run, pictures: Pictures, track: Track) -> tuple[np.ndarray, float]:
    """(logits (n, K), pictures a second)."""
    run(pictures.images[:BATCH])  # the first run pays for memory
    batches = range(-(-len(pictures) // BATCH))
    began = time.perf_counter()
    logits = [
        run(pictures.images[i * BATCH : (i + 1) * BATCH]) for i in track(batches, len(batches), "evaluating")
    ]
    return np.concatenate(logits), len(pictures) / (time.perf_counter() - began)
