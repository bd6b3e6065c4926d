"""The training loop: AdamW, cosine schedule by epoch, EMA, progressive picture sizes, a checkpoint each epoch, resume by default.

Schedules count epochs, never wall-clock, and every random number comes from the checkpointed generator: a run that was killed and resumed is the
same run up to one lost epoch. What is trained on comes from `data`, what the numbers mean from `metrics`; the final file is written by `checkpoint`.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..paca.config import PaCaConfig
from ..paca.model import PaCaViT, attend_explicit, use_attention
from .augment import Augmentation, augment, normalise
from .data import Pictures

Track = Callable[[Iterable[int], int, str], Iterable[int]]


@dataclass(frozen=True)
class Recipe:
    """sizes: (share of the epochs, picture side) in order; the last share is 1. ema: decay per step. workers of BLAS are torch's own setting."""

    epochs: int = 48
    batch: int = 64
    lr: float = 2e-3
    warmup: float = 3.0
    weight_decay: float = 0.05
    smoothing: float = 0.1
    clip: float = 1.0
    ema: float = 0.998
    seed: int = 1
    sizes: tuple[tuple[float, int], ...] = ((0.4, 64), (0.8, 96), (1.0, 128))
    augmentation: Augmentation = field(default_factory=Augmentation)

    def size_at(self, epoch: int) -> int:
        return next(side for share, side in self.sizes if epoch < share * self.epochs)

    def lr_at(self, epoch: float) -> float:
        """Learning rate at a fractional epoch: linear warm-up, then half a cosine to 1 % of the peak."""
        if epoch < self.warmup:
            return self.lr * max(epoch, 0.02) / self.warmup
        done = (epoch - self.warmup) / max(self.epochs - self.warmup, 1e-9)
        return self.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


@dataclass
class Run:
    """The state of a training: everything that a resumed run needs."""

    model: PaCaViT
    ema: PaCaViT
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    epoch: int = 0
    seconds: float = 0.0
    best: float = 0.0
    history: list[dict] = field(default_factory=list)


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.99))


def start(config: PaCaConfig, recipe: Recipe, device: torch.device, weights: dict[str, Tensor] | None = None) -> Run:
    """A fresh run; `weights` initialises all but a head whose shape differs."""
    torch.manual_seed(recipe.seed)
    model = PaCaViT(config)
    if weights:
        fitting = {k: v for k, v in weights.items() if k in (own := model.state_dict()) and own[k].shape == v.shape}
        model.load_state_dict(fitting, strict=False)
    use_attention(model, attend_explicit)
    model.to(device)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    return Run(model, ema, _optimizer(model, recipe), torch.Generator().manual_seed(recipe.seed))


def save(run: Run, path: Path) -> None:
    """Writes the whole state beside `path`, then renames, so that a kill never leaves half a checkpoint."""
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
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def resume(run: Run, path: Path) -> None:
    """Restores `run` from `path` in place."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    run.model.load_state_dict(state["model"])
    run.ema.load_state_dict(state["ema"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.generator.set_state(state["generator"])
    torch.set_rng_state(state["torch_rng"])
    run.epoch, run.seconds, run.best = state["epoch"], state["seconds"], state["best"]
    run.history = json.loads(state["history"])


def fit(
    run: Run,
    recipe: Recipe,
    train: Pictures,
    held_out: Pictures,
    folder: Path,
    track: Track,
    say: Callable[[str], None],
) -> Run:
    """Trains until `recipe.epochs`, writing `last.pt` after every epoch and one line of `log.jsonl`. `track` wraps an epoch's batches."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps({"recipe": asdict(recipe), "config": run.model.config.to_dict()}, indent=1))
    device = next(run.model.parameters()).device
    images = torch.from_numpy(train.images)
    labels = torch.from_numpy(train.labels).to(device)
    mean, std = (torch.tensor(v, device=device) for v in (run.model.config.mean, run.model.config.std))
    batches = max(len(train) // recipe.batch, 1)
    while run.epoch < recipe.epochs:
        began, total = time.monotonic(), 0.0
        size = recipe.size_at(run.epoch)
        order = torch.randperm(len(train), generator=run.generator)
        run.model.train()
        for step in track(range(batches), batches, f"epoch {run.epoch + 1}/{recipe.epochs} at {size} px"):
            rows = order[step * recipe.batch : (step + 1) * recipe.batch]
            x = augment(images[rows].to(device), size, recipe.augmentation, mean, std, run.generator)
            for group in run.optimizer.param_groups:
                group["lr"] = recipe.lr_at(run.epoch + step / batches)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits = run.model(x)
            loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=recipe.smoothing)
            run.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(run.model.parameters(), recipe.clip)
            run.optimizer.step()
            _follow(run.ema, run.model, min(recipe.ema, (run.epoch * batches + step + 1) / (run.epoch * batches + step + 10)))
            total += loss.item()
        run.epoch += 1
        run.seconds += time.monotonic() - began
        logits = predict(run.ema, held_out)
        accuracy = (logits.argmax(1) == torch.from_numpy(held_out.labels)).float().mean().item()
        run.best = max(run.best, accuracy)
        line = {"epoch": run.epoch, "size": size, "loss": round(total / batches, 4), "held_out": round(accuracy, 4), "seconds": round(run.seconds)}
        run.history.append(line)
        save(run, folder / "last.pt")
        with (folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        say(f"epoch {run.epoch}: loss {line['loss']:.3f}, held-out accuracy {100 * accuracy:.1f} %, {run.seconds / 60:.0f} min")
    return run


@torch.no_grad()
def _follow(ema: nn.Module, model: nn.Module, decay: float) -> None:
    for kept, new in zip(ema.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.dtype.is_floating_point:
            kept.lerp_(new, 1 - decay)
        else:
            kept.copy_(new)


@torch.no_grad()
def predict(model: PaCaViT, pictures: Pictures, batch: int = 128) -> Tensor:
    """Logits (n, K) in float32 of every picture, stretched to the config's size, in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    mean, std = (torch.tensor(v, device=device) for v in (model.config.mean, model.config.std))
    side = model.config.image_size
    out = []
    for i in range(0, len(pictures), batch):
        x = normalise(torch.from_numpy(pictures.images[i : i + batch]).to(device), mean, std)
        if x.shape[-1] != side:
            x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            out.append(model(x).float().cpu())
    return torch.cat(out)
