"""The networks of benchmarks/engine.py: in PyTorch, and every file made of them, exported on first use into
build/bench/models/<name>/<version>."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from export import calibration, quantise
from export.checkpoints import load
from export.labels import numbered
from export.paca.cost import macs
from export.paca.model import PaCaViT, attend_explicit, create
from export.pipeline import ExportReport, Format, Source, export_model
from export.trace import trace
from service.artifact import Preprocessing
from service.repository import FILES, embedded, find, names

SCRATCH = Path(__file__).parents[1] / "build" / "bench" / "models"
VARIANTS = {
    "tiny": "pacavit_tiny_p2cconv_100_0",
    "small": "pacavit_small_p2cconv_100_0",
    "base": "pacavit_base_p2cconv_100_0",
}
NAMES = ("embedded", *VARIANTS)
TRAINING = "imagenette_train_128.npz"  # calibrates and judges int8


class Bench:
    """One network under measurement."""

    def __init__(self, name: str) -> None:
        if name not in NAMES:
            sys.exit(f"there is no model {name!r}; choose from: {', '.join(NAMES)}")
        self.name = name
        self.has_int8 = name in ("embedded", "tiny")
        if name == "embedded":
            files = find(embedded(), names(embedded())[0])
            loaded = load(files.model.parent / "model.safetensors")
            self._model, self._file = loaded.model.eval(), files.model
            self._labels = loaded.labels or numbered(loaded.model.config.num_classes)
            self.folder = (
                SCRATCH / name / loaded.sha256[:8]
            )  # another model another day must not be taken for this one
        else:
            torch.manual_seed(0)
            self._model, self._file = create(VARIANTS[name]).eval(), None
            self._labels = numbered(self._model.config.num_classes)
            self.folder = SCRATCH / name / "1"
        self.config = self._model.config
        self.macs = macs(self.config)

    def torch_model(self) -> PaCaViT:
        """A copy of its own weights, to be laid out as the contender likes."""
        copy = PaCaViT(self.config).eval().requires_grad_(False)
        copy.load_state_dict(self._model.state_dict())
        return copy

    def pictures(self, batch: int) -> np.ndarray:
        """(batch, H, W, 3) uint8."""
        side = self.config.image_size
        return np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)

    def normalised(self, pictures: np.ndarray) -> np.ndarray:
        """(B, 3, H, W) float32."""
        c = self.config
        return Preprocessing(
            (c.image_size, c.image_size), c.resize, c.crop, c.interpolation, c.mean, c.std
        ).to_float(pictures)

    def expected(self, pictures: np.ndarray) -> np.ndarray:
        """PyTorch's logits (B, K)."""
        with torch.inference_mode():
            return self._model(torch.from_numpy(self.normalised(pictures))).numpy()

    def served(self) -> Path:
        """The artifact; the embedded one is the file that is served."""
        if self._file:
            return self._file
        return self._made(self.folder / "model.onnx", self._export)

    def plain(self) -> Path:
        """The module as it is: no lowering, attention as products and a softmax."""
        return self._made(
            self.folder / "plain.onnx",
            lambda path: onnx.save(trace(self._model, attention=attend_explicit, lowered=False), path),
        )

    def decomposed(self) -> Path:
        """Our lowering, attention as products and a softmax."""
        return self._made(
            self.folder / "decomposed.onnx",
            lambda path: onnx.save(trace(self._model, attention=attend_explicit), path),
        )

    def fp16(self) -> Path:
        return self._made(self.folder / "model.fp16.onnx", lambda path: self._reduce(path, "fp16"))

    def int8(self) -> Path:
        """The artifact in 8 bits, calibrated on photos of the training pack: of the embedded model the file
        that is shipped, where there is one; random weights, whose classes are nearly tied, need to agree with
        float32 less often."""
        shipped = self._file and self._file.with_name(FILES["int8"])
        if shipped and shipped.exists():
            return shipped
        return self._made(
            self.folder / FILES["int8"],
            self._random_int8 if self._file is None else lambda path: self._reduce(path, "int8"),
        )

    def _random_int8(self, path: Path) -> None:
        usual = quantise.AGREEMENT, calibration.JUDGING
        quantise.AGREEMENT, calibration.JUDGING = 0.9, 100
        try:
            self._reduce(path, "int8")
        finally:
            quantise.AGREEMENT, calibration.JUDGING = usual

    def _export(self, path: Path, format: Format = Format(with_explain=False)) -> ExportReport:
        source = Source(self._model, self.name, self._labels)
        return export_model(source, path, format, lambda text: print(text, file=sys.stderr))

    def _reduce(self, path: Path, precision: str) -> None:
        photos = pack(TRAINING) if precision == "int8" else None
        explain = path.with_name("explain.onnx").exists()  # all files of a version go with it, or none
        self._export(path, Format(precision=precision, calibration=photos, with_explain=explain))

    def _made(self, path: Path, make: Callable[[Path], object]) -> Path:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            print(f"exporting {self.name} {path.name}", file=sys.stderr)
            make(path)
        return path


def pack(name: str) -> Path:
    """A data pack in $PACA_DATA."""
    path = Path(os.environ.get("PACA_DATA", "data")) / name
    if not path.is_file():
        raise FileNotFoundError(f"{name} is not in {path.parent}; set PACA_DATA to its folder")
    return path
