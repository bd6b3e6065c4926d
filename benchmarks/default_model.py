"""The numbers of the model card: what the embedded Imagenette model is worth on the photos it was not made with.

    python benchmarks/default_model.py service/models/imagenette/1/model.onnx --checkpoint runs/imagenette/model.safetensors
    python benchmarks/default_model.py MODEL.onnx --no-validation        while choosing between models: the validation pack is for released ones

validation        the whole validation pack, 128 px, stretched to squares at the source
whole photos      250 photos of the ten classes that are in neither pack
wide, tall        the same, cut to 2:1 and 1:2 around the middle and then, as every picture is, stretched to the network's square
off-centre        the same, four times: the 70 % of width and height at each corner
own aspect        the demo photos of the ten classes at their original size and aspect, never stretched
unrelated         mean top score on photos of other things (demo photos of other classes, cats and dogs): what it says when it should not know
clusters          with --checkpoint: accuracy left with uniform assignments, clusters in use, on the whole photos

Needs the packs and photos in --data or $PACA_DATA. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from export.training.data import Pictures
from export.training.evaluate import BATCH, cluster_report, evaluate_onnx
from export.training.metrics import log_softmax, score
from export.training.served import prepare
from service.engine import Device, Engine

Cut = Callable[[np.ndarray], list[np.ndarray]]
CORNER = 0.7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PACA_DATA", "data")))
    parser.add_argument("--checkpoint", type=Path, default=None)
    parser.add_argument("--no-validation", action="store_true")
    parser.add_argument("--provider", default="auto")
    asked = parser.parse_args()
    engine = Engine(asked.model, Device(asked.provider))
    found: dict[str, dict[str, Any]] = {}
    if not asked.no_validation:
        found["validation"] = evaluate_onnx(asked.model, asked.data / "imagenette_val_128.npz", asked.provider).scores.summary()
    located = [(asked.data / "imagenette_loc" / "images" / file, int(label)) for file, label in _located(asked.data)]
    for name, cut in {"whole photos": _whole, "wide": _wide, "tall": _tall, "off-centre": _corners}.items():
        found[name] = _labelled(engine, located, cut)
    demo, others = _demo(asked.data, engine.manifest.labels)
    found["own aspect"] = _labelled(engine, demo, _whole)
    pets = sorted((asked.data / "pets_masks" / "images").glob("*.jpg"))
    for name, files in {"unrelated: demo photos": others, "unrelated: cats and dogs": pets}.items():
        found[name] = _unrelated(engine, files)
    if asked.checkpoint:
        found["clusters"] = _clusters(asked.checkpoint, engine, located)
    _table(found)
    print(json.dumps({"model": asked.model.name, "sha256": engine.sha256, "temperature": engine.manifest.temperature, **found}))


def _located(data: Path) -> list[tuple[str, str]]:
    with (data / "imagenette_loc" / "boxes.csv").open() as file:
        return sorted({(row["file"], row["label"]) for row in csv.DictReader(file)})


def _demo(data: Path, labels: tuple[str, ...]) -> tuple[list[tuple[Path, int]], list[Path]]:
    """(the demo photos of the model's classes with their labels, all others)."""
    ids = {label.casefold(): i for i, label in enumerate(labels)}
    own, others = [], []
    with (data / "demo_photos" / "labels.csv").open() as file:
        for row in csv.DictReader(file):
            path = data / "demo_photos" / row["file"]
            if row["imagenette_class"] == "1":
                own.append((path, ids[row["class"].replace("_", " ").casefold()]))
            else:
                others.append(path)
    return own, others


def _whole(photo: np.ndarray) -> list[np.ndarray]:
    return [photo]


def _wide(photo: np.ndarray) -> list[np.ndarray]:
    quarter = len(photo) // 4
    return [photo[quarter : len(photo) - quarter]]


def _tall(photo: np.ndarray) -> list[np.ndarray]:
    quarter = photo.shape[1] // 4
    return [photo[:, quarter : photo.shape[1] - quarter]]


def _corners(photo: np.ndarray) -> list[np.ndarray]:
    height, width = (round(CORNER * side) for side in photo.shape[:2])
    return [photo[:height, :width], photo[:height, -width:], photo[-height:, :width], photo[-height:, -width:]]


def _batch(engine: Engine, files: list[Path], cut: Cut) -> np.ndarray:
    """Every file's cuts as the network takes them, (n, H, W, 3) uint8."""
    made = []
    for file in files:
        with Image.open(file) as image:
            photo = np.asarray(image.convert("RGB"))
        for part in cut(photo):
            ready = prepare(np.ascontiguousarray(part), engine.manifest.preprocessing)
            assert isinstance(ready, np.ndarray), f"{file}: {ready}"
            made.append(ready)
    return np.stack(made)


def _logits(engine: Engine, pictures: np.ndarray) -> np.ndarray:
    return np.concatenate([engine.run(pictures[i : i + BATCH]).logits for i in range(0, len(pictures), BATCH)])


def _labelled(engine: Engine, files: list[tuple[Path, int]], cut: Cut) -> dict[str, Any]:
    pictures = _batch(engine, [path for path, _ in files], cut)
    labels = np.repeat([label for _, label in files], len(pictures) // len(files))
    found = score(_logits(engine, pictures), labels, engine.manifest.labels, engine.manifest.temperature)
    return {key: found.summary()[key] for key in ("pictures", "accuracy", "ece", "confidence")}


def _unrelated(engine: Engine, files: list[Path]) -> dict[str, Any]:
    top = np.exp(log_softmax(_logits(engine, _batch(engine, files, _whole)), engine.manifest.temperature).max(1))
    return {"pictures": len(files), "confidence": float(top.mean()), "above 0.9": float((top > 0.9).mean())}


def _clusters(checkpoint: Path, engine: Engine, files: list[tuple[Path, int]]) -> dict[str, Any]:
    from export.checkpoints import load

    pictures = Pictures(_batch(engine, [path for path, _ in files], _whole), np.array([label for _, label in files]), engine.manifest.labels)
    return {"pictures": len(pictures), **cluster_report(load(checkpoint).model, pictures)}


def _table(found: dict[str, dict[str, Any]]) -> None:
    table = Table("photos", "pictures", "accuracy", "ECE", "mean top score", title="default model")
    for name, values in found.items():
        cells = (f"{100 * values[key]:.1f} %" if key in values else "-" for key in ("accuracy", "ece", "confidence"))
        table.add_row(name, str(values["pictures"]), *cells)
    console = Console(stderr=True)
    console.print(table)
    if "clusters" in found:
        console.print(found["clusters"])


if __name__ == "__main__":
    main()
