"""What every test may use: a tiny exported model (made once a run), pictures, a server on loopback, and the
data folders where they exist."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

LABELS = ("red", "green", "blue", "grey")


def unavailable(reason: str) -> NoReturn:
    """Skips a test for want of data or a tool; in CI, where everything must be there, fails instead."""
    if os.environ.get("PACA_CI"):
        pytest.fail(f"CI must have it: {reason}")
    pytest.skip(reason)


def _folder(variable: str, what: str) -> Path:
    folder = os.environ.get(variable)
    if not folder or not Path(folder).is_dir():
        unavailable(f"{variable} does not name the folder with {what}")
    return Path(folder)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The measured photos and packs."""
    return _folder("PACA_DATA", "the test photos")


@pytest.fixture(scope="session")
def parity_folder() -> Path:
    """Reference numbers of the published implementation."""
    return _folder("PACA_PARITY", "the reference numbers")


@pytest.fixture(scope="session")
def tiny_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with one untrained model, `tiny`: 32 px, 3 stages (5, 3 and no clusters), 4 classes,
    exported as users would. Do not write into it."""
    from export.paca import PaCaConfig, PaCaViT, StageConfig
    from export.pipeline import Source, export_model

    shared = (
        tmp_path_factory.getbasetemp().parent
        if os.environ.get("PYTEST_XDIST_WORKER")
        else tmp_path_factory.getbasetemp()
    )
    repository = shared / "tiny-repository"
    with FileLock(str(shared / "tiny-repository.lock")):
        if not repository.is_dir():
            import torch

            torch.manual_seed(3)
            stages = (StageConfig(8, 1, 2, 5), StageConfig(12, 1, 3, 3), StageConfig(16, 1, 4))
            config = PaCaConfig(
                "tiny",
                stages,
                num_classes=4,
                image_size=32,
                patch_size=2,
                resize="stretch",
                crop=1.0,
                interpolation="bilinear",
            )
            model = PaCaViT(config)
            torch.nn.init.normal_(
                model.head.weight, std=0.5
            )  # an untrained head would call every picture the same
            making = shared / "tiny-repository.part"
            export_model(Source(model, "tiny", LABELS), making / "tiny" / "1" / "model.onnx")
            making.rename(repository)
    return repository


@pytest.fixture(scope="session")
def masks_repository(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with `tiny` and a small segmenter, `tiny-masks`: shorter side 64 in steps of 32, at
    most 128, 4 classes, exported as users would. Do not write into it."""
    from export.segment import Source, export_segmenter
    from tests.export.segmentation_fixtures import tiny_segmenter

    repository = tmp_path_factory.mktemp("masks-repository")
    shutil.copytree(tiny_repository / "tiny", repository / "tiny")
    labels = ("background", "red", "green", "blue")
    export_segmenter(
        Source(tiny_segmenter(), "tiny-masks", labels), repository / "tiny-masks" / "1" / "model.onnx"
    )
    return repository


@pytest.fixture
def repository(tiny_repository: Path, tmp_path: Path) -> Path:
    """A copy of the tiny repository that a test may change."""
    return Path(shutil.copytree(tiny_repository, tmp_path / "models"))


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A real photo: (300, 451, 3) uint8, a cat (CC0, from scikit-image)."""
    from skimage import data

    return np.asarray(data.chelsea())


def encoded(image: np.ndarray, fmt: str = "JPEG", **how: object) -> bytes:
    """`image` as the bytes of a file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, fmt, **how)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def jpeg(photo: np.ndarray) -> bytes:
    """The photo as a JPEG file."""
    return encoded(photo, quality=90)


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """The function that makes files of arrays."""
    return encoded


@pytest.fixture
def free_port() -> int:
    """A TCP port on loopback that nothing listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
