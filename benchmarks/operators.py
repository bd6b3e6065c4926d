"""Where the time of a served graph goes, by operator: ONNX Runtime's own profile of the graph as it optimised
it."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path

import onnxruntime
from card import Row
from engine_models import Bench

from service.session import DISABLED_OPTIMIZERS, session_options


def operators(bench: Bench, threads: int, rounds: int) -> list[Row]:
    """One row an operator at batch 1, most expensive first: how many nodes, milliseconds a run and share of
    all. At least 10 runs, after one to warm up."""
    events = profile(bench.served(), bench.pictures(1), threads, max(10, rounds))
    time: dict[str, float] = defaultdict(float)
    nodes: dict[str, set[str]] = defaultdict(set)
    for name, operator, ms in events:
        time[operator] += ms
        nodes[operator].add(name)
    total = sum(time.values())
    return [
        {
            "model": bench.name,
            "operator": operator,
            "nodes": len(nodes[operator]),
            "ms a run": ms,
            "share": ms / total,
        }
        for operator, ms in sorted(time.items(), key=lambda item: -item[1])
    ]


def profile(path: Path, pictures: object, threads: int, runs: int) -> list[tuple[str, str, float]]:
    """(node, operator, milliseconds a run) of every node, with the session options of `service.session`."""
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"], disabled_optimizers=DISABLED_OPTIMIZERS
        )
        for _ in range(runs + 1):
            session.run(["logits"], {"image": pictures})
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [
        (e["name"], e["args"]["op_name"], e["dur"])
        for e in events
        if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")
    ]
    kernels = kernels[len(kernels) // (runs + 1) :]  # without the first run
    return [
        (name.removesuffix("_kernel_time"), operator, duration / 1000 / runs)
        for name, operator, duration in kernels
    ]
