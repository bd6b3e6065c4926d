"""Foreign pictures made of the training photos alone: a corner without the object, or the object painted out.

Where the object is, the network that the training starts from says itself: its shares. A picture is kept only
if that network then no longer sees the class.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..paca.model import PaCaViT
from .augment import normalise
from .data import Pictures
from .loop import predict_batch

SEEN = 0.2  # a picture whose class still gets this score shows its object
PAINTED = 0.8  # of the shares, that what is painted out holds
LARGEST = 0.8  # of the picture
FILLED_AT = 32  # side of the grid on which colours spread
QUIET = 0.05  # of the shares, at most in a corner without object
WINDOW = 0.5  # side of such a corner
BATCH = 64


@torch.no_grad()
def object_free(model: PaCaViT, pictures: Pictures, count: int, seed: int = 0) -> np.ndarray:
    """At most `count` pictures (n, S, S, 3) uint8 made from as many photos, half of each kind at most."""
    rows = np.random.default_rng(seed).permutation(len(pictures))[:count]
    made: list[np.ndarray] = []
    for i in range(0, len(rows), BATCH):
        some = pictures.take(rows[i : i + BATCH])
        shares = _shares(model, some)
        half = len(some) // 2
        changes = [_paint_out] * half + [_corner] * (len(some) - half)
        found = [change(x, s) for change, x, s in zip(changes, some.images, shares, strict=True)]
        kept = [j for j, x in enumerate(found) if x is not None]
        if not kept:
            continue
        tried = np.stack([found[j] for j in kept])  # type: ignore[misc]
        scores = predict_batch(model, tried).softmax(1)[range(len(kept)), some.labels[kept]]
        made += [x for x, score in zip(tried, scores, strict=True) if score < SEEN]
    return np.stack(made) if made else np.empty((0, *pictures.images.shape[1:]), np.uint8)


def _shares(model: PaCaViT, pictures: Pictures) -> Tensor:
    """(B, h, w) of every picture, sum 1."""
    mean, std = torch.tensor(model.config.mean), torch.tensor(model.config.std)
    side = model.config.image_size
    x = normalise(torch.from_numpy(pictures.images), mean, std)
    found = model.eval().features(F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False))
    return found.shares.unflatten(1, found.grids[-1])


def _paint_out(picture: np.ndarray, shares: Tensor) -> np.ndarray | None:
    """The cells that hold most of the shares, widened by one, filled with the colours around; None where
    that is most of the picture."""
    order = shares.flatten().argsort(descending=True)
    count = int((shares.flatten()[order].cumsum(0) < PAINTED).sum()) + 1
    mask = torch.zeros(shares.numel())
    mask[order[:count]] = 1
    mask = F.max_pool2d(mask.view(1, 1, *shares.shape), 3, 1, 1)
    if mask.mean() > LARGEST:
        return None
    x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float()
    away = F.interpolate(1 - mask, size=x.shape[-2:])
    known = F.adaptive_avg_pool2d(away, FILLED_AT)
    filled, weight = F.adaptive_avg_pool2d(x * away, FILLED_AT), known
    start, certain = filled, known
    for _ in range(FILLED_AT):  # what is known spreads over what is not
        filled = torch.where(certain > 0, start, F.avg_pool2d(filled, 3, 1, 1))
        weight = torch.where(certain > 0, known, F.avg_pool2d(weight, 3, 1, 1))
    smooth = F.interpolate(filled / weight, size=x.shape[-2:], mode="bilinear", align_corners=False)
    return (x * away + smooth * (1 - away)).clamp(0, 255).byte()[0].permute(1, 2, 0).numpy()


def _corner(picture: np.ndarray, shares: Tensor) -> np.ndarray | None:
    """The window with the least of the shares, enlarged; None where every one has some."""
    side = max(int(shares.shape[0] * WINDOW), 1)
    held = F.avg_pool2d(shares[None, None], side, 1)[0, 0] * side * side
    if held.min() > QUIET:
        return None
    row, column = divmod(int(held.argmin()), held.shape[1])
    cell = picture.shape[0] // shares.shape[0]
    cut = picture[row * cell : (row + side) * cell, column * cell : (column + side) * cell]
    x = torch.from_numpy(cut.copy()).permute(2, 0, 1)[None].float()
    large = F.interpolate(x, size=picture.shape[:2], mode="bilinear", align_corners=False)
    return large.byte()[0].permute(1, 2, 0).numpy()
