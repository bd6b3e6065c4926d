"""What smaller number formats cost in accuracy: the embedded model in float16 and 8 bits against float32, on
the whole validation pack.

    python benchmarks/precision.py [--limit N] [--save]

Both are exported from the embedded checkpoint, int8 calibrated on photos of the training pack; all three run
through the server's engine. `points lost`: top-1 of float32 minus that of the row, in percentage points;
asked of int8: at most 0.5. Needs the packs in $PACA_DATA.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from card import Row, finish
from engine_models import Bench, pack

sys.path.insert(0, str(Path(__file__).parents[1]))

from export.training import served
from service.engine import Device, Engine

ASKED = 0.5
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, default=None, help="only so many pictures, spread over the pack")
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    began = time.monotonic()
    bench = Bench("embedded")
    files = {"fp32": bench.served(), "fp16": bench.fp16(), "int8": bench.int8()}
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


def answers(path: Path, images: np.ndarray) -> np.ndarray:
    """Logits (n, K) of the file at `path`."""
    engine = Engine(path, Device("cpu"))
    return np.concatenate([engine.run(images[i : i + BATCH]).logits for i in range(0, len(images), BATCH)])


if __name__ == "__main__":
    main()
