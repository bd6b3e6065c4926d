"""The network's speed alone, without server or decoding: PyTorch, other ways to export and run it, and the
artifact as served.

    python benchmarks/engine.py [--models embedded,tiny,small,base] [--batches 1,8] [--rounds 5] [--save]
    python benchmarks/engine.py --profile [--models tiny]        where the time goes, by operator

One process, two threads, random weights but for `embedded` (speed needs no others), one contender after the
other in every round; a row holds the median of the rounds, a ratio is taken within each round first. Logits
are compared with PyTorch's before anything is timed. Contenders:

    torch                PyTorch eager, float32, the better of plain and channels-last
    torch.compile        the same through inductor (needs a C++ compiler)
    plain export         the module as it is through torch.onnx.export, attention as MatMul-Softmax-MatMul
    decomposed           our graph in everything but attention, which is MatMul-Softmax-MatMul: what the fused
                         node alone brings
    OpenVINO             our file; latency hint, float32 forced (it would take bfloat16 where the processor
                         has it)
    ours                 the artifact with the server's session options
    ours int8            `embedded` and `tiny`: the same in 8 bits

The graphs take uint8 pictures and normalise them, PyTorch is given pictures already normalised. ONNX Runtime
rows all run through `service.engine.Session`. The GEMM peak is the best float32 matrix product of PyTorch and
NumPy in the same round; a share of it counts multiply-accumulates only (`export.paca.cost`). Graphs are
exported on first use into build/bench/models.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from card import Row, finish
from engine_models import NAMES, Bench
from operators import operators
from threadpoolctl import threadpool_limits
from timing import median_ms

sys.path.insert(0, str(Path(__file__).parents[1]))

from service.engine import Device, Session

SECONDS = 0.4  # of one contender in one round, at least one run
TOLERANCE = 1e-3  # of the logits, relative to the largest; int8 is judged by benchmarks/precision.py
ASKED = {
    (1, "torch"): 1.4,
    (8, "torch"): 2.0,
    (1, "plain export"): 1.2,
    (8, "plain export"): 1.2,
}  # times faster
SHARE_ASKED, INT8_ASKED = 0.75, 1.25
LAYOUTS = ("torch plain", "torch channels-last")
SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 1024, 1024), (3072, 3072, 3072))

Run = Callable[[], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(NAMES))
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="time by operator instead of the comparison")
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    benches = [Bench(name) for name in asked.models.split(",")]
    batches = [int(n) for n in asked.batches.split(",")]
    torch.set_num_threads(asked.threads)
    threadpool_limits(asked.threads)  # NumPy's
    began = time.monotonic()
    if asked.profile:
        shares = [row for bench in benches for row in operators(bench, asked.threads, asked.rounds)]
        finish("engine_operators", shares, save=asked.save, threads=asked.threads)
        return
    if asked.threads > len(os.sched_getaffinity(0)):
        print(
            f"{asked.threads} threads on fewer cores: try the benchmark out so, do not believe it",
            file=sys.stderr,
        )
    rows = [
        row
        for bench in benches
        for batch in batches
        for row in compare(bench, batch, asked.rounds, asked.threads)
    ]
    seconds = round(time.monotonic() - began)
    finish(
        "engine",
        rows,
        save=asked.save,
        seconds=seconds,
        threads=asked.threads,
        rounds=asked.rounds,
        verdicts=verdicts(rows),
    )


def compare(bench: Bench, batch: int, rounds: int, threads: int) -> list[Row]:
    """One row a contender."""
    runs, absent = ready(bench, batch, threads)
    times: dict[str, list[float]] = {name: [] for name in runs}
    peaks = []
    for number in range(rounds):
        peaks.append(gemm_peak())
        for name, run in runs.items():
            times[name].append(median_ms(run, SECONDS, warm_up=0))
        print(
            bench.name,
            "batch",
            batch,
            "round",
            number + 1,
            {n: round(t[-1], 1) for n, t in times.items()},
            file=sys.stderr,
        )
    best = min(LAYOUTS, key=lambda name: statistics.median(times[name]))
    times = {"torch": times[best], **{name: ms for name, ms in times.items() if name not in LAYOUTS}}
    work = 2e-6 * batch * bench.macs  # GFLOP times 1000, so that ms give GFLOP/s
    rows: list[Row] = []
    for name, found in times.items():
        ratios = [theirs / ours for theirs, ours in zip(found, times["ours"], strict=True)]
        shares = [work / ms / peak for ms, peak in zip(found, peaks, strict=True)]
        rows.append(
            {
                "model": bench.name,
                "batch": batch,
                "contender": name,
                "ms a run": statistics.median(found),
                "least ms": min(found),
                "ours is faster by": statistics.median(ratios),
                "range": f"{min(ratios):.2f}-{max(ratios):.2f}",
                "share of GEMM peak": statistics.median(shares),
                "GEMM peak GFLOP/s": statistics.median(peaks),
                "remark": best.removeprefix("torch ") if name == "torch" else None,
            }
        )
    rows += [
        {"model": bench.name, "batch": batch, "contender": name, "remark": f"not run: {reason}"}
        for name, reason in absent.items()
    ]
    return [{key: row.get(key) for key in rows[0]} for row in rows]


def ready(bench: Bench, batch: int, threads: int) -> tuple[dict[str, Run], dict[str, str]]:
    """The contenders, warm and agreeing with PyTorch, and why others are absent."""
    runs: dict[str, Run] = {}
    absent: dict[str, str] = {}
    pictures = bench.pictures(batch)
    expected = bench.expected(pictures)
    for name, make in contenders(bench, pictures, threads).items():
        try:
            run = make()
            logits = run()
        except Exception as error:  # whatever stops one contender, the others are measured
            absent[name] = (str(error) or type(error).__name__).strip().splitlines()[0][:160]
            continue
        off = float(np.abs(logits - expected).max() / max(1.0, np.abs(expected).max()))
        if off > TOLERANCE and name != "ours int8":
            absent[name] = f"its logits are {off:.2g} off"
            continue
        run()
        runs[name] = run
    if missing := [name for name in (*LAYOUTS, "ours") if name not in runs]:
        sys.exit(f"{missing[0]} cannot run, so there is nothing to compare: {absent[missing[0]]}")
    return runs, absent


def contenders(bench: Bench, pictures: np.ndarray, threads: int) -> dict[str, Callable[[], Run]]:
    """Name → what makes it ready to run; what it then does with `pictures` gives their logits."""
    normalised = torch.from_numpy(bench.normalised(pictures)).contiguous()
    last = torch.channels_last

    def eager(memory: torch.memory_format, *, compiled: bool = False) -> Run:
        model, image = bench.torch_model().to(memory_format=memory), normalised.to(memory_format=memory)
        call = torch.compile(model, dynamic=False) if compiled else model
        return torch.inference_mode()(lambda: call(image).numpy())

    def session(path: Path) -> Run:
        found = Session(path, Device("cpu", threads=threads))
        return lambda: found.run(("logits",), {"image": pictures})["logits"]

    def openvino() -> Run:
        try:
            import openvino
        except ModuleNotFoundError:
            raise RuntimeError("OpenVINO is not installed; pip install -e '.[bench]'") from None
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        request = openvino.Core().compile_model(bench.served(), "CPU", options).create_infer_request()
        return lambda: request.infer({"image": pictures}, share_inputs=True)["logits"]

    found: dict[str, Callable[[], Run]] = {
        "torch plain": lambda: eager(torch.contiguous_format),
        "torch channels-last": lambda: eager(last),
        "torch.compile": lambda: eager(last, compiled=True),
        "plain export": lambda: session(bench.plain()),
        "decomposed": lambda: session(bench.decomposed()),
        "OpenVINO": openvino,
        "ours": lambda: session(bench.served()),
    }
    if bench.has_int8:
        found["ours int8"] = lambda: session(bench.int8())
    return found


def gemm_peak() -> float:
    """GFLOP/s of the best float32 matrix product, over shapes and over PyTorch's and NumPy's libraries."""
    best = 0.0
    for rows, inner, columns in SHAPES:
        a, b = np.ones((rows, inner), np.float32), np.ones((inner, columns), np.float32)
        for product in (lambda a=a, b=b: a @ b, lambda a=torch.from_numpy(a), b=torch.from_numpy(b): a @ b):
            for _ in range(2):
                began = time.perf_counter()
                product()
                best = max(best, 2e-9 * rows * inner * columns / (time.perf_counter() - began))
    return best


def verdicts(rows: list[Row]) -> dict[str, str]:
    """What was asked of each figure, and whether it holds."""
    found = {}
    for row in rows:
        where = f"{row['model']} batch {row['batch']}"
        if "not run" in str(row["remark"]):
            continue
        if wanted := ASKED.get((row["batch"], row["contender"])):
            found[f"{where}, {row['contender']}"] = _verdict(row["ours is faster by"], wanted, "x")
        if row["contender"] == "ours":
            found[f"{where}, share of GEMM peak"] = _verdict(row["share of GEMM peak"], SHARE_ASKED)
        if row["contender"] == "ours int8" and row["batch"] == 1:
            found[f"{where}, int8"] = _verdict(1 / row["ours is faster by"], INT8_ASKED, "x")
    return found


def _verdict(value: object, wanted: float, unit: str = "") -> str:
    assert isinstance(value, float)
    return f"{value:.2f}{unit}, asked {wanted}{unit}: {'met' if value >= wanted else 'missed'}"


if __name__ == "__main__":
    main()
