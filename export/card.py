"""The model card, README.md beside the model: what its files say of themselves, and "not stated" for what
nobody said.

Only a card that this module wrote is written again; a text of the user's stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.artifact import Manifest, readable
from service.novelty import Statistics

MARK = "<!-- Written by paca export, which writes it again. Remove this line to keep your own text. -->"
MEASURED = "<!-- Measured by paca evaluate --explain, which writes this part again. -->"
NOT_STATED = "not stated"


@dataclass(frozen=True)
class ModelFile:
    """One model file of a version: its name, its size in bytes, what it says of itself, and against what it
    measures novelty."""

    name: str
    size: int
    manifest: Manifest
    novelty: Statistics | None = None


def is_users_own(path: Path) -> bool:
    """Whether the text at `path` is not a card of ours."""
    return path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(MARK)


def card(files: Sequence[ModelFile], trained_on: str | None) -> str:
    """The text, in Markdown. files: every model file of the version, the newest last; trained_on: what the
    model learned from, in the user's words."""
    manifest = files[-1].manifest
    labels = manifest.labels
    height, width = manifest.preprocessing.size
    size = f"{width} x {height} pixels, {manifest.preprocessing.resize}"
    clusters = [f"{s.clusters} in stage {s.stage}" for s in manifest.stages if s.clusters]
    facts = {
        "architecture": manifest.variant,
        "task": f"{manifest.task}, {len(labels)} classes",
        "input": size + (", or other sizes" if manifest.dynamic_size else ""),
        "parameters, multiply-accumulates": f"{manifest.parameters:,}, {manifest.macs:,}",
        "clusters": ", ".join(clusters) or "none",
        "trained on": trained_on or NOT_STATED,
        "licence and intended use": NOT_STATED,
        "weights_id": manifest.weights_id,
        "checkpoint's sha256": manifest.checkpoint_sha256 or "none: random weights",
    }
    parts = [
        f"{MARK}\n# {_cell(manifest.name)}",
        _table(("", ""), facts.items()),
        "## Classes\n\n" + ", ".join(map(_cell, labels)),
        "## Files",
        _table(
            ("file", "precision", "MiB"),
            ((f.name, f.manifest.precision, f"{f.size / 2**20:.1f}") for f in files),
        ),
        *(["`explain.onnx` goes with them: gradient maps of any class."] if manifest.explain else []),
        "## What was checked before it was written",
        _table(("file", "check", "result"), (row for f in files for row in _checks(f))),
        "## What it is worth",
        _table(("data", "figure", "value"), _figures(manifest.accuracy)) if manifest.accuracy else NOT_STATED,
        "## How often it says that it does not know",
        *_novelty(files),
    ]
    return "\n\n".join(parts) + "\n"


def with_measured(text: str, rows: Sequence[Mapping[str, Any]], head: str) -> str:
    """A card, or a text of the user's, with a table of how true the explanations are at its end, in place of
    an earlier one."""
    part = [
        MEASURED,
        "## How true its explanations are",
        head,
        _table(tuple(rows[0]), (r.values() for r in rows)),
    ]
    return text.split(MEASURED)[0].rstrip() + "\n\n" + "\n\n".join(part) + "\n"


def measured_part(text: str, weights_id: str | None) -> str:
    """What `with_measured` put at the end of a card of these weights; else nothing."""
    head, mark, part = text.partition(MEASURED)
    return f"\n{mark}{part}" if weights_id and weights_id in head else ""


def _novelty(files: Sequence[ModelFile]) -> list[str]:
    """What a flag is worth, file by file; docs/novelty.md says what the figures mean."""
    rows = [
        (file.name, name.replace("_", " "), value)
        for file in files
        if file.novelty
        for name, value in {
            "method": file.novelty.method,
            "held-out pictures": len(file.novelty.sorted_scores),
            **file.novelty.measured,
        }.items()
    ]
    if not rows:
        return ["It never does: exported without `--reference`."]
    return [
        "At a threshold of 0.95 one known picture in twenty is called novel by design. No detector notices "
        "everything foreign.",
        _table(("file", "figure", "value"), rows),
    ]


def _checks(file: ModelFile) -> list[tuple[str, str, Any]]:
    verification = file.manifest.verification
    difference = verification.get("difference", {})
    against = verification.get("against", "PyTorch")
    rows = [(f"{name} against {against}, largest difference", value) for name, value in difference.items()]
    rows += [
        (name.replace("_", " "), value)
        for name, value in verification.items()
        if isinstance(value, int | float | str)
    ]
    return [(file.name, *row) for row in (*rows, ("golden picture", "passed"))]


def _figures(accuracy: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    return [
        (data, name, value)
        for data, figures in accuracy.items()
        for name, value in (figures.items() if isinstance(figures, dict) else [("", figures)])
        if isinstance(value, int | float | str)
    ]


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    """A value for people that cannot break the table or the page."""
    text = readable(value)
    for sign in "\\|<>`*[]":
        text = text.replace(sign, "\\" + sign) if text != "---" else text
    return " ".join(text.split())
