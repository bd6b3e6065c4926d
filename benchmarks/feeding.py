"""What a picture costs one server process when the network costs nothing: the ceiling that decoding and
Python set to a fast GPU.

    python benchmarks/feeding.py [--save]

A real server on loopback whose engine answers zeros at once. Counted is CPU time, which other work on the
machine disturbs less than the clock: of the whole process, and of the one thread that runs the event loop.
What the loop's thread needs cannot be shared out among cores: its inverse is the ceiling of one process,
however many threads decode.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from card import Row, finish
from processes import CORES, Server, free_port
from traffic import exchange, photo, request

from service.load import closed_loop

REPORT = "BENCH_FEEDING_REPORT"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--save", action="store_true")
    requested = parser.parse_args()
    rows: list[Row] = []
    for width, height in ((256, 256), (640, 480), (1280, 960)):
        rows.append(measure((width, height), requested.seconds))
        print(rows[-1], file=sys.stderr)
    finish("feeding", rows, save=requested.save)


def measure(size: tuple[int, int], seconds: float) -> Row:
    """One size of photo, 16 connections."""
    port, data = free_port(), photo(size)
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report"
        settings = {
            "PACA_PORT": str(port),
            "PACA_PROVIDER": "cpu",
            "PACA_PRECISION": "fp32",
            "PACA_MAX_BATCH": "16",
            "PACA_INSTANCES": "1",
            "PACA_LOG_LEVEL": "error",
            REPORT: str(report),
        }
        command = [sys.executable, __file__, "serve"]
        with Server(command, settings, port, CORES, Path(scratch) / "log") as running:
            message = request(port, "/classify", data)
            running.wait(lambda: exchange(port, message)[0] == 200, refusals=100_000)
            time.sleep(1.5)
            before = json.loads(report.read_text())
            load = closed_loop("127.0.0.1", port, message, connections=16, seconds=seconds, warm_up=0)
            result = asyncio.run(load)
            time.sleep(1.5)
            after = json.loads(report.read_text())
    answered = result.statuses.get(200, 0)
    whole, loop = (1000 * (after[key] - before[key]) / answered for key in ("process", "loop"))
    return {
        "photo": f"{size[0]} x {size[1]}",
        "KiB": len(data) / 1024,
        "answered": answered,
        "CPU ms": whole,
        "of it the loop's thread": loop,
        "pictures/s a core": 1000 / whole,
        "ceiling of one process": 1000 / loop,
        "errors": sum(result.statuses.values()) - answered + result.failures,
    }


def serve() -> None:
    """The server, with an engine that costs nothing; writes its CPU seconds every half second."""
    import os

    import numpy as np

    from service.cli import main as paca
    from service.engine import Engine, Outputs
    from service.predictor import Predictor

    def nothing(engine: Engine, images: np.ndarray, names: tuple[str, ...] = ()) -> Outputs:
        shapes = {name: (len(images), *engine.outputs[name][1:]) for name in ("logits", *names)}
        arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}  # type: ignore[arg-type]
        return Outputs(arrays.pop("logits"), arrays)

    made = Predictor.__init__

    def make(predictor: Predictor, *arguments: object, **named: object) -> None:
        made(predictor, *arguments, **named)  # type: ignore[arg-type]  # loaded and tested as ever
        Engine.run = nothing  # type: ignore[method-assign]

    Predictor.__init__ = make  # type: ignore[method-assign]
    report = Path(os.environ[REPORT])
    clock = time.pthread_getcpuclockid(threading.main_thread().ident or 0)

    def tell() -> None:
        while True:
            seconds = {"process": time.process_time(), "loop": time.clock_gettime(clock)}
            report.with_suffix(".part").write_text(json.dumps(seconds))
            report.with_suffix(".part").rename(report)
            time.sleep(0.5)

    threading.Thread(target=tell, daemon=True).start()
    paca()


if __name__ == "__main__":
    serve() if sys.argv[1:2] == ["serve"] else main()
