"""Which model answers, and how a new version takes over without a lost request; with real models on the real
engine."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.errors import CannotStart, NotReady, UnknownModel
from service.registry import Registry
from service.settings import Settings
from service.wiring import build_registry


@asynccontextmanager
async def started(folder: Path, **settings: object) -> AsyncIterator[Registry]:
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
