"""The files that the harness looks at: the embedded model as it ships, and exports made once into
build/cuda-check. By default the embedded model and a small Tiny; with ALL=1 every network in each precision.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from service.repository import FILES, embedded

FOLDER = Path(__file__).parents[2] / "build" / "cuda-check"
PAPER_SIZE = 224
EMBEDDED_SIZE = 128
SMALL_SIZE = 64  # of a Tiny that is exported in seconds; its graph is that of the large one


@dataclass(frozen=True)
class Artifact:
    """One file. variant: of `paca export`; "embedded": the model that ships. size: of its pictures in
    pixels."""

    variant: str
    precision: str
    size: int = PAPER_SIZE

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.size}-{self.precision}"

    @property
    def model(self) -> Path:
        """The file, exported on first use; explain.onnx lies beside it."""
        shipped = embedded() / "imagenette" / "1"
        if self.variant == "embedded" and self.precision == "fp32":
            return shipped / FILES["fp32"]
        path = FOLDER / self.variant / str(self.size) / FILES[self.precision]
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                self._export(path, shipped / "model.safetensors")
        return path

    def _export(self, path: Path, weights: Path) -> None:
        from export.pipeline import Format, Request, run

        if self == SEGMENTER:
            return export_tiny_segmenter(path)
        format_ = Format(precision=self.precision)
        if self.variant == "embedded":
            run(Request("auto", checkpoint=weights, out=path, format=format_))
        else:
            variant = f"pacavit_{self.variant}_p2cconv_100_0"
            run(Request(variant, image_size=self.size, out=path, format=format_))
        return None


def export_tiny_segmenter(path: Path) -> None:
    """An untrained one of few blocks, for pictures of many sizes."""
    from export.segment import Source, export_segmenter
    from tests.export.segmentation_fixtures import tiny_segmenter

    export_segmenter(Source(tiny_segmenter(), "tiny-masks", ("background", "red", "green", "blue")), path)


SEGMENTER = Artifact("segmenter", "fp32", SMALL_SIZE)  # has no explain.onnx

DEFAULT = (
    Artifact("embedded", "fp32", EMBEDDED_SIZE),
    Artifact("tiny", "fp16", SMALL_SIZE),
)
EVERY = (
    *DEFAULT,
    Artifact("embedded", "fp16", EMBEDDED_SIZE),
    *(
        Artifact(variant, precision)
        for variant in ("tiny", "small", "base")
        for precision in ("fp32", "fp16")
    ),
)
ALL = bool(os.environ.get("INERT_CUDA_ALL"))
CLASSIFIERS = EVERY if ALL else DEFAULT
ARTIFACTS = (*EVERY, SEGMENTER) if ALL else DEFAULT
