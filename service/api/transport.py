"""A transport that sends an answer's head and body together.

uvicorn writes them one after the other, each with a system call of its own. A process that is killed between
the two leaves a head without its body; a proxy has passed the head on by then and cannot repeat the request
elsewhere. What leaves in one piece is either all there or not there at all.
"""

from __future__ import annotations

import asyncio
from typing import Any

JOINED_BYTES = 256 * 1024  # kept back before they are sent without waiting for more


class JoiningTransport:
    """Passes everything on to `transport`, but writes of one turn of the event loop as one."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []
        self._size = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)
        self._size += len(data)
        if self._size > JOINED_BYTES:
            self._flush()

    def get_write_buffer_size(self) -> int:
        return self._size + self._transport.get_write_buffer_size()

    def write_eof(self) -> None:
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts:
            data = b"".join(self._parts)
            self._parts.clear()
            self._size = 0
            self._transport.write(data)
