"""How speed scales, below the server: parallel runs and threads, pictures a run, picture size with PaCa and
with full attention, number of clusters.

    python benchmarks/scaling.py [--rows instances,batch,size,clusters] [--seconds 1] [--save]

Random weights (speed needs no others; in 8 bits without a judge), PaCa-Tiny, the server's session options;
medians of single runs, no decoding. "full" is the same network with clusters=0 in every stage, i.e. ordinary
attention over all patches; both come from one file each that takes every size. A size whose attention scores
of one block would take more than a quarter of the memory is not run and says so. Graphs are exported on first
use into build/bench/.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from card import Row, finish
from timing import median_ms

sys.path.insert(0, str(Path(__file__).parents[1]))

from export.paca import PaCaConfig, PaCaViT, variant
from export.paca.cost import macs
from export.quantise import unjudged
from export.trace import trace
from service.engine import Device, Session

SCRATCH = Path(__file__).parents[1] / "build" / "bench" / "scaling"
TINY = "pacavit_tiny_p2cconv_100_0"
SIZES = (224, 320, 448, 640, 768, 1024)
BATCHES = (1, 2, 4, 8, 16)
CLUSTERS = (0, 25, 49, 100, 196, 400)


def with_clusters(count: int) -> PaCaConfig:
    """PaCa-Tiny with `count` clusters in its first three stages; 0 = full attention everywhere."""
    config = variant(TINY)
    stages = tuple(
        dataclasses.replace(stage, clusters=count if i < 3 else 0) for i, stage in enumerate(config.stages)
    )
    return dataclasses.replace(config, stages=stages)


def graph(clusters: int, *, dynamic: bool = False, int8: bool = False) -> Path:
    """The served graph with random weights, exported on first use. int8: every part in 8 bits."""
    path = SCRATCH / f"tiny_{clusters}{'_any_size' if dynamic else ''}{'_int8' if int8 else ''}.onnx"
    if int8 and not path.exists():
        print(f"exporting {path.name}", file=sys.stderr)
        onnx.save(unjudged(onnx.load(graph(clusters, dynamic=dynamic)), pictures(8)["image"]), path)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"exporting {path.name}", file=sys.stderr)
        torch.manual_seed(0)
        onnx.save(trace(PaCaViT(with_clusters(clusters)).eval(), dynamic_size=dynamic), path)
    return path


def session(path: Path, threads: int) -> Session:
    return Session(path, Device("cpu", threads=threads))


def pictures(batch: int, side: int = 224) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)}


def instances(seconds: float) -> list[Row]:
    """Parallel runs and threads of each: latency of a run and pictures a second of all."""
    cores = len(os.sched_getaffinity(0))
    rows = []
    for count, threads in sorted({(1, 1), (1, cores), (cores, 1), (cores, cores)}):
        engine, feed = session(graph(100), threads), pictures(1)
        done: list[float] = []
        end = time.perf_counter() + 2 * seconds

        def work(
            engine: Session = engine, feed: dict = feed, done: list[float] = done, end: float = end
        ) -> None:
            engine.run(("logits",), feed)
            while not done or time.perf_counter() < end:
                began = time.perf_counter()
                engine.run(("logits",), feed)
                done.append(time.perf_counter() - began)

        began = time.perf_counter()
        parallel = [threading.Thread(target=work) for _ in range(count)]
        for thread in parallel:
            thread.start()
        for thread in parallel:
            thread.join()
        rate = (len(done) + count) / (time.perf_counter() - began)
        rows.append(
            {
                "runs at once": count,
                "threads each": threads,
                "ms a run": 1000 * statistics.median(done),
                "pictures/s": rate,
            }
        )
        print(rows[-1], file=sys.stderr)
    return rows


def batch(seconds: float) -> list[Row]:
    """Pictures a run, one thread."""
    engine = session(graph(100), 1)
    times = {
        size: median_ms(lambda size=size: engine.run(("logits",), pictures(size)), seconds)
        for size in BATCHES
    }
    return [
        {"pictures a run": n, "ms a run": ms, "ms a picture": ms / n, "pictures/s": 1000 * n / ms}
        for n, ms in times.items()
    ]


def size(seconds: float) -> list[Row]:
    """Picture side, one thread: PaCa (100 clusters) against full attention."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    paca, full = session(graph(100, dynamic=True), 1), session(graph(0, dynamic=True), 1)
    reduced = session(graph(100, dynamic=True, int8=True), 1)
    rows: list[Row] = []
    for side in SIZES:
        patches = (side // 4) ** 2
        scores = 4 * with_clusters(0).stages[0].heads * patches**2
        ours = median_ms(lambda side=side: paca.run(("logits",), pictures(1, side)), seconds)
        theirs = (
            median_ms(lambda side=side: full.run(("logits",), pictures(1, side)), seconds)
            if scores < memory / 4
            else None
        )
        rows.append(
            {
                "side": side,
                "patches": patches,
                "PaCa ms": ours,
                "PaCa int8 ms": median_ms(
                    lambda side=side: reduced.run(("logits",), pictures(1, side)), seconds
                ),
                "full attention ms": theirs
                if theirs
                else f"not run: {scores / 2**30:.0f} GiB of scores a block",
                "full / PaCa": theirs / ours if theirs else None,
                "PaCa GMAC": macs(with_clusters(100), (side, side)) / 1e9,
                "full GMAC": macs(with_clusters(0), (side, side)) / 1e9,
            }
        )
        print(rows[-1], file=sys.stderr)
    return rows


def clusters(seconds: float) -> list[Row]:
    """Clusters in each of the first three stages at 224 px, one thread; 0 = full attention."""
    rows = []
    for count in CLUSTERS:
        engines = [session(graph(count, int8=int8), 1) for int8 in (False, True)]
        ms, int8_ms = (
            median_ms(lambda engine=engine: engine.run(("logits",), pictures(1)), seconds)
            for engine in engines
        )
        rows.append(
            {
                "clusters": count or "none: full attention",
                "ms": ms,
                "int8 ms": int8_ms,
                "GMAC": macs(with_clusters(count)) / 1e9,
            }
        )
        print(rows[-1], file=sys.stderr)
    return rows


FITS = {"size": ("patches", ("PaCa ms", "PaCa int8 ms")), "clusters": ("clusters", ("ms", "int8 ms"))}


def fits(name: str, rows: Sequence[Row]) -> dict[str, str]:
    """The straight line through each column of times, and how much of their variance it explains."""
    found: dict[str, str] = {}
    against, columns = FITS.get(name, ("", ()))
    for column in columns:
        pairs = [(float(row[against]), float(row[column])) for row in rows if isinstance(row[against], int)]
        x, y = np.array(pairs).T
        slope, start = np.polyfit(x, y, 1)
        explained = 1 - float(((y - start - slope * x) ** 2).sum() / ((y - y.mean()) ** 2).sum())
        found[f"fit of {column}"] = (
            f"{start:.1f} ms + {1000 * slope:.3g} ms a thousand {against}, R² {explained:.4f}"
        )
    return found


ROWS: dict[str, Callable[[float], Sequence[Row]]] = {
    "instances": instances,
    "batch": batch,
    "size": size,
    "clusters": clusters,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement, at least one run")
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    for name in asked.rows.split(","):
        print(f"measuring {name}", file=sys.stderr)
        rows = ROWS[name](asked.seconds)
        finish(f"scaling_{name}", rows, save=asked.save, **fits(name, rows))


if __name__ == "__main__":
    main()
