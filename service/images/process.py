"""Processes in which a decoder can be stopped: for pictures whose cost their header does not bound.
Everything else decodes in the caller's thread.

Measured need (Pillow 13.0, libwebp 1.6): a 295 KB lossless WebP of 1024 x 1024 pixels takes 371 MB; no thread
can be stopped or given a memory limit. A process starts with the first such picture and lives on; it
decodes one picture at a time under a limit of address space and is killed when its time is over. It gets
bytes and gives bytes, so nothing it sends can do more than be a wrong picture.
"""

from __future__ import annotations

import atexit
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

from ..errors import BadImage, Overloaded
from .pixels import read_pixels
from .source import Source

BYTES_PER_PIXEL = 20  # of such a picture: 16 while decoding, 3 of the result, and some
SPARE_BYTES = 96 * 2**20  # for tables that legitimate files need whatever their size
START_SECONDS = 30.0

_REQUEST = struct.Struct(
    "<4sIIBBHII"
)  # format, width, height, orientation, depth, scans, reduce_to (0 = no), bytes that follow
_RESPONSE = struct.Struct("<?II")  # decoded, height, width; the pixels follow
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from service.images.process import serve; "
    "serve()"
)


class DecoderProcess:
    """The parent's side of one process. One caller at a time."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def read_pixels(self, source: Source, reduce_to: int | None) -> np.ndarray:
        """What `pixels.read_pixels` gives. BadImage where it fails, takes longer than the source's limits
        allow or more memory than its size justifies; Overloaded where no process can be started."""
        child, seconds = self._running(), source.limits.decode_seconds
        began = time.monotonic()
        too_late = threading.Timer(seconds, child.kill)
        too_late.start()
        try:
            pixels = _request(child, source, reduce_to)
        except (OSError, EOFError):
            self.close()
            raise BadImage(
                f"the picture took longer than {seconds:g} s to decode, or broke the decoder; save it "
                "again, smaller or as JPEG",
                limit="decode_seconds",
                value=seconds,
            ) from None
        finally:
            too_late.cancel()
        if time.monotonic() - began >= seconds:
            self.close()  # done in the very moment it was killed
        if pixels is None:
            raise BadImage(
                "the picture cannot be decoded: it is damaged, or needs far more memory than a picture of "
                "its size should"
            )
        return pixels

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
                raise Overloaded(
                    "there is no room to decode this picture now; try again later, or send a JPEG",
                    retry_after=5.0,
                ) from None
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

    def read_pixels(self, source: Source, reduce_to: int | None) -> np.ndarray:
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


def _request(child: subprocess.Popen[bytes], source: Source, reduce_to: int | None) -> np.ndarray | None:
    requests, responses = _pipe(child.stdin), _pipe(child.stdout)
    s = source
    requests.write(
        _REQUEST.pack(
            s.format.encode(), s.width, s.height, s.orientation, s.depth, s.scans, reduce_to or 0, len(s.data)
        )
    )
    requests.write(s.data)
    requests.flush()
    decoded, height, width = _RESPONSE.unpack(_read(responses, _RESPONSE.size))
    if not decoded:
        return None
    if height * width > s.width * s.height:
        raise EOFError
    pixels = np.empty((height, width, 3), np.uint8)
    view = pixels.reshape(-1).data
    while view:
        count = responses.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        view = view[count:]
    return pixels


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
    requests, responses = sys.stdin.buffer, sys.stdout.buffer
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        responses.write(b"!")
        responses.flush()
        while True:
            name, width, height, orientation, depth, scans, reduce_to, size = _REQUEST.unpack(
                _read(requests, _REQUEST.size)
            )
            source = Source(
                _read(requests, size), name.rstrip(b"\0").decode(), width, height, orientation, depth, scans
            )
            try:
                _limit_memory(BYTES_PER_PIXEL * width * height + 3 * size + SPARE_BYTES)
                pixels = read_pixels(source, reduce_to or None)
            except Exception:  # whatever a decoder raises: this picture's response
                responses.write(_RESPONSE.pack(False, 0, 0))
            else:
                responses.write(_RESPONSE.pack(True, *pixels.shape[:2]))
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
