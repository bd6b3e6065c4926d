"""Load on a server, closed (a caller asks again when answered) and open (requests come at their times,
whatever the server does)."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.serving import Answer, Connection


@dataclass
class Outcome:
    """What became of a load. seconds: how long it lasted; answers of open load count from when they were
    due."""

    seconds: float = 0.0
    answers: list[Answer] = field(default_factory=list)

    def of(self, status: int) -> list[Answer]:
        return [answer for answer in self.answers if answer.status == status]

    @property
    def lost(self) -> list[Answer]:
        """Sent on a connection, never answered."""
        return [answer for answer in self.answers if answer.status == 0 and not answer.refused]

    def statuses(self) -> dict[int, int]:
        return {status: len(self.of(status)) for status in sorted({answer.status for answer in self.answers})}


def percentile(answers: Sequence[Answer], part: float) -> float:
    """Seconds; 0 where there is no answer."""
    ordered = sorted(answer.seconds for answer in answers)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


async def closed(
    port: int,
    requests: Sequence[bytes],
    callers: int,
    until: asyncio.Event,
    outcome: Outcome,
    pause: float = 0.0,
) -> None:
    """Callers that ask one after the other until the event, `pause` seconds apart; refused connections are
    tried again."""
    began = time.monotonic()

    async def call(i: int) -> None:
        connection = Connection(port)
        while not until.is_set():
            answer = await connection.ask(requests[i % len(requests)])
            outcome.answers.append(answer)
            i += callers
            await asyncio.sleep(0.05 if answer.refused else pause)
        connection.close()

    await asyncio.gather(*(call(i) for i in range(callers)))
    outcome.seconds = time.monotonic() - began


async def closed_for(port: int, requests: Sequence[bytes], callers: int, seconds: float) -> Outcome:
    outcome, until = Outcome(), asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, until.set)
    await closed(port, requests, callers, until, outcome)
    return outcome


async def opened(port: int, requests: Sequence[bytes], rate: float, seconds: float) -> Outcome:
    """`rate` requests a second for `seconds` at random (Poisson) times, as callers who do not know of each
    other come; each on an idle or a new connection."""
    idle: list[Connection] = []
    tasks: set[asyncio.Task[None]] = set()
    outcome, sent = Outcome(), 0
    chance = random.Random(5)
    began, due = time.monotonic(), chance.expovariate(rate)

    async def ask(request: bytes, due: float) -> None:
        connection = idle.pop() if idle else Connection(port)
        answer = await connection.ask(request)
        outcome.answers.append(
            Answer(answer.status, time.monotonic() - due, answer.headers, answer.body, answer.refused)
        )
        idle.append(connection)

    while due < seconds:
        while due < min(seconds, time.monotonic() - began):
            task = asyncio.create_task(ask(requests[sent % len(requests)], began + due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
            due += chance.expovariate(rate)
        await asyncio.sleep(0.002)
    await asyncio.gather(*tasks)
    outcome.seconds = time.monotonic() - began
    for connection in idle:
        connection.close()
    return outcome


async def watched(port: int, until: asyncio.Event, path: str = "/healthz") -> list[Answer]:
    """Asks for health every 100 ms until the event."""
    connection, answers = Connection(port), []
    while not until.is_set():
        answers.append(await connection.ask(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()))
        await asyncio.sleep(0.1)
    connection.close()
    return answers
