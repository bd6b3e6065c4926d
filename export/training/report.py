"""Scores for people and machines: tables, JSON, and the confusion matrix as a picture. Computes nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.files import write_bytes, write_text

from .explained import Explained
from .metrics import Scores
from .verdict import decimals, in_words

WIDEST_TABLE = 20  # classes; beyond, the confusion matrix is listed by its largest errors
CELL, MARGIN, FONT = 34, 12, 13


def print_scores(console: Console, title: str, scores: Scores, extra: dict[str, Any]) -> None:
    """Summary, scores by class and confusion matrix as tables; `extra` joins the summary. As many decimals as
    the number of pictures carries."""
    digits = decimals(scores)
    summary = Table(title=escape(title), show_header=False)
    summary.add_row("accuracy", in_words(scores))
    top5 = ("top5",) if len(scores.classes) > 5 else ()
    for name in (*top5, "precision", "recall", "f1", "ece", "confidence"):
        summary.add_row(name.replace("top5", "top-5"), f"{100 * getattr(scores, name):.{digits}f} %")
    summary.add_row("temperature", f"{scores.temperature:.3f}")
    summary.add_row("pictures", str(scores.pictures))
    for name, value in extra.items():
        summary.add_row(name, escape(str(value)))
    console.print(summary)
    console.print(_class_table(scores))
    console.print(_confusion_table(scores))


def cluster_rows(clusters: dict[str, Any], scores: Scores) -> dict[str, str]:
    """The measures of the clusters as rows of a table; `scores` are of the same pictures."""
    if not clusters:
        return {}
    uniform = 100 * clusters["uniform_assignment_accuracy"]
    rows = {"accuracy with uniform clusters": f"{uniform:.{decimals(scores)}f} %"}
    for s in clusters["stages"]:
        rows[f"clusters in use, stage {s['stage']}"] = (
            f"{s['in_use']} of {s['clusters']} (effective {s['effective']}, different rows {s['rank']})"
        )
    return rows


# member of `explained.Measured` → what it is called for people
EXPLAINED = {
    "method": "method",
    "insertion": "insertion",
    "deletion": "deletion",
    "difference": "insertion less deletion",
    "passed": "check passed",
    "random_head": "like a class that is none",
    "pointing": "highest place in a box",
}


def explained_rows(found: Explained) -> list[dict[str, object]]:
    """A row a method; figures that were not measured are left out where no method has them."""
    members = [m for m in EXPLAINED if any(getattr(row, m) is not None for row in found.methods)]
    return [{EXPLAINED[m]: getattr(row, m) for m in members} for row in found.methods]


def print_explained(console: Console, found: Explained) -> None:
    """How true the explanations are, as a table."""
    rows = explained_rows(found)
    title = f"explanations of {found.right} rightly named of {found.pictures} pictures"
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v or "-") for v in row.values()))
    console.print(table)


def _class_table(scores: Scores) -> Table:
    shown, title = scores.classes, "by class"
    if len(shown) > WIDEST_TABLE:
        shown = tuple(sorted(shown, key=lambda c: c.f1)[:WIDEST_TABLE])
        title = f"the {WIDEST_TABLE} of {len(scores.classes)} classes with the lowest F1"
    table = Table("class", "precision", "recall", "F1", "pictures", title=title)
    for c in shown:
        values = (f"{100 * v:.{decimals(scores)}f}" for v in (c.precision, c.recall, c.f1))
        table.add_row(escape(c.label), *values, str(c.support))
    return table


def _confusion_table(scores: Scores) -> Table:
    names = [c.label for c in scores.classes]
    if len(names) <= WIDEST_TABLE:
        table = Table(
            "", *map(str, range(len(names))), title="confusion: row = true class, column = predicted"
        )
        for i, row in enumerate(scores.confusion):
            table.add_row(escape(f"{i} {names[i]}"), *(str(v) if v else "·" for v in row))
        return table
    table = Table("true class", "called", "pictures", title="most frequent confusions")
    matrix = np.array(scores.confusion)
    np.fill_diagonal(matrix, 0)
    for at in np.argsort(-matrix, axis=None, kind="stable")[:WIDEST_TABLE]:
        i, j = divmod(int(at), len(names))
        if matrix[i, j]:
            table.add_row(escape(names[i]), escape(names[j]), str(matrix[i, j]))
    return table


def write_report(folder: Path, values: dict[str, Any], scores: Scores) -> tuple[Path, Path]:
    """Writes evaluation.json and confusion.png into `folder` and returns their paths."""
    text, picture = folder / "evaluation.json", folder / "confusion.png"
    indent = (
        1 if len(scores.classes) <= WIDEST_TABLE else None
    )  # a line a number is too many for 1,000 classes
    write_text(text, json.dumps(values, indent=indent, ensure_ascii=False))
    buffer = io.BytesIO()
    draw_confusion(scores).save(buffer, "PNG", optimize=True)
    write_bytes(picture, buffer.getvalue())
    return text, picture


def draw_confusion(scores: Scores) -> Image.Image:
    """The confusion matrix, each row in shares of its class: white = none, dark blue = all; counts are
    written in while they fit."""
    matrix = np.array(scores.confusion)
    names = [c.label for c in scores.classes]
    count = len(names)
    cell = CELL if count <= 40 else max(1200 // count, 2)
    font = ImageFont.load_default(FONT)
    written = cell == CELL
    room = max(int(font.getlength(name)) for name in [*names, "called →"]) + 2 * MARGIN if written else MARGIN
    image = Image.new("RGB", (room + count * cell + MARGIN, room + count * cell + MARGIN), "white")
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    white, blue = np.array([255, 255, 255]), np.array([11, 61, 145])
    colours = (white + (blue - white) * shares[..., None] ** 0.5).astype(np.uint8)
    image.paste(
        Image.fromarray(colours).resize((count * cell, count * cell), Image.Resampling.NEAREST), (room, room)
    )
    draw = ImageDraw.Draw(image)
    if written:
        for i, name in enumerate(names):
            middle = room + i * cell + cell // 2
            draw.text((room - 6, middle), name, "black", font, anchor="rm")
            _upwards(image, name, font, (middle, room - 6))
            for j in np.flatnonzero(matrix[i]):
                ink = "white" if shares[i, j] > 0.3 else "black"
                draw.text(
                    (room + int(j) * cell + cell // 2, middle), str(matrix[i, j]), ink, font, anchor="mm"
                )
        draw.text((room - 6, MARGIN), "called →", "grey", font, anchor="rm")
        draw.text((room - 6, room - 6), "true ↓", "grey", font, anchor="rb")
    draw.rectangle((room - 1, room - 1, room + count * cell, room + count * cell), outline="grey")
    return image


def _upwards(image: Image.Image, text: str, font: Any, foot: tuple[int, int]) -> None:
    """Writes text from `foot` upwards."""
    width = int(font.getlength(text)) + 1
    label = Image.new("RGB", (width, FONT + 4), "white")
    ImageDraw.Draw(label).text((0, (FONT + 4) // 2), text, "black", font, anchor="lm")
    image.paste(label.rotate(90, expand=True), (foot[0] - (FONT + 4) // 2, foot[1] - width))
