"""Are the explanations true? Every method of the server and the usual others, on the exported model through
ONNX Runtime, by eleven measures.

    python benchmarks/explain.py                          the embedded model, 500 photos; the first run also
                                                          makes RISE's maps (100,000 passes)
    python benchmarks/explain.py --images 40 --rise 4     a quick look
    python benchmarks/explain.py --split tune             on validation rows 0-999, where tuning is allowed;
                                                          without it: the rows after them

insertion, deletion  area under the class's probability while cells are shown (on the blurred picture) or
                     hidden (mean colour), most relevant first
patch corr           rank correlation between the map and what hiding single patches does to the logit
GridPG, peak in cell four pictures in one: share of positive relevance, and the highest place, in the right
quarter (chance 0.25)
pointing, energy     the same with boxes that people drew around the objects (imagenette_loc); the centred
                     Gaussian is the picture's centre
random head (+ stage) rank correlation with the map of a network whose head (and last stage) is random: near
0, or the map explains something else
noise, flip          rank correlation with the map of the same picture with faint noise, and mirrored
cpu ms, x classify   one picture on one thread, classification included; PyTorch for the baselines with
                     gradients

Needs the Imagenette packs in --data or $PACA_DATA, PyTorch, and the model's own checkpoint. With --save:
benchmarks/results/explain*.json for `make figures`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import card
from benchmarks.faithfulness import clusters, data, measure, metrics, rise
from benchmarks.faithfulness.baselines import Reference
from benchmarks.faithfulness.data import Picture
from benchmarks.faithfulness.served import Served
from export.checkpoints import load
from service import repository

ROWS = (
    *("focus", "cam", "fine", "contrast"),
    *(
        "Grad-CAM (last)",
        "Grad-CAM (second last)",
        "HiResCAM (last)",
        "HiResCAM (second last)",
        "LayerCAM (last)",
        "LayerCAM (second last)",
    ),
    *("attention rollout", "integrated gradients 16", "input x gradient", "RISE-1000"),
    *("raw clusters (max)", "clusters by share", "centred Gaussian", "random"),
)
DEFAULT = "focus"
METRICS = (
    "insertion",
    "deletion",
    "ins-del",
    "patch corr",
    "GridPG",
    "peak in cell",
    "pointing",
    "energy in box",
)
CHECKS = ("random head", "random head + stage", "noise", "flip")
PAIRED = ("insertion", "ins-del", "GridPG", "pointing", "energy in box")
MISLEADING = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        type=Path,
        default=None,
        help="model.onnx with explain.onnx beside it; default: the embedded model",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=None,
        help="the model's weights for the baselines; default: model.safetensors beside it",
    )
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PACA_DATA", "data")))
    parser.add_argument(
        "--images",
        type=int,
        default=500,
        help="photos for insertion and deletion; the other counts follow it",
    )
    parser.add_argument("--rise", type=int, default=100, help="photos for RISE and integrated gradients")
    parser.add_argument("--rise-only", action="store_true", help="make RISE's maps, keep them, and stop")
    parser.add_argument(
        "--steps",
        type=int,
        default=6,
        help="parts in which cells are shown or hidden; the first ones are the smallest",
    )
    parser.add_argument("--split", choices=("report", "tune"), default="report")
    parser.add_argument("--cache", type=Path, default=Path("runs/explain"), help="where RISE's maps are kept")
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", file=sys.stderr, flush=True)

    path = (
        asked.model
        or repository.find(repository.embedded(), repository.names(repository.embedded())[0]).model
    )
    served = Served(path)
    reference = opened(served, asked.checkpoint or path.with_name("model.safetensors"))
    torch.set_num_threads(len(os.sched_getaffinity(0)))

    preprocessing = served.manifest.preprocessing
    rows = data.TUNE if asked.split == "tune" else range(data.TUNE.stop, data.TUNE.stop + 2 * asked.images)
    pictures = right(served, data.validation(asked.data, rows, preprocessing))[: asked.images]
    dear = pictures[: asked.rise]
    say(f"{len(pictures)} correctly classified photos of the {asked.split} rows")
    through = rise.masks(16, preprocessing.size[0])
    risen = rise.kept(served, dear, 1000, asked.cache, say)
    if asked.rise_only:
        return
    cost = measure.costs(served, reference, pictures[0], through)
    say("costs measured")

    scores = measure.Scores()
    maps = measure.every_map(
        served, reference, np.stack([p.pixels for p in pictures]), [p.label for p in pictures]
    )
    for i, picture in enumerate(dear):
        maps[i]["RISE-1000"] = risen[picture.name]
        maps[i]["integrated gradients 16"] = reference.integrated(picture.pixels, picture.label)
    say("maps made")
    for i, found in enumerate(
        served.pool.map(
            lambda i: measure.faithfulness(
                served, pictures[i], maps[i], asked.steps, patches=i < max(asked.images // 5, 1)
            ),
            range(len(pictures)),
        )
    ):
        for metric, values in found.items():
            for row in ROWS:
                scores.add(metric, row, values.get(row, float("nan")))
        if (i + 1) % 50 == 0:
            say(f"insertion and deletion: {i + 1} photos")
    measure.grid_scores(served, reference, data.grids(pictures, max(asked.images // 5, 1)), scores)
    say("grids done")
    photos = measure.box_scores(
        served, reference, data.located(asked.data, preprocessing)[:: max(1, 500 // asked.images)], scores
    )
    say("boxes done")
    some = pictures[: max(asked.images // 10, 1)]
    measure.sanity(served, reference, some, scores)
    measure.stability(served, reference, some, scores)
    say("sanity and stability done")
    effects = clusters.rows(served, reference, some[:20])
    say("clusters done")

    notes = {
        "model": served.engine.sha256,
        "split": asked.split,
        "photos": len(pictures),
        "steps": asked.steps,
        "classify cpu ms": cost["classify"],
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    card.finish("explain", [summary_row(row, scores, cost) for row in ROWS], save=asked.save, **notes)
    card.finish("explain_paired", paired(scores), save=asked.save, default=DEFAULT)
    card.finish("explain_clusters", effects, save=asked.save)
    card.finish("explain_misleading", misleading(photos), save=asked.save)


def opened(served: Served, checkpoint: Path) -> Reference:
    """The network in PyTorch, after making sure that it is the one that is served."""
    cut = served.manifest.explain
    if cut is None:
        raise SystemExit("this model comes without explain.onnx: there is no default explanation to measure")
    if not checkpoint.is_file():
        raise SystemExit(
            f"{checkpoint} is not there; name the weights this model was exported from with --checkpoint"
        )
    reference = Reference(
        load(checkpoint, served.manifest.variant).model, served.manifest.preprocessing, cut.maps
    )
    probe = np.random.default_rng(0).integers(0, 256, (2, *served.manifest.preprocessing.size, 3), np.uint8)
    with torch.no_grad():
        expected = reference.model(reference.image(probe)).numpy()
    off = float(np.abs(served.logits(probe) - expected).max())
    if off > 1e-2:
        raise SystemExit(
            f"{checkpoint} is not what {served.manifest.name} was exported from: logits differ by {off:.2g}"
        )
    return reference


def right(served: Served, pictures: list[Picture]) -> list[Picture]:
    """Those the model gives their own class."""
    parts = [pictures[i : i + 16] for i in range(0, len(pictures), 16)]
    answers = np.concatenate(
        list(served.pool.map(lambda part: served.logits(np.stack([p.pixels for p in part])).argmax(1), parts))
    )
    return [picture for picture, answer in zip(pictures, answers, strict=True) if answer == picture.label]


def summary_row(row: str, scores: measure.Scores, cost: dict[str, float]) -> dict[str, object]:
    """One line of the main table."""
    line: dict[str, object] = {"method": row + (" (default)" if row == DEFAULT else ""), "photos": None}
    for metric in (*METRICS, *CHECKS):
        found = scores.mean(metric, row)
        line[metric] = None if found is None else found[0]
        line[f"{metric} se"] = None if found is None else found[1]
        if metric == "insertion" and found:
            line["photos"] = found[2]
    ms = cost.get(row)
    return line | {"cpu ms": ms, "x classify": ms and ms / cost["classify"]}


def paired(scores: measure.Scores) -> list[dict[str, object]]:
    """The default against every other row, and `fine` against what it is asked to beat, on the pictures that
    both have."""
    pairs = [(DEFAULT, row) for row in ROWS if row != DEFAULT] + [
        ("fine", row) for row in ("centred Gaussian", "RISE-1000", "Grad-CAM (last)")
    ]
    lines = []
    for ours, other in pairs:
        for metric in PAIRED:
            found = scores.values[metric]
            if not found.get(ours) or not found.get(other):
                continue
            a, b = np.array(found[ours]), np.array(found[other])
            both = np.isfinite(a) & np.isfinite(b)
            mean, low, high, p = metrics.bootstrap((a - b)[both])
            lines.append(
                {
                    "ours": ours,
                    "against": other,
                    "measure": metric,
                    "pictures": int(both.sum()),
                    "difference": mean,
                    "95 % from": low,
                    "to": high,
                    "p": p,
                    "ratio": float(a[both].mean() / b[both].mean()),
                }
            )
    return lines


def misleading(photos: list[dict[str, object]]) -> list[dict[str, object]]:
    """Photos the model is right and sure about, whose default map points outside the box and lies the least
    inside it for the box's size."""
    sure = [
        p
        for p in photos
        if p["class"] == p["answer"] and float(str(p["probability"])) >= 0.7 and not p["peak in box"]
    ]
    return sorted(sure, key=lambda p: float(str(p["energy in box"])) / float(str(p["box area"])))[:MISLEADING]


if __name__ == "__main__":
    main()
