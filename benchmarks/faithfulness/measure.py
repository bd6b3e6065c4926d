"""Runs the metrics: pictures with their maps in, numbers for each row of the table out. The forward passes
they need are here, the arithmetic is `metrics`'."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from service import explain
from service.geometry import resample
from service.methods import METHODS, Evidence

from . import metrics
from .baselines import Reference, blind
from .data import Grid, Picture, average, blurred
from .served import Maps, Served

PATCHES = 8  # patches along a side for the single-patch deletions
Values = dict[str, dict[str, list[float]]]  # metric → row → one number a picture (NaN where not measured)


@dataclass
class Scores:
    """Everything measured so far."""

    values: Values = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))

    def add(self, metric: str, row: str, value: float) -> None:
        self.values[metric][row].append(value)

    def mean(self, metric: str, row: str) -> tuple[float, float, int] | None:
        """Mean, standard error and how many; None where nothing was measured."""
        known = [v for v in self.values[metric].get(row, []) if np.isfinite(v)]
        return (*metrics.summary(known), len(known)) if known else None


def every_map(
    served: Served, reference: Reference, pictures: np.ndarray, targets: Sequence[int]
) -> list[Maps]:
    """All rows that are cheap: ours through ONNX Runtime, baselines through PyTorch, blind ones. pictures:
    (B, H, W, 3)."""
    ours = served.pool.map(lambda i: served.maps(served.see(pictures[i]), targets[i]), range(len(pictures)))
    cells = served.manifest.stages[0].grid
    theirs: list[Maps] = []
    for i in range(0, len(pictures), 8):
        theirs += reference.maps(pictures[i : i + 8], np.array(targets[i : i + 8]))
    return [{**a, **b, **blind(cells, i)} for i, (a, b) in enumerate(zip(ours, theirs, strict=True))]


def faithfulness(
    served: Served, picture: Picture, maps: Maps, steps: int, patches: bool
) -> dict[str, dict[str, float]]:
    """metric → row → number of one picture: areas under insertion (from the blurred picture) and deletion (to
    the mean colour), the probability of the class against the share of cells; with `patches` also the rank
    correlation with what single patches do to the logit."""
    cells = served.manifest.stages[0].grid
    fine = {row: resample(values, cells) for row, values in maps.items()}
    backgrounds = {
        "insertion": blurred(picture.pixels),
        "deletion": average(picture.pixels, served.manifest.preprocessing),
    }
    wanted: dict[tuple[str, bytes], int] = {}  # rows that order cells alike share their forward passes
    stack: list[np.ndarray] = []
    plans: dict[tuple[str, str], list[int]] = {}
    for row, values in fine.items():
        for place in metrics.revealed(values, steps, np.random.default_rng(0)):
            for metric, background in backgrounds.items():
                shown = place if metric == "insertion" else ~place
                key = ("whole" if shown.all() else metric, shown.tobytes())
                if key not in wanted:
                    wanted[key] = len(stack)
                    stack.append(
                        np.where(_enlarged(shown, picture.pixels)[..., None], picture.pixels, background)
                    )
                plans.setdefault((metric, row), []).append(wanted[key])
    probability = served.probabilities(np.stack(stack), picture.label)
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for (metric, row), plan in plans.items():
        found[metric][row] = metrics.area(probability[plan])
    for row in fine:
        found["ins-del"][row] = found["insertion"][row] - found["deletion"][row]
    if patches:
        drops = patch_drops(served, picture)
        for row, values in fine.items():
            found["patch corr"][row] = metrics.spearman(metrics.sums(values, PATCHES), drops)
    return found


def patch_drops(served: Served, picture: Picture) -> np.ndarray:
    """(PATCHES²,) how far the class's logit falls when one patch takes the mean colour."""
    nothing = average(picture.pixels, served.manifest.preprocessing)
    without = []
    for i in range(PATCHES**2):
        place = np.zeros(PATCHES**2, bool)
        place[i] = True
        without.append(
            np.where(
                _enlarged(place.reshape(PATCHES, PATCHES), picture.pixels)[..., None], nothing, picture.pixels
            )
        )
    logits = served.logits(np.stack([picture.pixels, *without]))[:, picture.label]
    return logits[0] - logits[1:]


def _enlarged(place: np.ndarray, picture: np.ndarray) -> np.ndarray:
    return np.kron(
        place, np.ones((picture.shape[0] // place.shape[0], picture.shape[1] // place.shape[1]), bool)
    )


def grid_scores(served: Served, reference: Reference, grids: Sequence[Grid], scores: Scores) -> None:
    """For every class in a grid: the share of positive relevance in its own cell, and whether the highest
    place lies there (chance 0.25)."""
    for grid in grids:
        pictures = np.repeat(grid.pixels[None], len(grid.labels), 0)
        for i, maps in enumerate(every_map(served, reference, pictures, grid.labels)):
            region = metrics.quarter(i, grid.pixels.shape[:2])
            for row, values in maps.items():
                scores.add("GridPG", row, metrics.energy(values, region))
                scores.add("peak in cell", row, metrics.points(values, region))


def box_scores(
    served: Served, reference: Reference, pictures: Sequence[Picture], scores: Scores
) -> list[dict[str, object]]:
    """Pointing game and energy in box for the true class of every photo. Returns one row a photo for the
    default map: how sure, how right, how far off."""
    rows: list[dict[str, object]] = []
    for start in range(0, len(pictures), 8):
        part = pictures[start : start + 8]
        stack = np.stack([p.pixels for p in part])
        for picture, maps in zip(
            part, every_map(served, reference, stack, [p.label for p in part]), strict=True
        ):
            region = metrics.boxes(list(picture.boxes), picture.pixels.shape[:2])
            for row, values in maps.items():
                scores.add("pointing", row, metrics.points(values, region))
                scores.add("energy in box", row, metrics.energy(values, region))
            logits = served.engine.run(picture.pixels[None]).logits[0].astype(np.float64)
            exp = np.exp(logits - logits.max())
            probability = exp / exp.sum()
            rows.append(
                {
                    "photo": picture.name,
                    "class": served.manifest.labels[picture.label],
                    "answer": served.manifest.labels[int(logits.argmax())],
                    "probability": float(probability[picture.label]),
                    "energy in box": metrics.energy(maps["focus"], region),
                    "box area": float(region.mean()),
                    "peak in box": metrics.points(maps["focus"], region),
                }
            )
    return rows


def sanity(served: Served, reference: Reference, pictures: Sequence[Picture], scores: Scores) -> None:
    """Rank correlation of each row's map with that of a network with random parts: a map that explains the
    network must change. Maps on their own grid."""
    last = len(reference.model.config.stages)
    parts = {"random head": ("head",), "random head + stage": ("head", f"stage{last}")}
    for start in range(0, len(pictures), 5):
        part = pictures[start : start + 5]
        stack, targets = np.stack([p.pixels for p in part]), [p.label for p in part]
        before = every_map(served, reference, stack, targets)
        for metric, names in parts.items():
            broken = reference.randomised(names, seed=start)
            theirs = broken.maps(stack, np.array(targets))
            for i, picture in enumerate(part):
                after = {**theirs[i], **broken.ours(picture.pixels, picture.label)}
                for row, values in after.items():
                    scores.add(metric, row, metrics.spearman(values, before[i][row]))


def stability(served: Served, reference: Reference, pictures: Sequence[Picture], scores: Scores) -> None:
    """Rank correlation of each row's map with that of the picture with noise (5 % of the colours' spread),
    and of its mirror image, mirrored back."""
    spread = 255 * np.array(served.manifest.preprocessing.std)
    rng = np.random.default_rng(0)
    for start in range(0, len(pictures), 8):
        part = pictures[start : start + 8]
        stack, targets = np.stack([p.pixels for p in part]), [p.label for p in part]
        noisy = np.clip(np.rint(stack + 0.05 * spread * rng.standard_normal(stack.shape)), 0, 255).astype(
            np.uint8
        )
        before = every_map(served, reference, stack, targets)
        for metric, changed in (("noise", noisy), ("flip", np.ascontiguousarray(stack[:, :, ::-1]))):
            for old, new in zip(before, every_map(served, reference, changed, targets), strict=True):
                for row, values in new.items():
                    scores.add(
                        metric,
                        row,
                        metrics.spearman(values[:, ::-1] if metric == "flip" else values, old[row]),
                    )


def costs(
    served: Served, reference: Reference, picture: Picture, through: np.ndarray, repeats: int = 9
) -> dict[str, float]:
    """Row → CPU milliseconds for one picture alone on one thread, with the classification it explains; the
    median of `repeats` rounds over all rows."""
    import torch

    from .rise import BATCH, rise

    x, label, classes = picture.pixels, picture.label, len(served.manifest.labels)
    grid, cut = served.manifest.stages[-1].grid, served.manifest.explain
    assert cut is not None
    weights = explain.class_weights(classes, label)
    clustered = [s.output for s in served.manifest.clustered_stages if s.output]

    def own(method: str, *names: str) -> Callable[[], object]:
        def answer() -> object:
            out = served.engine.run(x[None], ("tokens", *names)).row(0)
            cam = explain.contributions(out.arrays["tokens"], grid, served.head, weights)
            if method == "clusters":
                return explain.shares(cam, out.arrays[names[0]])
            found = {}
            if "features" in names:
                maps = served.gradients.run(out.arrays["features"][None], weights[None])
                found = explain.stage_maps({name: values[0] for name, values in maps.items()})
            return METHODS[method].heatmap(Evidence(cam, found))

        return answer

    jobs: dict[str, Callable[[], object]] = {
        "classify": lambda: served.engine.run(x[None]),
        "cam": own("cam"),
        "focus": own("focus", "features"),
        "fine": own("fine", "features"),
        "contrast": own("focus", "features"),
        "Grad-CAM (last)": lambda: reference.maps(x[None], np.array([label])),
        "integrated gradients 16": lambda: reference.integrated(x, label),
        "RISE": lambda: rise(served, x, label, through[:BATCH], served.manifest.stages[0].grid[0]),
    }
    if clustered:
        jobs["clusters by share"] = own("clusters", clustered[-1])
        jobs["raw clusters (max)"] = lambda: (
            served.engine.run(x[None], (clustered[-1],)).arrays[clustered[-1]][0].max(0)
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats + 2):
        for row, job in jobs.items():
            began = time.process_time()
            job()
            times[row].append(1000 * (time.process_time() - began))
    torch.set_num_threads(threads)
    middle = {row: float(np.median(values[2:])) for row, values in times.items()}
    middle["RISE-1000"] = middle["classify"] + middle.pop("RISE") * 1000 / BATCH
    torch_rows = ("Grad-CAM", "HiResCAM", "LayerCAM")
    one_pass = middle["Grad-CAM (last)"]
    middle |= {f"{row} ({where})": one_pass for row in torch_rows for where in ("last", "second last")}
    middle |= {"attention rollout": one_pass, "input x gradient": one_pass}
    return middle
