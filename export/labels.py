"""Class names of a model: the user's file, ImageNet-1k's for the published networks, or numbers."""

from __future__ import annotations

from pathlib import Path

from .paca.config import PaCaConfig

IMAGENET = Path(__file__).with_name(
    "imagenet_labels.txt"
)  # torchvision's list, under imagenet_labels.LICENSE


def read_labels(path: Path) -> tuple[str, ...]:
    """One name a line, empty lines left out. ValueError where the file cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"cannot read the labels in {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(
            f"cannot read the labels in {path}: it is no UTF-8 text; give one class name a line"
        ) from None
    return tuple(line.strip() for line in lines if line.strip())


def numbered(classes: int) -> tuple[str, ...]:
    """class_0, class_1, ..."""
    return tuple(f"class_{i}" for i in range(classes))


def assumed(config: PaCaConfig) -> tuple[tuple[str, ...], str]:
    """Names for a checkpoint that comes without, and what the report says of them. The published networks of
    1000 classes were trained on ImageNet-1k."""
    if config.name.startswith("pacavit_") and config.num_classes == 1000:
        names = tuple(IMAGENET.read_text(encoding="utf-8").splitlines())
        return (
            names,
            "took ImageNet-1k's class names in their usual order; if the classes are others, give --labels",
        )
    return numbered(config.num_classes), "the classes have no names; give them with --labels"
