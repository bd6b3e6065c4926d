"""`paca evaluate` of a segmenter: an exported file on the server's engine, or a checkpoint in torch, on
pictures with masks. Numbers are `mask_metrics`'s, tables `mask_report`'s."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from service import onnx_file
from service.artifact import Manifest, Preprocessing
from service.engine import Device, Engine
from service.files import write_json
from service.folders import summary

from ..pictures import DataError
from .mask_data import MaskedPicture, MaskedPictures, read_masks
from .mask_metrics import MaskScores, score
from .mask_report import print_mask_scores
from .progress import showing


@dataclass(frozen=True)
class MaskEvaluation:
    """Members as in `evaluate.Evaluation`."""

    model: str
    data: str
    runs_on: str
    precision: str
    images_per_second: float
    scores: MaskScores
    skipped: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def is_segmenter(model: Path) -> bool:
    """Whether the file is an exported segmenter, or a checkpoint of one."""
    if model.suffix == ".onnx":
        return Manifest.from_metadata(onnx_file.metadata(model)).purpose.dense
    from .. import segmenters
    from ..weight_files import CheckpointError

    try:
        return segmenters.load(model) is not None
    except CheckpointError as error:
        raise DataError(str(error)) from None


def command(
    model: Path, data: Path, out: Path | None = None, *, as_json: bool = False, console: Console | None = None
) -> MaskEvaluation:
    """Scores a segmenter on `data` (images/ and masks/); prints tables or JSON, writes evaluation.json into
    `out`. DataError for data that does not fit the model."""
    console = console or Console()
    _, say = showing(Console(stderr=True) if as_json else console)
    found = evaluate(model, data)
    for line in summary(found.skipped):
        say(f"left out: {line}")
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        speed = f"{found.images_per_second:.1f} pictures/s, {found.runs_on}"
        extra = {"precision of weights": found.precision, "speed": speed}
        print_mask_scores(console, f"{found.model} on {found.data}", found.scores, extra)
    if out:
        write_json(out / "evaluation.json", found.to_dict())
        say(f"written: {out / 'evaluation.json'}")
    return found


def evaluate(model: Path, data: Path) -> MaskEvaluation:
    """As `command`, without a word."""
    if model.suffix == ".onnx":
        engine = Engine(model, Device("cpu"))
        manifest = engine.manifest
        pictures = read_masks(data, manifest.labels)
        timed = _Timed(manifest.preprocessing, lambda batch: engine.run(batch).logits)
        runs_on, precision, labels = f"onnxruntime {engine.provider}", manifest.precision, manifest.labels
    else:
        pictures, timed, labels = _checkpoint(model, data)
        runs_on, precision = "torch cpu", "fp32"
    scores = score(pictures.pictures, timed, labels)
    rate = len(pictures) / max(timed.seconds, 1e-9)
    return MaskEvaluation(model.name, data.name, runs_on, precision, rate, scores, pictures.skipped)


class _Timed:
    """Runs one picture after the other at its own size; seconds: of the network alone."""

    def __init__(self, how: Preprocessing, run: Callable[[np.ndarray], np.ndarray]) -> None:
        self._how, self._run, self.seconds = how, run, 0.0

    def __call__(self, picture: MaskedPicture) -> np.ndarray:
        batch = picture.seen(self._how)[None]
        began = time.perf_counter()
        logits = self._run(batch)[0]
        self.seconds += time.perf_counter() - began
        return logits


def _checkpoint(model: Path, data: Path) -> tuple[MaskedPictures, _Timed, tuple[str, ...]]:
    import torch

    from .. import segmenters
    from ..annotate import segmenter_preprocessing

    loaded = segmenters.load(model)
    if loaded is None or loaded.labels is None:
        raise DataError(
            f"{model.name} does not name its classes; export it with --labels and evaluate the .onnx"
        )
    network, how = loaded.model, segmenter_preprocessing(loaded.model.config)

    @torch.no_grad()
    def run(batch: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(how.to_float(batch))).numpy()

    return read_masks(data, loaded.labels), _Timed(how, run), loaded.labels
