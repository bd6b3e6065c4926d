"""What label maps are worth: intersection over union by class, pixels right, and how true the outlines are.

IoU is counted over all pixels of all pictures, as the field does. Its interval comes from drawing the
pictures again (bootstrap): pixels of one picture are not independent. Boundary IoU: Cheng et al. 2021, arXiv
2103.16562. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from service.segment import label_map, log_probabilities

from .mask_data import IGNORED, MaskedPicture

BAND = 0.02  # of the picture's diagonal: how far from an outline pixels count for it
DRAWS, CONFIDENCE = 1000, 0.95


@dataclass(frozen=True)
class ClassMask:
    """One class. iou, boundary_iou: None where no picture has it, in truth or in the map. share: of all
    pixels."""

    label: str
    iou: float | None
    boundary_iou: float | None
    share: float


@dataclass(frozen=True)
class MaskScores:
    """miou: mean over the classes that occur. interval: of miou for other pictures of the same kind.
    confusion[i][j]: pixels of class i called class j."""

    pictures: int
    miou: float
    interval: tuple[float, float]
    pixel_accuracy: float
    boundary_miou: float
    classes: tuple[ClassMask, ...]
    confusion: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> dict[str, float]:
        """The single numbers."""
        return {
            "miou": self.miou,
            "miou_low": self.interval[0],
            "miou_high": self.interval[1],
            "pixel_accuracy": self.pixel_accuracy,
            "boundary_miou": self.boundary_miou,
            "pictures": self.pictures,
        }


@dataclass(frozen=True)
class Counted:
    """Of one picture. confusion: (K, K); common, either: (K,), pixels of the outlines of both, and of one or
    both."""

    confusion: np.ndarray
    common: np.ndarray
    either: np.ndarray


def count(found: np.ndarray, true: np.ndarray, classes: int) -> Counted:
    """found, true: (H, W) uint8 of class ids; pixels that are `IGNORED` in the truth count nowhere."""
    judged = true != IGNORED
    pairs = true[judged].astype(np.int64) * classes + found[judged]
    confusion = np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
    common, either = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    width = max(1, round(BAND * float(np.hypot(*true.shape))))
    for k in range(classes):
        if confusion[k].any() or confusion[:, k].any():
            ours, theirs = (outline(labels == k, width) & judged for labels in (found, true))
            common[k], either[k] = (ours & theirs).sum(), (ours | theirs).sum()
    return Counted(confusion, common, either)


def outline(inside: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a boolean (H, W) that are at most `width` from its outside or the picture's edge, in rows
    or columns."""
    padded = np.pad(inside, width).astype(np.int32)
    sums = np.pad(padded.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    side = 2 * width + 1
    whole = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return inside & (whole < side * side)


def summarise(counted: list[Counted], labels: tuple[str, ...], seed: int = 0) -> MaskScores:
    """All numbers of a set of pictures."""
    confusions = np.stack([c.confusion for c in counted])
    total = confusions.sum(0)
    ious = iou(total)
    common, either = (sum(getattr(c, name) for c in counted) for name in ("common", "either"))
    outlines = np.divide(common, either, out=np.full(len(labels), np.nan), where=either > 0)
    rows = np.random.default_rng(seed).integers(0, len(counted), (DRAWS, len(counted)))
    draws = [float(np.nanmean(iou(confusions[some].sum(0)))) for some in rows]
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    shares = total.sum(1) / max(total.sum(), 1)
    return MaskScores(
        len(counted),
        float(np.nanmean(ious)),
        (float(low), float(high)),
        float(np.diag(total).sum() / max(total.sum(), 1)),
        float(np.nanmean(outlines)),
        tuple(
            ClassMask(label, _number(ious[k]), _number(outlines[k]), float(shares[k]))
            for k, label in enumerate(labels)
        ),
        tuple(tuple(int(v) for v in row) for row in total),
    )


def iou(confusion: np.ndarray) -> np.ndarray:
    """(K,): pixels of both over pixels of either; nan for a class that occurs in neither."""
    hits = np.diag(confusion).astype(float)
    either = confusion.sum(0) + confusion.sum(1) - hits
    return np.divide(hits, either, out=np.full(len(hits), np.nan), where=either > 0)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def score(
    pictures: tuple[MaskedPicture, ...],
    logits: Callable[[MaskedPicture], np.ndarray],
    labels: tuple[str, ...],
) -> MaskScores:
    """Every picture as it is served: its logits (K, h, w), resized to the mask's size, then the best
    class."""
    counted = []
    for picture in pictures:
        height, width = picture.mask.shape
        found = label_map(log_probabilities(logits(picture)), (width, height)).labels
        counted.append(count(found, picture.mask, len(labels)))
    return summarise(counted, labels)
