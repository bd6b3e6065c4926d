"""What `paca train` does, from the data folder to the last printed line. The command line only reads
arguments and calls it.

After training: the best weights, their temperature on the held-out pictures, one scoring of the test
pictures, novelty statistics, the final file, held-out pictures for calibration and novelty, what to think of
the result, and the line that exports it all.
"""

from __future__ import annotations

import os
import shlex
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from service.files import write_json
from service.folders import summary
from service.novelty import Statistics

from ..novelty import FEWEST, evenly, fit, worth
from ..paca.cost import parameters
from ..paca.model import PaCaViT
from .checkpoint import save_final
from .data import Pictures
from .drawings import drawings
from .evaluate_torch import cluster_report
from .loop import answers, predict, start, torch_device
from .loop import fit as train
from .memory import keep_memory
from .metrics import Scores, fit_temperature, score
from .progress import showing
from .recipes import Options, Plan, plan
from .report import cluster_rows, print_scores, write_report
from .split import HELD_OUT, SPLIT
from .state import LAST, best_weights, check_data
from .verdict import interval, judge

KEPT = 1000  # held-out pictures written out, at most


def run(
    recipe: str,
    data: Path,
    out: Path | None = None,
    *,
    epochs: int | None = None,
    start_from: Path | None = None,
    clustering: str | None = None,
    seed: int = 1,
    device: str = "auto",
    console: Console | None = None,
) -> Path:
    """Trains (or goes on with the run in `out`), finalises, prints how to export; returns the final file,
    `out/model.safetensors`.

    Raises DataError with one line for data, a checkpoint or a name that cannot be used.
    """
    console = console or Console()
    track, say = showing(console)
    out = out or Path("runs") / recipe
    where = torch_device(device)
    keep_memory()
    began = time.monotonic()
    ready = plan(recipe, Options(data, out, epochs, start_from, clustering, seed))
    say(_what(recipe, ready, time.monotonic() - began))
    for line in summary(ready.train.skipped):
        say(f"skipped, cannot be read: {line}")
    for line in (*ready.notes, *check_data(out, ready.train, ready.held_out)):
        say(line)
    if ready.record:
        write_json(out / SPLIT, ready.record)
    state = start(ready.config, ready.recipe, where, ready.weights, ready.objective)
    train(state, ready.recipe, ready.train, ready.held_out, out, track, say)
    return finalise(recipe, ready, out, console, where)


def finalise(recipe: str, ready: Plan, out: Path, console: Console, device: torch.device) -> Path:
    """The best weights of the run in `out` → model.safetensors, evaluation.json, confusion.png and held_out/
    beside it. May be called again."""
    _, say = showing(console)
    config, weights, epoch = best_weights(out)
    model = PaCaViT(config)
    model.load_state_dict(
        {name: t.half().float() if t.is_floating_point() else t for name, t in weights.items()}
    )  # as they will be stored
    model.to(device).eval()
    logits = predict(model, ready.held_out).numpy()
    temperature = fit_temperature(logits, ready.held_out.labels)
    scores = {"held_out": score(logits, ready.held_out.labels, ready.train.classes, temperature)}
    for name, pictures in ready.tests.items():
        scores[name] = score(predict(model, pictures).numpy(), pictures.labels, pictures.classes, temperature)
    main = next((name for name in scores if name != "held_out"), "held_out")
    account = _account(recipe, ready, out, epoch, scores, cluster_report(model, ready.held_out))
    final = out / "model.safetensors"
    novelty = novelty_of(model, ready)
    save_final(model, final, ready.train.classes, temperature, account, novelty)
    write_held_out(ready.held_out, out / HELD_OUT)
    verdict = judge(scores[main], improving=epoch == account["epochs"])
    values = {
        "training": account,
        main: scores[main].to_dict(),
        "accuracy_interval": interval(scores[main]),
        "verdict": verdict.lines,
    }
    write_report(out, values, scores[main])
    print_scores(
        console, f"{main}: {final}", scores[main], cluster_rows(account["clusters"], scores["held_out"])
    )
    say(
        f"written: {final}, evaluation.json, confusion.png; held-out pictures for --calibration: "
        f"{out / HELD_OUT}"
    )
    say(_on_novelty(novelty, len(ready.held_out)))
    for line in verdict.lines:
        say(line)
    say("export and serve it:" if verdict.worth_serving else "not worth serving; to try it all the same:")
    name = ready.config.name if recipe != "folder" else "mine"
    say(f"  paca export auto --checkpoint {shlex.quote(str(final))} --out models/{name}/1/model.onnx")
    say("  PACA_MODELS=models paca serve")
    return final


def novelty_of(model: PaCaViT, ready: Plan) -> Statistics | None:
    """Statistics of novelty from training pictures, held-out ones and, where the recipe has any, foreign
    ones; None where too few are held out."""
    side = model.config.image_size
    known, held_out = (answers(model, p.take(evenly(len(p))).images) for p in (ready.train, ready.held_out))
    foreign, unseen = None, None
    if ready.foreign:
        photos, others = (p.take(evenly(len(p))).images for p in (ready.foreign.train, ready.foreign.unseen))
        foreign = answers(model, np.concatenate([photos, drawings(side)]))
        unseen = answers(model, others)
    found = fit(known, held_out, foreign)
    if found is None:
        return None
    return replace(
        found, measured=worth(found, held_out, answers(model, drawings(side, unseen=True)), unseen)
    )


def write_held_out(pictures: Pictures, folder: Path) -> None:
    """Up to KEPT held-out pictures as PNG files, one sub-folder a class: `paca export` calibrates int8 on
    them and measures novelty against them."""
    for row in np.linspace(0, len(pictures), min(len(pictures), KEPT), endpoint=False).astype(int):
        name = pictures.classes[pictures.labels[row]].replace("/", "_")
        place = folder / os.fsdecode(name.encode())  # UTF-8 under every locale
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures.images[row]).save(place / f"{row:05d}.png")


def _on_novelty(found: Statistics | None, held_out: int) -> str:
    if found is None:
        return (
            f"it will not say that a picture is novel: that takes {FEWEST} held-out pictures, there are "
            f"{held_out}"
        )
    caught = found.measured.get("flagged_foreign")
    of = "drawings" if caught is None else "foreign pictures of unseen kinds"
    share = found.measured["flagged_drawings"] if caught is None else caught
    return f"novelty: 1 in 20 known pictures is called novel, and {100 * share:.0f} % of {of}"


def _what(recipe: str, ready: Plan, seconds: float) -> str:
    counts = (
        f"{len(ready.train)} pictures to train on, {len(ready.held_out)} held out, {len(ready.train.classes)}"
        f" classes (read in {seconds:.0f} s)"
    )
    return f"{recipe}: {counts}; {ready.config.name}, up to {ready.recipe.epochs} epochs"


def _account(
    recipe: str, ready: Plan, out: Path, epoch: int, scores: dict[str, Scores], clusters: dict[str, Any]
) -> dict[str, Any]:
    """What the final file says of its training."""
    state = torch.load(out / LAST, map_location="cpu", weights_only=True)
    return {
        "recipe": recipe,
        "seed": ready.recipe.seed,
        "epochs": state["epoch"],
        "best_epoch": epoch,
        "hours": round(state["seconds"] / 3600, 3),
        "parameters": parameters(PaCaViT(ready.config)),
        "settings": asdict(ready.recipe),
        "pictures": {"train": len(ready.train), "held_out": len(ready.held_out)},
        "metrics": {name: s.summary() for name, s in scores.items()},
        "clusters": clusters,
    }
