"""A bad file beside good ones: whatever is wrong with it, the good ones serve, the watcher lives, and a later
good version is loaded."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from service.artifact import MANIFEST_KEY
from service.errors import CannotStart
from service.registry import Registry
from service.settings import Settings
from service.wiring import build_registry

Spoil = Callable[[Path], object]  # gets the version's folder


def edited(change: Callable[[onnx.ModelProto], None], name: str = "model.onnx") -> Spoil:
    def edit(folder: Path) -> None:
        model = onnx.load(folder / name)
        change(model)
        (folder / name).write_bytes(model.SerializeToString())

    return edit


def manifest(**changed: Any) -> Spoil:
    """With other values in the manifest; `golden_logits` for those of the golden answer."""

    def change(model: onnx.ModelProto) -> None:
        (entry,) = (p for p in model.metadata_props if p.key == MANIFEST_KEY)
        values = json.loads(entry.value)
        for key, value in changed.items():
            outer, _, inner = key.partition("__")
            if inner:
                values[outer][inner] = value
            else:
                values[outer] = value
        entry.value = json.dumps(values)

    return edited(change)


def no_manifest(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def nan_weights(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim > 1:
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, np.nan), tensor.name))


def rename_output(old: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = [f"{old}_" if name == old else name for name in node.output]
            node.input[:] = [f"{old}_" if name == old else name for name in node.input]
        for output in model.graph.output:
            output.name = f"{old}_" if output.name == old else output.name

    return change


def a_text(name: str) -> Spoil:
    return lambda folder: (folder / name).write_text("this is no model")


def truncated(folder: Path) -> None:
    os.truncate(folder / "model.onnx", (folder / "model.onnx").stat().st_size // 2)


def empty(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"")


def sparse(folder: Path) -> None:
    os.truncate(folder / "model.onnx", 2**31 - 1)


def enormous(folder: Path) -> None:
    os.truncate(folder / "model.onnx", 2**36)


def a_folder(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").mkdir()


def config(text: str) -> Spoil:
    return lambda folder: (folder / "config.json").write_text(text)


BAD: dict[str, tuple[Spoil, str]] = {
    "truncated": (truncated, "not whole"),
    "text": (a_text("model.onnx"), "not an ONNX file"),
    "empty": (empty, "not an ONNX file"),
    "sparse": (sparse, "not an ONNX file"),
    "enormous": (enormous, "not an ONNX file"),
    "a folder": (a_folder, "cannot read the model file model.onnx: Is a directory"),
    "no manifest": (edited(no_manifest), "carries no PaCa manifest"),
    "another size": (manifest(preprocessing__size=[31, 31]), "its manifest says"),
    "a size that is no number": (manifest(preprocessing__size=["a", "b"]), "preprocessing.size"),
    "no golden logits": (manifest(golden__logits=[]), "golden.logits"),
    "another golden answer": (manifest(golden__logits=[9.0, 9.0]), "self-test failed"),
    "NaN weights": (edited(nan_weights), "self-test failed"),
    "a missing output": (edited(rename_output("tokens")), "lacks the outputs tokens"),
    "fewer labels": (manifest(labels=["red", "green"]), "2 classes"),
    "more labels": (manifest(labels=["1", "2", "3", "4", "5"]), "labels"),
    "explain.onnx is text": (a_text("explain.onnx"), r"explain\.onnx is not an ONNX file"),
    "explain.onnx is another graph": (
        lambda folder: shutil.copy(folder / "model.onnx", folder / "explain.onnx"),
        "'features' and 'weights'",
    ),
    "explain.onnx with NaN weights": (edited(nan_weights, "explain.onnx"), r"explain\.onnx.* not finite"),
    "explain.onnx lacks a map": (
        edited(rename_output("map_2"), "explain.onnx"),
        r"explain\.onnx lacks the outputs map_2",
    ),
    "settings with an unknown key": (config('{"max_bach": 1}'), "unknown key 'max_bach'"),
    "settings out of range": (config('{"threads": -1}'), "threads=-1 is not valid"),
    "settings for another file": (config('{"precision": "int8"}'), r"there is no model\.int8\.onnx"),
}


async def soon(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


def watching(folder: Path) -> Registry:
    return build_registry(Settings(models=folder, provider="cpu", instances=1, watch_models=0.05))


def add(folder: Path, name: str, version: str, spoil: Spoil | None = None) -> None:
    """Puts a version into place by renaming, as users should."""
    making = folder / f"making-{name}"
    shutil.copytree(folder / "tiny" / "1", making)
    if spoil:
        spoil(making)
    (folder / name).mkdir(exist_ok=True)
    making.rename(folder / name / version)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named_once_and_costs_nobody_else_anything(
    repository: Path, jpeg: bytes, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, reason = BAD[kind]

    async def main() -> None:
        add(repository, "a-bad-one", "1", spoil)  # before the good one in alphabetical order
        registry = watching(repository)
        await registry.start()
        try:
            assert registry.ready == (True, "ready")
            (failure,) = registry.failures()
            assert (failure.name, failure.version, failure.kind) == ("a-bad-one", "1", "bad-artifact")
            assert failure.retry_in_seconds is None
            assert "\n" not in failure.message
            assert re.search(reason, failure.message), failure.message
            await asyncio.sleep(0.2)  # a few looks of the watcher
            assert registry.reload_failures == 1
            add(repository, "a-bad-one", "2")
            await soon(lambda: len(registry.models()) == 2)
            assert registry.get("a-bad-one").version == "2"
            assert (await registry.get("tiny").classify(jpeg)).predictions
        finally:
            await registry.close()

    asyncio.run(main())
    assert sum("a-bad-one" in r.getMessage() for r in caplog.records if r.levelname == "ERROR") == 1


def test_a_server_of_bad_files_alone_does_not_start_and_says_what_is_wrong_with_each(
    repository: Path,
) -> None:
    for i, (spoil, _) in enumerate(BAD.values()):
        add(repository, f"bad-{i}", "1", spoil)
    shutil.rmtree(repository / "tiny")
    with pytest.raises(CannotStart, match="no model could be loaded") as caught:
        asyncio.run(build_registry(Settings(models=repository, provider="cpu")).start())
    assert str(caught.value).count("version 1: ") == len(BAD)


def test_a_bad_file_that_is_mended_in_place_is_taken_up(repository: Path) -> None:
    async def main() -> None:
        add(repository, "other", "1", truncated)
        registry = watching(repository)
        await registry.start()
        try:
            shutil.copy(repository / "tiny" / "1" / "model.onnx", repository / "other" / "1" / "new")
            (repository / "other" / "1" / "new").rename(repository / "other" / "1" / "model.onnx")
            await soon(lambda: len(registry.models()) == 2)
            assert registry.failures() == ()
        finally:
            await registry.close()

    asyncio.run(main())


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Takes everybody's permission to look into a folder; root, who needs none, is refused all the same."""
    folders: list[Path] = []

    def lock(folder: Path) -> None:
        folder.chmod(0)
        folders.append(folder)

    def refused(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Path, *args: Any, **named: Any) -> Any:
            listed = real.__name__ == "iterdir" and path in folders
            if listed or any(folder in path.parents for folder in folders):
                raise PermissionError(13, "Permission denied")
            return real(path, *args, **named)

        return call

    for method in ("iterdir", "stat"):
        monkeypatch.setattr(Path, method, refused(getattr(Path, method)))
    yield lock
    for folder in folders:
        folder.chmod(0o755)
    folders.clear()


@pytest.mark.parametrize("which", ["other", "other/1"])
def test_a_folder_that_cannot_be_read_is_skipped_with_one_line(
    repository: Path, locked: Callable[[Path], None], which: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        add(repository, "other", "1")
        locked(repository / which)
        registry = watching(repository)
        await registry.start()
        try:
            assert [status.name for status in registry.models()] == ["tiny"]
            add(repository, "third", "1")
            await soon(lambda: len(registry.models()) == 2)
            await asyncio.sleep(0.2)
        finally:
            await registry.close()

    asyncio.run(main())
    (line,) = (r.getMessage() for r in caplog.records if r.levelname == "ERROR")
    assert line == f"skipped {which} in the model repository: Permission denied"


def test_a_loaded_model_whose_folder_cannot_be_read_any_more_stays(
    repository: Path, locked: Callable[[Path], None]
) -> None:
    async def main() -> None:
        add(repository, "other", "1")
        registry = watching(repository)
        await registry.start()
        try:
            locked(repository / "other")
            await registry.reload()
            assert [status.name for status in registry.models()] == ["other", "tiny"]
        finally:
            await registry.close()

    asyncio.run(main())
