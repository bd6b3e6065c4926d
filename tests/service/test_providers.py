"""The table of execution providers: each row says what a new one needs, and nothing else does."""

from __future__ import annotations

import asyncio
import inspect
import re
from pathlib import Path

import onnxruntime
import pytest

import service
from service import providers
from service.engine import Device, Engine
from service.errors import CannotStart
from service.providers import PROVIDERS, FixedBatches, Provider
from service.settings import Settings
from service.wiring import build_registry


def test_every_row_is_known_to_onnx_runtime() -> None:
    known = set(onnxruntime.get_all_providers())
    assert {row.ort_name for row in PROVIDERS.values()} <= known
    assert list(PROVIDERS)[-1] == "cpu"  # what `auto` tries last


def test_auto_allows_all_in_order_and_a_name_only_that_one() -> None:
    assert [row.name for row in providers.candidates("auto")] == list(PROVIDERS)
    assert [row.name for row in providers.candidates("cpu")] == ["cpu"]
    with pytest.raises(CannotStart, match="choose one of: auto, cuda, cpu"):
        providers.candidates("tpu")


def test_a_new_provider_is_one_row(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure's, which is in every wheel and leaves all nodes to the CPU."""
    row = Provider(
        name="azure",
        ort_name="AzureExecutionProvider",
        options=lambda device_id: {},
        batching_pays=True,
        max_batch=lambda macs: 9,
        fixed_batches=FixedBatches((1, 4), "cpu", {}),
        one_instance=True,
        remedy="install it",
    )
    monkeypatch.setitem(PROVIDERS, "azure", row)
    engine = Engine(repository / "tiny" / "1" / "model.onnx", Device("azure"))
    engine.self_test()
    assert engine.provider == "azure"
    registry = build_registry(Settings(models=repository, provider="azure"))

    async def main() -> None:
        await registry.start()
        predictor = registry.get()
        assert (predictor.provider, predictor.capacity.instances, predictor.capacity.max_batch) == (
            "azure",
            1,
            9,
        )
        assert predictor.gradient_batcher.bounds.max_batch == 9
        await registry.close()

    asyncio.run(main())


def test_no_other_module_of_the_server_names_a_provider() -> None:
    """But for words to people, and `cpu` as what commands without a server run on."""
    folder = Path(inspect.getfile(service)).parent
    named = re.compile(r"""(CUDA|CPU)ExecutionProvider|== ?["'](cuda|cpu)""")
    where = [path.name for path in folder.rglob("*.py") if named.search(path.read_text("utf-8"))]
    assert where == ["providers.py"]
