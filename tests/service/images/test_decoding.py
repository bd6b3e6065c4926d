"""Ordinary pictures never wait behind those whose cost cannot be told from their header."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from service.engine import Device
from service.errors import DeadlineExceeded, NotAnImage, Overloaded
from service.images import DecodePool, Limits, Source
from service.images.decoding import FIRST_GUESS_SECONDS, Lane
from service.predictor import Capacity, Predictor
from tests.service.images.files import file
from tests.soak import SOAK

T = TypeVar("T")
LIMITS = Limits()
NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
ORDINARY, UNTRUSTED = file(NOISE, "JPEG"), file(NOISE, "WEBP", lossless=True)


class Gate:
    """Work that lasts until the test lets it end."""

    def __init__(self) -> None:
        self.started, self.open = threading.Semaphore(0), threading.Event()

    def __call__(self, source: Source) -> str:
        self.started.release()
        assert self.open.wait(30)
        return source.format


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


def running(lane: Lane, scene: Callable[[DecodePool], Awaitable[T]]) -> T:
    async def main() -> T:
        with ThreadPoolExecutor(1, thread_name_prefix="ordinary") as executor:
            return await scene(DecodePool(executor, lane))

    return asyncio.run(main())


def thread_name(_: Source) -> str:
    return threading.current_thread().name


def test_work_runs_in_the_threads_of_its_kind() -> None:
    async def scene(pool: DecodePool) -> list[str]:
        return [await pool.run(data, LIMITS, thread_name) for data in (ORDINARY, UNTRUSTED)]

    ordinary, untrusted = running(Lane(), scene)
    assert ordinary.startswith("ordinary")
    assert untrusted.startswith("untrusted")


def test_ordinary_pictures_are_decoded_while_the_lane_is_busy(gate: Gate) -> None:
    async def scene(pool: DecodePool) -> None:
        costly = [asyncio.create_task(pool.run(UNTRUSTED, LIMITS, gate)) for _ in range(6)]
        await asyncio.to_thread(gate.started.acquire)
        for _ in range(3):
            assert (await pool.run(ORDINARY, LIMITS, thread_name)).startswith("ordinary")
        assert not any(task.done() for task in costly)
        gate.open.set()
        assert await asyncio.gather(*costly) == ["WEBP"] * 6

    running(Lane(), scene)


def test_a_full_lane_refuses_with_the_time_that_its_queue_takes(gate: Gate) -> None:
    async def scene(pool: DecodePool) -> None:
        costly = [asyncio.create_task(pool.run(UNTRUSTED, LIMITS, gate)) for _ in range(3)]
        await asyncio.to_thread(gate.started.acquire)
        while lane._in_flight < 3:
            await asyncio.sleep(0.001)
        with pytest.raises(Overloaded) as caught:
            await pool.run(UNTRUSTED, LIMITS, gate)
        assert caught.value.retry_after == 3 * FIRST_GUESS_SECONDS
        gate.open.set()
        await asyncio.gather(*costly)
        assert await pool.run(UNTRUSTED, LIMITS, gate) == "WEBP"

    lane = Lane(threads=1, waiting=2)
    running(lane, scene)
    assert lane._seconds < FIRST_GUESS_SECONDS  # measured since


def test_who_stops_waiting_frees_the_place_and_is_not_decoded(gate: Gate) -> None:
    async def scene(pool: DecodePool) -> None:
        first = asyncio.create_task(pool.run(UNTRUSTED, LIMITS, gate))
        await asyncio.to_thread(gate.started.acquire)
        waiting = asyncio.create_task(pool.run(UNTRUSTED, LIMITS, gate))
        while lane._in_flight < 2:
            await asyncio.sleep(0.001)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert lane._in_flight == 1
        gate.open.set()
        assert await first == "WEBP"
        assert not gate.started.acquire(blocking=False)

    lane = Lane(threads=1, waiting=1)
    running(lane, scene)
    assert lane._in_flight == 0


@pytest.mark.parametrize("data", [ORDINARY, UNTRUSTED])
def test_what_would_come_too_late_is_not_decoded(data: bytes) -> None:
    with pytest.raises(DeadlineExceeded):
        running(Lane(), lambda pool: pool.run(data, LIMITS, thread_name, time.monotonic()))


def test_a_deadline_that_passes_in_the_lanes_queue_counts(gate: Gate) -> None:
    async def scene(pool: DecodePool) -> None:
        first = asyncio.create_task(pool.run(UNTRUSTED, LIMITS, gate))
        await asyncio.to_thread(gate.started.acquire)
        late = asyncio.create_task(pool.run(UNTRUSTED, LIMITS, gate, time.monotonic() + 0.05))
        await asyncio.sleep(0.1)
        gate.open.set()
        assert await first == "WEBP"
        with pytest.raises(DeadlineExceeded):
            await late

    running(Lane(), scene)


@pytest.mark.parametrize("data", [ORDINARY, UNTRUSTED])
def test_errors_come_as_they_are(data: bytes) -> None:
    def broken(_: Source) -> str:
        raise KeyError("work")

    with pytest.raises(KeyError, match="work"):
        running(Lane(), lambda pool: pool.run(data, LIMITS, broken))
    with pytest.raises(NotAnImage):
        running(Lane(), lambda pool: pool.run(b"hello", LIMITS, thread_name))


def test_six_lossless_webps_at_once_hardly_delay_an_ordinary_jpeg(tiny_repository: Path) -> None:
    """The whole way, with the real decoder process. Without a lane of their own they delayed it 80 times."""
    y, x = np.mgrid[0:1800, 0:2400]
    colours = np.stack([(x + y) % 256, x % 256, y % 256], -1).astype(np.uint8)
    colours ^= np.random.default_rng(0).integers(0, 8, colours.shape, np.uint8)
    costly = file(colours, "WEBP", lossless=True, method=0, quality=0)
    ordinary = file(colours[:1200, :1600], "JPEG")

    async def main() -> tuple[float, float, int]:
        predictor = Predictor.open(
            tiny_repository / "tiny" / "1" / "model.onnx",
            device=Device("cpu", threads=1),
            capacity=Capacity(decoders=2),
        )

        async def seconds() -> float:
            began = time.monotonic()
            await predictor.classify(ordinary)
            return time.monotonic() - began

        await predictor.classify(costly)
        alone = sorted([await seconds() for _ in range(9)])[4]
        tasks = [asyncio.create_task(predictor.classify(costly)) for _ in range(6)]
        await asyncio.sleep(0.02)
        behind = sorted([await seconds() for _ in range(5)])[2]
        done = sum(task.done() for task in tasks)
        await asyncio.gather(*tasks)
        await predictor.close()
        return alone, behind, done

    alone, behind, done = asyncio.run(main())
    assert done <= 3  # five ordinary ones were answered in the time of a few costly ones
    if SOAK:
        assert behind <= 3 * alone
