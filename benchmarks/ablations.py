"""What each part of the embedded model's recipe brings: short runs from the shipped weights, one row a part.

    python benchmarks/ablations.py --data PACKS --out RUNS [--epochs 2] [--only compete --only pool ...]

Writes a final checkpoint a row into --out; a row that is there is not trained again, an unfinished one goes
on. `benchmarks/trust.py --choosing` measures them. Two epochs at 80 px are about five CPU minutes a row.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from export.paca.config import PaCaConfig, StageConfig, variant
from export.paca.model import PaCaViT
from export.training.checkpoint import save_final
from export.training.coherence import Coherence
from export.training.data import read_imagenette
from export.training.foreign import PACK, read_foreign
from export.training.loop import Recipe, fit, predict, start
from export.training.memory import keep_memory
from export.training.metrics import fit_temperature
from export.training.open_world import Material, Supervision
from export.training.progress import showing
from export.training.recipes import (
    EMBEDDED,
    Options,
    base_of,
    embedded_material,
    open_world,
)
from export.training.split import tail
from export.training.state import best_weights

SHIPPED = Path(__file__).parents[1] / "service/models/imagenette/1/model.safetensors"
FULL = EMBEDDED.supervision or Supervision()
NO_COHERENCE = Coherence(0, 0, 0, 0, 0)
ALONE = Supervision(0, 0, 0, 0, 0, 0, NO_COHERENCE)


def gate_of_clusters(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A gate of patches as the start of one of clusters, whose tokens are means of patches."""
    return {k.replace("pool.score.", "pool.cluster_score."): v for k, v in weights.items()}


def compete(clusters: int = 12, pool: str = "gated", last: bool = True) -> PaCaConfig:
    """The embedded network with other clusters, gate or last stage."""
    config = variant("paca_compete_128")
    first, second, third = config.stages
    second, third = (dataclasses.replace(stage, clusters=clusters) for stage in (second, third))
    third = third if last else StageConfig(third.dim, third.depth, third.heads)
    return dataclasses.replace(config, stages=(first, second, third), pool=pool)


ROWS: dict[str, tuple[PaCaConfig, Supervision]] = {
    "control": (variant("paca_small_128"), ALONE),
    "compete": (compete(last=False), ALONE),
    "last stage": (compete(), ALONE),
    "coherence": (compete(), dataclasses.replace(ALONE, coherence=FULL.coherence)),
    "foreign": (
        compete(),
        dataclasses.replace(ALONE, coherence=FULL.coherence, foreign=FULL.foreign, even=FULL.even),
    ),
    "full": (compete(), FULL),
    "full, pool of clusters": (compete(pool="cluster"), FULL),
    "full, maps": (compete(), dataclasses.replace(FULL, deep=1.0, fine=0.5)),
    "full, M = 8": (compete(8), FULL),
    "full, M = 16": (compete(16), FULL),
}


def train(name: str, material: Material, recipe: Recipe, out: Path) -> None:
    """One row, unless its checkpoint is there."""
    final = out / f"{name.replace(', ', '-').replace(' ', '')}.safetensors"
    if final.is_file():
        return
    config, supervision = ROWS[name]
    recipe = dataclasses.replace(recipe, supervision=supervision)
    kept, held_out = tail(material.known, 0.05)
    track, say = showing(Console())
    base = base_of(Options(Path(), out, start_from=SHIPPED), config.name)
    run = start(
        dataclasses.replace(config, num_classes=len(kept.classes)),
        recipe,
        torch.device("cpu"),
        base.weights if config.pool == "gated" else gate_of_clusters(base.weights),
        lambda model: open_world(material, recipe, model),
    )
    folder = out / final.stem
    fit(run, recipe, kept, held_out, folder, track, lambda text: say(f"{name}: {text}"))
    config, weights, epoch = best_weights(folder)
    model = PaCaViT(config)
    model.load_state_dict(weights)
    model.eval()
    temperature = fit_temperature(predict(model, held_out).numpy(), held_out.labels)
    save_final(
        model, final, kept.classes, temperature, {"row": name, "epochs": epoch, "seconds": run.seconds}
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--only", action="append", choices=ROWS)
    asked = parser.parse_args()
    keep_memory()
    recipe = dataclasses.replace(EMBEDDED, epochs=asked.epochs, sizes=((1.0, 80),), warmup=0.3, ema=0.98)
    kept, _ = tail(read_imagenette(asked.data, 128)[0], 0.1)
    base = base_of(Options(asked.data, asked.out, start_from=SHIPPED), "paca_small_128")
    material = embedded_material(read_foreign(asked.data / PACK, base.config.image_size).train, kept, base)
    for name in asked.only or ROWS:
        train(name, material, recipe, asked.out)


if __name__ == "__main__":
    main()
