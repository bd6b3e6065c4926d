"""Batches of any size once a model is loaded: nothing is planned, launched one by one or allocated any more.
Counted by the kit; that a replayed graph gives the right numbers is checked by every load on a GPU (the
self-test in each batch size) and, with numbers, on the CPU in tests/service/test_engine.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuda.artifacts import CLASSIFIERS, DEFAULT, Artifact
from tests.cuda.conftest import in_inert_process

PASSES = """
import random
import numpy as np
from pathlib import Path
from service.engine import Device, Engine, GradientEngine
model = Path(args[0])
engine = Engine(model, Device("cuda"))
gradients = GradientEngine(model.with_name("explain.onnx"), Device("cuda"))
for one in (engine, gradients):
    one.prepare(16)
warm = inert.counters()
height, width = engine.manifest.preprocessing.size
classes = len(engine.manifest.labels)
def both(batch):
    pictures = np.zeros((batch, height, width, 3), np.uint8)
    features = engine.run(pictures, ("features", "tokens")).arrays["features"]
    gradients.run(features, np.zeros((batch, classes), np.float32))
order = list(range(1, 17)) * 2
random.Random(0).shuffle(order)
for batch in order:
    both(batch)
used = inert.counters() - warm
counts = dict(used.__dict__, runs=2 * len(order), sizes=[engine.lost, engine._session.batch_sizes])
print(json.dumps([warm.__dict__, counts]))
"""

LAUNCHES = ("kernel_launches", "gemms", "cudnn_executions", "cudnn_direct")


@pytest.mark.parametrize("artifact", CLASSIFIERS, ids=lambda artifact: artifact.name)
def test_batches_of_every_size_in_any_order_are_replays(artifact: Artifact) -> None:
    warm, used = in_inert_process(PASSES, artifact.model)
    assert used["sizes"] == ["", [1, 4, 8, 16]]
    assert warm["graph_captures"] == 2 * 4
    assert warm["unsafe_in_capture"] == 0
    assert used["graph_launches"] == used["runs"] == 64
    for count in ("cudnn_plans", *LAUNCHES, "graph_captures", "mallocs"):
        assert used[count] == 0, count


CAPTURE = """
import logging
import numpy as np
from pathlib import Path
from service.session import Device, Session
said = []
logging.getLogger("paca.session").addFilter(lambda record: said.append(record.getMessage()) or True)
session = Session(Path(args[0]), Device("cuda"))
session.prepare(4)
session.run(("logits",), {"image": np.zeros((3, 4, 4), np.float32)})
print(json.dumps([inert.counters().graph_captures, said]))
"""


def test_a_graph_that_cannot_be_captured_runs_without(falling_model: Path) -> None:
    """ONNX Runtime refuses to capture where a node that computes is on the CPU: slower, and said."""
    captures, said = in_inert_process(CAPTURE, falling_model)
    assert captures == 0
    assert any("without captured graphs" in line for line in said)


RELOAD = """
import threading
import numpy as np
from pathlib import Path
from service.engine import Device, Engine
model = Path(args[0])
serving, coming = Engine(model, Device("cuda")), Engine(model, Device("cuda"))
serving.prepare(4)
batch = np.zeros((1, *serving.manifest.preprocessing.size, 3), np.uint8)
over = threading.Event()
runs = []
def serve():
    while not over.is_set():
        serving.run(batch)
        runs.append(1)
threads = [threading.Thread(target=serve) for _ in range(2)]
for thread in threads:
    thread.start()
coming.prepare(16)
over.set()
for thread in threads:
    thread.join()
print(json.dumps([len(runs), inert.counters().unsafe_in_capture]))
"""


def test_no_run_disturbs_a_capture_while_a_new_version_is_loaded() -> None:
    """CUDA breaks a capture off when another thread copies or allocates meanwhile."""
    runs, unsafe = in_inert_process(RELOAD, DEFAULT[0].model)
    assert runs > 10
    assert unsafe == 0
