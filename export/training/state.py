"""A run on disk: everything that a killed training needs to go on, written so that a kill never leaves half a
file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from service.files import read_json, write_text

from ..paca.config import PaCaConfig
from ..paca.model import PaCaViT
from ..pictures import fingerprints
from .data import DataError, Pictures
from .objective import Objective

LAST, BEST, RECIPE, DATA = "last.pt", "best.pt", "recipe.json", "data.json"
SAME_DATA = 0.5  # share of a run's pictures that must still be there for the data to be the same


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
    history: list[dict[str, Any]] = field(default_factory=list)


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
    before = read_json(path) if (folder / LAST).is_file() else None
    if before is not None:
        differing = _differences(before, json.loads(text))
        if differing:
            raise DataError(
                f"{folder} holds a run with other settings ({', '.join(differing)}); choose another --out, "
                "or give the same options to resume it"
            )
    write_text(path, text)


def check_data(folder: Path, train: Pictures, held_out: Pictures) -> list[str]:
    """Writes down which data the run in `folder` learns from, or, where a run is there already, checks that
    it learned from the same: equal classes in equal order, and most of its pictures. Returns what has changed
    since, in sentences; DataError says what differs.
    """
    classes = train.classes
    marks: dict[str, list[str]] = {name: [] for name in classes}
    for pictures in (train, held_out):
        for label, mark in zip(pictures.labels, fingerprints(pictures.images), strict=True):
            marks[classes[label]].append(f"{mark:016x}")
    now: dict[str, Any] = {"size": list(train.images.shape[1:3]), "classes": list(classes), "pictures": marks}
    before = read_json(folder / DATA) if (folder / LAST).is_file() else None
    if not isinstance(before, dict) or not before.keys() >= now.keys():
        write_text(folder / DATA, json.dumps(now, ensure_ascii=False))
        return []
    if before["classes"] != now["classes"]:
        raise DataError(
            f"{folder} holds a run with other classes ({_class_difference(before['classes'], classes)}); "
            "choose another --out, or give the data of that run to resume it"
        )
    if before["size"] != now["size"]:
        return []  # another network, which check_same will refuse
    old, new = ({(name, m) for name, ms in d["pictures"].items() for m in ms} for d in (before, now))
    kept, gone, added = len(old & new), len(old - new), len(new - old)
    if kept < SAME_DATA * len(old):
        raise DataError(
            f"{folder} holds a run on other pictures (only {kept} of its {len(old)} are in this data); "
            "choose another --out, or give the data of that run to resume it"
        )
    return (
        [f"since this run began, {added} pictures were added and {gone} taken away"] if gone or added else []
    )


def _class_difference(old: Sequence[str], new: Sequence[str]) -> str:
    """In a few words, for two lists that are not equal."""
    lost, come = [name for name in old if name not in new], [name for name in new if name not in old]
    parts = [
        f"{what} {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
        for what, names in (("it has", lost), ("this data has", come))
        if names
    ]
    return "; ".join(parts) or "the same ones in another order"


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
    recipe = read_json(folder / RECIPE)
    if not isinstance(recipe, dict) or "config" not in recipe:
        raise DataError(f"{folder / RECIPE} is damaged; give the command of the run again")
    return PaCaConfig.from_dict(recipe["config"]), state["ema"], state["epoch"]
