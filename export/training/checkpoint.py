"""The file a training ends with: weights in float16 with everything the exporter needs to know beside them, in one .safetensors.

Metadata keys, all text: `paca.config` (JSON of PaCaConfig.to_dict), `paca.labels` (JSON list), `paca.temperature`, `paca.training` (JSON: recipe, seed,
epochs, metrics). The state of a run under way is `state`'s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..paca.config import PaCaConfig
from ..paca.model import PaCaViT
from .data import DataError

CONFIG, LABELS, TEMPERATURE, TRAINING = "paca.config", "paca.labels", "paca.temperature", "paca.training"


def save_final(model: PaCaViT, path: Path, labels: tuple[str, ...], temperature: float, extra: dict[str, Any]) -> None:
    """Writes `model` as float16 (integer buffers as they are) with its metadata; in one step, so that no half file is ever at `path`."""
    if len(labels) != model.config.num_classes:
        raise ValueError(f"{len(labels)} labels for {model.config.num_classes} classes")
    tensors = {name: (t.half() if t.is_floating_point() else t).cpu().contiguous() for name, t in model.state_dict().items()}
    metadata = {
        CONFIG: json.dumps(model.config.to_dict()),
        LABELS: json.dumps(labels, ensure_ascii=False),
        TEMPERATURE: repr(float(temperature)),
        TRAINING: json.dumps(extra, ensure_ascii=False),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata)
    part.chmod(0o644)
    part.replace(path)


def load_final(path: Path) -> tuple[PaCaViT, tuple[str, ...], float, dict[str, Any]]:
    """(model in float32 and evaluation mode, labels, temperature, the training's own account). DataError where the file is none of `save_final`'s."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read as a checkpoint: {error}") from None
    if CONFIG not in metadata or LABELS not in metadata:
        raise DataError(f"{path} is no checkpoint of `paca train`: it lacks the metadata {CONFIG} and {LABELS}")
    model = PaCaViT(PaCaConfig.from_dict(json.loads(metadata[CONFIG])))
    model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in weights.items()})
    info = json.loads(metadata.get(TRAINING, "{}"))
    return model.eval(), tuple(json.loads(metadata[LABELS])), float(metadata.get(TEMPERATURE, 1.0)), info
