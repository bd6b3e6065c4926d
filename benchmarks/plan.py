"""How many cores for how many requests a second: a small cost model that must first predict this machine's
own throughput.

    python benchmarks/plan.py [--rate 100 --rate 10000] [--seconds 3] [--save]

Measured as CPU milliseconds of one request, never as throughput: the common loop (decode, preprocess, run)
alone on a core and on two at once, what the server adds, what HAProxy adds, what the load generator adds; the
last three with the embedded model only. From these follow the throughput of one replica (a core of its own,
the balancer and the generator on the other) and of two (one a core, balancer and generator sharing both),
which are then measured: the model has to be within 15 % before its plan is worth printing. The plan fills
cores to 70 %, where the open loop of docs/performance.md still answers in time, and adds one machine as a
spare. Needs two cores, HAProxy and HTTP on the loopback only.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from card import Row, finish
from peers.compare import PATH, Bench, Loop, started
from peers.contenders import ours
from processes import CORES, Server, free_port
from server import SCRATCH, bench_models
from traffic import Cell, closed, exchange, request

FULL = 0.7
TOLERANCE = 0.15
CONNECTIONS = 16
HAPROXY = """defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
listen paca
  bind 127.0.0.1:{port}
  balance leastconn
  retry-on conn-failure
{servers}
"""


@dataclass(frozen=True)
class Costs:
    """CPU milliseconds of one request. loop: by model, alone on the machine; crowded: the same while every
    core runs one; server, balancer, client: what each adds. memory: MiB of a replica by model."""

    loop: dict[str, float]
    crowded: dict[str, float]
    server: float
    balancer: float
    client: float
    memory: dict[str, float]

    def one(self, model: str) -> float:
        """Requests a second of one replica that has a core to itself."""
        return 1000 / (self.loop[model] + self.server)

    def two(self, model: str) -> float:
        """Requests a second of two replicas on two cores that also carry the balancer and the client."""
        return 2000 / (self.crowded[model] + self.server + self.balancer + self.client)

    def cores(self, model: str, rate: float) -> float:
        """Cores that `rate` requests a second need, filled to FULL, on machines whose cores are all busy."""
        return rate * (self.crowded[model] + self.server) / 1000 / FULL


def loops(bench: Bench, model: Path) -> tuple[float, float]:
    """Milliseconds of an iteration of the common loop: on one core while the other is idle, and on two at
    once."""
    pair = [Loop(bench, model, core) for core in CORES[:2]]
    alone, both = [], []
    for _ in range(3):
        alone.append(1000 / pair[0].run(bench.seconds)["rate"])
        for loop in pair:
            loop.begin(bench.seconds)
        both.append(statistics.mean(1000 / loop.end()["rate"] for loop in pair))
    for loop in pair:
        loop.close()
    return statistics.median(alone), statistics.median(both)


@contextlib.contextmanager
def balanced(replicas: list[Server], bench: Bench, on: list[int]) -> Iterator[tuple[Server, bytes]]:
    """HAProxy before the replicas."""
    port = free_port()
    config = bench.folder / "haproxy.cfg"
    servers = "\n".join(f"  server s{i} 127.0.0.1:{replica.port}" for i, replica in enumerate(replicas))
    config.write_text(HAPROXY.format(port=port, servers=servers))
    with Server(
        [str(shutil.which("haproxy")), "-q", "-db", "-f", str(config)],
        {},
        port,
        on,
        bench.folder / "logs" / "haproxy.log",
    ) as balancer:
        message = request(port, PATH, bench.photo.read_bytes())
        yield balancer.wait(lambda: exchange(port, message)[0] == 200), message


def replicated(bench: Bench, model: Path, count: int) -> tuple[Cell, float, float, float]:
    """(cell, and the CPU milliseconds a request of the replicas, the balancer and the client) with `count`
    replicas, each on a core of its own."""
    with contextlib.ExitStack() as stack:
        replicas = [
            stack.enter_context(started(ours(), bench, model, core=core))[0] for core in CORES[:count]
        ]
        balancer, message = stack.enter_context(
            balanced(replicas, bench, CORES[1:2] if count == 1 else CORES[:2])
        )
        os.sched_setaffinity(0, CORES[1:2] if count == 1 else CORES[:2])
        closed(balancer, message, connections=CONNECTIONS, seconds=1)
        before, client = sum(r.cpu_seconds() for r in replicas), time.process_time()
        cell = closed(balancer, message, connections=CONNECTIONS, seconds=2 * bench.seconds, warm_up=0)
        client = (
            time.process_time() - client
        )  # before looking at the replicas' processes, which costs the client's time
        spent = sum(r.cpu_seconds() for r in replicas) - before
        if cell.errors:
            sys.exit(
                f"{cell.errors} requests to {count} replica(s) were not answered 200: see "
                f"{bench.folder / 'logs'}"
            )
        answers = cell.rate * 2 * bench.seconds
        return cell, 1000 * spent / answers, cell.cpu_ms, 1000 * client / answers


def measure(bench: Bench) -> tuple[Costs, list[Row]]:
    """The costs, and what they predict beside what is then measured."""
    loop, crowded, memory = {}, {}, {}
    for name, model in bench.models.items():
        loop[name], crowded[name] = loops(bench, model)
        with started(ours(), bench, model) as (server, _):
            memory[name] = server.memory()
    embedded, server, balancer, client = replicated(bench, bench.models["embedded"], 1)
    costs = Costs(loop, crowded, server - loop["embedded"], balancer, client, memory)
    rows: list[Row] = []
    for name, model in bench.models.items():
        measured = {
            1: embedded if name == "embedded" else replicated(bench, model, 1)[0],
            2: replicated(bench, model, 2)[0],
        }
        for count, predicted in ((1, costs.one(name)), (2, costs.two(name))):
            off = predicted / measured[count].rate - 1
            rows.append(
                {
                    "model": name,
                    "replicas": count,
                    "predicted/s": predicted,
                    "measured/s": measured[count].rate,
                    "off %": 100 * off,
                }
            )
    return costs, rows


def plan(costs: Costs, rates: list[float], machine: int, photo: int) -> list[Row]:
    """Replicas have one core and one thread each; machines of `machine` cores, one of them spare."""
    rows: list[Row] = []
    for name in costs.loop:
        for rate in rates:
            cores = math.ceil(costs.cores(name, rate))
            rows.append(
                {
                    "model": name,
                    "requests/s": rate,
                    "replicas of one core": cores,
                    f"machines of {machine} cores": math.ceil(cores / machine) + 1,
                    "memory GiB": cores * costs.memory[name] / 1024,
                    "HAProxy cores": rate * costs.balancer / 1000 / FULL,
                    "network Gbit/s": 8 * rate * photo / 1e9,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rate",
        type=float,
        action="append",
        help="requests a second to plan for; repeatable (100 and 10000)",
    )
    parser.add_argument("--machine", type=int, default=16, help="cores of one machine")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    if len(CORES) < 2 or not shutil.which("haproxy"):
        parser.error("two cores and HAProxy are needed (Debian: apt-get install haproxy)")
    bench = Bench(bench_models(("tiny", "embedded")), SCRATCH, asked.seconds)
    costs, rows = measure(bench)
    os.sched_setaffinity(0, CORES)
    notes = {
        "server adds ms": costs.server,
        "HAProxy adds ms": costs.balancer,
        "client adds ms": costs.client,
    }
    finish("plan_check", rows, save=asked.save, **{name: round(value, 3) for name, value in notes.items()})
    worst = max(abs(float(str(row["off %"]))) for row in rows)
    if worst > 100 * TOLERANCE:
        sys.exit(
            f"the prediction is up to {worst:.0f} % off, more than {TOLERANCE:.0%}: is the machine busy? No "
            "plan is printed."
        )
    finish(
        "plan",
        plan(costs, asked.rate or [100, 10_000], asked.machine, len(bench.photo.read_bytes())),
        save=asked.save,
    )


if __name__ == "__main__":
    main()
