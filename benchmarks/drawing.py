"""What the pictures of `/explain` cost, and what each file format gives for it.

    python benchmarks/drawing.py [--rounds 25] [--save]

encoders   time, bytes and structural similarity (to the pixels that were drawn) of each format and setting,
           for an overlay of 500 pixels and one of a cluster, means over the first demo photos
steps      one photo of 500x375 through the library, fp32 and int8, WebP and JPEG: CPU milliseconds of a whole
           `/classify`, a whole `/explain` at its defaults, and of drawing alone

CPU time of the whole process, the least of the rounds: what a loaded machine disturbs least. Pin it to one
core (`taskset -c 0`) to measure one core. Needs demo_photos in $PACA_DATA, and scikit-image.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from card import Row, finish
from engine_models import pack
from PIL import Image
from skimage.metrics import structural_similarity

sys.path.insert(0, str(Path(__file__).parents[1]))

from service import render
from service.engine import Device
from service.options import ExplainOptions
from service.predictor import Predictor
from service.render import Canvas
from service.repository import FILES, embedded, find, names

SIZE = (500, 375)
PHOTOS = 8
SETTINGS: tuple[tuple[str, dict[str, int]], ...] = (
    ("webp", {"quality": 75, "method": 0}),
    ("webp", {"quality": 75, "method": 1}),
    ("webp", {"quality": 75, "method": 4}),
    ("webp", {"quality": 60, "method": 0}),
    *(("jpeg", {"quality": quality}) for quality in (70, 75, 80, 85)),
    ("jpeg", {"quality": 80, "subsampling": 0}),
    ("png", {"compress_level": 1}),
    ("png", {"compress_level": 0}),
)


def photos() -> list[Image.Image]:
    """The first demo photos, RGB, at most 500 pixels long."""
    folder = pack("imagenette_val_128.npz").parent / "demo_photos"
    found = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.jpg"))[:PHOTOS]]
    return [photo.resize(render.fit(photo.size, max(SIZE))) for photo in found]


def drawn(photo: Image.Image, longest: int, seed: int) -> Image.Image:
    """An overlay of a smooth map, as pixels."""
    coarse = Image.fromarray(np.random.default_rng(seed).random((5, 5), np.float32))
    values = np.asarray(coarse.resize((16, 16), Image.Resampling.BICUBIC))
    canvas = Canvas(np.asarray(photo), (0, 0, *photo.size), photo.size, fmt="png").smaller(longest)
    return Image.open(io.BytesIO(canvas.overlay(values).data)).convert("RGB")


def encoders(rounds: int) -> list[Row]:
    pictures = {
        f"{longest} px": [drawn(photo, longest, seed) for seed, photo in enumerate(photos())]
        for longest in (max(SIZE), 256)
    }
    rows: list[Row] = []
    for size, images in pictures.items():
        for fmt, setting in SETTINGS:
            found = [_encoded(image, fmt, setting, rounds) for image in images]
            ms, kilobytes, like = (float(value) for value in np.mean(found, axis=0))
            told = ", ".join(f"{name} {value}" for name, value in setting.items())
            rows.append(
                {"overlay": size, "format": fmt, "setting": told, "ms": ms, "kB": kilobytes, "SSIM": like}
            )
    return rows


def _encoded(
    image: Image.Image, fmt: str, setting: dict[str, int], rounds: int
) -> tuple[float, float, float]:
    def save() -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, fmt.upper(), **setting)
        return buffer.getvalue()

    data = save()
    again = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    like = structural_similarity(np.asarray(image), again, channel_axis=2)
    return least(save, rounds), len(data) / 1000, float(like)


def least(call: Callable[[], object], rounds: int) -> float:
    """CPU milliseconds of the process, the least of the rounds."""
    times = []
    for _ in range(rounds):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return 1000 * min(times)


async def steps(rounds: int) -> list[Row]:
    """In every round each file and format in turn, so that all meet the same load."""
    files, buffer = find(embedded(), names(embedded())[0]), io.BytesIO()
    photos()[0].resize(SIZE).save(buffer, "JPEG", quality=90)
    data = buffer.getvalue()
    predictors = {
        precision: Predictor.open(files.model.with_name(FILES[precision]), device=Device("cpu", threads=1))
        for precision in ("fp32", "int8")
    }
    cases = [(precision, fmt) for precision in predictors for fmt in ("webp", "jpeg")]
    spent: dict[tuple[str, str], list[tuple[float, float, float]]] = {case: [] for case in cases}
    for _ in range(rounds + 3):
        for precision, fmt in cases:
            predictor = predictors[precision]
            start = time.process_time()
            await predictor.classify(data)
            middle = time.process_time()
            result = await predictor.explain(data, ExplainOptions(format=fmt))
            spent[precision, fmt].append(
                (middle - start, time.process_time() - middle, result.timings.render)
            )
    for predictor in predictors.values():
        await predictor.close()
    rows: list[Row] = []
    for (precision, fmt), times in spent.items():
        classify, whole, drawing = (float(value) for value in np.min(times[3:], axis=0))
        row: Row = {"precision": precision, "format": fmt, "classify CPU ms": 1000 * classify}
        rows.append(row | {"explain CPU ms": 1000 * whole, "drawing ms (clock)": drawing})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    finish("drawing_encoders", encoders(asked.rounds), save=asked.save)
    finish("drawing_steps", asyncio.run(steps(asked.rounds)), save=asked.save)


if __name__ == "__main__":
    main()
