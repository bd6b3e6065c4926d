"""The server's speed: against the bare loop inside it, and against its peers.

    python benchmarks/server.py limit               how much of the in-process loop's throughput reaches the
                                                    socket
    python benchmarks/server.py peers --setup       creates the environment of every peer under .peers/ (once)
    python benchmarks/server.py tune                tries every setting of every peer; the best ones are used
                                                    by:
    python benchmarks/server.py peers               LitServe, BentoML, Ray Serve and mosec with the same
                                                    model, photo and decode code; in the same run, ours as
                                                    it is shipped (8 bits) beside them

Servers run on the first core, the load generator on the last. Each prints a table, the machine and one JSON
line; --save keeps them for the docs. Models: the embedded one, and PaCa-Tiny at 224 px with random weights
(speed needs no others), exported on first use. --rounds and --seconds scale the time taken.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from card import Row, finish
from peers import compare, contenders
from peers.compare import Bench, Loop, started
from processes import CORES
from traffic import closed, request

from service.repository import FILES, embedded, find, names

ROOT = Path(__file__).parent.parent
SCRATCH = ROOT / "build" / "bench"
TINY = "pacavit_tiny_p2cconv_100_0"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("limit", "tune", "peers"))
    parser.add_argument("--setup", action="store_true", help="only create the peers' environments")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.5, help="of one measurement")
    parser.add_argument("--models", default="tiny,embedded")
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    if asked.setup:
        contenders.setup()
        return
    if asked.what != "limit" and (absent := contenders.missing()):
        parser.error(
            f"no environment for {', '.join(absent)}; run: python benchmarks/server.py peers --setup"
        )
    if len(CORES) < 2:
        parser.error("two cores are needed: one for the server, one for the load generator")
    bench = Bench(bench_models(asked.models.split(",")), SCRATCH, asked.seconds)
    os.sched_setaffinity(0, CORES[-1:])
    began = time.monotonic()
    results: dict[str, list[Row]]
    if asked.what == "limit":
        results = {"server_limit": limit(bench, asked.rounds)}
    elif asked.what == "tune":
        results = {"peers_settings": compare.tune(bench)}
    else:
        rows, opened = compare.compare(bench, asked.rounds)
        results = {
            "peers_open": compare.same_file(opened),
            "peers": compare.same_file(rows),
            "peers_shipped_open": compare.as_shipped(opened),
            "peers_shipped": compare.as_shipped(rows),
        }
    os.sched_setaffinity(0, CORES)  # what the card says of the machine
    for name, rows in results.items():
        notes = {
            "peers": compare.verdicts,
            "peers_open": compare.open_verdicts,
            "peers_shipped": compare.shipped_verdicts,
        }.get(name)
        finish(
            name,
            rows,
            save=asked.save,
            seconds=round(time.monotonic() - began),
            **(notes(rows) if notes else {}),
        )


def limit(bench: Bench, rounds: int) -> list[Row]:
    """One row a model: the server at its defaults against the common loop on the same core, in turn."""
    rows: list[Row] = []
    for name, model in bench.models.items():
        loop = Loop(bench, model, CORES[0])
        with started(contenders.ours(), bench, model) as (server, message):
            time.sleep(1)
            idle = server.memory("rss")
            explain = request(server.port, "/explain", bench.photo.read_bytes())
            bare, busy, single, explained = [], [], [], []
            for number in range(rounds):
                server.pause()
                bare.append(loop.run(bench.seconds))
                server.resume()
                busy.append(closed(server, message, connections=16, seconds=bench.seconds))
                single.append(closed(server, message, connections=1, seconds=bench.seconds))
                explained.append(closed(server, explain, connections=1, seconds=bench.seconds))
                print(name, "round", number + 1, bare[-1], busy[-1], single[-1], file=sys.stderr)
            ratios = [cell.rate / found["rate"] for cell, found in zip(busy, bare, strict=True)]
            added = [cell.p50 - found["p50"] for cell, found in zip(single, bare, strict=True)]
            rows.append(
                {
                    "model": name,
                    "loop requests/s": statistics.median(found["rate"] for found in bare),
                    "server requests/s at 16": statistics.median(cell.rate for cell in busy),
                    "share of the loop": statistics.median(ratios),
                    "range": f"{min(ratios):.3f}-{max(ratios):.3f}",
                    "loop p50 ms": statistics.median(found["p50"] for found in bare),
                    "server p50 ms at 1": statistics.median(cell.p50 for cell in single),
                    "added ms at 1": statistics.median(added),
                    "added range": f"{min(added):.2f}-{max(added):.2f}",
                    "CPU ms above the loop at 16": statistics.median(
                        c.cpu_ms - f["cpu_ms"] for c, f in zip(busy, bare, strict=True)
                    ),
                    "explain p50 ms": statistics.median(cell.p50 for cell in explained),
                    "explain / classify": statistics.median(
                        e.p50 / s.p50 for e, s in zip(explained, single, strict=True)
                    ),
                    "errors": sum(cell.errors for cell in (*busy, *single, *explained)),
                    "ready s": server.seconds_to_ready,
                    "idle RSS MiB": idle,
                }
            )
        loop.close()
    return rows


def bench_models(wanted: Iterable[str]) -> dict[str, Path]:
    """The files of "tiny" and "embedded"."""
    return {name: {"tiny": _tiny, "embedded": _embedded}[name]() for name in wanted}


def _embedded() -> Path:
    """A copy, so that a model that is replaced meanwhile changes nothing here."""
    files = find(embedded(), names(embedded())[0])
    copy = SCRATCH / "models" / "embedded" / "1"
    shutil.copytree(files.model.parent, copy, dirs_exist_ok=True)
    return copy / files.model.name


def _tiny() -> Path:
    """With an int8 file, which passes no gate: the classes of random weights are nearly tied."""
    path = SCRATCH / "models" / "tiny" / "1" / "model.onnx"
    if not path.exists():
        subprocess.run([sys.executable, "-m", "service", "export", TINY, "--out", path], check=True, cwd=ROOT)
    reduced = path.with_name(FILES["int8"])
    if not reduced.exists():
        make = "from engine_models import Bench; Bench('tiny').int8()"
        subprocess.run([sys.executable, "-c", make], check=True, cwd=ROOT / "benchmarks")
    return path


if __name__ == "__main__":
    main()
