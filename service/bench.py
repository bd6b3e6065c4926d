"""What `paca bench` and `paca tune` do: measure the engine on this machine, or a running server, and find the
settings that suit this machine best."""

from __future__ import annotations

import asyncio
import io
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from . import images
from .artifact import golden_picture
from .engine import Device, Engine
from .load import LoadResult, closed_loop, request_bytes
from .predictor import Capacity, Predictor
from .settings import cores


@dataclass(frozen=True)
class Setting:
    """One way to use this machine."""

    instances: int
    threads: int
    max_batch: int


@dataclass(frozen=True)
class Measured:
    """rate: pictures a second with every decoder busy; p50: milliseconds of one picture on an idle
    machine."""

    setting: Setting
    rate: float
    p50: float


def sample(size: tuple[int, int] = (480, 640)) -> bytes:
    """A JPEG file to measure with, when no photo is given."""
    buffer = io.BytesIO()
    Image.fromarray(golden_picture(size, 0)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def steps(path: Path, device: Device, photo: bytes, seconds: float = 2.0) -> dict[str, float]:
    """Median milliseconds of each step of one request, without a server: decode and preprocess, one picture's
    run, a run of eight per picture."""
    engine = Engine(path, device)
    decoded = images.decode(photo, images.Limits(), images.needed_side(engine.manifest.preprocessing))
    tensor, _ = images.preprocess(decoded.rgb, decoded.width, decoded.height, engine.manifest.preprocessing)
    eight = np.stack([tensor] * 8)

    def read() -> None:
        found = images.decode(photo, images.Limits(), images.needed_side(engine.manifest.preprocessing))
        images.preprocess(found.rgb, found.width, found.height, engine.manifest.preprocessing)

    return {
        "decode and preprocess": _median(read, seconds),
        "run, batch 1": _median(lambda: engine.run(tensor[None]), seconds),
        "run, batch 8, per picture": _median(lambda: engine.run(eight), seconds) / 8,
    }


def _median(work: Callable[[], object], seconds: float) -> float:
    work()
    times: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times) < 3:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def load(url: str, photo: bytes, *, connections: int, seconds: float) -> LoadResult:
    """Closed-loop load on a running server: `connections` photos in flight for `seconds`."""
    host, port, request = request_bytes(url, photo, "application/octet-stream")
    return asyncio.run(closed_loop(host, port, request, connections=connections, seconds=seconds))


def candidates(usable: int | None = None) -> list[Setting]:
    """Settings worth trying on `usable` cores: from one run with all of them to a run on each, and batches
    where runs share cores."""
    usable = usable or cores()
    shapes = sorted({(n, max(1, usable // n)) for n in (1, 2, usable // 2, usable) if 1 <= n <= usable})
    return [Setting(instances, threads, batch) for instances, threads in shapes for batch in (1, 4, 8)]


def tune(
    path: Path, photo: bytes, seconds: float = 3.0, settings: list[Setting] | None = None
) -> Iterator[Measured]:
    """Measures each setting through the predictor, as the server would run it."""
    for setting in settings or candidates():
        yield asyncio.run(_measure(path, setting, photo, seconds))


async def _measure(path: Path, setting: Setting, photo: bytes, seconds: float) -> Measured:
    usable = cores()
    capacity = Capacity(setting.instances, setting.max_batch, decoders=usable)
    predictor = Predictor.open(path, device=Device("cpu", threads=setting.threads), capacity=capacity)
    try:
        single = []
        end = time.monotonic() + seconds / 3
        while time.monotonic() < end:
            began = time.monotonic()
            await predictor.classify(photo)
            single.append(time.monotonic() - began)
        done = 0
        began = time.monotonic()
        end = began + seconds

        async def caller() -> None:
            nonlocal done
            while time.monotonic() < end:
                await predictor.classify(photo)
                done += 1

        await asyncio.gather(*(caller() for _ in range(max(2 * setting.instances * setting.max_batch, 4))))
        return Measured(setting, done / (time.monotonic() - began), 1000 * statistics.median(single))
    finally:
        await predictor.close()


def best(found: list[Measured], goal: str) -> Measured:
    """The highest rate, or the lowest latency ("latency")."""
    return min(found, key=lambda m: m.p50) if goal == "latency" else max(found, key=lambda m: m.rate)


def environment(setting: Setting) -> str:
    """The setting as lines for an env file."""
    return (
        f"PACA_INSTANCES={setting.instances}\nPACA_THREADS={setting.threads}"
        f"\nPACA_MAX_BATCH={setting.max_batch}\n"
    )
