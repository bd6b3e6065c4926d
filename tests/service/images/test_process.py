"""The process in which a decoder can be stopped: bounded in memory and time, and there again for the next
picture."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.errors import BadImage, Overloaded
from service.images import Limits
from service.images.formats import screen
from service.images.pixels import read_pixels
from service.images.process import DecoderProcess, DecoderProcesses
from service.images.source import Source
from tests.service.images.files import exif, file, lossless_webp_bomb, with_exif

LIMITS = Limits(decode_seconds=60.0)


@pytest.fixture(scope="module")
def process() -> Iterator[DecoderProcess]:
    process = DecoderProcess()
    yield process
    process.close()


@pytest.fixture(scope="module")
def lossless(photo: np.ndarray) -> Source:
    return screen(with_exif(file(photo, "WEBP", lossless=True), exif(6)), LIMITS)


@pytest.fixture(scope="module")
def slow() -> Source:
    """Takes about 0.2 s."""
    return screen(
        file(
            np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8),
            "WEBP",
            lossless=True,
            quality=0,
            method=0,
        ),
        LIMITS,
    )


@pytest.mark.parametrize("reduce_to", [None, 100])
def test_it_gives_the_pixels_that_the_caller_would_get(
    process: DecoderProcess, lossless: Source, reduce_to: int | None
) -> None:
    assert lossless.untrusted_cost
    found = process.read_pixels(lossless, reduce_to)[0]
    assert np.array_equal(found, read_pixels(lossless, reduce_to)[0])
    assert found.shape == ((451, 300, 3) if reduce_to is None else (151, 100, 3))


@pytest.mark.skipif(sys.platform != "linux", reason="memory can be limited on Linux only")
def test_a_picture_that_needs_far_more_memory_than_its_size_should_is_refused(
    process: DecoderProcess, lossless: Source
) -> None:
    small = screen(lossless_webp_bomb(64), LIMITS)
    assert process.read_pixels(small, None)[0].shape == (64, 64, 3)  # the bomb is a valid picture
    process.read_pixels(lossless, None)
    child = process._child
    assert child
    Path(f"/proc/{child.pid}/clear_refs").write_text("5")
    with pytest.raises(BadImage, match="memory"):
        process.read_pixels(screen(lossless_webp_bomb(1024), LIMITS), None)
    peak = next(
        line
        for line in Path(f"/proc/{child.pid}/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    assert int(peak.split()[1]) < 220_000  # kB; without a limit it takes 370 MB more than an idle one
    assert process.read_pixels(lossless, None)[0].shape == (451, 300, 3)
    assert process._child is child  # a refusal costs no new process


def test_what_takes_too_long_is_stopped_and_the_next_picture_is_served(
    process: DecoderProcess, lossless: Source, slow: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.images.process.PATIENCE", 1000)
    process.read_pixels(lossless, None)
    with pytest.raises(BadImage) as caught:
        process.read_pixels(replace(slow, limits=Limits(decode_seconds=0.02)), None)
    assert caught.value.details == {"limit": "decode_seconds", "value": 0.02}
    assert process.read_pixels(lossless, 100)[0].shape == (151, 100, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="a process's use of cores is known on Linux only")
def test_a_machine_too_busy_to_decode_is_not_the_pictures_fault(
    process: DecoderProcess, lossless: Source
) -> None:
    """A stopped process uses no core: its time is not up, but nobody waits for ever."""
    process.read_pixels(lossless, None)
    child = process._child
    assert child
    child.send_signal(signal.SIGSTOP)
    with pytest.raises(Overloaded):
        process.read_pixels(replace(lossless, limits=Limits(decode_seconds=0.1)), None)
    assert process.read_pixels(lossless, None)[0].shape == (451, 300, 3)


def test_a_process_that_died_is_replaced(process: DecoderProcess, lossless: Source) -> None:
    process.read_pixels(lossless, None)
    child = process._child
    assert child
    child.kill()
    child.wait()
    assert process.read_pixels(lossless, None)[0].shape == (451, 300, 3)


def test_damaged_files_are_refused_and_the_process_lives_on(
    process: DecoderProcess, lossless: Source
) -> None:
    process.read_pixels(lossless, None)
    child = process._child
    for _ in range(3):
        with pytest.raises(BadImage):
            process.read_pixels(Source(lossless.data[:2000], "WEBP", 451, 300, untrusted_cost=True), None)
    assert process.read_pixels(lossless, None)[0].shape == (451, 300, 3)
    assert process._child is child


def test_callers_take_turns_and_none_is_refused_for_waiting(lossless: Source) -> None:
    processes = DecoderProcesses(1)
    with ThreadPoolExecutor(4) as pool:
        shapes = [
            array.shape for array, _ in pool.map(lambda _: processes.read_pixels(lossless, None), range(8))
        ]
    assert shapes == [(451, 300, 3)] * 8
    processes.close()


def test_as_many_processes_run_as_callers_come_at_once_and_no_more(lossless: Source, slow: Source) -> None:
    processes = DecoderProcesses(3)
    for _ in range(3):
        processes.read_pixels(lossless, None)
    assert sum(process._child is not None for process in processes._all) == 1
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: processes.read_pixels(slow, None), range(6)))
    assert sum(process._child is not None for process in processes._all) == 3
    processes.close()


def test_without_a_process_the_answer_is_overloaded(
    lossless: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(Overloaded, match="no room"):
        DecoderProcess().read_pixels(lossless, None)
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(Overloaded, match="no room"):
        DecoderProcess().read_pixels(lossless, None)


def test_the_process_ends_with_its_parent() -> None:
    process = DecoderProcess()
    process.read_pixels(screen(lossless_webp_bomb(16), LIMITS), None)
    child = process._child
    assert child
    assert child.stdin
    child.stdin.close()  # as when the parent is killed
    assert child.wait(20) == 0
    process.close()
