"""A run on disk: everything that a killed training needs to go on, written so that a kill never leaves half a
file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..paca.config import PaCaConfig
from ..paca.model import PaCaViT
from .data import DataError
from .objective import Objective

LAST, BEST, RECIPE = "last.pt", "best.pt", "recipe.json"


@dataclass
class Run:
    """The state of a training. epoch: finished ones; seconds: spent training; best: highest held-out
    accuracy; history: one line an epoch. objective: what each batch asks, None = the classes alone."""

    model: PaCaViT
    ema: PaCaViT
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    objective: Objective | None = None
    epoch: int = 0
    seconds: float = 0.0
    best: float = 0.0
    history: list[dict] = field(default_factory=list)


def write(state: dict[str, Any], path: Path) -> None:
    """Saves beside `path`, then renames."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def save(run: Run, path: Path) -> None:
    """Writes the whole state."""
    state = {
        "model": run.model.state_dict(),
        "ema": run.ema.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "generator": run.generator.get_state(),
        "torch_rng": torch.get_rng_state(),
        "epoch": run.epoch,
        "seconds": run.seconds,
        "best": run.best,
        "history": json.dumps(run.history),
    }
    if run.objective:
        state["extra"] = run.objective.extra.state_dict()
    if torch.cuda.is_available():
        state["cuda_rng"] = torch.cuda.get_rng_state()
    write(state, path)


def resume(run: Run, path: Path) -> None:
    """Restores `run` from `path` in place."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    run.model.load_state_dict(state["model"])
    run.ema.load_state_dict(state["ema"])
    if run.objective:
        run.objective.extra.load_state_dict(state["extra"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.generator.set_state(state["generator"])
    torch.set_rng_state(state["torch_rng"])
    if torch.cuda.is_available() and "cuda_rng" in state:
        torch.cuda.set_rng_state(state["cuda_rng"])
    run.epoch, run.seconds, run.best = state["epoch"], state["seconds"], state["best"]
    run.history = json.loads(state["history"])


def check_same(folder: Path, settings: dict[str, Any]) -> None:
    """Writes `settings` to recipe.json, or, where a run is there already, checks that it is of the same
    settings; DataError names what differs."""
    path, text = folder / RECIPE, json.dumps(settings, indent=1)
    if (folder / LAST).is_file() and path.is_file():
        differing = _differences(json.loads(path.read_text()), json.loads(text))
        if differing:
            raise DataError(
                f"{folder} holds a run with other settings ({', '.join(differing)}); choose another --out, "
                "or give the same options to resume it"
            )
    path.write_text(text)


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Where two JSON values differ, as far as the old one goes: settings that are new since count as
    unchanged."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in old
            for line in _differences(old[key], new.get(key), f"{where}.{key}" if where else key)
        ]
    return [] if old == new else [f"{where} was {json.dumps(old)}"]


def best_weights(folder: Path) -> tuple[PaCaConfig, dict[str, torch.Tensor], int]:
    """Config, weights and epoch of the best EMA of the run in `folder`; of the last one where no best was
    kept. DataError where there is no run."""
    path = next((folder / name for name in (BEST, LAST) if (folder / name).is_file()), None)
    if path is None or not (folder / RECIPE).is_file():
        raise DataError(f"{folder} holds no training run ({LAST} and {RECIPE})")
    state = torch.load(path, map_location="cpu", weights_only=True)
    config = PaCaConfig.from_dict(json.loads((folder / RECIPE).read_text())["config"])
    return config, state["ema"], state["epoch"]
