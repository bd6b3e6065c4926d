"""Scores of label maps as tables. Computes nothing."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .mask_metrics import MaskScores

WIDEST_TABLE = 20  # classes; beyond, those with the lowest IoU are listed, and no confusion


def print_mask_scores(
    console: Console, title: str, scores: MaskScores, extra: dict[str, Any] | None = None
) -> None:
    """Summary, scores by class and confusion as tables; `extra` joins the summary."""
    low, high = scores.interval
    table = Table(title=escape(title), show_header=False)
    table.add_row("mIoU", f"{scores.miou:.3f} ({low:.3f} to {high:.3f} for other pictures like these)")
    table.add_row("pixels right", f"{100 * scores.pixel_accuracy:.1f} %")
    table.add_row("boundary IoU", f"{scores.boundary_miou:.3f}")
    table.add_row("pictures", str(scores.pictures))
    for name, value in (extra or {}).items():
        table.add_row(name, escape(str(value)))
    console.print(table)
    shown = sorted(scores.classes, key=lambda c: (c.iou is None, c.iou))[:WIDEST_TABLE]
    title = (
        "by class" if len(shown) == len(scores.classes) else f"the {len(shown)} classes with the lowest IoU"
    )
    by_class = Table("class", "IoU", "boundary IoU", "share of pixels", title=title)
    for c in shown:
        by_class.add_row(escape(c.label), _three(c.iou), _three(c.boundary_iou), f"{100 * c.share:.1f} %")
    console.print(by_class)
    if len(scores.classes) <= WIDEST_TABLE:
        names = [escape(c.label) for c in scores.classes]
        confusion = Table("truth, called:", *names, title="pixels, % of the class")
        for name, row in zip(names, scores.confusion, strict=True):
            confusion.add_row(name, *(f"{100 * v / max(sum(row), 1):.1f}" for v in row))
        console.print(confusion)


def _three(value: float | None) -> str:
    return "does not occur" if value is None else f"{value:.3f}"
