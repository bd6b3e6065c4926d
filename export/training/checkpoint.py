"""The file a training ends with: weights in float16 with everything the exporter needs to know beside them,
in one .safetensors.

Metadata keys, all text: `paca.config` (JSON of PaCaConfig.to_dict), `paca.labels` (JSON list),
`paca.temperature`, `paca.training` (JSON: recipe, seed, epochs, metrics), `paca.novelty` (where there are
statistics). `export.checkpoints` reads it; the state of a run under way is the work of `state`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from service.novelty import NOVELTY_KEY, Statistics

from ..paca.model import PaCaViT
from ..paca.segmentation import PaCaSegmenter

CONFIG, LABELS, TEMPERATURE, TRAINING = "paca.config", "paca.labels", "paca.temperature", "paca.training"


def save_final(
    model: PaCaViT,
    path: Path,
    labels: tuple[str, ...],
    temperature: float,
    extra: dict[str, Any],
    novelty: Statistics | None = None,
) -> None:
    """Writes `model` as float16 (integer buffers as they are) with its metadata; in one step, so that no half
    file is ever at `path`. extra: the training's own account."""
    metadata = {
        TEMPERATURE: repr(float(temperature)),
        TRAINING: json.dumps(extra, ensure_ascii=False),
        **({NOVELTY_KEY: novelty.to_text()} if novelty else {}),
    }
    _save(model, path, labels, metadata)


def save_segmenter(model: PaCaSegmenter, path: Path, labels: tuple[str, ...], extra: dict[str, Any]) -> None:
    """The same of a segmenter, which has no temperature; `paca.config` is that of SegmenterConfig."""
    _save(model, path, labels, {TRAINING: json.dumps(extra, ensure_ascii=False)})


def _save(model: PaCaViT | PaCaSegmenter, path: Path, labels: tuple[str, ...], more: dict[str, str]) -> None:
    if len(labels) != model.config.num_classes:
        raise ValueError(f"{len(labels)} labels for {model.config.num_classes} classes")
    tensors = {
        name: (t.half() if t.is_floating_point() else t).cpu().contiguous()
        for name, t in model.state_dict().items()
    }
    metadata = {
        CONFIG: json.dumps(model.config.to_dict()),
        LABELS: json.dumps(labels, ensure_ascii=False),
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata)
    part.chmod(0o644)
    part.replace(path)
