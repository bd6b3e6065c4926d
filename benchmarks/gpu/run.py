"""PaCa on an NVIDIA GPU, in one command: images a second of Tiny, Small and Base, what ran underneath, and
the server end to end.

    python benchmarks/gpu/run.py [--save]            on a machine with an NVIDIA GPU (see README.md beside
                                                     this file)
    python benchmarks/gpu/run.py --dry-run           the same code on the CPU with few and small runs: proves
                                                     that it runs, measures nothing of worth

Every row is uint8 pictures: ONNX Runtime against PyTorch eager and torch.compile of the same network and
weights, with pictures that already lie on the device; and ONNX Runtime alone with pictures in the host's
memory, with IO binding (what the server does on CUDA) and without. Two proofs go with it: which attention
kernel ONNX Runtime chose for each block (its own log at the most talkative level) and that the optimised
graph holds no Memcpy node. Medians; a warm-up before each row; random weights.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import onnx
import onnxruntime as ort
import torch
from card import Row, finish
from processes import Server, free_port
from timing import median_ms
from traffic import exchange, photo, request

from export.paca import create
from export.pipeline import Format, Request, run
from export.trace import Served
from service.engine import run_bound
from service.load import closed_loop

ROOT = Path(__file__).parents[2]
VARIANTS = {name: f"pacavit_{name}_p2cconv_100_0" for name in ("tiny", "small", "base")}
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
COMPILED = (1, 16, 256)  # each batch size is compiled anew, about a minute each
KERNEL = re.compile(
    r"Attention: using ([\w ]+)|((?:flash|cudnn|efficient|memory efficient|unfused)[\w ]*(?:attention|path))",
    re.I,
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--seconds", type=float, default=2.0, help="of each row")
    parser.add_argument("--models", type=Path, default=ROOT / "build" / "bench" / "gpu")
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    if asked.save and asked.dry_run:
        parser.error("a dry run measures nothing worth saving")
    device = "cpu" if asked.dry_run else "cuda"
    if device == "cuda" and "CUDAExecutionProvider" not in ort.get_available_providers():
        parser.error(
            "this ONNX Runtime has no CUDA provider: pip install 'onnxruntime-gpu[cuda,cudnn]', or try "
            "--dry-run"
        )
    if device == "cuda":
        ort.preload_dlls()
    speed: list[Row] = []
    proof: list[Row] = []
    for name in asked.variants.split(",") if device == "cuda" else ["tiny"]:
        for precision in ("fp16", "fp32") if device == "cuda" else ("fp32",):
            path = artifact(asked.models, name, precision)
            proof.append({"model": name, "precision": precision, **kernels(path, device)})
            opened = session(path, device)
            runs = {
                "onnxruntime": device_runner(opened, device),
                "bound from host": host_runner(opened, partial(run_bound, opened)),
                "plain from host": host_runner(opened, opened.run),
                **torch_runners(name, precision, device),
            }
            for batch in BATCHES if device == "cuda" else (1, 2):
                row: dict[str, object] = {"model": name, "precision": precision, "batch": batch}
                for kind, prepare in runs.items():
                    skip = kind == "torch.compile" and batch not in COMPILED
                    row[f"{kind} images/s"] = (
                        None if skip else rate(prepare, batch, 0.1 if asked.dry_run else asked.seconds)
                    )
                speed.append(row)
                print(row, file=sys.stderr)
    served = [
        server(artifact(asked.models, "tiny", p), p, device, asked.seconds)
        for p in (("fp16", "fp32") if device == "cuda" else ("fp32",))
    ]
    gpu = {"gpu": torch.cuda.get_device_name() if device == "cuda" else "none: dry run on the CPU"}
    finish("gpu_speed", speed, save=asked.save, **gpu)
    finish("gpu_kernels", proof, save=asked.save, **gpu)
    finish("gpu_server", served, save=asked.save, **gpu)


def artifact(folder: Path, name: str, precision: str) -> Path:
    """The artifact with random weights, exported on first use as `paca export --precision` does it."""
    path = folder / name / "1" / ("model.onnx" if precision == "fp32" else f"model.{precision}.onnx")
    if not path.exists():
        print(f"exporting {name} in {precision}", file=sys.stderr)
        written = run(
            Request(VARIANTS[name], out=path, format=Format(precision=precision))
        ).manifest.precision
        assert written == precision, f"asked for {precision}, the export wrote {written}"
    return path


def session(
    path: Path, device: str, optimised: Path | None = None, severity: int = 3
) -> ort.InferenceSession:
    """As the server opens it; with `optimised` ONNX Runtime also writes the graph that it really runs."""
    options = ort.SessionOptions()
    options.log_severity_level = severity
    if optimised:
        options.optimized_model_filepath = str(optimised)
    cuda = (
        "CUDAExecutionProvider",
        {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"},
    )
    providers = [cuda, "CPUExecutionProvider"] if device == "cuda" else ["CPUExecutionProvider"]
    opened = ort.InferenceSession(
        path, options, providers=providers, disabled_optimizers=["SkipLayerNormFusion"]
    )
    wanted = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    assert opened.get_providers()[0] == wanted, f"ONNX Runtime fell back to {opened.get_providers()[0]}"
    return opened


def kernels(path: Path, device: str) -> dict[str, object]:
    """What runs: Attention nodes, kernels chosen for them as ONNX Runtime logs it, and copies between host
    and device."""
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / "optimised.onnx"
        with stderr_of_c(Path(scratch) / "log") as log:
            ort.set_default_logger_severity(
                0
            )  # the kernel's own line goes to this logger, not to the session's
            opened = session(path, device, written, severity=0)
            side = side_of(opened)
            options = ort.RunOptions()
            options.log_severity_level = 0
            opened.run(["logits"], {"image": np.zeros((2, side, side, 3), np.uint8)}, options)
            ort.set_default_logger_severity(2)
        nodes = Counter(node.op_type for node in onnx.load(written, load_external_data=False).graph.node)
        chosen = Counter(
            (found[1] or found[2]).strip().lower()
            for found in KERNEL.finditer(log.read_text(errors="replace"))
        )
    memcpy = sum(count for kind, count in nodes.items() if kind.startswith("Memcpy"))
    logged = ", ".join(f"{kind}: {count}" for kind, count in chosen.items()) or "the log names none"
    return {
        "Attention nodes": sum(count for kind, count in nodes.items() if "Attention" in kind),
        "Memcpy nodes": memcpy,
        "kernels logged": logged,
    }


@contextlib.contextmanager
def stderr_of_c(path: Path) -> Iterator[Path]:
    """Standard error of native code goes to `path` meanwhile."""
    sys.stderr.flush()
    saved = os.dup(2)
    with path.open("wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield path
    finally:
        os.dup2(saved, 2)
        os.close(saved)


Prepare = Callable[[int], Callable[[], object]]


def side_of(opened: ort.InferenceSession) -> int:
    return int(opened.get_inputs()[0].shape[1])


def host_runner(opened: ort.InferenceSession, how: Callable[..., object]) -> Prepare:
    """batch → a run by `how` that starts and ends in the host's memory, as the server's do."""

    def prepare(batch: int) -> Callable[[], object]:
        feed = {"image": pictures(batch, side_of(opened))}
        return lambda: how(("logits",), feed)

    return prepare


def device_runner(opened: ort.InferenceSession, device: str) -> Prepare:
    """batch → a run with input and outputs bound to memory of the device."""

    def prepare(batch: int) -> Callable[[], object]:
        binding = opened.io_binding()
        binding.bind_ortvalue_input(
            "image", ort.OrtValue.ortvalue_from_numpy(pictures(batch, side_of(opened)), device, 0)
        )
        binding.bind_output("logits", device)

        def once() -> None:
            opened.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return once

    return prepare


def torch_runners(name: str, precision: str, device: str) -> dict[str, Prepare]:
    """The same network in PyTorch, eager and compiled, each synchronised after every run."""
    torch.manual_seed(0)
    network: Any = Served(create(VARIANTS[name]), "uint8", None).eval().to(device)
    side = network.model.config.image_size
    torch._dynamo.config.recompile_limit = 2 * len(
        BATCHES
    )  # beyond it PyTorch would go on in eager mode without a word
    compiled = torch.compile(network, dynamic=False)

    def runner(module: Any) -> Prepare:
        def prepare(batch: int) -> Callable[[], object]:
            x = torch.from_numpy(pictures(batch, side)).to(device)

            def once() -> None:
                with (
                    torch.inference_mode(),
                    torch.autocast(device, torch.float16, enabled=precision == "fp16"),
                ):
                    module(x)
                if device == "cuda":
                    torch.cuda.synchronize()

            return once

        return prepare

    return {"torch eager": runner(network), "torch.compile": runner(compiled)}


def pictures(batch: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)


def rate(prepare: Prepare, batch: int, seconds: float) -> float | str:
    """Images a second, or that the device's memory does not hold so many."""
    try:
        return 1000 * batch / median_ms(prepare(batch), seconds, warm_up=2 if seconds < 1 else 10)
    except RuntimeError as error:  # PyTorch's OutOfMemoryError is one; ONNX Runtime's exceptions are too
        if "memory" not in str(error).lower():
            raise
        return "out of memory"
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def server(path: Path, precision: str, device: str, seconds: float) -> Row:
    """`paca serve` on this model: photos a second and latency at 1 and 64 connections, everything
    included."""
    port = free_port()
    data = photo()
    with tempfile.TemporaryDirectory() as scratch:
        environment = {
            "PYTHONPATH": str(ROOT),
            "PACA_PORT": str(port),
            "PACA_MODELS": str(path.parents[2]),
            "PACA_DEFAULT_MODEL": path.parents[1].name,
            "PACA_PROVIDER": device,
            "PACA_PRECISION": precision,
            "PACA_QUEUE_SIZE": "128",  # a closed loop of 64 is no overload
        }
        command = [sys.executable, "-m", "service", "serve"]
        row: dict[str, object] = {"model": path.parents[1].name, "precision": precision}
        with Server(
            command, environment, port, sorted(os.sched_getaffinity(0)), Path(scratch) / "log"
        ) as running:
            message = request(port, "/classify", data)
            running.wait(lambda: exchange(port, message)[0] == 200)
            for connections in (1, 64):
                result = asyncio.run(
                    closed_loop("127.0.0.1", port, message, connections=connections, seconds=seconds)
                )
                row |= {
                    f"images/s at {connections}": result.rate,
                    f"p50 ms at {connections}": result.percentile(0.5),
                }
            row["errors"] = result.failures + sum(
                count for status, count in result.statuses.items() if status != 200
            )
    return row


if __name__ == "__main__":
    main()
