"""The comparison with peers: which setting suits each best (`tune`), then all of them in turn on equal terms
(`compare`).

Fair by construction: the same model file, session options, decode code and answer (`common.py`), the same
photo, one server at a time on the same core with the load generator on another; answers are compared before
anything is timed; rounds are interleaved, and what is quoted is the median with its range. CPU per request is
what all processes of a server used, divided by its answers; the common loop (decode, preprocess, run) is
subtracted from it.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from card import RESULTS, Row
from processes import CORES, Server
from traffic import Cell, closed, exchange, open_loop, photo, request

from . import contenders
from .contenders import HERE, OURS, PEERS, ROOT, Contender

PATH = "/classify"
TOLERANCE = 1e-5
POISON_ROUNDS, GOOD = 5, 15
SHIPPED_ROW = f"{OURS}, {contenders.SHIPPED}"
SHIPPED_ASKED = {"tiny": 1.6, "embedded": 1.35}  # times the best peer's requests a second
OPEN = 6  # times the seconds of a closed loop: at 70 % of the capacity, requests that wait long are rare


@dataclass(frozen=True)
class Bench:
    """What a comparison needs: the models by name, where logs and the photo file go, seconds of a cell."""

    models: dict[str, Path]
    folder: Path
    seconds: float

    @property
    def photo(self) -> Path:
        path = self.folder / "photo.jpg"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photo())
        return path


class Loop:
    """The common loop in a process on the server's core, running only while asked."""

    def __init__(self, bench: Bench, model: Path, core: int) -> None:
        environment = {
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(HERE))),
            "BENCH_MODEL": str(model),
            "BENCH_PHOTO": str(bench.photo),
            "BENCH_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "common.py")],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, [core]),
        )
        self.run(0.3)

    def begin(self, seconds: float) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()

    def end(self) -> dict[str, float]:
        """rate, p50 and cpu_ms (milliseconds) of what `begin` began."""
        assert self._process.stdout
        found: dict[str, float] = json.loads(self._process.stdout.readline())
        return found

    def run(self, seconds: float) -> dict[str, float]:
        self.begin(seconds)
        return self.end()

    def close(self) -> None:
        self._process.communicate()


@contextlib.contextmanager
def started(
    contender: Contender, bench: Bench, model: Path, reference: dict | None = None, core: int = CORES[0]
) -> Iterator[tuple[Server, bytes]]:
    """(the ready server, the request it gets). AssertionError where its answer is not the reference's. One
    that does not become ready is started once more: another process may have taken one of its ports between
    their choice and their use."""
    try:
        server, message = _ready(contender, bench, model, core)
    except RuntimeError:
        server, message = _ready(contender, bench, model, core)
    with server:
        if reference:
            check(answer(server, message), reference, contender)
        yield server, message


def _ready(contender: Contender, bench: Bench, model: Path, core: int) -> tuple[Server, bytes]:
    server = contender.start(model, bench.photo, [core], bench.folder / "logs")
    message = request(server.port, PATH, bench.photo.read_bytes(), contender.form, contender.field)
    try:
        return _answering(server, message), message
    except RuntimeError:
        server.stop()
        raise


def _answering(server: Server, message: bytes) -> Server:
    return server.wait(lambda: exchange(server.port, message)[0] == 200)


def answer(server: Server, message: bytes) -> dict:
    status, body = exchange(server.port, message)
    assert status == 200, (status, body[:200])
    found = json.loads(body)
    return found[0] if isinstance(found, list) else found


def check(found: dict, reference: dict, contender: Contender) -> None:
    """The same top class, every probability within 1e-5; of a smaller file, whose classes may be nearly tied
    (random weights), a top class that is among the reference's."""
    if contender.as_shipped:
        named = [p["class_id"] for p in reference["predictions"]]
        assert found["predictions"][0]["class_id"] in named, (contender.setting, found, reference)
        return
    pairs = list(zip(found["predictions"], reference["predictions"], strict=True))
    assert pairs[0][0]["class_id"] == pairs[0][1]["class_id"], (contender.name, found, reference)
    scores = {p["class_id"]: p["score"] for p in found["predictions"]}
    assert all(
        abs(scores.get(p["class_id"], -1) - p["score"]) <= TOLERANCE for p in reference["predictions"]
    ), (contender.name, found, reference)


def reference_of(bench: Bench, model: Path) -> dict:
    """What our server answers."""
    with started(contenders.ours(), bench, model) as (server, message):
        return answer(server, message)


def tune(bench: Bench) -> list[Row]:
    """Every setting of every peer on every model: requests a second at 16 connections, and what a poisoned
    picture costs its neighbours."""
    rows: list[Row] = []
    for name, model in bench.models.items():
        reference = reference_of(bench, model)
        for contender in [contenders.ours(), *(c for peer in PEERS for c in contenders.settings(peer))]:
            row: dict[str, object] = {"model": name, "server": contender.name, "setting": contender.setting}
            try:
                with started(contender, bench, model, reference) as (server, message):
                    cell = closed(server, message, connections=16, seconds=bench.seconds)
                    bad, lost = poison(server, contender, bench)
                    row |= {"requests/s at 16": cell.rate, "p50 ms at 16": cell.p50, "errors": cell.errors}
                    row |= {"bad photo answered": bad, f"good ones failed of {POISON_ROUNDS * GOOD}": lost}
            except RuntimeError as reason:
                row |= {"requests/s at 16": 0.0, "errors": str(reason).strip().splitlines()[-1][-200:]}
            print(row, file=sys.stderr)
            rows.append(row)
    best = {(row["model"], row["server"]): max(_rates(rows, row)) for row in rows}
    return [
        {**row, "chosen": "yes" if row["requests/s at 16"] == best[row["model"], row["server"]] > 0 else ""}
        for row in rows
    ]


def _rates(rows: list[Row], like: Row) -> list[float]:
    return [
        float(str(row["requests/s at 16"]))
        for row in rows
        if (row["model"], row["server"]) == (like["model"], like["server"])
    ]


def poison(server: Server, contender: Contender, bench: Bench) -> tuple[str, int]:
    """(statuses that a truncated JPEG got, how many of the good photos sent in the same moment were not
    answered with 200)."""
    data = bench.photo.read_bytes()
    good = request(server.port, PATH, data, contender.form, contender.field)
    bad = request(server.port, PATH, data[: len(data) // 2], contender.form, contender.field)

    def status(job: bytes) -> str:
        try:
            return str(exchange(server.port, job)[0])
        except (OSError, ValueError, IndexError):
            return "broken"

    statuses, lost = set(), 0
    with ThreadPoolExecutor(GOOD + 1) as threads:
        for _ in range(POISON_ROUNDS):
            found = list(threads.map(status, [good] * (GOOD // 2) + [bad] + [good] * (GOOD - GOOD // 2)))
            statuses.add(found.pop(GOOD // 2))
            lost += sum(each != "200" for each in found)
    return " ".join(sorted(statuses)), lost


def chosen(model: str) -> list[Contender]:
    """Each peer at the setting that `tune` found best for this model; ours with the photo raw and as
    multipart, and as it is shipped."""
    file = RESULTS / "peers_settings.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    best = {row["server"]: row["setting"] for row in rows if row["model"] == model and row["chosen"]}
    if absent := [peer for peer in PEERS if peer not in best]:
        raise SystemExit(
            f"no setting is known to work for {', '.join(absent)} with {model}; run: python "
            "benchmarks/server.py tune --save"
        )
    peers = [c for peer in PEERS for c in contenders.settings(peer) if c.setting == best[peer]]
    shipped = contenders.ours(contenders.SHIPPED if model == "embedded" else contenders.INT8)
    return [contenders.ours(), contenders.ours(form="multipart"), shipped, *peers]


def compare(bench: Bench, rounds: int) -> tuple[list[Row], list[Row]]:
    """(closed loop, open loop) rows of every model."""
    closed_rows: list[Row] = []
    open_rows: list[Row] = []
    for name, model in bench.models.items():
        reference = reference_of(bench, model)
        loop = Loop(bench, model, CORES[0])
        with contextlib.ExitStack() as stack:
            entered = []
            for contender in chosen(name):
                server, message = stack.enter_context(started(contender, bench, model, reference))
                server.pause()
                entered.append((contender, server, message))
                print(
                    name, _title(contender), f"ready after {server.seconds_to_ready:.0f} s", file=sys.stderr
                )
            cells: dict[tuple[int, int], list[Cell]] = {}
            loops = []
            for number in range(rounds):
                loops.append(loop.run(bench.seconds / 2)["cpu_ms"])
                for i, server, message in _in_turn(entered, number):
                    for connections, seconds in ((16, bench.seconds), (1, 0.7 * bench.seconds)):
                        cells.setdefault((i, connections), []).append(
                            closed(server, message, connections=connections, seconds=seconds)
                        )
                print(
                    name,
                    "round",
                    number + 1,
                    {_title(c): round(cells[i, 16][-1].rate, 1) for i, (c, _, _) in enumerate(entered)},
                    file=sys.stderr,
                )
            bare = statistics.median(loops)
            for i, (contender, server, _) in enumerate(entered):
                closed_rows.append(_summary(name, contender, server, cells[i, 16], cells[i, 1], bare))
            best = max(_median(cells[i, 16], "rate") for i, (c, _, _) in enumerate(entered) if c.name != OURS)
            opened: dict[int, list[Cell]] = {}
            for number in range(rounds):
                for i, server, message in _in_turn(entered, number):
                    opened.setdefault(i, []).append(
                        open_loop(server, message, rate=0.7 * best, seconds=OPEN * bench.seconds, seed=number)
                    )
                print(
                    name,
                    "open round",
                    number + 1,
                    {_title(c): round(opened[i][-1].p99) for i, (c, _, _) in enumerate(entered)},
                    file=sys.stderr,
                )
            open_rows += [
                _opened(name, contender, 0.7 * best, opened[i]) for i, (contender, _, _) in enumerate(entered)
            ]
        loop.close()
    return closed_rows, open_rows


def _in_turn(
    entered: list[tuple[Contender, Server, bytes]], number: int
) -> Iterator[tuple[int, Server, bytes]]:
    """The paused servers with their places, one running at a time; every round begins with another one. Each
    is waited for: a balancer inside it may have given its backends up while all of them were stopped."""
    for place in range(len(entered)):
        i = (number + place) % len(entered)
        _, server, message = entered[i]
        server.resume()
        yield i, _answering(server, message), message
        server.pause()


def _title(contender: Contender) -> str:
    if contender.as_shipped:
        return f"{OURS}, {contenders.SHIPPED}"
    return f"{contender.name} ({contender.form})" if contender.name == OURS else contender.name


def _median(cells: list[Cell], what: str) -> float:
    return statistics.median(getattr(cell, what) for cell in cells)


def _range(cells: list[Cell], what: str) -> str:
    values = [getattr(cell, what) for cell in cells]
    return f"{min(values):.1f}-{max(values):.1f}"


def _summary(
    model: str, contender: Contender, server: Server, busy: list[Cell], single: list[Cell], bare: float
) -> Row:
    server.resume()
    memory = server.memory()
    server.pause()
    return {
        "model": model,
        "server": _title(contender),
        "setting": contender.setting,
        "requests/s at 16": _median(busy, "rate"),
        "range at 16": _range(busy, "rate"),
        "p50 ms at 16": _median(busy, "p50"),
        "p99 ms at 16": _median(busy, "p99"),
        "requests/s at 1": _median(single, "rate"),
        "range at 1": _range(single, "rate"),
        "p50 ms at 1": _median(single, "p50"),
        "CPU ms above the loop at 16": _median(busy, "cpu_ms") - bare,
        "CPU ms above the loop at 1": _median(single, "cpu_ms") - bare,
        "loop CPU ms": bare,
        "errors": sum(cell.errors for cell in (*busy, *single)),
        "memory MiB": memory,
        "ready s": server.seconds_to_ready,
    }


def _opened(model: str, contender: Contender, offered: float, cells: list[Cell]) -> Row:
    return {
        "model": model,
        "server": _title(contender),
        "offered/s": offered,
        "p50 ms": _median(cells, "p50"),
        "p99 ms": _median(cells, "p99"),
        "errors": sum(cell.errors for cell in cells),
        "p50 ms by round": [round(cell.p50, 1) for cell in cells],
        "p99 ms by round": [round(cell.p99, 1) for cell in cells],
    }


def verdicts(rows: list[Row]) -> dict[str, str]:
    """Of every model and load: ahead where our slowest round beats the best peer's fastest, behind the other
    way round, else a tie; and the CPU ratio."""
    found = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        mine, others = _sides(rows, model)
        for load in ("16", "1"):
            low, high = _bounds(mine, load)
            rival = max(others, key=lambda row: float(str(row[f"requests/s at {load}"])))
            theirs = _bounds(rival, load)
            word = "ahead of" if low > theirs[1] else "behind" if high < theirs[0] else "a tie with"
            costs = {
                row["server"]: float(str(row[f"CPU ms above the loop at {load}"])) for row in (mine, *others)
            }
            own = costs.pop(mine["server"])
            cheapest = min(costs, key=lambda server: costs[server])
            share = (
                f"{own / costs[cheapest]:.0%}" if costs[cheapest] > 0 else "not told apart from the loop's"
            )
            found[f"{model} at {load}"] = (
                f"{word} {rival['server']} ({mine[f'requests/s at {load}']:.1f} to "
                f"{rival[f'requests/s at {load}']:.1f} requests/s); "
                f"CPU above the loop {own:.2f} ms to {costs[cheapest]:.2f} ms of {cheapest}, the cheapest "
                f"peer: {share}"
            )
    return found


def same_file(rows: list[Row]) -> list[Row]:
    """Those where all run the same file."""
    return [row for row in rows if row["server"] != SHIPPED_ROW]


def as_shipped(rows: list[Row]) -> list[Row]:
    """Ours as it is shipped, and the peers."""
    return [row for row in rows if row["server"] in (SHIPPED_ROW, *PEERS)]


def shipped_verdicts(rows: list[Row]) -> dict[str, str]:
    """Of every model and load: ours as shipped over the best peer, and what was asked."""
    found = {}
    for mine in (row for row in rows if row["server"] == SHIPPED_ROW):
        model = str(mine["model"])
        for load in ("16", "1"):
            rates = {
                str(row["server"]): float(str(row[f"requests/s at {load}"]))
                for row in rows
                if row["model"] == model
            }
            own, asked = rates.pop(SHIPPED_ROW), SHIPPED_ASKED[model]
            best = max(rates, key=lambda server: rates[server])
            word = "met" if own >= asked * rates[best] else "missed"
            ratio = f"{own / rates[best]:.2f} times {best}"
            found[f"{model} at {load}"] = f"{ratio}, asked {asked}: {word}"
    return found


def open_verdicts(rows: list[Row]) -> dict[str, str]:
    """Of every model: ahead where our latency is below the best peer's in every round (they share their
    arrivals), behind where it is above in every one."""
    found = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        mine, others = _sides(rows, model)
        for what in ("p50 ms", "p99 ms"):
            rival = min(others, key=lambda row: float(str(row[what])))
            below = [
                own < other
                for own, other in zip(mine[f"{what} by round"], rival[f"{what} by round"], strict=True)
            ]
            word = "ahead of" if all(below) else "a tie with" if any(below) else "behind"
            verdict = (
                f"{word} {rival['server']} ({mine[what]:.0f} to {rival[what]:.0f} ms, lower in {sum(below)} "
                f"of {len(below)} rounds)"
            )
            found[f"{model} {what}"] = verdict
    return found


def _sides(rows: list[Row], model: object) -> tuple[Row, list[Row]]:
    """Our row with the photo raw, and the peers' rows, of one model."""
    mine = next(
        row for row in rows if row["model"] == model and str(row["server"]).startswith(f"{OURS} (raw")
    )
    return mine, [row for row in rows if row["model"] == model and row["server"] in PEERS]


def _bounds(row: Row, load: str) -> tuple[float, float]:
    low, high = str(row[f"range at {load}"]).split("-")
    return float(low), float(high)
