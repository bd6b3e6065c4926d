"""What one batch of a training asks of the network: rows of the training pictures in, one loss out.

`Classify` is the plain recipe; `open_world.OpenWorld` asks for more. Epochs, rates and averages are the
loop's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..paca.model import PaCaViT
from .augment import Augmentation, augment, mix
from .data import Pictures
from .locality import distract, region_loss


@dataclass(frozen=True)
class Batch:
    """rows: of the training pictures. size: side in pixels. step: number of the batch in its epoch."""

    model: PaCaViT
    rows: Tensor
    size: int
    step: int
    generator: torch.Generator


class Objective(Protocol):
    """What every batch is asked."""

    @property
    def extra(self) -> nn.Module:
        """Learned parts that only the training needs."""
        ...

    def prepare(self, model: PaCaViT) -> None:
        """Called once, before the first epoch of a fresh run."""

    def loss(self, batch: Batch) -> Tensor:
        """Of one batch, with gradients."""
        ...


@dataclass(frozen=True)
class Usual:
    """What every objective is told. locality: every other batch teaches the tokens to speak for their own
    place only. weight: of each class."""

    augmentation: Augmentation
    smoothing: float
    locality: bool
    weight: Tensor | None = None


class Classify:
    """Cross-entropy; with `locality` every other batch is `region_loss`."""

    def __init__(self, train: Pictures, how: Usual) -> None:
        self.how, self.classes = how, len(train.classes)
        self.extra: nn.Module = nn.Module()
        self.images, self.labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)

    def prepare(self, model: PaCaViT) -> None:
        pass

    def loss(self, batch: Batch) -> Tensor:
        how, model, generator = self.how, batch.model, batch.generator
        device = next(model.parameters()).device
        mean, std = channels(model, device)
        images = self.images[batch.rows].to(device)
        x = augment(images, batch.size, how.augmentation, mean, std, generator)
        target = self.labels[batch.rows].to(device)
        if how.locality and batch.step % 2:
            x, cells = distract(x, model.config.grids((batch.size, batch.size))[-1][0], generator)
            with autocast(device):
                found = model.features(x)
            return region_loss(found, model.head, target, cells, how.smoothing)
        if how.augmentation.mixup or how.augmentation.cutmix:
            x, target = mix(x, target, self.classes, how.augmentation, generator)
        with autocast(device):
            logits = model(x)
        return F.cross_entropy(logits.float(), target, how.weight, label_smoothing=how.smoothing)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the processor has instructions for it; elsewhere it is three times slower than
    float32."""
    fast = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)


def channels(model: PaCaViT, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the network's input channels."""
    return (
        torch.tensor(model.config.mean, device=device),
        torch.tensor(model.config.std, device=device),
    )
