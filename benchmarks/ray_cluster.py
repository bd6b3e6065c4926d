"""The Ray Serve deployment on a local cluster of two nodes: what is lost when a replica is killed, when a
node is killed, and in a rolling redeploy.

    python -m venv ray && ray/bin/pip install -c constraints.txt '.[cpu,ray]' httpx psutil
    ray/bin/python benchmarks/ray_cluster.py PHOTOS [--requests 1000] [--kills 3] [--callers 4] [--save]

PHOTOS is a folder of pictures. The two nodes are processes of this machine (`ray.cluster_utils`), each with
room for one replica; the HTTP proxy and Ray's controller live on the first. Ray's own proxy, or its HAProxy
with RAY_SERVE_ENABLE_HA_PROXY=1. A request counts as lost when it was not answered 200 at the first attempt;
clients that ask again (examples/paca_client.py) lose none of those answered 503. Wants ray and 3 GB of
memory; opens loopback ports only.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

os.environ |= {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": str(Path(__file__).parents[1]),
}
sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
import psutil
import ray
from card import Row, finish
from ray import serve
from ray.cluster_utils import Cluster

from service.folders import list_pictures
from service.ray_serve import PaCa

PORT = 8123
URL = f"http://127.0.0.1:{PORT}"
PHASES = ("no fault", "replica killed", "node killed", "rolling redeploy")
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


class Load:
    """Callers that ask /classify one after the other until stopped; every fate, with what was going on when
    it came."""

    def __init__(self, photos: list[bytes], callers: int) -> None:
        self.phase = PHASES[0]
        self.fates: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.slowest: dict[str, float] = collections.defaultdict(float)
        self._photos, self._callers, self._stopping = photos, callers, False

    def enter(self, phase: str) -> None:
        """From now on fates are counted there; says what became of the requests so far."""
        print(f"{self.phase}: {dict(self.fates[self.phase])}", file=sys.stderr)
        self.phase = phase

    def answered(self) -> int:
        return sum(sum(fates.values()) for fates in self.fates.values())

    async def run(self) -> None:
        await asyncio.gather(*(self._call(i) for i in range(self._callers)))

    def stop(self) -> None:
        self._stopping = True

    async def _call(self, i: int) -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            while not self._stopping:
                phase, began = self.phase, time.monotonic()
                try:
                    answer = await client.post(f"{URL}/classify", content=self._photos[i % len(self._photos)])
                    fate = str(answer.status_code)
                except httpx.HTTPError as error:
                    fate = type(error).__name__
                self.fates[phase][fate] += 1
                self.slowest[phase] = max(self.slowest[phase], time.monotonic() - began)
                i += self._callers


def replicas() -> list[int]:
    """Process ids of the deployment's replicas, youngest last."""
    found = [
        process
        for process in psutil.Process().children(recursive=True)
        if "".join(process.cmdline()).startswith("ray::ServeReplica")
    ]
    return [process.pid for process in sorted(found, key=lambda process: process.create_time())]


def healthy(count: int) -> bool:
    deployment = serve.status().applications["default"].deployments["PaCa"]
    return deployment.replica_states.get("RUNNING", 0) == count and len(deployment.replica_states) == 1


def until(condition: Callable[[], bool], seconds: float = 240) -> float:
    """Seconds it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"it did not happen in {seconds:.0f} s: {serve.status()}")
        time.sleep(0.2)
    return time.monotonic() - began


def scenario(
    cluster: Cluster, deploy: Callable[[], object], load: Load, requests: int, kills: int
) -> dict[str, float]:
    """Puts the load through every fault; seconds until both replicas ran again, the slowest of each kind."""
    took: dict[str, float] = {}

    def on() -> None:
        target = load.answered() + requests
        until(lambda: load.answered() >= target, 600)

    on()
    load.enter(PHASES[1])
    for _ in range(kills):
        os.kill(replicas()[0], signal.SIGKILL)
        began = time.monotonic()
        until(lambda: not healthy(2), 30)
        until(lambda: healthy(2))
        took[load.phase] = max(took.get(load.phase, 0.0), time.monotonic() - began)
    on()
    load.enter(PHASES[2])
    began = time.monotonic()
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    until(lambda: not healthy(2), 60)
    cluster.add_node(**NODE)
    until(lambda: healthy(2))
    took[load.phase] = time.monotonic() - began
    on()
    load.enter(PHASES[3])
    began = time.monotonic()
    deploy()
    until(lambda: healthy(2))
    took[load.phase] = time.monotonic() - began
    on()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("--requests", type=int, default=1000, help="at least, around each fault")
    parser.add_argument("--kills", type=int, default=3, help="of replicas")
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    photos = [path.read_bytes() for path in list_pictures(asked.photos).pictures]
    if not photos:
        parser.error(f"{asked.photos} holds no pictures")
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    cluster.add_node(**NODE)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": PORT})
        generation = 0

        def deploy() -> None:
            nonlocal generation
            generation += 1
            settings = {"env_vars": {"PACA_INSTANCES": "1", "PACA_GENERATION": str(generation)}}
            serve.run(
                PaCa.options(
                    num_replicas=2, ray_actor_options={"num_cpus": 1, "runtime_env": settings}
                ).bind(),
                route_prefix="/",
            )

        deploy()
        load = Load(photos, asked.callers)
        callers = threading.Thread(target=lambda: asyncio.run(load.run()), daemon=True)
        callers.start()
        took = scenario(
            cluster, deploy, load, asked.requests, asked.kills
        )  # in the main thread, where alone Ray starts nodes
        load.stop()
        callers.join()
        load.enter("the end")
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()
    rows: list[Row] = [
        {
            "fault": phase,
            "requests": sum(fates.values()),
            "lost": sum(fates.values()) - fates["200"],
            "as": ", ".join(f"{fate}: {count}" for fate, count in fates.items() if fate != "200") or None,
            "slowest answer s": load.slowest[phase],
            "two replicas again after s": took.get(phase),
        }
        for phase, fates in load.fates.items()
    ]
    finish(
        "ray_cluster",
        rows,
        save=asked.save,
        ray=ray.__version__,
        proxy="HAProxy" if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") else "Python",
    )


if __name__ == "__main__":
    main()
