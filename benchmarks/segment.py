"""What a segmentation costs: the Tiny network at 512 px in ONNX Runtime against PyTorch, and one photo
through the server's own path against the bare run of the embedded model, with the memory that a large photo
takes.

    python benchmarks/segment.py --save

Every pair is measured in turns on one thread, so that other load meets both alike.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import torch
from card import finish
from PIL import Image

from export.paca.config import variant
from export.paca.segmentation import PaCaSegmenter, published
from export.trace import trace_segmenter
from service.engine import Device, Engine
from service.options import SegmentOptions
from service.predictor import Capacity, Predictor, embedded
from service.session import session_options

TINY, SIDE = "pacavit_tiny_p2cconv_100_0", 512


def in_turns(rounds: int, *steps: Callable[[], object]) -> list[list[float]]:
    """Milliseconds of each step, each round after the other."""
    times: list[list[float]] = [[] for _ in steps]
    for step in steps:
        step()
    for _ in range(rounds):
        for own, step in zip(times, steps, strict=True):
            began = time.perf_counter()
            step()
            own.append(1000 * (time.perf_counter() - began))
    return times


def tiny(rounds: int) -> dict[str, Any]:
    """The published Tiny segmenter with random weights, one 512 x 512 picture, one thread each."""
    import onnxruntime

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = PaCaSegmenter(published(variant(TINY))).eval()
    graph = trace_segmenter(model, input_kind="float32").SerializeToString()
    session = onnxruntime.InferenceSession(graph, session_options(1), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((1, 3, SIDE, SIDE)).astype(np.float32)

    @torch.inference_mode()
    def eager() -> object:
        return model(torch.from_numpy(x))

    ours, theirs = in_turns(rounds, lambda: session.run(["logits"], {"image": x}), eager)
    best, median = (f(theirs) / f(ours) for f in (min, statistics.median))
    return {
        "onnxruntime_ms": round(min(ours), 1),
        "torch_ms": round(min(theirs), 1),
        "times": round(best, 2),
        "times_median": round(median, 2),
    }


def photo(width: int, height: int) -> bytes:
    """A smooth drawn photo as JPEG."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    file = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


async def served(rounds: int) -> dict[str, Any]:
    """The embedded model: one 640 x 480 photo whole, against the bare run; memory of a 24 megapixel photo."""
    path = embedded("segment").model
    predictor = Predictor.open(path, device=Device("cpu", threads=1), capacity=Capacity())
    engine = Engine(path, Device("cpu", threads=1))
    data = photo(640, 480)
    tensor = (await predictor.prepare(data))[None]
    bare, whole = [], []
    for i in range(rounds + 2):
        began = time.perf_counter()
        engine.run(tensor)
        middle = time.perf_counter()
        await predictor.segment(data, SegmentOptions())
        if i >= 2:
            bare.append(1000 * (middle - began))
            whole.append(1000 * (time.perf_counter() - middle))
    large = photo(6000, 4000)
    process = psutil.Process()
    idle, peak, done = process.memory_info().rss, 0, False

    async def watch() -> None:
        nonlocal peak
        while not done:
            peak = max(peak, process.memory_info().rss)
            await asyncio.sleep(0.002)

    watching = asyncio.create_task(watch())
    began = time.perf_counter()
    await predictor.segment(large, SegmentOptions(render=("overlay",), masks="rle"))
    seconds, done = time.perf_counter() - began, True
    await watching
    await predictor.close()
    engine.close()
    return {
        "bare_p50_ms": round(statistics.median(bare), 1),
        "whole_p50_ms": round(statistics.median(whole), 1),
        "whole_over_bare": round(statistics.median(whole) / statistics.median(bare), 2),
        "mb_above_idle_24_megapixels": round((peak - idle) / 2**20),
        "seconds_24_megapixels": round(seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    rows = [
        {"what": what, "figure": figure, "value": value}
        for what, figures in (
            ("pets, a 640 x 480 photo; a 24 megapixel photo", asyncio.run(served(arguments.rounds))),
            ("Tiny at 512 x 512", tiny(max(3, arguments.rounds // 5))),
        )
        for figure, value in figures.items()
    ]
    finish("segment", rows, save=arguments.save)


if __name__ == "__main__":
    main()
