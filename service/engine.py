"""An exported PaCa model on ONNX Runtime: batches in, logits and arrays out, proven before the first request.

`Engine` runs model.onnx, `GradientEngine` explain.onnx; what both stand on, the session, its device and its
batch sizes, is `session`. Batching, decoding and what the numbers mean are elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .artifact import (
    LINEAR,
    ExplainManifest,
    GoldenMaps,
    Head,
    Manifest,
    fits,
    golden_logits,
    golden_maps,
    golden_picture,
)
from .errors import BadArtifact, BadParameter, PacaError
from .faults import Fault, fault_of
from .novelty import Statistics
from .session import Device, Session, loading

__all__ = ["Device", "Engine", "GradientEngine", "Outputs", "Session"]


@dataclass(frozen=True)
class Outputs:
    """One batch's answer. logits: (B, K) float32. arrays: every further output requested, by its graph name,
    as the graph gives it in float32."""

    logits: np.ndarray
    arrays: dict[str, np.ndarray]

    def row(self, i: int) -> Outputs:
        """The answer of picture `i` alone, without the batch axis; views, not copies."""
        return Outputs(self.logits[i], {name: array[i] for name, array in self.arrays.items()})


class Engine:
    """An exported model, ready to run: its manifest, its head weights (None where the head is not linear) and
    `run`."""

    def __init__(self, path: Path, device: Device | None = None) -> None:
        """Raises BadArtifact where the file is no PaCa artifact or contradicts its own manifest, and what
        `Session` raises."""
        self._name = path.name
        self._session = Session(path, device or Device())
        with loading(path.name):
            self.manifest = Manifest.from_metadata(self._session.metadata)
            metadata, classes = self._session.metadata, len(self.manifest.labels)
            self.head = Head.from_metadata(metadata, classes) if self.manifest.head == LINEAR else None
            self._check()
            self.novelty: Statistics | None = None
            if self.manifest.has_tokens:
                width = self._session.outputs["tokens"][1][-1]
                self.novelty = Statistics.from_metadata(metadata, classes, width)
        self.sha256 = self._session.sha256

    def _check(self) -> None:
        self.manifest.check_graph(self._session.inputs, self._session.outputs)
        if self.head is None:
            return
        width, tokens = self.head.weight.shape[1], self._session.outputs["tokens"][1][-1]
        if width != tokens:
            raise BadArtifact(f"the model's head takes {width} numbers a patch, its tokens have {tokens}")

    @property
    def provider(self) -> str:
        """Where it runs now."""
        return self._session.provider

    @property
    def max_batch(self) -> int | None:
        """The most pictures of a run, where the graph fixes that."""
        most = self._session.inputs["image"][1][0]
        return most if isinstance(most, int) else None

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
        except PacaError:
            raise
        except Exception as error:  # what ONNX Runtime raises is no contract
            size = images.shape[1:3] if self.manifest.input == "uint8" else images.shape[2:4]
            if fault_of(error) is not Fault.OTHER or size == tuple(self.manifest.preprocessing.size):
                raise
            raise BadParameter(
                f"the model cannot take pictures of {size[1]} x {size[0]} pixels; those of "
                f"{' x '.join(map(str, self.manifest.preprocessing.size[::-1]))} always work"
            ) from error
        return Outputs(arrays.pop("logits"), arrays)

    @property
    def lost(self) -> str:
        """Why its device answers no more in this process; empty while it does."""
        return self._session.lost

    def prepare(self, max_batch: int) -> None:
        """Makes every batch up to `max_batch` ready where a device runs fixed batch sizes."""
        self._session.prepare(max_batch)

    def warm_up(self, batch: int) -> None:
        """Runs `batch` blank pictures, so that the first request does not pay for memory and kernels."""
        height, width = self.manifest.preprocessing.size
        with loading(self._name):
            self.run(
                np.zeros((batch, height, width, 3), np.uint8), ("features",) if self.manifest.explain else ()
            )

    def self_test(self) -> None:
        """Runs the golden picture in each prepared batch size: finite answers of the right shapes and the
        logits that the exporter measured; BadArtifact otherwise, EngineFailure where memory or the device
        failed. On a device every size runs after all were captured, which proves their graphs apart."""
        with loading(self._name):
            for size in reversed(self._session.batch_sizes or (1,)):
                self._self_test(size)

    def _self_test(self, batch: int) -> None:
        size = self.manifest.preprocessing.size
        names = tuple(name for name in self._session.output_names if name != "logits")
        golden = self.manifest.golden
        picture = golden_picture(size, golden.seed if golden else 0)
        out = self.run(np.repeat(picture[None], batch, axis=0), names)
        for name, array in {"logits": out.logits, **out.arrays}.items():
            if array.shape[0] != batch or not np.isfinite(array).all():
                raise BadArtifact(
                    f"self-test failed: output {name} is not finite or has the wrong shape {array.shape}"
                )
        if golden is None:
            return
        expected = np.array(golden.logits, np.float32)
        found = np.stack([golden_logits(row)[: len(expected)] for row in out.logits])
        off = float(np.abs(found - expected).max())
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
        self._session.close()


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

    @property
    def provider(self) -> str:
        """Where it runs now."""
        return self._session.provider

    @property
    def lost(self) -> str:
        """Why its device answers no more in this process; empty while it does."""
        return self._session.lost

    def prepare(self, max_batch: int) -> None:
        """Makes every batch up to `max_batch` ready where a device runs fixed batch sizes."""
        self._session.prepare(max_batch)

    def run_golden(self, model: Engine, seed: int, target: int, batch: int = 1) -> dict[str, np.ndarray]:
        """All maps (batch, ...) for the class `target`, from the features that `model` gives for its golden
        picture; the rows are equal."""
        picture = golden_picture(model.manifest.preprocessing.size, seed)
        features = model.run(picture[None], ("features",)).arrays["features"]
        weights = np.zeros((1, len(model.manifest.labels)), np.float32)
        weights[0, target] = 1
        return self.run(np.repeat(features, batch, axis=0), np.repeat(weights, batch, axis=0))

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
        needed = [f"map_{stage}" for stage in explain.maps] + [f"effect_{stage}" for stage in explain.effects]
        if missing := [name for name in needed if name not in self.outputs]:
            raise BadArtifact(f"explain.onnx lacks the outputs {', '.join(missing)} that the model names")
        for batch in reversed(self._session.batch_sizes or (1,)):
            self._check_maps(model, golden, batch)

    def _check_maps(self, model: Engine, golden: GoldenMaps | None, batch: int) -> None:
        seed, target = (golden.seed, golden.target) if golden else (0, 0)
        maps = self.run_golden(model, seed, target, batch)
        for name, array in maps.items():
            if not np.isfinite(array).all():
                raise BadArtifact(f"self-test failed: explain.onnx's output {name} is not finite")
        if golden:
            for row in range(batch):
                golden.check({name: array[row : row + 1] for name, array in maps.items()})

    def reopen(self) -> None:
        """A fresh session of the same file, after a run that failed."""
        self._session.reopen()

    def close(self) -> None:
        """Frees the session; `run` must not be called afterwards."""
        self._session.close()
