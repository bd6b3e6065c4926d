"""What every server of the comparison shares, ours included: decoding, the session and the answer are the
project's own code, so only the serving differs.

As a program it is the common loop itself: for every line with a number of seconds on standard input it
decodes, preprocesses and runs the photo in one thread for that long, and prints one JSON line with the rate,
the median and the CPU milliseconds of an iteration.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from service import images
from service.assemble import predictions
from service.engine import Device, Engine

LIMITS = images.Limits()


def load() -> Engine:
    """The model of $BENCH_MODEL with $BENCH_THREADS threads, warmed up."""
    engine = Engine(Path(os.environ["BENCH_MODEL"]), Device("cpu", threads=int(os.environ["BENCH_THREADS"])))
    engine.self_test()
    return engine


def read(data: bytes, engine: Engine) -> np.ndarray:
    """A file's bytes → the network's input (H, W, 3) uint8. Raises service.errors.InvalidInput."""
    wanted = engine.manifest.preprocessing
    decoded = images.decode(data, LIMITS, images.needed_side(wanted))
    return images.preprocess(decoded.rgb, decoded.width, decoded.height, wanted)[0]


def answer(logits: np.ndarray, engine: Engine) -> dict:
    """One picture's logits (K,) → what all servers answer."""
    found = predictions(logits, engine.manifest, 5)
    return {
        "predictions": [
            {"label": p.label, "class_id": p.class_id, "score": p.score, "logit": p.logit} for p in found
        ]
    }


def batch() -> tuple[int, float]:
    """(most pictures a run, milliseconds to wait for company) of the setting that is tried."""
    return int(os.environ.get("BENCH_BATCH", "1")), float(os.environ.get("BENCH_WAIT_MS", "0"))


def main() -> None:
    engine, data = load(), Path(os.environ["BENCH_PHOTO"]).read_bytes()
    for line in sys.stdin:
        times = []
        began, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() < began + float(line):
            start = time.perf_counter()
            engine.run(read(data, engine)[None])
            times.append(time.perf_counter() - start)
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        found = {
            "rate": len(times) / wall,
            "p50": 1000 * statistics.median(times),
            "cpu_ms": 1000 * cpu / len(times),
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
