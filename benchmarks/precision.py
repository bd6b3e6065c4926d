"""What smaller number formats cost: the embedded model in float16 and 8 bits against float32, its accuracy on
the whole validation pack and its explanations on the photos with boxes.

    python benchmarks/precision.py [--limit N] [--formats fp32,fp16,int8] [--save]

int8 is the file that is shipped, float16 is exported from the embedded checkpoint; all three run through the
server's engine. `points lost`: top-1 of float32 minus that of the row, in percentage points; asked of int8:
at most 0.5. `residual`: of cam, contributions + bias - logit, the largest. `pointing`: the highest place of
the map of the true class lies in a box that people drew. `check`: hiding what the map shows changes the
answer more than hiding as much elsewhere (`service.check`). `like fp32`: median rank correlation with its
map. Needs the packs and imagenette_loc in $PACA_DATA.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from card import Row, finish
from engine_models import Bench, pack
from faithfulness.data import Picture, located
from faithfulness.metrics import boxes, points, spearman
from faithfulness.served import Served

sys.path.insert(0, str(Path(__file__).parents[1]))

from export.training import served
from service import explain
from service.assemble import probabilities
from service.check import check
from service.engine import Device, Engine

MAPS = ("focus", "cam")
ASKED = 0.5
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, default=None, help="only so many pictures, spread over the pack")
    parser.add_argument("--formats", default="fp32,fp16,int8")
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    began = time.monotonic()
    bench = Bench("embedded")
    make = {"fp32": bench.served, "fp16": bench.fp16, "int8": bench.int8}
    files = {name: make[name]() for name in asked.formats.split(",")}
    beside = {
        name: files[name] for name in ("fp32", "int8")
    }  # those that are shipped, explain.onnx with them
    manifest = Engine(files["fp32"], Device("cpu")).manifest
    pictures = served.read(pack("imagenette_val_128.npz"), manifest.labels, manifest.preprocessing)
    if asked.limit:
        pictures = pictures.take(np.linspace(0, len(pictures) - 1, asked.limit, dtype=int))
    logits = {name: answers(path, pictures.images) for name, path in files.items()}
    top1 = {name: float(np.mean(found.argmax(1) == pictures.labels)) for name, found in logits.items()}
    rows: list[Row] = [
        {
            "precision": name,
            "MiB": files[name].stat().st_size / 2**20,
            "top-1 %": 100 * top1[name],
            "points lost": 100 * (top1["fp32"] - top1[name]),
            "same class as fp32 %": 100 * float(np.mean(found.argmax(1) == logits["fp32"].argmax(1))),
            "largest change of a logit": float(np.abs(found - logits["fp32"]).max()),
            "left in float": ", ".join(
                Engine(files[name], Device("cpu")).manifest.verification.get("kept_float", ())
            )
            or "-",
        }
        for name, found in logits.items()
    ]
    lost = 100 * (top1["fp32"] - top1["int8"])
    verdict = f"int8 loses {lost:.2f} points, asked at most {ASKED}: {'met' if lost <= ASKED else 'missed'}"
    finish(
        "precision",
        rows,
        save=asked.save,
        seconds=round(time.monotonic() - began),
        pictures=len(pictures),
        model=manifest.name,
        verdict=verdict,
    )
    finish("precision_explain", explained(beside, pack("imagenette_val_128.npz").parent), save=asked.save)


def explained(files: dict[str, Path], data: Path) -> list[Row]:
    """One row a file that goes with the explain.onnx beside it."""
    rows: list[Row] = []
    first: list[dict[str, np.ndarray]] = []
    for name, path in files.items():
        served = Served(path)
        photos = located(data, served.manifest.preprocessing)
        found = list(served.pool.map(lambda photo, served=served: _explained(served, photo), photos))
        maps = [one for one, _ in found]
        first = first or maps
        row: Row = {"precision": name, "photos": len(photos)}
        row["residual"] = max(abs(values["residual"]) for _, values in found)
        for kind in MAPS:
            row[f"pointing %, {kind}"] = 100 * float(np.mean([values[kind] for _, values in found]))
        row["check passed %"] = 100 * float(np.mean([values["passed"] for _, values in found]))
        row["drop"] = float(np.mean([values["drop"] for _, values in found]))
        for kind in MAPS:
            like = [spearman(a[kind].ravel(), b[kind].ravel()) for a, b in zip(first, maps, strict=True)]
            row[f"like fp32, {kind}"] = float(np.median(like))
        rows.append(row)
    return rows


def _explained(served: Served, photo: Picture) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """(maps, what they are worth) of one photo and its true class."""
    seen, region = served.see(photo.pixels), boxes(list(photo.boxes), photo.pixels.shape[:2])
    maps = served.maps(seen, photo.label)
    weights = explain.class_weights(len(seen.logits), photo.label)
    values = {kind: points(maps[kind], region) for kind in MAPS}
    values["residual"] = explain.completeness(maps["cam"], served.head, weights, seen.logits).residual

    def scores(logits: np.ndarray) -> np.ndarray:
        return np.array([probabilities(row, served.manifest.temperature)[photo.label] for row in logits])

    steps = check(photo.pixels, maps["focus"], float(scores(seen.logits[None])[0]), scores)
    try:
        steps.send(served.logits(next(steps)))
    except StopIteration as done:
        values |= {"passed": done.value.passed, "drop": done.value.drop}
    return {kind: maps[kind] for kind in MAPS}, values


def answers(path: Path, images: np.ndarray) -> np.ndarray:
    """Logits (n, K) of the file at `path`."""
    engine = Engine(path, Device("cpu"))
    return np.concatenate([engine.run(images[i : i + BATCH]).logits for i in range(0, len(images), BATCH)])


if __name__ == "__main__":
    main()
