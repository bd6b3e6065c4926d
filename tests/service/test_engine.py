"""The engine on the real ONNX Runtime: honest about its provider, refuses what is no artifact, and gives what
the exporter measured."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from service.artifact import HEAD_KEY, MANIFEST_KEY
from service.engine import Device, Engine, GradientEngine
from service.errors import (
    BadArtifact,
    BadParameter,
    CannotStart,
    DeviceLost,
    EngineFailure,
    ProviderUnavailable,
)
from service.providers import PROVIDERS, FixedBatches
from service.session import Bucket, loading

CPU = Device("cpu")


@pytest.fixture
def model(repository: Path) -> Path:
    return repository / "tiny" / "1" / "model.onnx"


def picture(seed: int, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, 32, 32, 3), np.uint8)


def test_onnx_runtime_keeps_what_runs_here_to_itself(model: Path, tmp_path: Path) -> None:
    """Its telemetry keeps a database in the user's cache folder before it sends it."""
    code = (
        "import sys, time; from pathlib import Path; from service.engine import *; Engine(Path(sys.argv[1]), "
        "Device('cpu')); time.sleep(2)"
    )
    home = tmp_path / "home"
    home.mkdir()
    homes = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "TMPDIR"), str(home))
    environment = {
        name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"
    } | homes
    subprocess.run([sys.executable, "-c", code, str(model)], env=environment, check=True)
    assert list(home.iterdir()) == []


def test_every_output_has_the_shape_the_contract_says(model: Path) -> None:
    engine = Engine(model, CPU)
    out = engine.run(picture(0, 3), ("tokens", "assignment_1", "assignment_2", "features"))
    assert out.logits.shape == (3, 4)
    assert {name: array.shape for name, array in out.arrays.items()} == {
        "tokens": (3, 16, 16),
        "assignment_1": (3, 5, 16, 16),
        "assignment_2": (3, 3, 8, 8),
        "features": (3, 64, 12),
    }


def test_logits_are_the_mean_token_times_the_head(model: Path) -> None:
    engine = Engine(model, CPU)
    out = engine.run(picture(1), ("tokens",))
    np.testing.assert_allclose(
        out.arrays["tokens"].mean(1) @ engine.head.weight.T + engine.head.bias, out.logits, atol=1e-5
    )


def test_each_cluster_is_a_distribution_over_patches(model: Path) -> None:
    out = Engine(model, CPU).run(picture(2), ("assignment_1",))
    np.testing.assert_allclose(out.arrays["assignment_1"].sum((2, 3)), 1, atol=1e-5)


def test_a_picture_gets_the_same_answer_in_any_batch(model: Path) -> None:
    engine = Engine(model, CPU)
    batch = picture(3, 5)
    together = engine.run(batch).logits
    alone = np.concatenate([engine.run(batch[i : i + 1]).logits for i in range(5)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_it_says_which_provider_runs(model: Path) -> None:
    assert Engine(model, CPU).provider == "cpu"


def test_cuda_that_is_demanded_but_absent_is_an_error_not_a_silent_cpu(model: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ProviderUnavailable, match="PACA_PROVIDER=cpu"):
        Engine(model, Device("cuda"))


def test_an_unknown_provider_names_the_known_ones(model: Path) -> None:
    with pytest.raises(CannotStart, match="auto, cuda, cpu"):
        Engine(model, Device("tpu"))


def test_the_golden_self_test_passes_for_a_good_file(model: Path) -> None:
    Engine(model, CPU).self_test()


def rewritten(model: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    proto = onnx.load(model)
    change(proto)
    onnx.save(proto, model)
    return model


def weights(proto: onnx.ModelProto) -> onnx.TensorProto:
    return next(
        t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 4
    )


def poison(proto: onnx.ModelProto) -> None:
    tensor = weights(proto)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(list(tensor.dims), np.nan, np.float32), tensor.name))


def flip(proto: onnx.ModelProto) -> None:
    tensor = weights(proto)
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * -1, tensor.name))


@pytest.mark.parametrize("damage", [poison, flip])
def test_damaged_weights_fail_the_self_test(model: Path, damage: Callable[[onnx.ModelProto], object]) -> None:
    engine = Engine(rewritten(model, damage), CPU)
    with pytest.raises(BadArtifact, match="self-test failed"):
        engine.self_test()


def without(key: str):
    def change(proto: onnx.ModelProto) -> None:
        kept = [p for p in proto.metadata_props if p.key != key]
        del proto.metadata_props[:]
        proto.metadata_props.extend(kept)

    return change


def extra_label(proto: onnx.ModelProto) -> None:
    entry = next(p for p in proto.metadata_props if p.key == MANIFEST_KEY)
    entry.value = entry.value.replace('"labels":["red"', '"labels":["pink","red"')


def other_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].name = "pixels"
    for node in proto.graph.node:
        node.input[:] = ["pixels" if name == "image" else name for name in node.input]


def external(proto: onnx.ModelProto) -> None:
    tensor = weights(proto)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without(MANIFEST_KEY), "no PaCa manifest"),
        (without(HEAD_KEY), "head weights"),
        (extra_label, "head weights do not fit its 5 labels|lists 5 labels"),
        (other_input, "input should be 'image'"),
        (external, "not a model this server can load"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused_with_the_reason(
    model: Path, change: Callable[[onnx.ModelProto], object], reason: str
) -> None:
    with pytest.raises(BadArtifact, match=reason):
        Engine(rewritten(model, change), CPU)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08\x0a" * 50])
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(BadArtifact, match=r"model\.onnx"):
        Engine(path, CPU)


def test_a_truncated_file_is_refused(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-1000])
    with pytest.raises(BadArtifact):
        Engine(model, CPU).self_test()


def test_gradient_maps_come_per_picture_and_question(model: Path) -> None:
    features = Engine(model, CPU).run(picture(4, 2), ("features",)).arrays["features"]
    engine = GradientEngine(model.with_name("explain.onnx"), CPU)
    maps = engine.run(features, np.eye(4, dtype=np.float32)[:2])
    assert maps["map_2"].shape == (2, 8, 8)
    none = engine.run(features, np.zeros((2, 4), np.float32))
    assert np.abs(none["map_2"]).max() == 0


def test_a_served_model_is_no_gradient_graph(model: Path) -> None:
    with pytest.raises(BadArtifact, match="'features' and 'weights'"):
        GradientEngine(model, CPU)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), EngineFailure),
        (RuntimeError("Failed to allocate memory for requested buffer of size 99"), EngineFailure),
        (RuntimeError("std::bad_alloc"), EngineFailure),
        (RuntimeError("CUDA failure 2: out of memory ; GPU=0"), EngineFailure),
        (RuntimeError("CUDNN_FE failure 11: CUDNN_BACKEND_API_FAILED"), EngineFailure),
        (RuntimeError("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED"), EngineFailure),
        (RuntimeError("pthread_create failed: Resource temporarily unavailable"), EngineFailure),
        (RuntimeError("Could not find an implementation for Attention(24) node"), BadArtifact),
        (ValueError("zero-size array to reduction operation maximum"), BadArtifact),
        (KeyError("tokens"), BadArtifact),
        (CannotStart("ours stays as it is"), CannotStart),
    ],
)
def test_a_failed_load_says_whose_fault_it_is_and_keeps_the_cause(
    error: Exception, kind: type[Exception]
) -> None:
    with pytest.raises(kind) as caught, loading("model.onnx"):
        raise error
    assert caught.value is error or caught.value.__cause__ is error


def test_memory_that_is_short_while_a_model_is_tested_is_not_the_files_fault(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, CPU)
    gradients = GradientEngine(model.with_name("explain.onnx"), CPU)

    def run(*_: object) -> None:
        raise RuntimeError("bad allocation: std::bad_alloc")

    for session in (engine._session, gradients._session):
        monkeypatch.setattr(session, "run", run)
    for step in (engine.self_test, lambda: engine.warm_up(1), lambda: gradients.self_test(engine)):
        with pytest.raises(EngineFailure, match="memory or the device failed"):
            step()


def test_a_size_that_the_network_cannot_take_is_the_callers_fault(model: Path) -> None:
    engine = Engine(model, CPU)
    with pytest.raises(BadParameter, match="cannot take pictures of 24 x 40 pixels; those of 32 x 32"):
        engine.run(np.zeros((1, 40, 24, 3), np.uint8))


class Machine:
    """Stands for ONNX Runtime on a machine with CUDA, whose GPU may be `broken`; the CPU runs the models."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken = ""
        self.opened: list[str] = []
        machine = self

        class Session(onnxruntime.InferenceSession):
            def __init__(self, data: bytes, options: object, *, providers: list, **named: object) -> None:
                name = providers[0][0]
                machine.opened.append(name)
                assert named["enable_fallback"] == 0
                if machine.broken and name == "CUDAExecutionProvider":
                    raise RuntimeError(machine.broken)
                super().__init__(data, options, providers=["CPUExecutionProvider"], **named)
                self.name = name

            def get_providers(self) -> list[str]:
                return [self.name, "CPUExecutionProvider"]

        on_host = replace(PROVIDERS["cuda"], fixed_batches=FixedBatches(SIZES, "cpu", {}))
        monkeypatch.setitem(PROVIDERS, "cuda", on_host)
        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
        monkeypatch.setattr(
            onnxruntime,
            "get_available_providers",
            lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        )


def test_auto_takes_cuda_where_it_is_and_says_why_not_where_it_cannot_be_used(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(monkeypatch)
    assert Engine(model, Device("auto")).provider == "cuda"
    machine.broken = "CUDA failure 35: CUDA driver version is insufficient"
    assert Engine(model, Device("auto")).provider == "cpu"
    assert "driver version is insufficient" in caplog.text
    with pytest.raises(ProviderUnavailable, match="driver version is insufficient"):
        Engine(model, Device("cuda"))
    machine.broken = "CUDA failure 2: out of memory"  # there is a GPU, and soon it may have room
    for choice in ("auto", "cuda"):
        with pytest.raises(EngineFailure, match="out of memory"):
            Engine(model, Device(choice))


def test_a_session_that_is_opened_again_stays_on_its_provider_whatever_happens(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(monkeypatch)
    engine = Engine(model, Device("auto"))
    engine.reopen()
    assert engine.provider == "cuda"
    machine.broken = "CUDA failure 700: an illegal memory access was encountered"
    with pytest.raises(DeviceLost, match="the cuda device failed for good"):
        engine.reopen()
    assert engine.provider == "cuda"
    assert "illegal memory access" in caplog.text
    assert set(machine.opened) == {"CUDAExecutionProvider"}


SIZES = (1, 4)


@pytest.fixture
def bucketed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU as a device that runs fixed batch sizes: what CUDA does, with numbers that mean something."""
    row = replace(PROVIDERS["cpu"], fixed_batches=FixedBatches(SIZES, "cpu", {}))
    monkeypatch.setitem(PROVIDERS, "cpu", row)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 13])
def test_a_padded_batch_gives_the_numbers_of_one_that_runs_as_it_comes(
    model: Path, rows: int, monkeypatch: pytest.MonkeyPatch, bucketed: None
) -> None:
    engine, gradients = Engine(model, CPU), GradientEngine(model.with_name("explain.onnx"), CPU)
    names, batch = ("tokens", "features", "assignment_1"), picture(7, rows)
    weights = np.eye(4, dtype=np.float32)[np.arange(rows) % 4]
    plain = engine.run(batch, names)
    maps = gradients.run(plain.arrays["features"], weights)
    for one in (engine, gradients):
        one.prepare(6)
    engine.run(picture(8, 6))  # what is left of it in the buffers must not show
    padded = engine.run(batch, names)
    assert padded.logits.shape == (rows, 4)
    np.testing.assert_allclose(padded.logits, plain.logits, atol=1e-5)
    for name in names:
        np.testing.assert_allclose(padded.arrays[name], plain.arrays[name], atol=1e-5)
    for name, array in gradients.run(plain.arrays["features"], weights).items():
        np.testing.assert_allclose(array, maps[name], atol=1e-5)
    engine.self_test()
    gradients.self_test(engine)


def test_all_calls_of_a_device_are_made_by_one_thread(
    model: Path, monkeypatch: pytest.MonkeyPatch, bucketed: None
) -> None:
    """A CUDA graph is replayed only by the thread that captured it."""
    threads = []
    run, make = Bucket.run, Bucket.__init__

    def noting(call: Callable) -> Callable:
        def noted(*args: object) -> object:
            threads.append(threading.get_ident())
            return call(*args)

        return noted

    monkeypatch.setattr(Bucket, "run", noting(run))
    monkeypatch.setattr(Bucket, "__init__", noting(make))
    engine = Engine(model, CPU)
    engine.prepare(4)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(engine.run, [picture(seed, 2) for seed in range(6)]))
    engine.reopen()
    engine.run(picture(0))
    assert len(threads) == 2 * len(SIZES) + 7
    assert len(set(threads)) == 1


def test_a_bucket_refuses_rows_of_another_shape(model: Path, bucketed: None) -> None:
    engine = Engine(model, CPU)
    engine.prepare(4)
    with pytest.raises(BadParameter, match="cannot take pictures of 24 x 40 pixels; those of 32 x 32"):
        engine.run(np.zeros((1, 40, 24, 3), np.uint8))


def test_a_self_test_that_one_batch_size_fails_refuses_the_model(
    model: Path, monkeypatch: pytest.MonkeyPatch, bucketed: None
) -> None:
    """Each size is checked after all were captured: a graph that another capture spoilt is found."""
    engine = Engine(model, CPU)
    engine.prepare(4)
    run = Bucket.run

    def spoilt(bucket: Bucket, names: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        values = run(bucket, names, feed)
        return [value + 1 for value in values] if bucket.size == 4 else values

    monkeypatch.setattr(Bucket, "run", spoilt)
    with pytest.raises(BadArtifact, match="the golden picture's logits are"):
        engine.self_test()


def failing(error: str) -> Callable[..., object]:
    def run(*_: object) -> object:
        raise RuntimeError(error)

    return run


def test_a_device_that_failed_for_good_is_given_up_at_once(
    model: Path, monkeypatch: pytest.MonkeyPatch, bucketed: None
) -> None:
    engine = Engine(model, CPU)
    engine.prepare(4)
    monkeypatch.setattr(Bucket, "run", failing("CUDA failure 700: an illegal memory access was encountered"))
    with pytest.raises(DeviceLost):
        engine.run(picture(0))
    monkeypatch.undo()
    for step in (lambda: engine.run(picture(0)), engine.reopen):  # nothing is tried again in this process
        with pytest.raises(DeviceLost):
            step()
    assert "failed for good" in engine.lost


def test_short_memory_leaves_the_engine_as_it_was(
    model: Path, monkeypatch: pytest.MonkeyPatch, bucketed: None
) -> None:
    engine = Engine(model, CPU)
    engine.prepare(4)
    expected = engine.run(picture(0)).logits
    with monkeypatch.context() as broken:
        broken.setattr(Bucket, "run", failing("Failed to allocate memory for requested buffer of size 512"))
        with pytest.raises(RuntimeError):
            engine.run(picture(0))
    np.testing.assert_array_equal(engine.run(picture(0)).logits, expected)
    assert not engine.lost


def test_a_device_is_given_up_after_two_failed_tries_to_open_it_again(
    model: Path, monkeypatch: pytest.MonkeyPatch, bucketed: None
) -> None:
    engine = Engine(model, CPU)
    engine.prepare(4)
    expected = engine.run(picture(0)).logits
    short = RuntimeError("CUDA failure 2: out of memory")

    def refuse(*_: object, **__: object) -> None:
        raise short

    with monkeypatch.context() as broken:
        broken.setattr(onnxruntime, "InferenceSession", refuse)
        with pytest.raises(EngineFailure, match="out of memory"):
            engine.reopen()
    # closed, since the device may not hold the old and the new at once; the next run tries again
    np.testing.assert_array_equal(engine.run(picture(0)).logits, expected)
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(EngineFailure) as caught:
        engine.reopen()
    assert not isinstance(caught.value, DeviceLost)
    with pytest.raises(DeviceLost):
        engine.reopen()


def test_a_graph_of_one_batch_size_is_prepared_in_that_alone(
    model: Path, tmp_path: Path, bucketed: None
) -> None:
    proto = onnx.load(model)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del proto.graph.value_info[:]
    onnx.save(proto, tmp_path / "model.onnx")
    engine = Engine(tmp_path / "model.onnx", CPU)
    engine.prepare(4)
    assert engine.run(picture(0, 3)).logits.shape == (3, 4)
