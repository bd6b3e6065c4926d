"""The numbers of the model card: what the embedded Imagenette model is worth on the photos it was not made
with.

    python benchmarks/default_model.py service/models/imagenette/1/model.onnx --checkpoint
    runs/imagenette/model.safetensors
    python benchmarks/default_model.py MODEL.onnx --no-validation        while choosing between models;
                                                                     the validation pack is for released ones

validation        the whole validation pack, 128 px, stretched to squares at the source
whole photos      250 photos of the ten classes that are in neither pack
wide, tall        the same, cut to 2:1 and 1:2 around the middle and then, as every picture is, stretched to
                  the network's square
off-centre        the same, four times: the 70 % of width and height at each corner
own aspect        the demo photos of the ten classes at their original size and aspect, never stretched
unrelated         mean top score on photos of other things (demo photos of other classes, cats and dogs): what
                  it says when it should not know
pointing          share of the whole photos where the highest place of `cam` and of `focus` (true class) lies
                  in a box people drew; and the picture's centre
clusters          with --checkpoint: accuracy left with uniform assignments, clusters in use, on the whole
                  photos

Needs the packs and photos in --data or $PACA_DATA. With --save: benchmarks/results/default_model*.json, from
which `make figures` writes the model card.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from card import Row, finish
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from export.pictures import prepare
from export.training.data import Pictures
from export.training.evaluate import BATCH, evaluate_onnx
from export.training.evaluate_torch import cluster_report
from export.training.metrics import Scores, log_softmax, score
from service import explain
from service.engine import Device, Engine, GradientEngine

Cut = Callable[[np.ndarray], list[np.ndarray]]
CORNER = 0.7


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PACA_DATA", "data")))
    parser.add_argument("--checkpoint", type=Path, default=None)
    parser.add_argument("--no-validation", action="store_true")
    parser.add_argument("--provider", default="auto")
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    engine = Engine(asked.model, Device(asked.provider))
    found: dict[str, dict[str, Any]] = {}
    if not asked.no_validation:
        validation = evaluate_onnx(asked.model, asked.data / "imagenette_val_128.npz", asked.provider).scores
        found["validation"] = validation.summary()
        finish("default_model_confusion", _confusion(validation, engine.manifest.labels), save=asked.save)
    boxes = _boxes(asked.data)
    located = [(asked.data / "imagenette_loc" / "images" / file, label) for file, (label, _) in boxes.items()]
    for name, cut in {"whole photos": _whole, "wide": _wide, "tall": _tall, "off-centre": _corners}.items():
        found[name] = _labelled(engine, located, cut)
    demo, others = _demo(asked.data, engine.manifest.labels)
    found["own aspect"] = _labelled(engine, demo, _whole)
    pets = sorted((asked.data / "pets_masks" / "images").glob("*.jpg"))
    for name, files in {"unrelated: demo photos": others, "unrelated: cats and dogs": pets}.items():
        found[name] = _unrelated(engine, files)
    facts: list[Row] = [{"fact": "temperature", "value": engine.manifest.temperature}]
    pointing = _pointing(asked.model, engine, located, [b for _, b in boxes.values()])
    facts += [{"fact": f"pointing game, {name}", "value": value} for name, value in pointing.items()]
    if asked.checkpoint:
        facts += _clusters(asked.checkpoint, engine, located, found["whole photos"]["accuracy"])
    finish(
        "default_model",
        [_row(name, values) for name, values in found.items()],
        save=asked.save,
        sha256=engine.sha256,
    )
    finish("default_model_facts", facts, save=asked.save)


def _row(name: str, values: dict[str, Any]) -> Row:
    percent = {
        title: 100 * values[key] if key in values else None
        for title, key in (("accuracy %", "accuracy"), ("F1 %", "f1"), ("ECE %", "ece"))
    }
    return {"photos": name, "pictures": values["pictures"], **percent, "mean top score": values["confidence"]}


def _confusion(scores: Scores, labels: tuple[str, ...]) -> list[Row]:
    """Rows are true classes, columns what was answered."""
    found = np.asarray(scores.confusion)
    return [
        {
            "true \\ answered": label,
            **dict(zip(labels, row.tolist(), strict=True)),
            "recall %": 100 * row[i] / row.sum(),
        }
        for i, (label, row) in enumerate(zip(labels, found, strict=True))
    ]


def _boxes(data: Path) -> dict[str, tuple[int, list[tuple[float, ...]]]]:
    """File → its label and the boxes of its class, as fractions (x0, y0, x1, y1)."""
    found: dict[str, tuple[int, list[tuple[float, ...]]]] = {}
    with (data / "imagenette_loc" / "boxes.csv").open() as file:
        for row in csv.DictReader(file):
            found.setdefault(row["file"], (int(row["label"]), []))[1].append(
                tuple(float(row[k]) for k in ("x0", "y0", "x1", "y1"))
            )
    return found


def _pointing(
    model: Path, engine: Engine, files: list[tuple[Path, int]], boxes: list[list[tuple[float, ...]]]
) -> dict[str, float]:
    """Pointing game (Zhang et al. 2018) of `cam` and, where the model has gradients, `focus`, on the map's
    own cells; and of the centre."""
    pictures, grid = _batch(engine, [path for path, _ in files], _whole), engine.manifest.stages[-1].grid
    beside = model.with_name("explain.onnx")
    gradients = GradientEngine(beside, Device("cpu")) if beside.is_file() else None
    hits: dict[str, list[bool]] = {"cam": [], "focus": [], "centre": []}
    for picture, (_, label), box in zip(pictures, files, boxes, strict=True):
        out = engine.run(picture[None], ("tokens", *(("features",) if gradients else ())))
        weights = explain.class_weights(len(engine.manifest.labels), label)
        cam = explain.contributions(out.arrays["tokens"][0], grid, engine.head, weights)
        hits["cam"].append(_hit(cam, box))
        if gradients:
            found = gradients.run(out.arrays["features"], weights[None])
            maps = explain.stage_maps({name: values[0] for name, values in found.items()})
            hits["focus"].append(_hit(explain.focus(cam, maps), box))
        hits["centre"].append(_inside(0.5, 0.5, box))
    return {name: round(float(np.mean(values)), 3) for name, values in hits.items() if values}


def _hit(values: np.ndarray, boxes: list[tuple[float, ...]]) -> bool:
    row, column = np.unravel_index(values.argmax(), values.shape)
    return _inside((column + 0.5) / values.shape[1], (row + 0.5) / values.shape[0], boxes)


def _inside(x: float, y: float, boxes: list[tuple[float, ...]]) -> bool:
    return any(x0 <= x <= x1 and y0 <= y <= y1 for x0, y0, x1, y1 in boxes)


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
    return [
        photo[:height, :width],
        photo[:height, -width:],
        photo[-height:, :width],
        photo[-height:, -width:],
    ]


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
    return np.concatenate(
        [engine.run(pictures[i : i + BATCH]).logits for i in range(0, len(pictures), BATCH)]
    )


def _labelled(engine: Engine, files: list[tuple[Path, int]], cut: Cut) -> dict[str, Any]:
    pictures = _batch(engine, [path for path, _ in files], cut)
    labels = np.repeat([label for _, label in files], len(pictures) // len(files))
    found = score(_logits(engine, pictures), labels, engine.manifest.labels, engine.manifest.temperature)
    return {key: found.summary()[key] for key in ("pictures", "accuracy", "ece", "confidence")}


def _unrelated(engine: Engine, files: list[Path]) -> dict[str, Any]:
    top = np.exp(
        log_softmax(_logits(engine, _batch(engine, files, _whole)), engine.manifest.temperature).max(1)
    )
    return {"pictures": len(files), "confidence": float(top.mean()), "above 0.9": float((top > 0.9).mean())}


def _clusters(checkpoint: Path, engine: Engine, files: list[tuple[Path, int]], accuracy: float) -> list[Row]:
    from export.checkpoints import load

    pictures = Pictures(
        _batch(engine, [path for path, _ in files], _whole),
        np.array([label for _, label in files]),
        engine.manifest.labels,
    )
    found = cluster_report(load(checkpoint).model, pictures)
    uniform = found["uniform_assignment_accuracy"]
    rows: list[Row] = [
        {
            "fact": "points lost on the whole photos with every assignment uniform",
            "value": 100 * (accuracy - uniform),
        }
    ]
    for stage in found["stages"]:
        what = f"clusters of stage {stage['stage']} that are the strongest somewhere, of {stage['clusters']}"
        rows.append({"fact": what, "value": stage["in_use"]})
    return rows


if __name__ == "__main__":
    main()
