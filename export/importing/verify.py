"""The importer's judge: the original file on float input against ours on bytes, at several batch sizes, and
every claim about its head in numbers.

Ours runs through the server's own `Engine`, so that what is verified is what is served.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from service.artifact import LINEAR, Preprocessing, golden_picture
from service.engine import Device, Engine, GradientEngine

from ..errors import ExportError, VerificationError
from .linearise import MAP
from .recognise import End
from .surgery import Picture

CPU = Device("cpu")
BATCHES = (1, 3, 8)
DIFFERENCE = (
    1e-3  # of logits, relative to max(1, largest): rounding of the preprocessing grows in deep networks
)
COMPLETENESS = 1e-4  # of logits, relative to max(1, largest)
SLOPE = 2e-2  # of contributions, relative to the largest: the error of a finite difference in float32
STEP = 1e-2  # of a token, for that difference


class NotExactError(Exception):
    """Contributions that should add up to the logits do not; the message says by how much."""


class Original:
    """The file as it came, on ONNX Runtime."""

    def __init__(self, model: onnx.ModelProto, picture: Picture, preprocessing: Preprocessing) -> None:
        """ExportError where ONNX Runtime cannot load it."""
        self.model, self.picture, self.preprocessing = model, picture, preprocessing
        self._session, self._output = _session(model), model.graph.output[0].name

    def read_at(self, tensor: str) -> None:
        """From now on `scores` are the values of this tensor, e.g. before the softmax."""
        if tensor != self._output:
            copy = onnx.ModelProto()
            copy.CopyFrom(self.model)
            copy.graph.output.append(helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
            self._session, self._output = _session(copy), tensor

    def scores(self, images: np.ndarray) -> np.ndarray:
        """(n, K) of uint8 (n, H, W, 3), in the batch size that the file fixes, or one by one."""
        fed = self.picture.fed(images, self.preprocessing)
        size = self.picture.batch or 1
        fed = np.concatenate([fed, np.repeat(fed[-1:], -len(fed) % size, axis=0)])
        try:
            runs = [
                self._session.run([self._output], {self.picture.name: fed[i : i + size]})[0]
                for i in range(0, len(fed), size)
            ]
        except Exception as error:  # what ONNX Runtime raises is no contract
            raise ExportError(
                f"the original file does not run on pictures of {self.picture.size[1]} x "
                f"{self.picture.size[0]} ({_line(error)}); check --size"
            ) from None
        return np.concatenate(runs).reshape(len(fed), -1)[: len(images)].astype(np.float64)


def _session(model: onnx.ModelProto) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    data = model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # what ONNX Runtime raises is no contract
        raise ExportError(
            f"ONNX Runtime cannot load the file ({_line(error)}); export it again with standard operators"
        ) from None


def compare(path: Path, original: Original, end: End, batches: tuple[int, ...]) -> dict[str, Any]:
    """What was measured: `difference` of the logits and, where the head is linear, `completeness`, each
    relative to max(1, largest number). VerificationError where the file does not answer as the original does,
    NotExactError where its parts do not add up."""
    engine = Engine(path, CPU)
    names = ("tokens",) if engine.manifest.has_tokens else ()
    size = engine.manifest.preprocessing.size
    rng = np.random.default_rng(0)
    original.read_at(end.logits)
    difference = completeness = 0.0
    for batch in batches:
        images = rng.integers(0, 256, (batch, *size, 3), np.uint8)
        images[0] = golden_picture(size, batch)
        expected = original.scores(images)
        if not np.isfinite(expected).all():
            raise ExportError(
                "the original file gives numbers that are not finite; is it damaged, or untrained?"
            )
        try:
            out = engine.run(images, names)
        except Exception as error:  # what ONNX Runtime raises is no contract
            raise VerificationError(f"the file does not run at batch {batch}: {_line(error)}") from None
        if not np.isfinite(out.logits).all() or out.logits.shape != expected.shape:
            raise VerificationError(f"the file does not answer as the original at batch {batch}")
        difference = max(difference, _relative(out.logits, expected))
        if end.head == LINEAR and engine.head:
            tokens = out.arrays["tokens"].astype(np.float64)
            account = tokens.mean(1) @ engine.head.weight.T + engine.head.bias
            completeness = max(completeness, _relative(account, out.logits))
    if not difference <= DIFFERENCE:
        raise VerificationError(
            f"the file answers otherwise than the original: logits differ by {difference:.2g}, allowed are "
            f"{DIFFERENCE:.2g}"
        )
    measured: dict[str, Any] = {"batches": batches, "difference": {"logits": difference}}
    if end.head != LINEAR:
        return measured
    if not completeness <= COMPLETENESS:
        raise NotExactError(
            f"the parts miss the logits by {completeness:.2g}, allowed are {COMPLETENESS:.2g}"
        )
    return {**measured, "completeness": completeness}


def compare_slopes(path: Path, explain: Path, end: End, forward: Callable[[np.ndarray], np.ndarray]) -> float:
    """How far the contributions of explain.onnx are from finite differences, relative to the largest.
    NotExactError where that is too far. forward: tokens (1, N, C) → logits (1, K)."""
    engine, gradients = Engine(path, CPU), GradientEngine(explain, CPU)
    picture = golden_picture(engine.manifest.preprocessing.size, 1)
    tokens = engine.run(picture[None], ("features",)).arrays["features"]
    target = int(forward(tokens)[0].argmax())
    weights = np.zeros((1, end.classes), np.float32)
    weights[0, target] = 1
    found = gradients.run(tokens, weights)[MAP].reshape(-1)
    places = np.argsort(-np.abs(found))[:4]
    measured = []
    for place in places:
        more, less = tokens.copy(), tokens.copy()
        more[0, place] *= 1 + STEP
        less[0, place] *= 1 - STEP
        measured.append(float(forward(more)[0, target] - forward(less)[0, target]) / (2 * STEP))
    largest = max(float(np.abs(found).max()), 1e-3)
    off = float(np.abs(found[places] - measured).max()) / largest
    if not off <= SLOPE:
        raise NotExactError(f"contributions differ from finite differences by {off:.2g}")
    return off


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / max(1.0, float(np.abs(expected).max())))


def _line(error: Exception) -> str:
    """What ONNX Runtime says, without its codes before it."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return text.rsplit(" : ", 1)[-1][:120]
