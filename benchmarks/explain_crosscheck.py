"""Do other people's libraries find the same numbers? Two baselines against Captum, two measures against
Quantus, on the same pictures and maps.

    pip install --no-deps --target LIBS captum quantus tqdm matplotlib contourpy cycler fonttools kiwisolver
    pyparsing python-dateutil pandas \\
        opencv-python-headless
    PYTHONPATH=LIBS python benchmarks/explain_crosscheck.py

A folder of their own and --no-deps, because both would bring another PyTorch. `largest difference` is over
pictures (and cells), relative to the largest number. The measures run on maps of the default method; --model,
--checkpoint and --data as in `benchmarks/explain.py`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import card
from benchmarks.explain import opened
from benchmarks.faithfulness import data, metrics
from benchmarks.faithfulness.baselines import STEPS
from benchmarks.faithfulness.served import Served
from service import repository
from service.geometry import resample

try:
    import quantus
    from captum.attr import InputXGradient, IntegratedGradients
except ModuleNotFoundError as missing:
    raise SystemExit(
        f"{missing.name} is not installed; this file's first lines say how to install Captum and Quantus "
        "beside PyTorch"
    ) from None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--checkpoint", type=Path, default=None)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PACA_DATA", "data")))
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    path = (
        asked.model
        or repository.find(repository.embedded(), repository.names(repository.embedded())[0]).model
    )
    served = Served(path)
    reference = opened(served, asked.checkpoint or path.with_name("model.safetensors"))
    torch.set_num_threads(1)
    photos = data.located(asked.data, served.manifest.preprocessing)[: asked.images]
    stack, labels = np.stack([p.pixels for p in photos]), np.array([p.label for p in photos])
    cells = served.manifest.stages[0].grid[0]

    image, targets = reference.image(stack), torch.from_numpy(labels)
    by_captum = {
        "input x gradient": InputXGradient(reference.model).attribute(
            image.clone().requires_grad_(True), target=targets
        ),
        "integrated gradients 16": IntegratedGradients(reference.model).attribute(
            image, baselines=0, target=targets, n_steps=STEPS, method="riemann_middle", internal_batch_size=16
        ),
    }
    own = {
        "input x gradient": [maps["input x gradient"] for maps in reference.maps(stack, labels)],
        "integrated gradients 16": [reference.integrated(p.pixels, p.label) for p in photos],
    }
    lines = [
        _line(
            name,
            "Captum",
            own[name],
            [metrics.sums(value.sum(0).detach().numpy(), cells) for value in by_captum[name]],
            lambda a: np.abs(a).mean(),
        )
        for name in own
    ]

    size = photos[0].pixels.shape[:2]
    maps = [resample(served.maps(served.see(p.pixels), p.label)["focus"], size) for p in photos]
    regions = [metrics.boxes(list(p.boxes), size) for p in photos]
    how = {"abs": False, "normalise": False, "disable_warnings": True}
    batch = {
        "model": reference.model,
        "x_batch": image.numpy(),
        "y_batch": labels,
        "a_batch": np.stack(maps)[:, None],
        "s_batch": np.stack(regions)[:, None],
    }
    lines += [
        _line(
            "energy in box",
            "Quantus",
            [np.array(metrics.energy(m, r)) for m, r in zip(maps, regions, strict=True)],
            [
                np.array(v)
                for v in quantus.AttributionLocalisation(positive_attributions=True, **how)(**batch)
            ],
            np.mean,
        ),
        _line(
            "pointing game",
            "Quantus",
            [np.array(metrics.points(m, r)) for m, r in zip(maps, regions, strict=True)],
            [np.array(float(v)) for v in quantus.PointingGame(**how)(**batch)],
            np.mean,
        ),
    ]
    card.finish("explain_crosscheck", lines, save=asked.save, model=served.engine.sha256, photos=len(photos))


def _line(
    name: str,
    library: str,
    ours: list[np.ndarray],
    theirs: list[np.ndarray],
    digest: Callable[[np.ndarray], float],
) -> dict[str, object]:
    a, b = np.stack(ours).astype(np.float64), np.stack(theirs).astype(np.float64)
    return {
        "quantity": name,
        "library": library,
        "ours": float(digest(a)),
        "theirs": float(digest(b)),
        "largest difference": float(np.abs(a - b).max() / np.abs(b).max()),
    }


if __name__ == "__main__":
    main()
