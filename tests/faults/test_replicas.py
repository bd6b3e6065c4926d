"""The promise of docker/compose.scale.yaml, with Debian's HAProxy and real servers: replicas die and are
replaced, and no request of any caller is lost.

The balancer runs the shipped docker/haproxy/haproxy.cfg. `adapted` replaces what names places, and nothing
else: the address it listens on, and the template that finds replicas in compose's DNS by one line for each
replica on loopback, with the template's own options.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import unavailable
from tests.faults.load import Outcome, closed
from tests.faults.test_crashes import best, until_true
from tests.serving import Serving, free_port, post, served

CONFIG = Path(__file__).parents[2] / "docker" / "haproxy" / "haproxy.cfg"
TEMPLATE = re.compile(
    r"^  server-template replica 10 paca:8000 (check .*) resolvers docker init-addr none$", re.M
)
REPLICAS = 3
CALLERS = 6


@pytest.fixture(scope="module")
def haproxy() -> str:
    """The program."""
    return (
        shutil.which("haproxy")
        or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
        or unavailable("no HAProxy on this machine; apt-get install haproxy")
    )


def version(program: str) -> str:
    (found,) = re.findall(r"HAProxy version ([\d.]+)", subprocess.check_output([program, "-v"], text=True))
    return str(found)


def adapted(listen: int, replicas: list[int]) -> str:
    """The shipped configuration with the ports of this machine."""
    text = CONFIG.read_text()
    (options,) = TEMPLATE.findall(text)
    lines = "\n".join(f"  server replica{i} 127.0.0.1:{port} {options}" for i, port in enumerate(replicas, 1))
    text, binds = re.subn(r"^  bind :8080$", f"  bind 127.0.0.1:{listen}", text, flags=re.M)
    assert binds == 1
    return TEMPLATE.sub(lines, text)


@contextmanager
def balanced(program: str, replicas: list[int], folder: Path) -> Iterator[int]:
    """HAProxy in front of the replicas; its port."""
    listen = free_port()
    (folder / "haproxy.cfg").write_text(adapted(listen, replicas))
    with subprocess.Popen(
        [program, "-db", "-f", str(folder / "haproxy.cfg")], stdout=subprocess.DEVNULL
    ) as process:
        try:
            yield listen
        finally:
            process.kill()


class Fleet:
    """Replicas on ports of their own, which a successor takes over."""

    def __init__(self, models: Path, stack: ExitStack) -> None:
        self._models, self._stack = models, stack
        self.ports = [free_port() for _ in range(REPLICAS)]
        self._running = [self._start(port) for port in self.ports]

    def _start(self, port: int) -> Serving:
        return self._stack.enter_context(served(self._models, port=port, instances=1))

    async def all_ready(self) -> None:
        """Every replica is, and the balancer has had time to see it."""
        for port in self.ports:
            await until_true(lambda port=port: is_ready(port), 60)
        await asyncio.sleep(1.2)

    async def replace(self, number: int, sign: signal.Signals) -> int:
        """Sends the signal, waits for the end, starts a successor on the same port. The exit code."""
        process = self._running[number].process
        process.send_signal(sign)
        code = await asyncio.to_thread(process.wait, 40)
        self._running[number] = await asyncio.to_thread(self._start, self.ports[number])
        await self.all_ready()
        return code


def is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def test_the_shipped_configuration_is_valid_as_it_stands(haproxy: str) -> None:
    done = subprocess.run([haproxy, "-c", "-f", str(CONFIG)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_request_is_lost_while_replicas_are_killed_and_renewed(
    haproxy, tiny_repository, pictures, photo, encode, count, record, tmp_path
):
    requests = [*map(post, pictures), post(encode(photo, "PNG"))]
    asyncio.run(
        scenario(
            haproxy,
            tiny_repository,
            requests,
            count(2, 10),
            count(300, 10_000),
            count(1, 0) / 20,
            record,
            tmp_path,
        )
    )


async def scenario(haproxy, models, requests, kills, least, pause, record, folder):
    outcome, until = Outcome(), asyncio.Event()
    with ExitStack() as stack:
        fleet = Fleet(models, stack)
        listen = stack.enter_context(balanced(haproxy, fleet.ports, folder))
        await fleet.all_ready()
        right = {
            best(
                httpx.post(
                    f"http://127.0.0.1:{fleet.ports[0]}/classify", content=r.partition(b"\r\n\r\n")[2]
                ).content
            )
            for r in requests
        }
        load = asyncio.create_task(closed(listen, requests, CALLERS, until, outcome, pause))
        await asyncio.sleep(0.5)
        for i in range(kills):
            assert await fleet.replace(i % REPLICAS, signal.SIGKILL) == -signal.SIGKILL
        killed = len(outcome.answers)
        for i in range(REPLICAS):
            assert await fleet.replace(i, signal.SIGTERM) == 0
        renewed = len(outcome.answers) - killed
        await until_true(lambda: len(outcome.answers) >= least, 600)
        until.set()
        await load
    statuses = outcome.statuses()
    record(
        kills=kills,
        requests_around_kills=killed,
        requests_around_renewals=renewed,
        requests=len(outcome.answers),
        statuses=json.dumps(statuses),
        haproxy=version(haproxy),
    )
    assert set(statuses) == {200}, statuses
    assert {best(answer.body) for answer in outcome.answers} <= right
