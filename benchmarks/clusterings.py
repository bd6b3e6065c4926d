"""The same small PaCa with every clustering inside, on CIFAR-10: what it learns, what it costs, whether it
can be exported.

    python benchmarks/clusterings.py                      trains what is not trained yet and prints the table;
                                                          stop and start it at will
    python benchmarks/clusterings.py --rows conv,kmeans --epochs 20 --trunk-epochs 0     two rows from scratch
    python benchmarks/clusterings.py --cost               no training: seconds a step and milliseconds a
                                                          picture of each row
    python benchmarks/clusterings.py --subset 2000 --epochs 1 --out /tmp/smoke      does it all run?

A common trunk (OUT/trunk: the same network with the cheapest clustering, linear) is trained first; every row
is `paca train cifar10 --clustering ROW` `--from` it, with the same recipe, seed and pictures and its
clusterings learned anew; its run lies in OUT/ROW. So a row costs a quarter of a training from scratch, and
none has a head start in its own clustering. Accuracy, precision, recall and F1 (means over classes) are of
the last scoring, on the JPEG test pack (10,000) and on the lossless subset (1,017). An epoch's cost is CPU
seconds of a step at full size times its steps, measured afterwards: training may share the machine, be
stopped and go on. Inference is one picture at a time on the CPU, in ONNX Runtime where the row can be
exported, in PyTorch always; medians. Needs the CIFAR-10 packs in --data or $PACA_DATA. With --save:
benchmarks/results/clusterings.json (or clusterings_cost.json).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from card import Row, finish
from rich.console import Console
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from export.checkpoints import load
from export.errors import ExportError
from export.paca import PaCaViT, create
from export.paca.cost import parameters
from export.paca.model import attend_explicit, use_attention
from export.pipeline import Format, Source, export_model
from export.training.loop import fit, start, torch_device
from export.training.memory import keep_memory
from export.training.progress import showing
from export.training.recipes import Options, Plan, plan, with_clustering
from export.training.run import finalise
from export.training.state import Run
from export.verify import VerificationError
from service.engine import Device, Engine

ROWS = ("conv", "mlp", "linear", "teacher", "kmeans", "gmm", "hierarchical", "dbscan")
REPEATS = 30


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PACA_DATA", "data")))
    parser.add_argument("--out", type=Path, default=Path("runs/clusterings"))
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--epochs", type=int, default=None, help="of every row")
    parser.add_argument("--trunk-epochs", type=int, default=20, help="0 = rows from scratch")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--subset", type=int, default=None, help="train on so many pictures only, test on as many"
    )
    parser.add_argument("--threads", type=int, default=0, help="0 = PyTorch's choice")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cost", action="store_true", help="only what a step and a picture cost")
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    rows = asked.rows.split(",")
    if unknown := set(rows) - set(ROWS):
        parser.error(f"unknown rows {', '.join(unknown)}; choose {', '.join(ROWS)}")
    if asked.threads:
        torch.set_num_threads(asked.threads)
    keep_memory()
    console = Console(stderr=True)
    begin = trunk(asked, console) if asked.trunk_epochs and not asked.cost else None
    table: list[Row] = []
    for row in rows:
        table.append(
            {"clustering": row, **(cost(row) if asked.cost else trained(row, begin, asked, console))}
        )
        console.print(table[-1])
    columns = dict.fromkeys(key for line in table for key in line)
    notes = {"trunk_epochs": asked.trunk_epochs, "seed": asked.seed, "threads": torch.get_num_threads()}
    name = "clusterings_cost" if asked.cost else "clusterings"
    finish(name, [{key: line.get(key) for key in columns} for line in table], save=asked.save, **notes)


def trunk(asked: argparse.Namespace, console: Console) -> Path:
    """The weights all rows begin with; trained, or gone on with, where they are not there yet."""
    out = asked.out / "trunk"
    if not (out / "model.safetensors").is_file():
        ready = _ready(Options(asked.data, out, asked.trunk_epochs, None, "linear", asked.seed), asked.subset)
        _run(ready, out, asked.device, console)
        finalise("cifar10", ready, out, console, torch_device(asked.device))
    return out / "model.safetensors"


def trained(row: str, begin: Path | None, asked: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Trains the row to its end (or goes on with it), exports it if it can be, and collects the numbers."""
    out, device = asked.out / row, torch_device(asked.device)
    ready = _ready(Options(asked.data, out, asked.epochs, begin, row, asked.seed), asked.subset)
    run = _run(ready, out, asked.device, console)
    final = finalise("cifar10", ready, out, console, device)
    loaded = load(final)
    batches = len(ready.train) // ready.recipe.batch
    answer: dict[str, Any] = {
        "parameters": parameters(loaded.model),
        "epochs": run.epoch,
        "cpu_s_per_epoch": round(cost(row)["step_cpu_s"] * batches),
    }
    for name in ready.tests:
        answer |= {
            f"{name}_{key}": round(100 * loaded.accuracy[name][key], 2)
            for key in ("accuracy", "precision", "recall", "f1")
        }
    answer["torch_ms"] = _milliseconds(_in_torch(loaded.model), _picture(loaded.model))
    try:
        export_model(
            Source(loaded.model, f"cifar-{row}", loaded.labels or (), loaded.temperature),
            out / "model.onnx",
            Format(with_explain=False),
        )
        engine = Engine(out / "model.onnx", Device("cpu", threads=torch.get_num_threads()))
        answer |= {
            "exportable": "yes",
            "onnx_ms": _milliseconds(lambda x: engine.run(x).logits, _picture(loaded.model)),
        }
    except (ExportError, VerificationError) as reason:
        answer["exportable"] = f"no: {reason}"
    return answer


def cost(row: str) -> dict[str, Any]:
    """An untrained row: seconds of a training step of 128 pictures, milliseconds of one picture, in
    PyTorch."""
    model = PaCaViT(with_clustering(create("paca_cifar_32").config, row))
    use_attention(model, attend_explicit)
    x, target = torch.randn(128, 3, 32, 32), torch.randint(0, 10, (128,))

    def step(_: object) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model.train()(x)
        F.cross_entropy(logits.float(), target).backward()

    return {
        "parameters": parameters(model),
        "step_s": round(_milliseconds(step, x, 5) / 1000, 3),
        "step_cpu_s": round(_milliseconds(step, x, 5, time.process_time) / 1000, 3),
        "torch_ms": _milliseconds(_in_torch(model), _picture(model)),
    }


def _ready(options: Options, subset: int | None) -> Plan:
    ready = plan("cifar10", options)
    return _shortened(ready, subset) if subset else ready


def _run(ready: Plan, out: Path, device: str, console: Console) -> Run:
    return fit(
        start(ready.config, ready.recipe, torch_device(device), ready.weights),
        ready.recipe,
        ready.train,
        ready.held_out,
        out,
        *showing(console),
    )


def _shortened(ready: Plan, count: int) -> Plan:
    rows = np.arange(count)
    tests = {name: pictures.take(rows[: len(pictures)]) for name, pictures in ready.tests.items()}
    return dataclasses.replace(
        ready,
        train=ready.train.take(rows),
        held_out=ready.held_out.take(rows[: len(ready.held_out)]),
        tests=tests,
    )


def _picture(model: PaCaViT) -> np.ndarray:
    return np.random.default_rng(0).integers(
        0, 256, (1, model.config.image_size, model.config.image_size, 3), np.uint8
    )


def _in_torch(model: PaCaViT) -> Callable[[np.ndarray], Any]:
    from export.training.loop import predict_batch

    return lambda x: predict_batch(model, x)


def _milliseconds(
    run: Callable[[Any], Any], x: Any, repeats: int = REPEATS, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Median of `repeats`, after two to warm up."""
    times = []
    for _ in range(repeats + 2):
        began = clock()
        run(x)
        times.append(1000 * (clock() - began))
    return round(statistics.median(times[2:]), 2)


if __name__ == "__main__":
    main()
