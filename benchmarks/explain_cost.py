"""What an explanation costs beside a classification: the model's CPU time, the drawing, the bytes of the
answer, and memory over many calls.

    python benchmarks/explain_cost.py                 everything, with 10,000 calls for memory (about five
                                                      minutes)
    python benchmarks/explain_cost.py --calls 200     a quick look

model     CPU time of one picture on one thread, runs interleaved, medians: /classify, `cam`, and the default
          (`focus`, one target)
drawing   wall time on one thread: one overlay at 224 and at 1024 px (WebP), the five strongest clusters
          together, medians
answer    bytes of POST /explain for the photo at 224 px, without and with cluster pictures, from a real
          server
memory    growth of that server's resident set between one tenth of the calls and all of them, every kind of
          /explain in turn

Whether explanations are true is `explain.py`'s question. The photo is scikit-learn's china.jpg; no data
folder is needed.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
from card import Row, finish
from PIL import Image
from processes import CORES, Server, free_port
from sklearn.datasets import load_sample_image

from service import explain, images, repository
from service.engine import Device, Engine, GradientEngine
from service.geometry import Window
from service.render import Canvas, fit

REPEATS = 150
KINDS = (
    {},
    {"method": "cam", "contrast": "runner_up"},
    {"method": "fine", "render": "mask"},
    {"method": "grouping"},
    {"arrays": "f16", "size": 224},
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    photo = load_sample_image("china.jpg")
    rows = [*model_and_drawing(photo), *asyncio.run(answers(_jpeg(photo), asked.calls))]
    finish("explain_cost", rows, save=asked.save)


def model_and_drawing(photo: np.ndarray) -> list[Row]:
    """Engine runs and rendering in this process."""
    root = repository.embedded()
    files = repository.find(root, repository.names(root)[0])
    one = Device("cpu", threads=1)
    engine, gradients = Engine(files.model, one), GradientEngine(files.model.with_name("explain.onnx"), one)
    manifest = engine.manifest
    tensor, placement = images.preprocess(photo, photo.shape[1], photo.shape[0], manifest.preprocessing)
    clusters = next(s.output for s in reversed(manifest.clustered_stages) if s.output)

    def classify() -> None:
        engine.run(tensor[None])

    def cam() -> np.ndarray:
        out = engine.run(tensor[None], ("tokens", clusters))
        weights = explain.class_weights(len(manifest.labels), int(out.logits[0].argmax()))
        return explain.contributions(out.arrays["tokens"][0], manifest.stages[-1].grid, engine.head, weights)

    def focus() -> tuple[np.ndarray, np.ndarray]:
        out = engine.run(tensor[None], ("tokens", "features", clusters))
        weights = explain.class_weights(len(manifest.labels), int(out.logits[0].argmax()))
        evidence = explain.contributions(
            out.arrays["tokens"][0], manifest.stages[-1].grid, engine.head, weights
        )
        found = gradients.run(out.arrays["features"], weights[None])
        return explain.focus(
            evidence, explain.stage_maps({name: values[0] for name, values in found.items()})
        ), out.arrays[clusters][0]

    cost = _interleaved({"classify": classify, "cam": cam, "focus (default)": focus}, time.thread_time)
    rows: list[Row] = [_row("model", name, "ms CPU", ms, ms / cost["classify"]) for name, ms in cost.items()]
    heat, assignment = focus()
    views = explain.strongest(assignment, 5, cam())
    small, large = (_canvas(photo, placement.box, side) for side in (224, 1024))

    def five() -> None:
        for view in views:
            small.overlay(view.values)

    drawn = {
        "overlay 224 px": lambda: small.overlay(heat),
        "overlay 1024 px": lambda: large.overlay(heat),
        "five clusters 224 px": five,
    }
    return rows + [
        _row("drawing", name, "ms", ms) for name, ms in _interleaved(drawn, time.perf_counter).items()
    ]


async def answers(jpeg: bytes, calls: int) -> list[Row]:
    """Bytes and memory of a real server on loopback."""
    port = free_port()
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "service", "serve", "--port", str(port)]
        with Server(command, {"PACA_LOG_LEVEL": "warning"}, port, CORES, Path(scratch) / "log") as server:
            server.wait(lambda: ready(port))
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

                async def ask(**form: object) -> httpx.Response:
                    answer = await client.post("/explain", files={"file": jpeg}, data=form)
                    answer.raise_for_status()
                    return answer

                bare = len((await ask(size=224, render="overlay")).content)
                full = len((await ask(size=224)).content)
                done, early = 0, 0.0
                while done < calls:
                    await asyncio.gather(*(ask(**KINDS[(done + i) % len(KINDS)]) for i in range(4)))
                    done += 4
                    if not early and done >= calls / 10:
                        early = server.memory("rss")
                late = server.memory("rss")
    return [
        _row("answer", "224 px, no cluster pictures", "kB", bare / 1000),
        _row("answer", "224 px, five cluster pictures", "kB", full / 1000),
        _row("memory", f"growth over {done:,} calls", "MiB", late - early),
    ]


def ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _row(part: str, what: str, unit: str, value: float, relative: float | None = None) -> Row:
    return {"part": part, "what": what, "value": value, "unit": unit, "x classify": relative}


def _canvas(photo: np.ndarray, window: Window, side: int) -> Canvas:
    return Canvas(photo, window, fit((photo.shape[1], photo.shape[0]), side))


def _interleaved(work: dict[str, Callable[[], object]], clock: Callable[[], float]) -> dict[str, float]:
    """Median milliseconds of each, taken in turn after a few rounds to warm up."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(REPEATS):
        for name, run in work.items():
            began = clock()
            run()
            times[name].append(1000 * (clock() - began))
    return {name: statistics.median(values[5:]) for name, values in times.items()}


def _jpeg(photo: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=90)
    return file.getvalue()


if __name__ == "__main__":
    main()
