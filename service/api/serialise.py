"""Responses of any size, made in bounded pieces off the event loop.

One large `json.dumps` holds the interpreter's lock for all of its time, in a thread as well. Here a generator
yields pieces of a few milliseconds each, in a worker thread. The loop gets its turn between two of them.
Small responses are made where they are: a hop to a thread would cost more than they do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import ParamSpec, TypeVar

import numpy as np
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

PIECE_VALUES = 16_384  # numbers of an array that become text at a time: about 3 ms
PIECE_BYTES = 1 << 20  # of a text that is put out at a time
INLINE_BYTES = 1 << 17  # what is smaller is read or written on the loop: about 1 ms
T = TypeVar("T")
P = ParamSpec("P")


class PiecewiseResponse(Response):
    """A response whose body is a list of pieces, sent one after the other under one Content-Length."""

    def __init__(
        self, pieces: list[bytes], media_type: str, headers: Mapping[str, str] | None = None
    ) -> None:
        size = sum(map(len, pieces))
        super().__init__(headers={**(headers or {}), "Content-Length": str(size)}, media_type=media_type)
        self.pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        last = len(self.pieces) - 1
        for i, piece in enumerate(self.pieces):
            await send({"type": "http.response.body", "body": piece, "more_body": i < last})


async def in_pieces(
    pieces: Iterator[bytes], media_type: str, headers: Mapping[str, str] | None = None
) -> PiecewiseResponse:
    """A response of what the generator yields; it runs in a worker thread. What it raises is raised here."""
    return PiecewiseResponse(await asyncio.to_thread(join, pieces), media_type, headers)


async def off_loop(size: int, function: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """What `function` returns; in a worker thread where `size`, the bytes that it goes through, is large."""
    if size < INLINE_BYTES:
        return function(*args, **named)
    return await asyncio.to_thread(function, *args, **named)


def join(pieces: Iterable[bytes]) -> list[bytes]:
    """The pieces, small ones joined, so that the socket sees few writes; at least one."""
    joined: list[bytes] = []
    few = bytearray()
    for piece in pieces:
        few += piece
        if len(few) >= PIECE_BYTES:
            joined.append(bytes(few))
            few.clear()
    if few or not joined:
        joined.append(bytes(few))
    return joined


def numbers(values: np.ndarray) -> Iterator[bytes]:
    """An array's finite numbers as a flat JSON list, row-major."""
    flat = values.ravel()
    yield b"["
    for start in range(0, len(flat), PIECE_VALUES):
        piece: bytes = to_json(flat[start : start + PIECE_VALUES].tolist())
        yield (b"," if start else b"") + piece[1:-1]
    yield b"]"
