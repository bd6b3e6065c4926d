"""The pictures of the benchmark, as the server's own decoder and preprocessing give them to the network:
validation rows, grids of four, photos with boxes."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from service import images
from service.artifact import Preprocessing

Box = tuple[float, float, float, float]
TUNE = range(
    1000
)  # validation rows that anything may be tuned on; everything reported comes from the rows after them


@dataclass(frozen=True)
class Picture:
    """pixels: (H, W, 3) uint8 as the network takes it. name: the row or file it came from. boxes: x0, y0, x1,
    y1 as fractions, where known."""

    pixels: np.ndarray
    label: int
    name: str
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Grid:
    """Four pictures of different classes in one, row by row."""

    pixels: np.ndarray
    labels: tuple[int, ...]


def pixels(data: bytes, preprocessing: Preprocessing) -> np.ndarray:
    """A file's bytes → (H, W, 3) uint8."""
    decoded = images.decode(data, images.Limits(), images.needed_side(preprocessing))
    return images.preprocess(decoded.rgb, decoded.width, decoded.height, preprocessing)[0]


def validation(folder: Path, rows: Sequence[int], preprocessing: Preprocessing) -> list[Picture]:
    """These rows of the Imagenette validation pack."""
    with np.load(folder / "imagenette_val_128.npz") as pack:
        files, offset, labels, names = pack["jpeg"].tobytes(), pack["offset"], pack["label"], pack["name"]
    return [
        Picture(
            pixels(files[offset[i] : offset[i + 1]], preprocessing),
            int(labels[i]),
            f"validation row {i} ({names[i]})",
        )
        for i in rows
        if i < len(labels)
    ]


def located(folder: Path, preprocessing: Preprocessing) -> list[Picture]:
    """The photos whose objects' boxes people have drawn."""
    found: dict[str, list[Box]] = defaultdict(list)
    labels: dict[str, int] = {}
    with (folder / "imagenette_loc" / "boxes.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found[row["file"]].append(
                (float(row["x0"]), float(row["y0"]), float(row["x1"]), float(row["y1"]))
            )
            labels[row["file"]] = int(row["label"])
    base = folder / "imagenette_loc" / "images"
    return [
        Picture(pixels((base / name).read_bytes(), preprocessing), labels[name], name, tuple(found[name]))
        for name in sorted(found)
    ]


def grids(pictures: Sequence[Picture], count: int, seed: int = 0) -> list[Grid]:
    """`count` 2x2 grids of pictures of four different classes, each picture shrunk to half its sides."""
    rng = np.random.default_rng(seed)
    by_class: dict[int, list[Picture]] = defaultdict(list)
    for picture in pictures:
        by_class[picture.label].append(picture)
    made = []
    for _ in range(count):
        labels = [int(c) for c in rng.choice(sorted(by_class), 4, replace=False)]
        height, width = pictures[0].pixels.shape[:2]
        sheet = Image.new("RGB", (width, height))
        for i, label in enumerate(labels):
            one = by_class[label][rng.integers(len(by_class[label]))]
            small = Image.fromarray(one.pixels).resize((width // 2, height // 2), Image.Resampling.BOX)
            sheet.paste(small, (i % 2 * (width // 2), i // 2 * (height // 2)))
        made.append(Grid(np.asarray(sheet), tuple(labels)))
    return made


def blurred(image: np.ndarray) -> np.ndarray:
    """The picture without its details: Gaussian blur, sigma an eighth of its side."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(image.shape[0] / 8)))


def average(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """The mean colour of the training data, as large as the picture: what the network takes for nothing."""
    return np.broadcast_to(np.round(255 * np.array(preprocessing.mean)).astype(np.uint8), image.shape)
