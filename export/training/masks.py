"""The recipe `masks`: a segmenter for the user's own masks, from any checkpoint of ours.

First the head learns on a frozen backbone, then everything at a tenth of the rate; each ends when it stops
getting better. A run that was killed goes on where it was, less at most the epoch that was under way. Reading
is `mask_data`'s, scoring `mask_metrics`'s.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from service.artifact import Preprocessing
from service.files import write_json
from service.folders import summary
from service.repository import embedded, find, names

from .. import checkpoints, segmenters
from ..annotate import segmenter_preprocessing
from ..paca.config import PaCaConfig
from ..paca.cost import parameters
from ..paca.model import attend_explicit, use_attention
from ..paca.segmentation import WIDTH, PaCaSegmenter, SegmenterConfig
from ..pictures import DataError
from ..pictures import preprocessing as stretched
from .augment import normalise
from .checkpoint import save_segmenter
from .loop import out_of_patience, torch_device
from .mask_data import IGNORED, MaskedPicture, MaskedPictures, read_masks, split
from .mask_metrics import MaskScores, score
from .mask_report import print_mask_scores
from .memory import keep_memory
from .objective import autocast
from .progress import Say, Track, showing
from .state import BEST, LAST, check_same, write

NAME = "masks"
HELD_OUT = 0.2
CALIBRATION = 200  # held-out pictures written out for int8 calibration
CHECKPOINT = "model.safetensors"


@dataclass(frozen=True)
class MaskRecipe:
    """phases: (what learns, epochs, learning rate). crop: side of the squares that are trained on; scale,
    ratio: area share and aspect range of what they show. auxiliary: weight of the clusters' own loss, as
    published. ema: decay a step. patience: end a phase after this many epochs without a better held-out
    mIoU."""

    phases: tuple[tuple[str, int, float], ...] = (("head", 30, 2e-3), ("all", 30, 2e-4))
    crop: int = 160
    batch: int = 16
    scale: tuple[float, float] = (0.3, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    jitter: float = 0.3
    auxiliary: float = 0.4
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.96
    patience: int = 8
    seed: int = 1

    def lr_at(self, phase: int, epoch: float) -> float:
        """At a fractional epoch of a phase: one epoch of warm-up, then half a cosine to 1 % of the peak."""
        _, epochs, peak = self.phases[phase]
        if epoch < 1:
            return peak * max(epoch, 0.05)
        return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min((epoch - 1) / max(epochs - 1, 1), 1))))


@dataclass(frozen=True)
class Material:
    """Pictures in memory. images: (n, S, S, 3) uint8, stretched to squares; masks: (n, S, S) uint8; aspects:
    (n,), width over height before that."""

    images: Tensor
    masks: Tensor
    aspects: Tensor

    @classmethod
    def of(cls, pictures: MaskedPictures, side: int) -> Material:
        images, masks = [], []
        for picture in pictures.pictures:
            images.append(picture.seen(stretched(side)))
            mask = Image.fromarray(picture.mask).resize((side, side), Image.Resampling.NEAREST)
            masks.append(np.asarray(mask))
        aspects = [picture.width / picture.height for picture in pictures.pictures]
        return cls(
            torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks)), torch.tensor(aspects)
        )


@dataclass
class MaskRun:
    """The state of a training. phase, epoch: what is next, epoch within the phase. history: one line an
    epoch; best: highest held-out mIoU."""

    model: PaCaSegmenter
    ema: PaCaSegmenter
    generator: torch.Generator
    optimizer: torch.optim.Optimizer
    phase: int = 0
    epoch: int = 0
    steps: int = 0
    seconds: float = 0.0
    best: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "generator": self.generator.get_state(),
            "optimizer": self.optimizer.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "history": json.dumps(self.history),
        }
        write(state | {name: getattr(self, name) for name in COUNTERS}, path)

    def resume(self, path: Path, recipe: MaskRecipe) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name in COUNTERS:
            setattr(self, name, state[name])
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        self.history = json.loads(state["history"])
        if self.phase < len(recipe.phases):
            self.optimizer = optimizer_of(self.model, recipe, self.phase)
            self.optimizer.load_state_dict(state["optimizer"])


COUNTERS = ("phase", "epoch", "steps", "seconds", "best")


def run(
    data: Path,
    out: Path | None = None,
    *,
    epochs: int | None = None,
    start_from: Path | None = None,
    seed: int = 1,
    device: str = "auto",
    console: Console | None = None,
) -> Path:
    """Trains (or goes on with the run in `out`), finalises, prints how to export; returns the final file.
    epochs: of each phase, at most. start_from: a checkpoint of a classifier or a segmenter, by default the
    embedded model's.

    Raises DataError with one line for data or a checkpoint that cannot be used.
    """
    console = console or Console()
    track, say = showing(console)
    out = out or Path("runs") / NAME
    where = torch_device(device)
    keep_memory()
    everything = read_masks(data)
    for line in summary(everything.skipped):
        say(f"left out: {line}")
    train, held_out = split(everything, HELD_OUT, seed)
    model, source = model_for(start_from, len(everything.classes), seed)
    recipe = MaskRecipe(crop=_crop(model.config), seed=seed)
    if epochs:
        recipe = dataclasses.replace(recipe, phases=tuple((w, epochs, rate) for w, _, rate in recipe.phases))
    say(
        f"{NAME}: {len(train)} pictures to train on, {len(held_out)} held out, {len(everything.classes)} "
        "classes; "
        f"{model.config.name} from {source}"
    )
    out.mkdir(parents=True, exist_ok=True)
    check_same(
        out, {"recipe": asdict(recipe), "config": model.config.to_dict(), "classes": everything.classes}
    )
    state = start(model.to(where), recipe)
    if (out / LAST).is_file():
        state.resume(out / LAST, recipe)
        say(f"going on after {len(state.history)} epochs of the run in {out}")
    fit(state, recipe, (train, held_out), out, track, say)
    return finalise(model.config, everything.classes, (train, held_out), out, console, where)


def model_for(start_from: Path | None, classes: int, seed: int) -> tuple[PaCaSegmenter, str]:
    """A segmenter whose backbone, and whose head where it fits, comes from a checkpoint; and the file's
    name."""
    path = start_from or _embedded_checkpoint()
    try:
        loaded = segmenters.load(path)
        trunk = loaded.model.backbone if loaded else checkpoints.load(path).model
    except checkpoints.CheckpointError as error:
        raise DataError(str(error)) from None
    torch.manual_seed(seed)
    if loaded:
        config = dataclasses.replace(loaded.model.config, num_classes=classes)
    else:
        config = config_for(trunk.config, classes)
    model = PaCaSegmenter(config)
    given = (
        loaded.model.state_dict() if loaded else {f"backbone.{k}": v for k, v in trunk.state_dict().items()}
    )
    own = model.state_dict()
    fitting = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    if missing := [key for key in own if key.startswith("backbone.") and key not in fitting]:
        raise DataError(f"{path.name} lacks {missing[0]}, which the backbone needs")
    model.load_state_dict(fitting, strict=False)
    use_attention(model, attend_explicit)
    return model, path.name


def _embedded_checkpoint() -> Path:
    """The weights of the embedded classifier."""
    root = embedded()
    for name in names(root):
        path = find(root, name).model.with_name(CHECKPOINT)
        if path.is_file() and segmenters.load(path) is None:
            return path
    raise DataError("there is no embedded checkpoint to start from; give one with --from")


def config_for(trunk: PaCaConfig, classes: int) -> SegmenterConfig:
    """A segmenter on the backbone of a classifier: pictures half as large again, since crops show things
    larger than they are served (Touvron et al. 2019), and a head in proportion."""
    side = max(64, round(1.5 * trunk.image_size / 32) * 32)
    backbone = dataclasses.replace(
        trunk,
        pool="mean",
        image_size=side,
        resize="aspect",
        crop=1.0,
        interpolation="bilinear",
        drop_path=0.0,
    )
    width = WIDTH if trunk.stages[-1].dim > WIDTH else 64
    return SegmenterConfig(f"{trunk.name}_masks", backbone, classes, width, step=32, longest=2 * side)


def _crop(config: SegmenterConfig) -> int:
    return max(32, round(config.backbone.image_size * 5 / 6 / 32) * 32)


def optimizer_of(model: PaCaSegmenter, recipe: MaskRecipe, phase: int) -> torch.optim.Optimizer:
    """Of what learns in a phase; the rest is frozen."""
    what, _, rate = recipe.phases[phase]
    learning: nn.Module = model.decode_head if what == "head" else model
    model.requires_grad_(False)
    learning.requires_grad_(True)
    learned = list(learning.parameters())
    groups = [
        {"params": [p for p in learned if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99))


def start(model: PaCaSegmenter, recipe: MaskRecipe) -> MaskRun:
    """A fresh run."""
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    return MaskRun(model, twin, torch.Generator().manual_seed(recipe.seed), optimizer_of(model, recipe, 0))


def fit(
    run: MaskRun,
    recipe: MaskRecipe,
    pictures: tuple[MaskedPictures, MaskedPictures],
    folder: Path,
    track: Track,
    say: Say,
) -> None:
    """Trains what is left of every phase. Writes last.pt after every epoch, best.pt where the held-out mIoU
    is the best so far."""
    train, held_out = pictures
    if run.phase >= len(recipe.phases):
        return
    material = Material.of(train, round(recipe.crop * 1.5))
    judge = Judge(held_out, segmenter_preprocessing(run.model.config))
    batches = max(len(train) // recipe.batch, 1)
    while run.phase < len(recipe.phases):
        what, epochs, _ = recipe.phases[run.phase]
        began, total = time.monotonic(), 0.0
        order = torch.randperm(len(train), generator=run.generator)
        run.model.eval()  # the backbone's norms stay what they are
        run.model.decode_head.train()
        for step in track(range(batches), batches, f"{what}, epoch {run.epoch + 1}/{epochs}"):
            rows = order[step * recipe.batch : (step + 1) * recipe.batch]
            for group in run.optimizer.param_groups:
                group["lr"] = recipe.lr_at(run.phase, run.epoch + step / batches)
            total += _step(run, recipe, material, rows, frozen=what == "head")
        run.epoch += 1
        run.seconds += time.monotonic() - began
        found = judge(run.ema)
        run.history.append(
            {
                "phase": what,
                "epoch": run.epoch,
                "loss": round(total / batches, 4),
                "held_out": round(found.miou, 4),
                "seconds": round(run.seconds),
            }
        )
        say(
            f"{what}, epoch {run.epoch}/{epochs}: loss {total / batches:.3f}, held-out mIoU "
            f"{found.miou:.3f}, "
            f"{run.seconds / 60:.1f} min"
        )
        if found.miou > run.best:
            run.best = found.miou
            write({"ema": run.ema.state_dict(), "epoch": len(run.history)}, folder / BEST)
        own = [line for line in run.history if line["phase"] == what]
        if run.epoch >= epochs or out_of_patience(own, recipe.patience):
            run.phase, run.epoch = run.phase + 1, 0
            if run.phase < len(recipe.phases):
                run.optimizer = optimizer_of(run.model, recipe, run.phase)
        run.save(folder / LAST)


def _step(run: MaskRun, recipe: MaskRecipe, material: Material, rows: Tensor, *, frozen: bool) -> float:
    x, target = augmented(material, rows, recipe, run)
    with autocast(x.device):
        if frozen:
            with torch.no_grad():
                maps = run.model.maps(x)
            found = run.model.decode_head(maps)
        else:
            found = run.model.segment(x)[0]
    loss = mask_loss(found.logits.float(), target) + recipe.auxiliary * mask_loss(
        found.scores.float(), target
    )
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(run.model.parameters(), recipe.clip)
    run.optimizer.step()
    run.steps += 1
    decay = min(recipe.ema, (run.steps + 1) / (run.steps + 10))
    with torch.no_grad():
        for kept, new in zip(run.ema.state_dict().values(), run.model.state_dict().values(), strict=True):
            kept.lerp_(new, 1 - decay) if kept.dtype.is_floating_point else kept.copy_(new)
    return float(loss.item())


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy at the target's size (B, H, W), the mean over pixels that are judged."""
    large = F.interpolate(logits, size=target.shape[-2:], mode="bilinear", align_corners=False)
    judged = (target != IGNORED).sum().clamp(min=1)
    return F.cross_entropy(large, target, ignore_index=IGNORED, reduction="sum") / judged


def augmented(material: Material, rows: Tensor, recipe: MaskRecipe, run: MaskRun) -> tuple[Tensor, Tensor]:
    """Crops of some pictures: normalised (B, 3, side, side), and their masks (B, side, side), int64. All
    randomness comes from the run's generator."""
    generator, config = run.generator, run.model.config.backbone
    device, count = next(run.model.parameters()).device, len(rows)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high, generator=generator)

    aspect = material.aspects[rows]
    area, ratio = uniform(*recipe.scale), uniform(*map(math.log, recipe.ratio)).exp()
    width, height = (area * ratio / aspect).sqrt().clamp(max=1), (area * aspect / ratio).sqrt().clamp(max=1)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = width * torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    theta[:, 0, 2] = uniform(-1, 1) * (1 - width)
    theta[:, 1, 1], theta[:, 1, 2] = height, uniform(-1, 1) * (1 - height)
    at = F.affine_grid(theta, [count, 1, recipe.crop, recipe.crop], align_corners=False).to(device)
    zero, one = (torch.full((3,), value, device=device) for value in (0.0, 1.0))
    images = normalise(material.images[rows].to(device), zero, one)
    x = F.grid_sample(images, at, mode="bilinear", padding_mode="reflection", align_corners=False)
    masks = material.masks[rows].to(device)[:, None].float()
    target = F.grid_sample(masks, at, mode="nearest", padding_mode="reflection", align_corners=False)[
        :, 0
    ].long()
    low, high = 1 - recipe.jitter, 1 + recipe.jitter
    brightness, contrast, colour = (uniform(low, high).view(-1, 1, 1, 1).to(device) for _ in range(3))
    x = x * brightness
    middle = x.mean((1, 2, 3), keepdim=True)
    x = (x - middle) * contrast + middle
    grey = x.mean(1, keepdim=True)
    x = ((x - grey) * colour + grey).clamp(0, 1)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (config.mean, config.std))
    return (x - mean) / std, target


class Judge:
    """Scores a network on held-out pictures as they are served; their inputs are read once."""

    def __init__(self, pictures: MaskedPictures, how: Preprocessing) -> None:
        self._pictures = pictures
        self._seen = {picture.name: picture.seen(how) for picture in pictures.pictures}

    def __call__(self, model: PaCaSegmenter) -> MaskScores:
        return score(self._pictures.pictures, self.logits_of(model), self._pictures.classes)

    def logits_of(self, model: PaCaSegmenter) -> Callable[[MaskedPicture], np.ndarray]:
        config, device = model.config.backbone, next(model.parameters()).device
        mean, std = (torch.tensor(v, device=device) for v in (config.mean, config.std))
        model.eval()

        @torch.no_grad()
        def logits(picture: MaskedPicture) -> np.ndarray:
            x = normalise(torch.from_numpy(self._seen[picture.name].copy()[None]).to(device), mean, std)
            return model(x)[0].float().cpu().numpy()

        return logits


def finalise(
    config: SegmenterConfig,
    classes: tuple[str, ...],
    pictures: tuple[MaskedPictures, MaskedPictures],
    out: Path,
    console: Console,
    device: torch.device,
) -> Path:
    """The best weights of the run in `out` → model.safetensors, evaluation.json and calibration/ beside it.
    May be called again."""
    _, say = showing(console)
    train, held_out = pictures
    best = torch.load(out / BEST, map_location="cpu", weights_only=True)
    model = PaCaSegmenter(config)
    model.load_state_dict(
        {k: t.half().float() if t.is_floating_point() else t for k, t in best["ema"].items()}
    )  # as they will be stored
    how = segmenter_preprocessing(config)
    scores = Judge(held_out, how)(model.to(device).eval())
    last = torch.load(out / LAST, map_location="cpu", weights_only=True)
    account = {
        "recipe": NAME,
        "epochs": len(json.loads(last["history"])),
        "best_epoch": best["epoch"],
        "minutes": round(last["seconds"] / 60, 1),
        "parameters": parameters(model),
        "pictures": {"train": len(train), "held_out": len(held_out)},
        "metrics": {"held_out": scores.summary()},
    }
    final = out / CHECKPOINT
    save_segmenter(model, final, classes, account)
    write_json(out / "evaluation.json", {"training": account, "held_out": scores.to_dict()})
    write_calibration(held_out, out / "calibration", how)
    print_mask_scores(console, f"held out: {final}", scores)
    say(f"written: {final}, evaluation.json; held-out pictures for --calibration: {out / 'calibration'}")
    say("export and serve it:")
    say(f"  paca export auto --checkpoint {shlex.quote(str(final))} --out models/mine/1/model.onnx")
    say("  PACA_MODELS=models paca serve    # curl -F file=@photo.jpg localhost:8000/segment")
    return final


def write_calibration(pictures: MaskedPictures, folder: Path, how: Preprocessing) -> None:
    """The first held-out pictures as the network sees them, what `--precision int8 --calibration` wants."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures.pictures[:CALIBRATION]):
        Image.fromarray(picture.seen(how)).save(folder / f"{i:04d}.png")
