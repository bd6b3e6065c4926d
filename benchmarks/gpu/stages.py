"""What `run.py` measures, stage by stage: `STAGES`, each with its seconds. A stage writes rows and looks at
the clock between them."""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from processes import CORES, Server, free_port
from run import KIT, ROOT, Bench
from timing import median_ms
from traffic import exchange, request

from service.artifact import golden_picture
from service.bench import sample
from service.engine import Device, Engine
from service.errors import DeviceLost
from service.load import closed_loop
from service.providers import PROVIDERS
from service.session import DISABLED_OPTIMIZERS, Bucket, open_buckets, open_on

CUDA = PROVIDERS["cuda"]
BATCHES = (1, 16, 64, 256)
SIZES = (1, 4, 16, 64)
CONNECTIONS = (1, 64, 256)
COMPILED = (16, 64)  # each batch size is compiled anew, about 20 seconds each
KERNEL = re.compile(r"Attention: using (.+?)(?: \(|\x1b|$)")
QUERY = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu,mig.mode.current"


def export_missing(bench: Bench) -> None:
    """Files that are not there, with random weights, where PyTorch and the exporter are; else what is there
    has to do."""
    try:
        from export.pipeline import Format, Request, run
    except ImportError as error:
        print(f"no export here ({error}): only files that are there are measured", file=sys.stderr)
        return
    for name in bench.names:
        for precision, file in bench.precisions.items():
            path = bench.models / name / "1" / file
            if not path.exists():
                run(Request(f"pacavit_{name}_p2cconv_100_0", out=path, format=Format(precision=precision)))


# ---- what runs ---------------------------------------------------------------------------------------


def environment(bench: Bench) -> None:
    """The card: GPU, driver, clocks, cuDNN, the ONNX Runtime that was really imported."""
    from onnxruntime.capi import build_and_package_info as built

    row: dict[str, object] = {
        "onnxruntime": ort.__version__,
        "onnxruntime file": ort.__file__,
        "providers": ort.get_available_providers(),
        "built for CUDA": getattr(built, "cuda_version", None),
        "cudnn": _cudnn_version(),
        "python": sys.version.split()[0],
        "cores": len(CORES),
        "dry run": bench.dry,
    }
    with suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(
            ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        row |= dict(zip(QUERY.split(","), told.stdout.splitlines()[0].split(", "), strict=True))
    with suppress(ImportError):
        import torch

        row |= {"torch": torch.__version__, "torch CUDA": torch.version.cuda}
    bench.write(**row)


def _cudnn_version() -> int | None:
    with suppress(OSError):
        library = ctypes.CDLL("libcudnn.so.9")
        library.cudnnGetVersion.restype = ctypes.c_size_t
        return int(library.cudnnGetVersion())
    return None


def placement(bench: Bench) -> None:
    """For each file: Attention and Memcpy nodes of the graph that really runs, and the attention kernels that
    ONNX Runtime's log names."""
    for name, precision, path in bench.files():
        if bench.time_is_up:
            return
        with tempfile.TemporaryDirectory() as scratch:
            written = Path(scratch) / "optimised.onnx"
            with _native_log(Path(scratch) / "log") as log:
                options = ort.SessionOptions()
                options.log_severity_level = 0
                options.optimized_model_filepath = str(written)
                session = ort.InferenceSession(
                    path,
                    options,
                    providers=[(CUDA.ort_name, dict(CUDA.options(0))), "CPUExecutionProvider"],
                    disabled_optimizers=DISABLED_OPTIMIZERS,
                    enable_fallback=0,
                )
                session.run(["logits"], {"image": pictures(2, session)})
            nodes = Counter(node.op_type for node in onnx.load(written, load_external_data=False).graph.node)
            kernels = Counter(found[1] for found in KERNEL.finditer(log.read_text(errors="replace")))
        bench.write(
            model=name,
            precision=precision,
            attention_nodes=sum(count for kind, count in nodes.items() if "Attention" in kind),
            memcpy_nodes=sum(count for kind, count in nodes.items() if kind.startswith("Memcpy")),
            kernels=dict(kernels),
        )


@contextmanager
def _native_log(path: Path) -> Iterator[Path]:
    """Standard error of native code, at its most talkative, goes to `path` meanwhile."""
    sys.stderr.flush()
    saved = os.dup(2)
    with path.open("wb") as file:
        os.dup2(file.fileno(), 2)
    ort.set_default_logger_severity(0)
    try:
        yield path
    finally:
        ort.set_default_logger_severity(2)
        os.dup2(saved, 2)
        os.close(saved)


# ---- whether it is right -----------------------------------------------------------------------------


def logits(bench: Bench) -> None:
    """For each file: how far the logits of every prepared batch size are from the CPU's, after all were
    captured. allowed: the file's own tolerance."""
    for name, precision, path in bench.files():
        if bench.time_is_up:
            return
        on_cpu, on_gpu = Engine(path, Device("cpu")), Engine(path, Device("cuda"))
        on_gpu.prepare(max(SIZES))
        size = on_cpu.manifest.preprocessing.size
        few = np.stack([golden_picture(size, seed) for seed in range(4)])
        expected = on_cpu.run(few).logits
        golden = on_cpu.manifest.golden
        for batch in on_gpu._session.batch_sizes:
            found = on_gpu.run(np.resize(few, (batch, *few.shape[1:]))).logits
            off = float(np.abs(found - np.resize(expected, found.shape)).max())
            bench.write(
                model=name,
                precision=precision,
                batch=batch,
                off=off,
                allowed=golden and golden.tolerance,
                right=bool(golden and off <= golden.tolerance),
            )
        on_gpu.close()


def graphs(bench: Bench) -> None:
    """Whether a captured graph stays right after others were captured: each size's own numbers before and
    after, and its milliseconds beside those of a plain run."""
    for name, precision, path in bench.files():
        if bench.time_is_up:
            return
        with ThreadPoolExecutor(1) as thread:  # graphs belong to the thread that captured them
            thread.submit(_replays, bench, name, precision, path).result()


def _replays(bench: Bench, name: str, precision: str, path: Path) -> None:
    data = path.read_bytes()
    plain = open_on(CUDA, data, path.name, Device("cuda"))
    before: dict[int, np.ndarray] = {}
    buckets: dict[int, Bucket] = {}
    for size in SIZES:
        session = open_on(CUDA, data, path.name, Device("cuda"), {"enable_cuda_graph": "1"})
        buckets[size] = Bucket(session, size, "cuda", 0)
        (before[size],) = buckets[size].run(["logits"], {"image": pictures(size, plain)})
    order = [*SIZES, *reversed(SIZES)]
    random.Random(0).shuffle(order)
    changed = dict.fromkeys(SIZES, 0.0)
    for size in order:
        (after,) = buckets[size].run(["logits"], {"image": pictures(size, plain)})
        if not np.array_equal(after, before[size], equal_nan=True):
            changed[size] = max(
                changed[size], float(np.nan_to_num(np.abs(after - before[size]), nan=1e9).max())
            )
    for size in SIZES:
        feed = {"image": pictures(size, plain)}
        bench.write(
            model=name,
            precision=precision,
            batch=size,
            changed_by_other_captures=changed[size],
            graph_ms=median_ms(lambda: buckets[size].run(["logits"], feed), bench.seconds / 2, warm_up=2),  # noqa: B023
            plain_ms=median_ms(lambda: plain.run(["logits"], feed), bench.seconds / 2, warm_up=2),  # noqa: B023
        )


# ---- how fast it is ----------------------------------------------------------------------------------


def trace(bench: Bench) -> None:
    """Batches whose size changes, as a server's do: one session that takes any size, and prepared sizes."""
    sizes = random.Random(1).choices((1, 2, 3, 7, 16, 40, 64), k=24)
    for name, precision, path in bench.files():
        if bench.time_is_up:
            return
        data = path.read_bytes()
        plain = open_on(CUDA, data, path.name, Device("cuda"))
        batches = [pictures(size, plain) for size in sizes]
        with ThreadPoolExecutor(1) as thread:
            fixed = CUDA.fixed_batches
            assert fixed is not None
            prepared = thread.submit(
                open_buckets, data, path.name, Device("cuda"), fixed, (1, 4, 8, 16, 32, 64)
            ).result()

            def once(run: Callable[[Mapping[str, np.ndarray]], object]) -> float:
                for batch in batches[:4]:  # noqa: B023
                    run({"image": batch})
                began = time.perf_counter()
                for batch in batches:  # noqa: B023
                    run({"image": batch})
                return 1000 * (time.perf_counter() - began) / len(batches)  # noqa: B023

            bench.write(
                model=name,
                precision=precision,
                batches=sizes,
                any_size_ms=once(lambda feed: plain.run(["logits"], feed)),  # noqa: B023
                prepared_ms=thread.submit(once, lambda feed: prepared.run(["logits"], feed)).result(),  # noqa: B023
            )


def speed(bench: Bench) -> None:
    """Milliseconds a run and images a second with pictures that lie on the device, NHWC off and on."""
    for name, precision, path in bench.files():
        for layout in ("0", "1"):
            session = open_on(CUDA, path.read_bytes(), path.name, Device("cuda"), {"prefer_nhwc": layout})
            for batch in BATCHES:
                if bench.time_is_up:
                    return
                row = {"model": name, "precision": precision, "nhwc": layout == "1", "batch": batch}
                try:
                    ms = median_ms(_on_device(session, batch), bench.seconds, warm_up=3)
                    bench.write(**row, ms=ms, images_per_second=1000 * batch / ms)
                except Exception as error:  # a batch that does not fit is an answer
                    if "memory" not in str(error).lower() and "allocate" not in str(error).lower():
                        raise
                    bench.write(**row, failed="out of memory")


def _on_device(session: Any, batch: int) -> Callable[[], object]:
    binding = session.io_binding()
    value = ort.OrtValue.ortvalue_from_numpy(pictures(batch, session), "cuda", 0)
    binding.bind_ortvalue_input("image", value)
    binding.bind_output("logits", "cuda")

    def once() -> object:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return value  # kept: the binding only points to it

    return once


def pictures(batch: int, session: Any) -> np.ndarray:
    """Random pictures of the size that a session takes."""
    side = int(session.get_inputs()[0].shape[1])
    return np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)


def compared(bench: Bench) -> None:
    """PyTorch on the same network: eager, and compiled for each batch size."""
    try:
        import torch

        from export.paca import create
        from export.trace import Served
    except ImportError as error:
        return bench.write(skipped=f"{error}")
    if not torch.cuda.is_available():
        return bench.write(skipped="this PyTorch has no CUDA")
    for name in bench.names:
        torch.manual_seed(0)
        network: Any = Served(create(f"pacavit_{name}_p2cconv_100_0"), "uint8", None).eval().to("cuda")
        side = network.model.config.image_size
        compiled = torch.compile(network, dynamic=False)
        for how, module, batches in (("eager", network, BATCHES), ("compiled", compiled, COMPILED)):
            for batch in batches:
                if bench.time_is_up:
                    return None
                given = torch.zeros((batch, side, side, 3), dtype=torch.uint8, device="cuda")

                def once() -> None:
                    with torch.inference_mode(), torch.autocast("cuda", torch.float16):
                        module(given)  # noqa: B023
                    torch.cuda.synchronize()

                ms = median_ms(once, bench.seconds, warm_up=3)
                bench.write(
                    model=name,
                    torch=how,
                    precision="fp16",
                    batch=batch,
                    ms=ms,
                    images_per_second=1000 * batch / ms,
                )
    return None


# ---- the server --------------------------------------------------------------------------------------


@contextmanager
def served(bench: Bench, name: str, precision: str) -> Iterator[tuple[Server, int]]:
    """`paca serve` on one model: (server, port)."""
    port = free_port()
    inherited = os.environ.get("PYTHONPATH", "")
    settings = {
        "PYTHONPATH": os.pathsep.join(path for path in (str(ROOT), str(KIT), inherited) if path),
        "PACA_PORT": str(port),
        "PACA_MODELS": str(bench.models),
        "PACA_DEFAULT_MODEL": name,
        "PACA_PROVIDER": "cuda",
        "PACA_PRECISION": precision,
        "PACA_QUEUE_SIZE": "512",  # a closed loop of 256 is no overload
    }
    script = (
        ROOT / "tests" / "cuda" / "serve_inert.py" if bench.dry else Path(__file__).with_name("faulty.py")
    )
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, str(script), "serve"]
        with Server(command, settings, port, CORES, Path(scratch) / "log") as running:
            message = request(port, "/classify", sample())
            running.wait(lambda: exchange(port, message)[0] == 200, refusals=100_000)
            yield running, port


def server(bench: Bench) -> None:
    """The server end to end, decoding included: Tiny at each number of connections."""
    for precision in bench.precisions:
        if bench.time_is_up or not (bench.models / "tiny" / "1" / bench.precisions[precision]).is_file():
            continue
        with served(bench, "tiny", precision) as (running, port):
            message = request(port, "/classify", sample())
            for connections in CONNECTIONS:
                result = asyncio.run(
                    closed_loop(
                        "127.0.0.1",
                        port,
                        message,
                        connections=connections,
                        seconds=0.5 if bench.dry else 8.0,
                        warm_up=3 if bench.dry else 50,
                    )
                )
                bench.write(
                    model="tiny",
                    precision=precision,
                    connections=connections,
                    images_per_second=result.rate,
                    p50_ms=result.percentile(0.5),
                    p99_ms=result.percentile(0.99),
                    statuses=result.statuses,
                    broken=result.failures,
                    ready_seconds=running.seconds_to_ready,
                )


def fault(bench: Bench) -> None:
    """Last, since the device may need its rest: an illegal address in a server of its own."""
    import signal

    name, precision, _ = next(iter(bench.files()))
    with served(bench, name, precision) as (running, port):
        process = running.members()[0]
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        answers = {
            path: _get(port, path, body) for path, body in (("/classify", sample()), ("/readyz", None))
        }
        code = process.wait(60)
        bench.write(
            answers=answers,
            exit_code=code,
            as_promised=code == DeviceLost.exit_code and all(status == 503 for status, _ in answers.values()),
        )


def _get(port: int, path: str, body: bytes | None) -> tuple[int, str | None]:
    """(status, Retry-After)."""
    where = f"http://127.0.0.1:{port}{path}"
    try:
        sent = urllib.request.Request(where, body, {"Content-Type": "image/jpeg"})
        with urllib.request.urlopen(sent, timeout=20) as reply:  # noqa: S310
            return reply.status, None
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Retry-After"]


STAGES: dict[str, tuple[float, Callable[[Bench], None]]] = {
    "environment": (15, environment),
    "placement": (30, placement),
    "logits": (60, logits),
    "trace": (50, trace),
    "speed": (100, speed),
    "graphs": (70, graphs),
    "server": (110, server),
    "torch": (75, compared),
    "fault": (30, fault),
}
