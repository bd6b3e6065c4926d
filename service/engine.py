"""ONNX Runtime: one model file, one session, batches in, arrays out. The only module that imports
onnxruntime.

Honest about where it runs: `provider` is what the session really uses. A provider that was demanded but is
absent is an error, and a session never moves to another one. Where loading fails, the error says whose fault
it is: BadArtifact the file's, EngineFailure memory's or the device's. Batching, decoding and what the numbers
mean are elsewhere. The file is read once into memory, so that the hash, the manifest and the session belong
to the same bytes. A model that points to external data is refused by ONNX Runtime itself.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import onnx_file
from .artifact import ExplainManifest, Head, Manifest, fits, golden_maps, golden_picture
from .errors import BadArtifact, BadParameter, CannotStart, EngineFailure, PacaError, ProviderUnavailable
from .novelty import Statistics
from .providers import AUTO, PROVIDERS, Provider, candidates

log = logging.getLogger("paca.engine")
SPIN_MICROSECONDS = 100
DISABLED_OPTIMIZERS = ["SkipLayerNormFusion"]  # slower on CPU than what it fuses: 1.5-3 % (docs/decisions.md)
# ONNX Runtime's exception types do not tell whose fault it is; its messages do
MEMORY_FAILED = re.compile(r"out of memory|bad_alloc|(failed|unable|cannot) to? ?allocate|failure 2:", re.I)
DEVICE_FAILED = re.compile(r"(cuda|cudnn|cublas)\w* (failure|error)|resource temporarily unavailable", re.I)


@dataclass(frozen=True)
class Device:
    """Where and how a session runs. provider: auto, or the name of a row of `PROVIDERS`. threads: of one run,
    0 = ONNX Runtime's choice (one a core)."""

    provider: str = AUTO
    device_id: int = 0
    threads: int = 0


@dataclass(frozen=True)
class Outputs:
    """One batch's answer. logits: (B, K) float32. arrays: every further output requested, by its graph name,
    as the graph gives it in float32."""

    logits: np.ndarray
    arrays: dict[str, np.ndarray]

    def row(self, i: int) -> Outputs:
        """The answer of picture `i` alone, without the batch axis; views, not copies."""
        return Outputs(self.logits[i], {name: array[i] for name, array in self.arrays.items()})


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise CannotStart(
            "ONNX Runtime is not installed: in the clone, run `make setup`, or `pip install '.[cpu]'` or "
            "`pip install '.[gpu]'`, never both"
        ) from None
    if not hasattr(onnxruntime, "InferenceSession"):
        raise CannotStart(
            "the installed ONNX Runtime is broken (onnxruntime and onnxruntime-gpu overwrite each other); "
            "reinstall exactly one of them"
        )
    return onnxruntime


def is_passing(error: BaseException) -> bool:
    """Whether memory or the device failed, so that trying again later may help."""
    text = str(error)
    return isinstance(error, MemoryError) or bool(MEMORY_FAILED.search(text) or DEVICE_FAILED.search(text))


@contextmanager
def loading(name: str) -> Iterator[None]:
    """What goes wrong while file `name` is loaded: EngineFailure where memory or the device failed, else
    BadArtifact."""
    try:
        yield
    except PacaError:
        raise
    except Exception as error:  # what ONNX Runtime and numpy raise is no contract
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        if is_passing(error):
            raise EngineFailure(f"memory or the device failed while {name} was loaded: {reason}") from error
        raise BadArtifact(f"{name} is not a model this server can load: {reason}") from error


def run_bound(session: Any, names: tuple[str, ...], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What `session.run(names, feed)` gives, by IO binding: inputs cross to the device when bound, outputs
    come back when the run is done."""
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_cpu_input(name, np.ascontiguousarray(array))
    for name in names:
        binding.bind_output(name)
    session.run_with_iobinding(binding)
    return list(binding.copy_outputs_to_cpu())


class Session:
    """A model file in ONNX Runtime, on the provider that was chosen. Thread-safe: `run` may be called from
    several threads at once."""

    def __init__(self, path: Path, device: Device) -> None:
        """Raises BadArtifact for a file ONNX Runtime refuses, ProviderUnavailable for a provider that is not
        here, EngineFailure where memory or the device failed."""
        self._path, self._device = path, device
        data = self._read()
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._session, self._row = _open(data, path.name, device)
        with loading(path.name):
            self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
            self.inputs = {i.name: (i.type, i.shape) for i in self._session.get_inputs()}
            self.outputs = {o.name: (o.type, o.shape) for o in self._session.get_outputs()}
        self.output_names = tuple(self.outputs)

    @property
    def provider(self) -> str:
        """Where it runs now."""
        return self._row.name

    def run(self, names: tuple[str, ...], feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The named outputs in float32. Raises whatever ONNX Runtime raises where the run fails; `reopen`
        then gives a fresh session."""
        session = self._session
        values = run_bound(session, names, feed) if self._row.io_binding else session.run(names, feed)
        return {
            name: np.asarray(value).astype(np.float32, copy=False)
            for name, value in zip(names, values, strict=True)
        }

    def reopen(self) -> None:
        """Replaces the session by a fresh one of the same bytes on the same provider, e.g. after a CUDA
        error; BadArtifact where the file is another one by now."""
        data = self._read()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise BadArtifact(f"{self._path.name} was replaced since it was loaded")
        device = replace(self._device, provider=self._row.name)
        self._session, self._row = _open(data, self._path.name, device)

    def _read(self) -> bytes:
        onnx_file.metadata(self._path)  # refuses what is no whole ONNX file
        with onnx_file.reading(self._path.name):
            return self._path.read_bytes()


def session_options(threads: int) -> Any:
    """ONNX Runtime's options for `threads` threads a run. A thread that waits for the others of its run
    spins, but for a moment only: spinning as long as ONNX Runtime does by default burns the very cores that
    decode the next picture, not spinning at all pays for waking it (docs/decisions.md)."""
    options = _onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    return options


def usable(choice: str) -> tuple[str, ...]:
    """The providers that a choice allows and this ONNX Runtime has, in the order of trying;
    ProviderUnavailable where there is none."""
    available = _onnxruntime().get_available_providers()
    rows = candidates(choice)
    built_in = tuple(row.name for row in rows if row.ort_name in available)
    if not built_in:
        raise ProviderUnavailable(
            f"{rows[0].name} was demanded, but this ONNX Runtime has no {rows[0].ort_name}; {rows[0].remedy}"
        )
    return built_in


def _open(data: bytes, name: str, device: Device) -> tuple[Any, Provider]:
    """A session on the first provider that the device's choice allows and this machine has."""
    ort = _onnxruntime()
    built_in = [PROVIDERS[name] for name in usable(device.provider)]
    for row in built_in[:-1]:
        try:
            return _open_on(ort, row, data, name, device), row
        except ProviderUnavailable as error:
            log.warning("%s; trying the next provider", error)
    return _open_on(ort, built_in[-1], data, name, device), built_in[-1]


def _open_on(ort: Any, row: Provider, data: bytes, name: str, device: Device) -> Any:
    """ProviderUnavailable where the device is not usable at all; EngineFailure where its memory is short."""
    cpu = PROVIDERS["cpu"].ort_name  # runs the nodes that a provider does not know
    chosen = [(row.ort_name, dict(row.options(device.device_id)))]
    if row.ort_name != cpu and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    try:
        with loading(name):
            session = ort.InferenceSession(
                data,
                session_options(device.threads),
                providers=chosen if row.ort_name == cpu else [*chosen, (cpu, {})],
                disabled_optimizers=DISABLED_OPTIMIZERS,
                enable_fallback=0,
            )
    except EngineFailure as error:
        if row.ort_name == cpu or MEMORY_FAILED.search(str(error)):
            raise
        raise ProviderUnavailable(f"{row.name} cannot be used: {error}; {row.remedy}") from error
    used = session.get_providers()[0]
    if used != row.ort_name:
        raise ProviderUnavailable(
            f"{row.name} was demanded, but ONNX Runtime runs this model on {used}; {row.remedy}"
        )
    return session


class Engine:
    """An exported PaCa model, ready to run: its manifest, its head weights and `run`."""

    def __init__(self, path: Path, device: Device | None = None) -> None:
        """Raises BadArtifact where the file is no PaCa artifact or contradicts its own manifest, and what
        `Session` raises."""
        self._name = path.name
        self._session = Session(path, device or Device())
        with loading(path.name):
            self.manifest = Manifest.from_metadata(self._session.metadata)
            self.head = Head.from_metadata(self._session.metadata, len(self.manifest.labels))
            self._check()
            width = self.head.weight.shape[1]
            self.novelty = Statistics.from_metadata(self._session.metadata, len(self.manifest.labels), width)
        self.sha256 = self._session.sha256

    def _check(self) -> None:
        self.manifest.check_graph(self._session.inputs, self._session.outputs)
        if self.manifest.task != "classification":
            raise BadArtifact(f"this server cannot serve the task {self.manifest.task!r}")
        width, tokens = self.head.weight.shape[1], self._session.outputs["tokens"][1][-1]
        if width != tokens:
            raise BadArtifact(f"the model's head takes {width} numbers a patch, its tokens have {tokens}")

    @property
    def provider(self) -> str:
        """Where it runs now."""
        return self._session.provider

    @property
    def outputs(self) -> dict[str, list[int | str | None]]:
        """Every output of the graph with its shape; unknown sizes are names or None."""
        return {name: shape for name, (_, shape) in self._session.outputs.items()}

    def run(self, images: np.ndarray, names: tuple[str, ...] = ()) -> Outputs:
        """One forward pass. images: uint8 (B, H, W, 3), or what the manifest's `input` says; names: further
        outputs beside the logits. BadParameter for a size that this network cannot take; whatever ONNX
        Runtime raises where the run fails otherwise."""
        if self.manifest.input == "float32" and images.dtype == np.uint8:
            images = self.manifest.preprocessing.to_float(images)
        try:
            arrays = self._session.run(("logits", *names), {"image": images})
        except Exception as error:  # what ONNX Runtime raises is no contract
            size = images.shape[1:3] if self.manifest.input == "uint8" else images.shape[2:4]
            if is_passing(error) or size == tuple(self.manifest.preprocessing.size):
                raise
            raise BadParameter(
                f"the model cannot take pictures of {size[1]} x {size[0]} pixels; those of "
                f"{' x '.join(map(str, self.manifest.preprocessing.size[::-1]))} always work"
            ) from error
        return Outputs(arrays.pop("logits"), arrays)

    def warm_up(self, batch: int) -> None:
        """Runs `batch` blank pictures, so that the first request does not pay for memory and kernels."""
        height, width = self.manifest.preprocessing.size
        with loading(self._name):
            self.run(
                np.zeros((batch, height, width, 3), np.uint8), ("features",) if self.manifest.explain else ()
            )

    def self_test(self) -> None:
        """Runs the golden picture: finite answers of the right shapes and the logits that the exporter
        measured; BadArtifact otherwise, EngineFailure where memory or the device failed."""
        with loading(self._name):
            self._self_test()

    def _self_test(self) -> None:
        size = self.manifest.preprocessing.size
        names = tuple(name for name in self._session.output_names if name != "logits")
        golden = self.manifest.golden
        out = self.run(golden_picture(size, golden.seed if golden else 0)[None], names)
        for name, array in {"logits": out.logits, **out.arrays}.items():
            if array.shape[0] != 1 or not np.isfinite(array).all():
                raise BadArtifact(
                    f"self-test failed: output {name} is not finite or has the wrong shape {array.shape}"
                )
        if golden is None:
            return
        logits = out.logits[0]
        off = float(np.abs(logits[: len(golden.logits)] - np.array(golden.logits, np.float32)).max())
        if off > golden.tolerance:
            raise BadArtifact(
                f"self-test failed: the golden picture's logits are {off:.3g} off, allowed are "
                f"{golden.tolerance:.3g}"
            )

    def reopen(self) -> None:
        """A fresh session of the same file, after a run that failed."""
        self._session.reopen()

    def close(self) -> None:
        """Frees the session; `run` must not be called afterwards."""
        del self._session


class GradientEngine:
    """explain.onnx: (features, weights over the logits) → gradient maps of the stages it covers."""

    def __init__(self, path: Path, device: Device | None = None) -> None:
        self._name = path.name
        self._session = Session(path, device or Device())
        self.sha256 = self._session.sha256
        self.outputs = self._session.output_names
        self.manifest = ExplainManifest.from_metadata(self._session.metadata)
        if set(self._session.inputs) != {"features", "weights"}:
            raise BadArtifact(
                "explain.onnx should take 'features' and 'weights', this file takes "
                f"{', '.join(self._session.inputs)}"
            )

    def run(
        self, features: np.ndarray, weights: np.ndarray, names: tuple[str, ...] | None = None
    ) -> dict[str, np.ndarray]:
        """features: (B, N_s, C_s); weights: (B, K), one row a picture. Returns the named maps (all by
        default), each with a leading B."""
        return self._session.run(names or self.outputs, {"features": features, "weights": weights})

    def run_golden(self, model: Engine, seed: int, target: int) -> dict[str, np.ndarray]:
        """All maps (1, ...) for the class `target`, from the features that `model` gives for its golden
        picture."""
        picture = golden_picture(model.manifest.preprocessing.size, seed)
        features = model.run(picture[None], ("features",)).arrays["features"]
        weights = np.zeros((1, len(model.manifest.labels)), np.float32)
        weights[0, target] = 1
        return self.run(features, weights)

    def self_test(self, model: Engine) -> None:
        """Proves that this file belongs to `model`, which puts out `features`: the same weights_id, fitting
        sizes, and the golden map of the model's precision from the features of its golden picture.
        BadArtifact otherwise, EngineFailure where memory or the device failed. Of files of schema 1 only
        fitting sizes and finite maps can be asked."""
        with loading(self._name):
            self._self_test(model)

    def _self_test(self, model: Engine) -> None:
        if model.manifest.explain is None:
            raise BadArtifact("the model does not say where explain.onnx takes over; export both again")
        explain = model.manifest.explain
        golden = golden_maps(model.manifest, self.manifest)
        classes = len(model.manifest.labels)
        given: dict[str, list[Any]] = {"features": model.outputs["features"], "weights": ["batch", classes]}
        for name, (_, shape) in self._session.inputs.items():
            if not fits(given[name], shape):
                raise BadArtifact(f"explain.onnx takes {name} of {shape}, the model gives {given[name]}")
        maps = self.run_golden(model, golden.seed if golden else 0, golden.target if golden else 0)
        for name, array in maps.items():
            if not np.isfinite(array).all():
                raise BadArtifact(f"self-test failed: explain.onnx's output {name} is not finite")
        needed = [f"map_{stage}" for stage in explain.maps] + [f"effect_{stage}" for stage in explain.effects]
        if missing := [name for name in needed if name not in maps]:
            raise BadArtifact(f"explain.onnx lacks the outputs {', '.join(missing)} that the model names")
        if golden:
            golden.check(maps)

    def close(self) -> None:
        """Frees the session; `run` must not be called afterwards."""
        del self._session
