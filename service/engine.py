"""ONNX Runtime: one model file, one session, batches in, arrays out. The only module that imports
onnxruntime.

Honest about where it runs: `provider` is what the session really uses, and CUDA that was demanded but is
absent is an error. Batching, decoding and what the numbers mean are elsewhere. The file is read once into
memory, so the hash, the manifest and the session always belong to the same bytes, and a model that points to
external data is refused by ONNX Runtime itself (there is no folder it could point into).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .artifact import ExplainManifest, Head, Manifest, fits, golden_maps, golden_picture
from .errors import BadArtifact, CannotStart, ProviderUnavailable

SPIN_MICROSECONDS = 100
DISABLED_OPTIMIZERS = ["SkipLayerNormFusion"]  # slower on CPU than what it fuses: 1.5-3 % (docs/decisions.md)
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True)
class Device:
    """Where and how a session runs. provider: auto, cpu or cuda. threads: of one run, 0 = ONNX Runtime's
    choice (one a core)."""

    provider: str = "auto"
    device_id: int = 0
    threads: int = 0


@dataclass(frozen=True)
class Outputs:
    """One batch's answer. logits: (B, K) float32. arrays: every further output asked for, by its graph name,
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
            "ONNX Runtime is not installed; install one of the extras: paca-serve[cpu] or paca-serve[gpu]"
        ) from None
    if not hasattr(onnxruntime, "InferenceSession"):
        raise CannotStart(
            "the installed ONNX Runtime is broken (onnxruntime and onnxruntime-gpu overwrite each other); "
            "reinstall exactly one of them"
        )
    return onnxruntime


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
    """A model file in ONNX Runtime, on the provider asked for. Thread-safe: `run` may be called from several
    threads at once."""

    def __init__(self, path: Path, device: Device) -> None:
        """Raises BadArtifact for a file ONNX Runtime refuses, ProviderUnavailable for a provider that is not
        here."""
        self._path, self._device = path, device
        data = self._read()
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._session, self.provider = _open(data, path.name, device)
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.inputs = {i.name: (i.type, i.shape) for i in self._session.get_inputs()}
        self.outputs = {o.name: (o.type, o.shape) for o in self._session.get_outputs()}
        self.output_names = tuple(self.outputs)

    def run(self, names: tuple[str, ...], feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The named outputs in float32. Raises whatever ONNX Runtime raises where the run fails; `reopen`
        then gives a fresh session."""
        values = (
            run_bound(self._session, names, feed)
            if self.provider == "cuda"
            else self._session.run(names, feed)
        )
        return {
            name: np.asarray(value).astype(np.float32, copy=False)
            for name, value in zip(names, values, strict=True)
        }

    def reopen(self) -> None:
        """Replaces the session by a fresh one of the same bytes, e.g. after a CUDA error; BadArtifact where
        the file is another one by now."""
        data = self._read()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise BadArtifact(f"{self._path.name} was replaced since it was loaded")
        self._session, self.provider = _open(data, self._path.name, self._device)

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError as error:
            raise BadArtifact(f"cannot read the model file {self._path.name}: {error.strerror}") from None


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


def _open(data: bytes, name: str, device: Device) -> tuple[Any, str]:
    ort = _onnxruntime()
    wanted = _providers(ort, device)
    try:
        session = ort.InferenceSession(
            data, session_options(device.threads), providers=wanted, disabled_optimizers=DISABLED_OPTIMIZERS
        )
    except Exception as error:
        raise BadArtifact(
            f"{name} is not a model this server can load: {str(error).splitlines()[0][:200]}"
        ) from None
    used = session.get_providers()[0]
    if device.provider == "cuda" and used != PROVIDERS["cuda"]:
        raise ProviderUnavailable(
            f"CUDA was demanded, but ONNX Runtime runs this model on {used}; check driver and CUDA "
            "libraries, or set PACA_PROVIDER=cpu"
        )
    return session, "cuda" if used == PROVIDERS["cuda"] else "cpu"


def _providers(ort: Any, device: Device) -> list[Any]:
    if device.provider not in ("auto", *PROVIDERS):
        raise CannotStart(f"unknown provider {device.provider!r}; choose auto, cpu or cuda")
    built_in = PROVIDERS["cuda"] in ort.get_available_providers()
    if device.provider == "cuda" and not built_in:
        raise ProviderUnavailable(
            "CUDA was demanded, but this ONNX Runtime has no CUDA provider; install paca-serve[gpu], or set "
            "PACA_PROVIDER=cpu"
        )
    if device.provider == "cpu" or not built_in:
        return [PROVIDERS["cpu"]]
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    cuda = {
        "device_id": str(device.device_id),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    return [(PROVIDERS["cuda"], cuda), PROVIDERS["cpu"]]


class Engine:
    """An exported PaCa model, ready to run: its manifest, its head weights and `run`."""

    def __init__(self, path: Path, device: Device | None = None) -> None:
        """Raises BadArtifact where the file is no PaCa artifact or contradicts its own manifest."""
        self._session = Session(path, device or Device())
        self.manifest = Manifest.from_metadata(self._session.metadata)
        self.head = Head.from_metadata(self._session.metadata, len(self.manifest.labels))
        self.provider = self._session.provider
        self.sha256 = self._session.sha256
        self._check()

    def _check(self) -> None:
        self.manifest.check_graph(self._session.inputs, self._session.outputs)
        if self.manifest.task != "classification":
            raise BadArtifact(f"this server cannot serve the task {self.manifest.task!r}")
        width, tokens = self.head.weight.shape[1], self._session.outputs["tokens"][1][-1]
        if width != tokens:
            raise BadArtifact(f"the model's head takes {width} numbers a patch, its tokens have {tokens}")

    @property
    def outputs(self) -> dict[str, list[int | str | None]]:
        """Every output of the graph with its shape; unknown sizes are names or None."""
        return {name: shape for name, (_, shape) in self._session.outputs.items()}

    def run(self, images: np.ndarray, names: tuple[str, ...] = ()) -> Outputs:
        """One forward pass. images: uint8 (B, H, W, 3), or what the manifest's `input` says; names: further
        outputs wanted beside the logits."""
        if self.manifest.input == "float32" and images.dtype == np.uint8:
            images = self.manifest.preprocessing.to_float(images)
        arrays = self._session.run(("logits", *names), {"image": images})
        return Outputs(arrays.pop("logits"), arrays)

    def self_test(self) -> None:
        """Runs the golden picture: finite answers of the right shapes and the logits that the exporter
        measured; BadArtifact otherwise."""
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

    def self_test(self, model: Engine) -> None:
        """Proves that this file belongs to `model`, which puts out `features`: the same weights_id, fitting
        sizes, and the golden map of the model's precision from the features of its golden picture.
        BadArtifact otherwise. Of files of schema 1 only fitting sizes and finite maps can be asked."""
        golden = golden_maps(model.manifest, self.manifest)
        classes = len(model.manifest.labels)
        given: dict[str, list[Any]] = {"features": model.outputs["features"], "weights": ["batch", classes]}
        for name, (_, shape) in self._session.inputs.items():
            if not fits(given[name], shape):
                raise BadArtifact(f"explain.onnx takes {name} of {shape}, the model gives {given[name]}")
        picture = golden_picture(model.manifest.preprocessing.size, golden.seed if golden else 0)
        features = model.run(picture[None], ("features",)).arrays["features"]
        weights = np.zeros((1, classes), np.float32)
        weights[0, golden.target if golden else 0] = 1
        maps = self.run(features, weights)
        for name, array in maps.items():
            if not np.isfinite(array).all():
                raise BadArtifact(f"self-test failed: explain.onnx's output {name} is not finite")
        if golden:
            golden.check(maps)

    def close(self) -> None:
        """Frees the session; `run` must not be called afterwards."""
        del self._session
