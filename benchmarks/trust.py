"""Can the embedded model be believed? One command for every row: what it knows, what it says of foreign
photos, what its clusters are worth, where its maps point.

    python benchmarks/trust.py CHECKPOINT.safetensors --choosing     while choosing: the held-out tenth, the
                                                                     kinds of the varied pack kept for choices
    python benchmarks/trust.py MODEL.onnx [--save]                   once for a released model: the validation
                                                                     pack, the unseen kinds and sources
    python benchmarks/trust.py MODEL.onnx --rows knowledge           some of the rows

novelty      as `paca export --reference --foreign` puts it into the file, from training photos, the trained
             part of the varied pack and drawings; threshold from the held-out tenth (0.95). AUROC, FPR95 and
             flag rates on foreign photos that no fit saw, cats and dogs, CIFAR-10 without dogs and trucks,
             drawings of other generators
points lost  on the held-out tenth, with uniform clusters and with those of the next picture
clusters     arg-max of the last membership (or assignment) against masks of cats and dogs and boxes
pointing     highest place in a box; GridPG: share of positive relevance in the right quarter of four
             pictures in one

Needs the packs in --data or $PACA_DATA. A checkpoint is exported and answers as served; beside an .onnx its
checkpoint must lie.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import segments
from card import Row, finish
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from faithfulness.data import Grid, Picture, grids, located
from faithfulness.metrics import boxes, energy, points, quarter
from faithfulness.served import Served

from export.checkpoints import load
from export.novelty import Outputs, auroc
from export.paca.cost import macs, parameters
from export.pictures import prepare_all
from export.pipeline import Format, Request
from export.pipeline import run as export
from export.training.cluster_use import foreign_assignment_accuracy, uniform_assignment_accuracy
from export.training.data import Pictures, read_cifar10, read_pack
from export.training.drawings import drawings
from export.training.foreign import PACK, read_foreign
from export.training.metrics import Scores, log_softmax, score
from export.training.split import tail

SURE = 0.9
THRESHOLD = 0.95
MASKED = 100  # photos of each set with masks
BATCH = 32


@dataclass(frozen=True)
class Answers:
    """logits (n, K); pooled (n, C)."""

    logits: np.ndarray
    pooled: np.ndarray

    @property
    def pair(self) -> Outputs:
        return self.logits, self.pooled


class Model:
    """An exported file on the server's engine; a checkpoint is exported first. network: the float weights in
    PyTorch, of the checkpoint beside the file."""

    def __init__(self, path: Path, data: Path, folder: Path) -> None:
        checkpoint = path.with_name("model.safetensors") if path.suffix == ".onnx" else path
        if path == checkpoint:
            packs = Format(reference=data / "imagenette_train_128.npz", foreign=data / PACK)
            path = folder / "model.onnx"
            export(Request("auto", checkpoint=checkpoint, out=path, format=packs))
        self.network = load(checkpoint).model
        self.served, self.bytes = Served(path), path.stat().st_size
        self.manifest = self.served.manifest
        self.side = self.manifest.preprocessing.size[0]
        names = self.served.engine.outputs
        self.shown = max((n for n in names if n.startswith("membership_")), default=None) or max(
            n for n in names if n.startswith("assignment_")
        )

    def answer(self, images: np.ndarray) -> Answers:
        out = [self.served.engine.run(x, ("tokens",)) for x in _batches(images)]
        pooled = np.concatenate([o.arrays["tokens"].mean(1) for o in out])
        return Answers(np.concatenate([o.logits for o in out]), pooled)

    def segments(self, images: np.ndarray) -> np.ndarray:
        """(n, H, W): the strongest cluster of every patch."""
        found = [self.served.engine.run(x, (self.shown,)).arrays[self.shown] for x in _batches(images)]
        return np.concatenate(found).argmax(1)

    def scores(self, answers: Answers, labels: np.ndarray) -> Scores:
        return score(answers.logits, labels, self.manifest.labels, self.manifest.temperature)

    def top(self, answers: Answers) -> np.ndarray:
        return np.exp(log_softmax(answers.logits, self.manifest.temperature).max(1))


def _batches(images: np.ndarray) -> Iterator[np.ndarray]:
    for i in range(0, len(images), BATCH):
        yield images[i : i + BATCH]


@dataclass(frozen=True)
class Sets:
    """What is measured on. known: sets with labels; the last is where AUROC takes its known pictures."""

    held_out: Pictures
    known: dict[str, Pictures]
    foreign: dict[str, np.ndarray]
    located: list[Picture]


def read_sets(data: Path, model: Model, choosing: bool) -> Sets:
    how = model.manifest.preprocessing
    _, held_out = tail(read_pack(data / "imagenette_train_128.npz", how), 0.1)
    varied = read_foreign(data / PACK, how)
    photos = located(data, model.manifest.preprocessing)
    boxed = Pictures(
        np.stack([p.pixels for p in photos]), np.array([p.label for p in photos]), model.manifest.labels
    )
    known = {"held-out tenth": held_out} if choosing else {}
    if not choosing:
        known["validation pack"] = read_pack(data / "imagenette_val_128.npz", how)
    foreign = {"kept for choices" if choosing else "unseen kinds, sources": (
        varied.choice if choosing else varied.unseen
    ).images}  # fmt: skip
    foreign["cats and dogs"] = prepare_all(_pets(data), how)[0]
    cifar = read_cifar10(data, how)[1]["lossless"]
    apart = ~np.isin(cifar.labels, [cifar.classes.index(c) for c in ("dog", "truck")])
    foreign["CIFAR-10"] = cifar.images[apart][:600]
    foreign["drawings"] = drawings(how, unseen=True)
    return Sets(held_out, known | {"boxed photos": boxed}, foreign, photos)


def _pets(data: Path) -> list[Path]:
    return sorted((data / "pets_masks" / "images").glob("*.jpg"))


def fpr95(known: np.ndarray, foreign: np.ndarray) -> float:
    """The share of foreign pictures that pass where 95 % of these known ones do (OpenOOD's FPR@95)."""
    return float((foreign <= np.quantile(known, 0.95)).mean())


def knowledge(model: Model, sets: Sets) -> list[Row]:
    """Accuracy, calibration, and novelty of every set."""
    known = model.served.engine.novelty
    assert known is not None, "the export was given reference pictures"
    rows: list[Row] = []
    answers = {name: model.answer(p.images) for name, p in sets.known.items()}
    familiar = np.concatenate([known.raw(*a.pair) for a in answers.values()])
    energies = np.concatenate([_energy(model, a) for a in answers.values()])
    for name, pictures in sets.known.items():
        found, values = model.scores(answers[name], pictures.labels), answers[name]
        flagged = known.score(*values.pair) >= THRESHOLD
        rows += [
            {"row": f"top-1 %, {name}", "value": 100 * found.accuracy},
            {"row": f"ECE points, {name}", "value": 100 * found.ece},
            {"row": f"known kept, {name}", "value": float(1 - flagged.mean())},
        ]
    for name, images in sets.foreign.items():
        values = model.answer(images)
        flagged = known.score(*values.pair) >= THRESHOLD
        sure = model.top(values) >= SURE
        rows += [
            {"row": f"AUROC, {name}", "value": auroc(familiar, known.raw(*values.pair))},
            {"row": f"AUROC of energy alone, {name}", "value": auroc(energies, _energy(model, values))},
            {"row": f"FPR95, {name}", "value": fpr95(familiar, known.raw(*values.pair))},
            {"row": f"flagged, {name}", "value": float(flagged.mean())},
            {"row": f"score >= {SURE} and not flagged, {name}", "value": float((sure & ~flagged).mean())},
        ]
    return rows


def _energy(model: Model, answers: Answers) -> np.ndarray:
    return -np.logaddexp.reduce(answers.logits.astype(np.float64), axis=1)


def cluster_rows(model: Model, sets: Sets, data: Path) -> list[Row]:
    """What is lost without the right clusters, and what they are worth as segments."""
    network, held_out = model.network, sets.held_out
    right = model.scores(model.answer(held_out.images), held_out.labels).accuracy
    rows: list[Row] = [
        {"row": f"points lost, {name}", "value": 100 * (right - lost(network, held_out))}
        for name, lost in (
            ("uniform clusters", uniform_assignment_accuracy),
            ("another photo's", foreign_assignment_accuracy),
        )
    ]
    pets = _pets(data)[:MASKED]
    images = prepare_all(pets, model.manifest.preprocessing)[0]
    found = [
        segments.quality(labels, *_trimap(path, model.side))
        for labels, path in zip(model.segments(images), pets, strict=True)
    ]
    rows += _quality("cats and dogs", segments.mean(found))
    photos = sets.located[:MASKED]
    everywhere = np.ones((model.side, model.side), bool)
    shown = model.segments(np.stack([p.pixels for p in photos]))
    found = [
        segments.quality(labels, boxes(list(p.boxes), everywhere.shape), everywhere)
        for labels, p in zip(shown, photos, strict=True)
    ]
    return rows + _quality("boxes", segments.mean(found))


def _trimap(path: Path, side: int) -> tuple[np.ndarray, np.ndarray]:
    file = path.parents[1] / "masks" / path.with_suffix(".png").name
    with Image.open(file) as image:
        trimap = np.asarray(image.resize((side, side), Image.Resampling.NEAREST))
    return trimap == 1, trimap != 3


def _quality(name: str, found: segments.Quality) -> list[Row]:
    return [{"row": f"{key.replace('_', ' ')}, {name}", "value": value} for key, value in vars(found).items()]


def pointing_rows(model: Model, sets: Sets, count: int) -> list[Row]:
    """Pointing game on the boxed photos and GridPG, for `cam` and `focus`."""
    served = model.served
    found: dict[str, list[float]] = {}
    for photo in sets.located:
        maps = served.maps(served.see(photo.pixels), photo.label)
        region = boxes(list(photo.boxes), photo.pixels.shape[:2])
        for name in ("cam", "focus"):
            found.setdefault(f"pointing, {name}", []).append(points(maps[name], region))
    source = next(iter(sets.known.values()))
    pictures = [Picture(x, int(y), "") for x, y in zip(source.images, source.labels, strict=True)]
    for grid in grids(pictures, count):
        for name, values in _in_quarters(served, grid):
            found.setdefault(f"GridPG, {name}", []).append(values)
    return [{"row": name, "value": float(np.mean(values))} for name, values in found.items()]


def _in_quarters(served: Served, grid: Grid) -> Iterator[tuple[str, float]]:
    seen = served.see(grid.pixels)
    for i, label in enumerate(grid.labels):
        maps, region = served.maps(seen, label), quarter(i, grid.pixels.shape[:2])
        yield from ((name, energy(maps[name], region)) for name in ("cam", "focus"))


def cost_rows(model: Model) -> list[Row]:
    """Size, multiply-accumulates, and the median of 50 runs of one picture on one thread."""
    picture, took = np.zeros((1, model.side, model.side, 3), np.uint8), []
    for _ in range(60):
        began = time.perf_counter()
        model.served.engine.run(picture)
        took.append(1000 * (time.perf_counter() - began))
    network = model.network
    return [
        {"row": "parameters, million", "value": parameters(network) / 1e6},
        {"row": "multiply-accumulates, million", "value": macs(network.config) / 1e6},
        {"row": "milliseconds a picture, one thread", "value": float(np.median(took[10:]))},
        {"row": "model.onnx, MB", "value": model.bytes / 1e6},
    ]


ROWS: dict[str, Callable[[Model, Sets, argparse.Namespace], list[Row]]] = {
    "knowledge": lambda model, sets, _: knowledge(model, sets),
    "clusters": lambda model, sets, asked: cluster_rows(model, sets, asked.data),
    "pointing": lambda model, sets, asked: pointing_rows(model, sets, asked.grids),
    "cost": lambda model, sets, _: cost_rows(model),
}


def measure(asked: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        model = Model(asked.model, asked.data, Path(folder))
        sets = read_sets(asked.data, model, asked.choosing)
        rows = [row for name in asked.rows for row in ROWS[name](model, sets, asked)]
    return [{**row, "value": round(float(str(row["value"])), 4)} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PACA_DATA", "data")))
    parser.add_argument("--choosing", action="store_true")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--grids", type=int, default=100)
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    finish("trust", measure(asked), save=asked.save)


if __name__ == "__main__":
    main()
