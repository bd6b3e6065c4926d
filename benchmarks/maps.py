"""Which map is truest on photos that neither training nor tuning saw: insertion less deletion, and the share
that passes the server's own check, by method and model.

    python benchmarks/maps.py MODEL.onnx... [--photos 250] [--save]

The photos are those of imagenette_loc in --data or $PACA_DATA that the model names rightly; the target is
their class. Shown and hidden as `paca evaluate --explain` does. Grad-CAM and HiResCAM at the last norm come
from PyTorch and the checkpoint beside each model, `random places` asks no model.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from card import Row, finish

sys.path.insert(0, str(Path(__file__).parents[1]))

from faithfulness.baselines import Reference
from faithfulness.data import located
from faithfulness.metrics import bootstrap

from export.checkpoints import load
from export.training.explained import RANDOM, Subject, faithfulness
from service.hiding import GRID

BASELINES = ("Grad-CAM (last)", "HiResCAM (last)")
AGAINST = "Grad-CAM (last)"
MEASURES = ("insertion", "deletion", "difference", "passed")


def measure(path: Path, data: Path, most: int) -> list[Row]:
    """A row a method, with its difference to Grad-CAM on the same photos."""
    subject = Subject(path, "cpu")
    manifest = subject.engine.manifest
    assert manifest.explain is not None
    network = load(path.with_name("model.safetensors")).model
    reference = Reference(network, manifest.preprocessing, manifest.explain.maps)
    photos = located(data, manifest.preprocessing)
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for i in np.linspace(0, len(photos), min(most, len(photos)), endpoint=False).astype(int):
        pixels, target = photos[i].pixels, photos[i].label
        logits, arrays = subject.see(pixels)
        if int(logits.argmax()) != target:
            continue
        maps = subject.maps(pixels, logits, arrays, subject.weights(target))
        theirs = reference.maps(pixels[None], np.array([target]))[0]
        blind = np.random.default_rng(i).random((GRID, GRID)).astype(np.float32)
        maps |= {name: theirs[name] for name in BASELINES} | {RANDOM: blind}
        for name, found in faithfulness(subject, pixels, target, maps).items():
            for key, value in found.items():
                values[name][key].append(value)
    return [_row(path, name, found, values[AGAINST]) for name, found in values.items()]


def _row(path: Path, name: str, found: dict[str, list[float]], other: dict[str, list[float]]) -> Row:
    apart, low, high, _ = bootstrap(np.array(found["difference"]) - np.array(other["difference"]))
    means = {key: round(float(np.mean(found[key])), 3) for key in MEASURES}
    against = {
        "times Grad-CAM": round(means["difference"] / float(np.mean(other["difference"])), 2),
        "above Grad-CAM": round(apart, 3),
        "95 % from": round(low, 3),
        "to": round(high, 3),
    }
    return {"model": path.name, "method": name, "photos": len(found["difference"]), **means, **against}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PACA_DATA", "data")))
    parser.add_argument("--photos", type=int, default=250)
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for model in asked.models for row in measure(model, asked.data, asked.photos)]
    finish("maps", rows, save=asked.save)


if __name__ == "__main__":
    main()
