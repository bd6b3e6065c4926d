"""The training loop: AdamW, cosine schedule by epoch, EMA, progressive picture sizes, a checkpoint each
epoch, resume by default.

Schedules count epochs, never wall-clock, and every random number comes from checkpointed generators: a run
that was killed and resumed is the same run, less at most the epoch that was under way. What is trained on
comes from `data`, the state on disk is `state`'s, what the numbers mean is `metrics`'s.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..paca.config import PaCaConfig
from ..paca.model import PaCaViT, attend_explicit, use_attention
from .augment import Augmentation, normalise
from .data import DataError, Pictures
from .objective import Batch, Classify, Objective, Usual
from .open_world import Supervision
from .progress import Track
from .state import BEST, LAST, Run, check_same, resume, save, write


@dataclass(frozen=True)
class Recipe:
    """sizes: (share of the epochs, picture side) in order; the last share is 1. warmup: epochs. ema: decay
    per step. clip: of the gradient's norm. patience: stop after this many epochs without a better held-out
    accuracy, 0 = never. balance: weigh classes by the inverse of their frequency. locality: every other batch
    teaches the tokens to speak for their own place only (`locality`). supervision: what else the objective
    `open_world` asks; None = classes alone."""

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
    patience: int = 0
    balance: bool = False
    locality: bool = False
    augmentation: Augmentation = field(default_factory=Augmentation)
    supervision: Supervision | None = None

    def size_at(self, epoch: int) -> int:
        return next(side for share, side in self.sizes if epoch < share * self.epochs)

    def lr_at(self, epoch: float) -> float:
        """Learning rate at a fractional epoch: linear warm-up, then half a cosine to 1 % of the peak."""
        if epoch < self.warmup:
            return self.lr * max(epoch, 0.02) / self.warmup
        done = (epoch - self.warmup) / max(self.epochs - self.warmup, 1e-9)
        return self.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def torch_device(name: str) -> torch.device:
    """auto = CUDA where torch finds one, else CPU. DataError for a device that is not here."""
    if name == "cuda" and not torch.cuda.is_available():
        raise DataError("CUDA was asked for, but this PyTorch finds no GPU; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def start(
    config: PaCaConfig,
    recipe: Recipe,
    device: torch.device,
    weights: dict[str, Tensor] | None = None,
    objective: Callable[[PaCaViT], Objective] | None = None,
) -> Run:
    """A fresh run; `weights` initialises everything whose name and shape fit, so all but a head for other
    classes. objective: made for the network, where it is not the plain one."""
    torch.manual_seed(recipe.seed)
    model = PaCaViT(config)
    if weights:
        own = model.state_dict()
        model.load_state_dict(
            {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}, strict=False
        )
    use_attention(model, attend_explicit)
    model.to(device)
    asks = objective(model) if objective else None
    learned = [*model.parameters(), *(asks.extra.to(device).parameters() if asks else ())]
    groups = [
        {"params": [p for p in learned if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.99))
    return Run(
        model,
        copy.deepcopy(model).eval().requires_grad_(False),
        optimizer,
        torch.Generator().manual_seed(recipe.seed),
        asks,
    )


def fit(
    run: Run,
    recipe: Recipe,
    train: Pictures,
    held_out: Pictures,
    folder: Path,
    track: Track,
    say: Callable[[str], None],
) -> Run:
    """Trains until `recipe.epochs` or until patience ends, going on with the run in `folder` if there is one.
    `track` wraps an epoch's batches.

    Writes into `folder`: recipe.json at the start; after every epoch last.pt (the whole state), one line of
    log.jsonl, and best.pt (the EMA weights) where the held-out accuracy is the best so far. Raises DataError
    where the folder holds a run of another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_same(folder, {"recipe": asdict(recipe), "config": run.model.config.to_dict()})
    objective = run.objective or Classify(train, usual(recipe, train, next(run.model.parameters()).device))
    if (folder / LAST).is_file():
        resume(run, folder / LAST)
        say(f"going on after epoch {run.epoch} of the run in {folder}")
    else:
        objective.prepare(run.model)
        run.ema.load_state_dict(run.model.state_dict())
    batches = max(len(train) // recipe.batch, 1)
    while run.epoch < recipe.epochs and not out_of_patience(run.history, recipe.patience):
        began, total = time.monotonic(), 0.0
        size = recipe.size_at(run.epoch)
        order = torch.randperm(len(train), generator=run.generator)
        run.model.train()
        for step in track(range(batches), batches, f"epoch {run.epoch + 1}/{recipe.epochs} at {size} px"):
            rows = order[step * recipe.batch : (step + 1) * recipe.batch]
            for group in run.optimizer.param_groups:
                group["lr"] = recipe.lr_at(run.epoch + step / batches)
            loss = objective.loss(Batch(run.model, rows, size, step, run.generator))
            run.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(run.model.parameters(), recipe.clip)
            run.optimizer.step()
            done = run.epoch * batches + step
            _follow(run.ema, run.model, min(recipe.ema, (done + 1) / (done + 10)))
            total += loss.item()
        run.epoch += 1
        run.seconds += time.monotonic() - began
        accuracy = float((predict(run.ema, held_out).argmax(1).numpy() == held_out.labels).mean())
        line = {
            "epoch": run.epoch,
            "size": size,
            "loss": round(total / batches, 4),
            "held_out": round(accuracy, 4),
            "seconds": round(run.seconds),
        }
        run.history.append(line)
        if accuracy > run.best:
            run.best = accuracy
            write({"ema": run.ema.state_dict(), "epoch": run.epoch}, folder / BEST)
        save(run, folder / LAST)
        with (folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        say(
            f"epoch {run.epoch}/{recipe.epochs}: loss {line['loss']:.3f}, held-out accuracy "
            f"{100 * accuracy:.1f} %, {run.seconds / 60:.1f} min"
        )
    return run


def usual(recipe: Recipe, train: Pictures, device: torch.device) -> Usual:
    """What the recipe tells every objective."""
    weight = class_weights(train).to(device) if recipe.balance else None
    return Usual(recipe.augmentation, recipe.smoothing, recipe.locality, weight)


def out_of_patience(history: list[dict[str, Any]], patience: int) -> bool:
    """Whether the last `patience` epochs brought no better held-out accuracy than some epoch before them."""
    if not patience or len(history) <= patience:
        return False
    return max(h["held_out"] for h in history[-patience:]) <= max(h["held_out"] for h in history[:-patience])


def class_weights(pictures: Pictures) -> Tensor:
    """(K,), inverse to how often a class occurs; 1 on average over the pictures."""
    counts = np.bincount(pictures.labels, minlength=len(pictures.classes))
    return torch.from_numpy(len(pictures) / (len(counts) * np.maximum(counts, 1))).float()


@torch.no_grad()
def _follow(ema: nn.Module, model: nn.Module, decay: float) -> None:
    for kept, new in zip(ema.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.dtype.is_floating_point:
            kept.lerp_(new, 1 - decay)
        else:
            kept.copy_(new)


def predict(model: PaCaViT, pictures: Pictures, batch: int = 128) -> Tensor:
    """Logits (n, K) in float32 of every picture."""
    return torch.cat(
        [predict_batch(model, pictures.images[i : i + batch]) for i in range(0, len(pictures), batch)]
    )


def answers(model: PaCaViT, images: np.ndarray, batch: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (n, H, W, 3) → logits (n, K) and pooled tokens (n, C), what novelty is measured on."""
    found = [pooled_batch(model, images[i : i + batch]) for i in range(0, len(images), batch)]
    logits, pooled = (torch.cat(values).numpy() for values in zip(*found, strict=True))
    return logits, pooled


def predict_batch(model: PaCaViT, images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) → logits (B, K) in float32 on the CPU; stretched to the config's size, in evaluation
    mode."""
    return pooled_batch(model, images)[0]


@torch.no_grad()
def pooled_batch(model: PaCaViT, images: np.ndarray) -> tuple[Tensor, Tensor]:
    """As `predict_batch`, with what the head sees: the mean of the last tokens, (B, C)."""
    model.eval()
    device = next(model.parameters()).device
    mean, std = (torch.tensor(v, device=device) for v in (model.config.mean, model.config.std))
    side = model.config.image_size
    x = normalise(torch.from_numpy(images).to(device), mean, std)
    if x.shape[-2:] != (side, side):
        x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        tokens = model.features(x).tokens[-1]
        return model.classify(tokens).float().cpu(), tokens.mean(1).float().cpu()
