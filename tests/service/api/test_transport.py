"""An answer leaves in one piece, so that a killed process never sends half of one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from service.api.transport import JOINED_BYTES, JoiningTransport


class Recorder(asyncio.Transport):
    """What reaches the socket, a line for each call."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.calls.append(bytes(data))

    def write_eof(self) -> None:
        self.calls.append(b"<eof>")

    def close(self) -> None:
        self.calls.append(b"<close>")

    def get_write_buffer_size(self) -> int:
        return 0


async def written(by: Callable[[JoiningTransport], Awaitable[None]]) -> list[bytes]:
    below = Recorder()
    await by(JoiningTransport(below, asyncio.get_running_loop()))
    await asyncio.sleep(0)
    return below.calls


async def head_and_body(transport: JoiningTransport) -> None:
    transport.write(b"head ")
    transport.write(b"body")
    assert transport.get_write_buffer_size() == 9


async def answer_and_close(transport: JoiningTransport) -> None:
    await head_and_body(transport)
    transport.close()


async def answer_and_eof(transport: JoiningTransport) -> None:
    await head_and_body(transport)
    transport.write_eof()


async def two_answers(transport: JoiningTransport) -> None:
    await head_and_body(transport)
    await asyncio.sleep(0)
    transport.write(b"next")


async def more_than_is_kept_back(transport: JoiningTransport) -> None:
    transport.write(b"head ")
    transport.write(b"x" * JOINED_BYTES)
    transport.write(b"rest")


@pytest.mark.parametrize(
    ("by", "calls"),
    [
        (head_and_body, [b"head body"]),
        (answer_and_close, [b"head body", b"<close>"]),
        (answer_and_eof, [b"head body", b"<eof>"]),
        (two_answers, [b"head body", b"next"]),
        (more_than_is_kept_back, [b"head " + b"x" * JOINED_BYTES, b"rest"]),
    ],
)
def test_writes_of_one_turn_leave_together_and_in_order(by, calls):
    assert asyncio.run(written(by)) == calls
