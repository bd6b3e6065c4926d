"""Checkpoint file → network, whatever training script wrote it, without ever running code from the file.

Layouts: our own .safetensors with its metadata, plain state dicts, and those nested under the keys that
training scripts use, with or without the prefixes of wrappers. Which network the weights belong to is
`paca.recognise`'s judgement when the caller does not name it.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from .paca.config import PaCaConfig, variant
from .paca.model import PaCaViT
from .paca.recognise import recognise

EMA = (
    "state_dict_ema",
    "model_ema",
    "ema",
)  # the averaged weights are the ones that were evaluated, so they win
PLAIN = ("state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
# What timm's training files hold beside tensors: the command line, and scalars of numpy. All are plain data.
ALLOWED: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
]
ALLOWED += [(np._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]  # type: ignore[attr-defined]


class CheckpointError(Exception):
    """The file cannot be used; the message is one line that says why."""


@dataclass(frozen=True)
class Loaded:
    """A network in evaluation mode and float32, and what its file says of it. notes: what was chosen or
    assumed, for the report. accuracy: measured figures, where the file carries them."""

    model: PaCaViT
    labels: tuple[str, ...] | None
    temperature: float
    sha256: str
    notes: tuple[str, ...]
    accuracy: dict[str, Any] = field(default_factory=dict)


def load(path: Path, name: str | None = None, num_classes: int | None = None) -> Loaded:
    """The network in the file `path`. name: the variant, None to recognise it; num_classes: what the caller
    expects, None for whatever the head has.

    Raises CheckpointError, whatever is wrong with the file or the name.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    content, metadata = _read_safetensors(path) if start[8:] == b"{" else (_read_pickle(path), {})
    weights, notes = _unwrap(content)
    classes = _classes(weights)
    if num_classes and num_classes != classes:
        raise CheckpointError(f"the file's head has {classes} classes, not the {num_classes} asked for")
    config, assumed = _config(weights, name, metadata)
    with torch.device("meta"):  # no weights of its own: every one comes from the file
        model = PaCaViT(dataclasses.replace(config, num_classes=classes))
    _fill(model, weights)
    labels = metadata.get("paca.labels")
    return Loaded(
        model.eval(),
        tuple(json.loads(labels)) if labels else None,
        float(metadata.get("paca.temperature", 1)),
        sha256,
        (*notes, *assumed),
        json.loads(metadata.get("paca.training", "{}")).get("metrics", {}),
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (not a dict)
    except Exception as error:
        raise CheckpointError(f"{path.name} is no whole .safetensors file: {_line(error)}") from None


def _read_pickle(path: Path) -> dict[str, Any]:
    """The content of a torch.save file, through the unpickler that knows tensors and the types of ALLOWED,
    and calls nothing else."""
    try:
        with torch.serialization.safe_globals(ALLOWED):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"{path.name} holds more than weights ({found[1]}); it was not loaded, since that could run "
                "code"
            ) from None
        raise CheckpointError(f"{path.name} is no whole PyTorch checkpoint: {_line(error)}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} holds a {type(content).__name__}, not a dictionary of weights")
    return content


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]


def _unwrap(content: dict[str, Any]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict inside `content`, its keys without wrappers' prefixes, float tensors as float32; and a
    remark if there was a choice."""
    notes: tuple[str, ...] = ()
    for _ in range(3):  # nested at most that deep; a pickle may contain itself
        key = next((k for k in (*EMA, *PLAIN) if isinstance(content.get(k), Mapping)), None)
        if key in EMA and any(k in content for k in PLAIN):
            notes = (f"took the averaged weights ({key})",)
        content = content[key] if key else content
    weights = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        raise CheckpointError("the file holds no weights")
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in weights)), None):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    for key, value in weights.items():
        if value.is_floating_point():
            weights[key] = value.float()
            if not weights[key].isfinite().all():
                raise CheckpointError(
                    f"{key} has values that are not finite: the training diverged or the file is damaged"
                )
    return weights, notes


def _classes(weights: dict[str, Tensor]) -> int:
    """How many classes the head has."""
    if any(key.startswith("backbone.") for key in weights):
        raise CheckpointError(
            "the file holds the backbone of a detector or segmenter (tensors backbone.*), not a classifier"
        )
    if "head.weight" not in weights:
        raise CheckpointError(
            "the file holds no classifier: there is no head.weight, so it is a backbone, or not a PaCa-ViT"
        )
    return len(weights["head.weight"])


def _config(
    weights: dict[str, Tensor], name: str | None, metadata: dict[str, str]
) -> tuple[PaCaConfig, tuple[str, ...]]:
    """The named variant's config; else what the file says of itself; else what its shapes say."""
    if "paca.config" in metadata:
        try:
            config = PaCaConfig.from_dict(json.loads(metadata["paca.config"]))
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"the file's own config cannot be used: {_line(error)}") from None
        if name in (None, config.name):
            return config, ()
    try:
        return (
            (variant(name), ())
            if name is not None
            else recognise({key: tuple(value.shape) for key, value in weights.items()})
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(error.args[0]) from None


def _fill(model: PaCaViT, weights: dict[str, Tensor]) -> None:
    """Loads strictly; CheckpointError counts and names what does not fit, and says which variant would."""
    own = model.state_dict()
    missing, extra = own.keys() - weights.keys(), weights.keys() - own.keys()
    other = {key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape}
    if not (missing or extra or other):
        model.load_state_dict(weights, assign=True)
        return
    found = [
        f"{len(keys)} {what} (such as {min(keys)})"
        for what, keys in (("tensors missing", missing), ("unknown", extra), ("of another shape", other))
        if keys
    ]
    reason = f"the weights do not fit {model.config.name}: {', '.join(found)}"
    try:
        fitting, _ = recognise({key: tuple(value.shape) for key, value in weights.items()})
    except ValueError:
        fitting = model.config
    raise CheckpointError(
        reason
        + (f"; they look like {fitting.name}" if fitting.name not in ("custom", model.config.name) else "")
    )
