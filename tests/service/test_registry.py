"""Which model answers, and how a new version takes over without a lost request; with real models on the real
engine."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from service.artifact import MANIFEST_KEY, Manifest
from service.errors import CannotStart, DeviceLost, EngineFailure, NotReady, UnknownModel
from service.predictor import Predictor
from service.providers import PROVIDERS, FixedBatches
from service.registry import Registry
from service.repository import FILES, ModelFiles
from service.session import Bucket
from service.settings import Settings
from service.wiring import build_registry


@asynccontextmanager
async def started(folder: Path, **settings: Any) -> AsyncIterator[Registry]:
    registry = build_registry(Settings(models=folder, provider="cpu", **{"instances": 1, **settings}))
    await registry.start()
    try:
        yield registry
    finally:
        await registry.close()


def add_version(folder: Path, version: str) -> Path:
    return Path(shutil.copytree(folder / "tiny" / "1", folder / "tiny" / version))


def test_nothing_answers_before_the_start(repository: Path) -> None:
    registry = build_registry(Settings(models=repository))
    assert registry.ready == (False, "loading: no model is ready yet")
    with pytest.raises(NotReady):
        registry.get()


def test_the_newest_version_answers_unless_another_is_asked_for(repository: Path) -> None:
    async def main() -> None:
        add_version(repository, "2")
        async with started(repository) as registry:
            assert registry.ready == (True, "ready")
            assert registry.get().version == "2"
            assert registry.get("tiny", "1").version == "1"
            assert registry.models()[0].versions == ("1", "2")

    asyncio.run(main())


def test_unknown_names_and_versions_list_what_is_loaded(repository: Path) -> None:
    async def main() -> None:
        async with started(repository) as registry:
            with pytest.raises(UnknownModel, match="loaded are: tiny"):
                registry.get("huge")
            with pytest.raises(UnknownModel, match="loaded are: 1"):
                registry.get("tiny", "7")

    asyncio.run(main())


def test_a_new_version_is_swapped_in_while_the_old_one_answers(repository: Path, jpeg: bytes) -> None:
    async def main() -> None:
        async with started(repository) as registry:
            old = registry.get()
            running = [asyncio.create_task(old.classify(jpeg)) for _ in range(8)]
            await asyncio.sleep(0)
            add_version(repository, "2")
            shutil.rmtree(repository / "tiny" / "1")
            assert await registry.reload() == []
            assert registry.get().version == "2"
            assert {answer.model_version for answer in await asyncio.gather(*running)} == {"1"}

    asyncio.run(main())


def test_a_request_that_just_got_the_old_version_is_answered_by_it_in_all_its_steps(
    repository: Path, jpeg: bytes
) -> None:
    async def main() -> None:
        async with started(repository) as registry:
            old = registry.get()
            model = repository / "tiny" / "1" / "model.onnx"
            shutil.copy(model, model.with_name("new"))
            model.with_name("new").replace(model)
            assert await registry.reload() == []
            assert registry.get() is not old
            await asyncio.sleep(0.1)
            explained = asyncio.create_task(old.explain(jpeg))
            await registry.close()
            assert (await explained).explanations

    asyncio.run(main())


@pytest.mark.parametrize(
    ("settings", "admitted"),
    [({}, 16 + 4), ({"instances": 20, "max_batch": 4}, 160 + 80), ({"queue_size": 3}, 3 + 4)],
)
def test_as_many_pictures_are_admitted_as_may_wait_and_run(
    repository: Path, settings: dict[str, int], admitted: int
) -> None:
    async def main() -> None:
        async with started(repository, **{"instances": 1, **settings}) as registry:
            capacity = registry.get().capacity
            assert capacity.admitted == admitted
            assert capacity.queue_size >= admitted + 128  # what was admitted is not refused half way

    asyncio.run(main())


@pytest.mark.parametrize(("small", "most"), [(1e9, 4), (0, 1)])
def test_on_cpu_only_small_networks_share_runs(
    repository: Path, monkeypatch: pytest.MonkeyPatch, small: float, most: int
) -> None:
    monkeypatch.setattr("service.providers.SMALL_NETWORK_MACS", small)

    async def main() -> None:
        async with started(repository) as registry:
            assert registry.get().capacity.max_batch == most

    asyncio.run(main())


@pytest.mark.parametrize("content", [b"", b"no model"])
def test_a_broken_version_is_reported_once_and_the_old_one_keeps_serving(
    repository: Path, jpeg: bytes, content: bytes
) -> None:
    async def main() -> None:
        async with started(repository) as registry:
            (add_version(repository, "2") / "model.onnx").write_bytes(content)
            (failure,) = await registry.reload()
            assert failure.startswith("model tiny version 2: ")
            assert registry.reload_failures == 1
            assert await registry.reload() == []  # known to be bad: not tried again until it changes
            assert (await registry.get().classify(jpeg)).model_version == "1"

    asyncio.run(main())


def test_a_repaired_version_is_taken_up(repository: Path) -> None:
    async def main() -> None:
        async with started(repository) as registry:
            broken = add_version(repository, "2") / "model.onnx"
            broken.write_bytes(b"half")
            await registry.reload()
            shutil.copy(repository / "tiny" / "1" / "model.onnx", broken)
            assert await registry.reload() == []
            assert registry.get().version == "2"

    asyncio.run(main())


def test_the_last_model_stays_even_when_its_folder_vanishes(repository: Path) -> None:
    async def main() -> None:
        async with started(repository) as registry:
            shutil.rmtree(repository / "tiny")
            await registry.reload()
            assert registry.get().name == "tiny"

    asyncio.run(main())


def test_a_watched_folder_is_taken_up_by_itself(repository: Path) -> None:
    async def main() -> None:
        async with started(repository, watch_models=0.05) as registry:
            add_version(repository, "3")
            for _ in range(200):
                if registry.get().version == "3":
                    break
                await asyncio.sleep(0.05)
            assert registry.get().version == "3"

    asyncio.run(main())


def failing(error: Exception, times: int) -> Callable[[Callable[..., Predictor]], Callable[..., Predictor]]:
    """A loader whose first `times` loads of the model `other` fail."""
    left = [times]

    def wrap(load: Callable[..., Predictor]) -> Callable[..., Predictor]:
        def loads(files: ModelFiles) -> Predictor:
            if files.name == "other" and left[0]:
                left[0] -= 1
                raise error
            return load(files)

        return loads

    return wrap


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (EngineFailure("memory is short"), "memory is short"),
        (OSError(5, "Input/output error"), "cannot look at its files: Input/output error"),
        (ZeroDivisionError("a mistake of ours"), "an unforeseen ZeroDivisionError"),
    ],
)
def test_what_the_files_did_not_cause_is_tried_again_ever_more_rarely_without_a_watcher(
    repository: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    monkeypatch.setattr("service.registry.FIRST_RETRY_SECONDS", 0.05)

    async def main() -> None:
        shutil.copytree(repository / "tiny", repository / "other")
        registry = build_registry(Settings(models=repository, provider="cpu", instances=1))
        registry._load = failing(error, 3)(registry._load)
        await registry.start()
        try:
            assert registry.ready == (True, "ready")
            (failure,) = registry.failures()
            assert (failure.name, failure.kind, failure.message) == ("other", "engine-failure", message)
            assert failure.retry_in_seconds <= 0.05
            with pytest.raises(NotReady, match="tried again") as caught:
                registry.get("other")
            assert caught.value.retry_after <= 0.05
            pauses = set()
            while registry.failures():
                pauses.add(registry._failed["other", "1"].pause)
                await asyncio.sleep(0.005)
            assert pauses == {0.05, 0.1, 0.2}
            assert registry.reload_failures == 3
            assert registry.get("other").version == "1"
        finally:
            await registry.close()

    asyncio.run(main())


def test_the_default_model_is_ready_first_and_its_newest_version_answers_from_the_start(
    repository: Path,
) -> None:
    async def main() -> None:
        shutil.copytree(repository / "tiny", repository / "other")
        add_version(repository, "2")
        registry = build_registry(Settings(models=repository, default_model="tiny", instances=1))
        loaded: list[tuple[str, str]] = []
        load, go_on = registry._load, threading.Event()

        def slowly(files: ModelFiles) -> Predictor:
            if loaded:
                assert go_on.wait(30)
            loaded.append((files.name, files.version))
            return load(files)

        registry._load = slowly
        starting = asyncio.create_task(registry.start())
        while not registry.ready[0]:
            assert registry.ready[1] == "loading: the default model tiny is not ready yet"
            await asyncio.sleep(0.005)
        assert registry.get().version == "2"
        assert registry.loading == (("tiny", "1"), ("other", "1"))
        with pytest.raises(NotReady, match="'other' is not loaded yet"):
            registry.get("other")
        go_on.set()
        await starting
        assert loaded == [("tiny", "2"), ("tiny", "1"), ("other", "1")]
        assert registry.loading == ()
        await registry.close()

    asyncio.run(main())


def test_a_default_model_that_cannot_be_loaded_is_said_and_the_others_serve(repository: Path) -> None:
    async def main() -> None:
        shutil.copytree(repository / "tiny", repository / "other")
        (repository / "other" / "1" / "model.onnx").write_bytes(b"no model")
        async with started(repository, default_model="other") as registry:
            assert registry.ready == (
                False,
                "the default model could not be loaded: model other version 1: "
                "model.onnx is not an ONNX file, or not whole",
            )
            assert registry.get("tiny").version == "1"
            with pytest.raises(UnknownModel, match="'other'; loaded are: tiny"):
                registry.get()
            shutil.copy(repository / "tiny" / "1" / "model.onnx", repository / "other" / "1" / "model.onnx")
            await registry.reload()
            assert registry.ready == (True, "ready")

    asyncio.run(main())


def test_no_count_is_lost_when_a_version_is_replaced_or_dropped(
    repository: Path, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.registry.LAST_SECONDS", 0.1)

    async def main() -> None:
        shutil.copytree(repository / "tiny", repository / "other")
        async with started(repository) as registry:
            old = registry.get("tiny")
            await old.classify(jpeg)
            shutil.move(repository / "tiny" / "1", repository / "tiny" / "2")
            await registry.reload()
            await old.classify(jpeg)  # by who had got it before
            await registry.get("tiny").explain(jpeg)
            assert registry.counters()["tiny"].pictures.items == 3
            await asyncio.gather(*registry._closing)
            assert registry.counters()["tiny"].pictures.items == 3
            assert registry.counters()["tiny"].gradients.items == 1
            shutil.rmtree(repository / "tiny")
            await registry.reload()
            await asyncio.gather(*registry._closing)
            assert [status.name for status in registry.models()] == ["other"]
            assert registry.counters()["tiny"].pictures.items == 3

    asyncio.run(main())


def test_each_model_runs_on_its_own_settings(repository: Path, jpeg: bytes) -> None:
    async def main() -> None:
        shutil.copytree(repository / "tiny", repository / "other")
        own = {"threads": 1, "instances": 3, "max_batch": 7, "max_wait_ms": 2.5, "precision": "int8"}
        (repository / "other" / "1" / "config.json").write_text(json.dumps(own))
        shutil.copy(repository / "other" / "1" / "model.onnx", repository / "other" / "1" / "model.int8.onnx")
        async with started(repository, max_batch=2) as registry:
            tiny, other = registry.get("tiny"), registry.get("other")
            assert (tiny.capacity.instances, tiny.capacity.max_batch, tiny.capacity.max_wait) == (1, 2, 0)
            assert (other.capacity.instances, other.capacity.max_batch) == (3, 7)
            assert other.capacity.max_wait == 0.0025
            assert (other.capacity.runs.threads, other.batcher.bounds.max_wait) == (1, 0.0025)
            assert other._engine._session._path.name == "model.int8.onnx"
            assert (await tiny.classify(jpeg)).predictions == (await other.classify(jpeg)).predictions
            (repository / "other" / "1" / "config.json").write_text('{"max_batch": 5}')
            await registry.reload()
            assert registry.get("tiny") is tiny
            assert registry.get("other").capacity.max_batch == 5
            assert registry.get("other")._engine._session._path.name == "model.onnx"

    asyncio.run(main())


def test_models_that_serve_together_share_the_cores_of_one(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may use them all, so that one alone is as fast as without the others."""
    monkeypatch.setattr("service.wiring.cores", lambda: 6)

    async def main() -> None:
        for name in ("b", "c"):
            shutil.copytree(repository / "tiny", repository / name)
        (repository / "c" / "1" / "config.json").write_text('{"instances": 4, "threads": 2}')
        async with started(repository, instances=0, workers=2) as registry:
            capacities = [registry.get(name).capacity for name in ("tiny", "b", "c")]
            assert [(c.instances, c.runs.threads) for c in capacities] == [(3, 1), (3, 1), (4, 2)]
            assert len({id(c.runs.room) for c in capacities}) == 1
            assert len({id(c.gradient_runs.room) for c in capacities}) == 1
            assert capacities[0].runs.room.cores == 8  # what c alone would use
            assert capacities[0].gradient_runs.room.cores == 1

    asyncio.run(main())


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_files_of_one_version_that_were_made_from_different_weights_are_refused_together(
    repository: Path, precision: str
) -> None:
    async def main() -> None:
        folder = add_version(repository, "2")
        model = onnx.load(folder / "model.onnx")
        (entry,) = (p for p in model.metadata_props if p.key == MANIFEST_KEY)
        manifest = Manifest.from_json(entry.value)
        entry.value = replace(manifest, schema=2, weights_id="f" * 64).to_json()
        (folder / FILES[precision]).write_bytes(model.SerializeToString())
        async with started(repository) as registry:
            assert registry.get().version == "1"
            (failure,) = registry.failures()
            assert failure.kind == "bad-artifact"
            assert failure.message.startswith(f"model.onnx and {FILES[precision]} were made from different")
            (folder / FILES[precision]).write_bytes(b"half a file says nothing")
            await registry.reload()
            assert registry.get().version == "2"

    asyncio.run(main())


def test_draining_is_not_ready_but_still_answers(repository: Path, jpeg: bytes) -> None:
    async def main() -> None:
        async with started(repository) as registry:
            registry.drain()
            assert registry.ready[0] is False
            assert (await registry.get().classify(jpeg)).predictions

    asyncio.run(main())


def test_an_empty_repository_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match=r"no <name>/<version>/model\.onnx"):
        asyncio.run(build_registry(Settings(models=tmp_path)).start())


def test_a_default_model_that_is_not_there_does_not_start(repository: Path) -> None:
    with pytest.raises(CannotStart, match="PACA_DEFAULT_MODEL is 'huge'"):
        asyncio.run(build_registry(Settings(models=repository, default_model="huge")).start())


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets the CPU run as a device does; the function makes it fail for good, from the next run on."""
    row = replace(PROVIDERS["cpu"], fixed_batches=FixedBatches((1,), "cpu", {}))
    monkeypatch.setitem(PROVIDERS, "cpu", row)

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    return lambda: monkeypatch.setattr(Bucket, "run", fail)


def test_a_device_that_failed_for_good_is_known_to_readiness_and_to_every_caller(
    repository: Path, jpeg: bytes, device: Callable[[], None]
) -> None:
    async def main() -> None:
        async with started(repository, max_batch=1) as registry:
            predictor = registry.get()
            await predictor.classify(jpeg)
            device()
            assert registry.ready == (True, "ready")
            with pytest.raises(DeviceLost):
                await predictor.classify(jpeg)
            assert registry.ready[0] is False
            assert "failed for good" in registry.ready[1]
            with pytest.raises(DeviceLost):
                registry.get()
            assert registry.models() == []
            assert [(failure.name, failure.kind) for failure in registry.failures()] == [
                ("tiny", "device-lost")
            ]

    asyncio.run(main())


def test_a_device_that_fails_while_a_version_is_loaded_is_known_too(
    repository: Path, monkeypatch: pytest.MonkeyPatch, device: Callable[[], None]
) -> None:
    async def main() -> None:
        async with started(repository, max_batch=1) as registry:
            add_version(repository, "2")
            device()
            assert len(await registry.reload()) == 1
            assert registry.ready[0] is False
            assert registry.lost

    asyncio.run(main())
