"""A model is replaced under load, well and badly: a good one takes over without a lost request, a bad one is
reported and the old keeps serving."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.faults.load import Outcome, closed
from tests.faults.test_hangups import figure
from tests.serving import post, served


def truncated(model: Path) -> None:
    model.write_bytes(model.read_bytes()[: model.stat().st_size // 2])


def text(model: Path) -> None:
    model.write_text("this is no model")


def edited(change: Callable) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        import onnx

        model = onnx.load(path)
        change(model)
        path.write_bytes(model.SerializeToString())

    return edit


def nan_weights(model) -> None:
    import numpy as np
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim > 1:
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, np.nan), tensor.name))


def fewer_labels(model) -> None:
    for entry in model.metadata_props:
        if entry.key == "paca.manifest":
            manifest = json.loads(entry.value)
            manifest["labels"] = manifest["labels"][:-1]
            entry.value = json.dumps(manifest)


def no_manifest(model) -> None:
    del model.metadata_props[:]


def another_input(model) -> None:
    old = model.graph.input[0].name
    model.graph.input[0].name = "pixels"
    for node in model.graph.node:
        node.input[:] = ["pixels" if name == old else name for name in node.input]


def data_elsewhere(model) -> None:
    import onnx

    tensor = next(t for t in model.graph.initializer if t.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../../etc/passwd"


BAD = {
    "truncated": truncated,
    "text": text,
    "NaN weights": edited(nan_weights),
    "fewer labels": edited(fewer_labels),
    "no manifest": edited(no_manifest),
    "another input": edited(another_input),
    "data elsewhere": edited(data_elsewhere),
}


def test_bad_versions_never_serve_and_a_good_one_takes_over(repository, pictures, record):
    asyncio.run(scenario(repository, [post(p) for p in pictures], record))


async def scenario(repository, requests, record):
    outcome, until = Outcome(), asyncio.Event()
    first = repository / "tiny" / "1"

    def add(version: int, spoil: Callable[[Path], None] | None = None) -> None:
        making = repository / f"making-{version}"
        shutil.copytree(first, making)
        if spoil:
            spoil(making / "model.onnx")
        making.rename(repository / "tiny" / str(version))

    def has_failed(times: int) -> bool:
        return figure(serving.url, "paca_reload_failures_total") == times

    async def until_answered(condition: Callable[[], bool]) -> None:
        for _ in range(600):
            if await asyncio.to_thread(condition):
                return
            await asyncio.sleep(0.1)
        pytest.fail("it did not happen within a minute")

    with served(repository, watch_models=0.2) as serving:
        load = asyncio.create_task(closed(serving.port, requests, 4, until, outcome))
        for i, spoil in enumerate(BAD.values()):
            await asyncio.to_thread(add, 2 + i, spoil)
            await until_answered(partial(has_failed, i + 1))
        assert httpx.get(f"{serving.url}/models/tiny").json()["versions"] == ["1"]
        await asyncio.to_thread(add, 50)
        await until_answered(
            lambda: httpx.get(f"{serving.url}/models/tiny").json()["versions"] == ["1", "50"]
        )
        await asyncio.sleep(0.5)
        until.set()
        await load
    versions = {json.loads(answer.body)["model_version"] for answer in outcome.of(200)}
    record(bad_versions=len(BAD), requests=len(outcome.answers), lost=len(outcome.lost))
    assert set(outcome.statuses()) == {200}
    assert versions == {"1", "50"}
