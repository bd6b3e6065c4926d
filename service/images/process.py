"""Processes in which a decoder can be stopped: for pictures whose cost their header does not bound.
Everything else decodes in the caller's thread.

Measured need (Pillow 13.0, libwebp 1.6): a 295 KB lossless WebP of 1024 x 1024 pixels takes 371 MB; no thread
can be stopped or given a memory limit. A process starts with the first such picture and lives on; it
decodes one picture at a time under a limit of address space and is killed when its time is over. Time is that
of a core, so that a busy machine refuses no good picture. It gets bytes and gives numbers and bytes, so
nothing it sends can do more than be a wrong picture.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import os
import queue
import struct
import subprocess  # nosec B404
import sys
import threading
import time
from contextlib import suppress
from typing import IO

import numpy as np
from PIL import Image

from ..errors import BadImage, Overloaded, PacaError
from .formats import BY_NAME
from .pixels import load, opened
from .source import Limits, Source, check_size

RESULT_BYTES_PER_PIXEL = 4  # 3 of the result, and some
SPARE_BYTES = 96 * 2**20  # for tables that legitimate files need whatever their size
START_SECONDS = 30.0
CLOCK_TICK_SECONDS = 0.01
PATIENCE = 4  # times decode_seconds, by the clock, in which a busy machine has to give a core for them

_LENGTHS = struct.Struct("<II")  # of the request: its JSON, the file
# of the response: outcome, width, height, orientation, several, rows, columns; the pixels follow
_RESPONSE = struct.Struct("<BIIB?II")
_DECODED, _BROKEN, _WRONG_SIZE = range(3)
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from service.images.process import serve; "
    "serve()"
)


class DecoderProcess:
    """The parent's side of one process. One caller at a time."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def read_pixels(self, source: Source, reduce_to: int | None) -> tuple[np.ndarray, Source]:
        """What `pixels.read_pixels` gives. TooLarge and BadImage as there, and BadImage where it takes longer
        than the source's limits allow or more memory than its size justifies; Overloaded where the machine is
        too busy for it or no process can be started."""
        child, seconds = self._running(), source.limits.decode_seconds
        with _Watch(child, seconds) as watch:
            try:
                outcome, source, pixels = _request(child, source, reduce_to)
            except (OSError, EOFError):
                self.close()
                if watch.impatient:
                    raise _no_room() from None
                raise BadImage(
                    f"the picture took longer than {seconds:g} s to decode, or broke the decoder; save it "
                    "again, smaller or as JPEG",
                    limit="decode_seconds",
                    value=seconds,
                ) from None
        if watch.killed:
            self.close()  # done in the very moment it was killed
        if outcome == _WRONG_SIZE:
            check_size(source.width, source.height, source.limits)
        if outcome != _DECODED:
            raise BadImage(
                "the picture cannot be decoded: it is damaged, or needs far more memory than a picture of "
                "its size should"
            )
        return pixels, source

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self.close()
            environment = {
                name: value for name, value in os.environ.items() if not name.startswith("PACA_")
            }  # no keys where hostile bytes go
            environment["OPENBLAS_NUM_THREADS"] = "1"
            try:
                self._child = subprocess.Popen(  # noqa: S603  our own interpreter, our own code  # nosec B603
                    [sys.executable, "-c", _CODE, json.dumps(sys.path)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                )
                starting = threading.Timer(START_SECONDS, self._child.kill)
                starting.start()
                try:
                    _read(_pipe(self._child.stdout), 1)
                finally:
                    starting.cancel()
            except (OSError, EOFError):
                self.close()
                raise _no_room() from None
        return self._child

    def close(self) -> None:
        """Ends the process, whatever it is doing; the next such picture starts another."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                with suppress(OSError):
                    _pipe(pipe).close()


class DecoderProcesses:
    """At most `most` processes, each started when all others are busy; callers beyond wait for their turn."""

    def __init__(self, most: int) -> None:
        self._all = [DecoderProcess() for _ in range(most)]
        self._free: queue.LifoQueue[DecoderProcess] = queue.LifoQueue()  # the last used is the warmest
        for process in self._all:
            self._free.put(process)

    def read_pixels(self, source: Source, reduce_to: int | None) -> tuple[np.ndarray, Source]:
        """`DecoderProcess.read_pixels` in one that is free."""
        process = self._free.get()
        try:
            return process.read_pixels(source, reduce_to)
        finally:
            self._free.put(process)

    def close(self) -> None:
        """Ends all of them, whatever they are doing."""
        for process in self._all:
            process.close()


def _no_room() -> Overloaded:
    return Overloaded(
        "there is no room to decode this picture now; try again later, or send a JPEG", retry_after=5.0
    )


class _Watch:
    """Kills a process that used up its seconds of a core. Where the machine gives it none for too long, or no
    such times are known (not Linux), the clock decides."""

    def __init__(self, child: subprocess.Popen[bytes], seconds: float) -> None:
        self._child, self._seconds = child, seconds
        self._done = threading.Event()
        self.killed = self.impatient = False

    def __enter__(self) -> _Watch:
        self._thread = threading.Thread(target=self._look, name="decoder-watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        began, used = time.monotonic(), _core_seconds(self._child.pid)
        left = self._seconds
        while not self._done.wait(left):
            now = _core_seconds(self._child.pid)
            waited = time.monotonic() - began
            left = 0.0 if used is None or now is None else self._seconds - (now - used)
            self.impatient = left > CLOCK_TICK_SECONDS and waited >= PATIENCE * self._seconds
            if left <= CLOCK_TICK_SECONDS or self.impatient:
                self.killed = True
                self._child.kill()
                return


def _core_seconds(pid: int) -> float | None:
    """What a process has used of all cores; None where that is not known."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            user, system = file.read().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None


def _request(
    child: subprocess.Popen[bytes], source: Source, reduce_to: int | None
) -> tuple[int, Source, np.ndarray]:
    requests, responses = _pipe(child.stdin), _pipe(child.stdout)
    fields = {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
    del fields["data"]
    head = json.dumps(fields | {"limits": dataclasses.asdict(source.limits), "reduce_to": reduce_to}).encode()
    requests.write(_LENGTHS.pack(len(head), len(source.data)))
    requests.write(head)
    requests.write(source.data)
    requests.flush()
    outcome, width, height, orientation, several, rows, columns = _RESPONSE.unpack(
        _read(responses, _RESPONSE.size)
    )
    if not source.width:
        source = dataclasses.replace(
            source, width=width, height=height, orientation=orientation, several=several
        )
    pixels = np.empty((rows, columns, 3) if rows * columns <= source.width * source.height else 0, np.uint8)
    if outcome == _DECODED and (not pixels.size or source.width * source.height > source.limits.max_pixels):
        raise EOFError  # no decoder of ours says so
    view = pixels.reshape(-1).data
    while view:
        count = responses.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        view = view[count:]
    return outcome, source, pixels


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # noqa: S101  asked for when the process was started  # nosec B101
    return pipe


def _read(pipe: IO[bytes], count: int) -> bytes:
    data = pipe.read(count)
    if len(data) < count:
        raise EOFError
    return data


def serve() -> None:
    """The child's side: answers pictures until its input ends, which is also when the parent dies."""
    Image.MAX_IMAGE_PIXELS = None  # the limits are ours, and say so
    requests, responses = sys.stdin.buffer, sys.stdout.buffer
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        responses.write(b"!")
        responses.flush()
        while True:
            head, size = _LENGTHS.unpack(_read(requests, _LENGTHS.size))
            fields = json.loads(_read(requests, head))
            reduce_to, limits = fields.pop("reduce_to"), Limits(**fields.pop("limits"))
            source = Source(_read(requests, size), **fields, limits=limits)
            outcome, pixels = _BROKEN, np.empty((0, 0, 3), np.uint8)
            try:
                _limit_memory(3 * size + SPARE_BYTES)
                with opened(source) as (image, known):
                    source = known
                    per_pixel = BY_NAME[source.format].bytes_per_pixel + RESULT_BYTES_PER_PIXEL
                    most = min(source.width * source.height, source.limits.max_pixels)
                    _limit_memory(per_pixel * most + 3 * size + SPARE_BYTES)
                    pixels, source = load(image, source, reduce_to)
                outcome = _DECODED
            except PacaError:
                outcome = _WRONG_SIZE
            except Exception:  # whatever a decoder raises: this picture's outcome
                outcome = _BROKEN
            responses.write(
                _RESPONSE.pack(
                    outcome,
                    source.width,
                    source.height,
                    source.orientation,
                    source.several,
                    *pixels.shape[:2],
                )
            )
            responses.write(pixels.reshape(-1).data)
            responses.flush()


def _limit_memory(extra: int) -> None:
    """Bounds this process's address space to what it has now plus `extra` bytes, where the system can."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + extra, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, OSError, ValueError):
        return  # no such limits here (Windows, macOS): the time limit stands


decoder_processes = DecoderProcesses(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
atexit.register(decoder_processes.close)
