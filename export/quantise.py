"""Smaller number formats for a finished fp32 graph: float16 throughout, or 8-bit integers where measurement
shows they do no harm.

The arithmetic of both is ONNX Runtime's own tooling; what stands here is which layers to convert and the
proof that the answers stay the same. Attention nodes, the pooling over assignments, norms and the
classifier's head always stay in float.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from onnxruntime.transformers.float16 import convert_float_to_float16

from service.precision import LEAST_AGREEMENT, MOST_POINTS_LOST

from .pictures import Calibration

AGREEMENT = LEAST_AGREEMENT  # of the pictures on which fp32 and int8 must name the same class first
FEWEST_PICTURES = 32
PROBE = 16  # pictures on which one part's error is measured
HARMFUL = 0.05  # a part that alone moves the logits by this share of their spread stays in float
BATCH = 8
QUANTISE = "QuantizeLinear"
GELU_SLOPE = 1.702  # gelu(x) ≈ x · sigmoid(1.702 x), at most 0.02 off (Hendrycks & Gimpel 2016, section 2)
Say = Callable[[str], None]


class QuantisationError(Exception):
    """The graph loses too much in the smaller format; the message is one line that names the layers that
    hurt."""


@dataclass(frozen=True)
class Int8:
    """An 8-bit graph and what was measured. agreement: share of `judged` pictures, none of them used to
    calibrate, with fp32's top class. points_lost: fp32's accuracy on them less its own, in percentage points;
    None without labels. errors: root-mean-square change of the logits, relative to their spread, if only that
    part is in 8 bits; kept_float: parts left in float; gelus: how many are in 8 bits too."""

    model: onnx.ModelProto
    agreement: float
    points_lost: float | None
    judged: int
    calibrated: int
    errors: dict[str, float]
    kept_float: tuple[str, ...]
    gelus: int = 0


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with float16 weights and arithmetic. Inputs and outputs keep their types: one Cast at each float
    end, none inside."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with contextlib.redirect_stdout(io.StringIO()):
        return convert_float_to_float16(copy, keep_io_types=True)


def to_int8(model: onnx.ModelProto, pictures: Calibration, say: Say = lambda text: None) -> Int8:
    """A copy with 8-bit weights (per channel) and activations (per tensor) in convolutions and linear layers,
    as QuantizeLinear/DequantizeLinear pairs.

    Parts that alone move the logits visibly stay in float, then more, worst first, until both
    formats agree and, where labels are known, no more accuracy is lost than may be. QuantisationError if that
    takes over half. GELU is in 8 bits too where all of this holds with it and the logits do not move visibly.
    """
    if (count := len(pictures.calibrating) + len(pictures.judging)) < FEWEST_PICTURES:
        raise QuantisationError(
            f"int8 needs at least {FEWEST_PICTURES} pictures to calibrate and to judge, not {count}"
        )
    parts = quantisable(model)
    calibrating = pictures.calibrating
    with tempfile.TemporaryDirectory(prefix="paca-int8-") as folder:
        quantiser = _Quantiser(model, calibrating, Path(folder))
        expected = logits(model, calibrating[:PROBE])
        spread = float(np.std(expected - expected.mean(1, keepdims=True))) or 1.0

        def error(reduced: onnx.ModelProto) -> float:
            return float(np.sqrt(np.mean((logits(reduced, calibrating[:PROBE]) - expected) ** 2))) / spread

        errors = {}
        for i, (part, nodes) in enumerate(parts.items(), 1):
            say(f"measuring what 8 bits cost: part {i} of {len(parts)}, {part}")
            errors[part] = error(quantiser.quantise(nodes))
        errors = dict(sorted(errors.items(), key=lambda item: -item[1]))
        judge = _Judge(model, pictures)
        kept = sum(harm > HARMFUL for harm in errors.values())
        while kept <= len(parts) / 2:
            say(f"comparing with fp32, {kept} parts in float")
            floats = tuple(errors)[:kept]
            found = quantiser.quantise(
                [node for part, nodes in parts.items() if part not in floats for node in nodes]
            )
            faster, count = with_gelus(found)
            for candidate, gelus in ((faster, count), (found, 0)):
                if gelus and error(candidate) > HARMFUL:
                    continue
                agreement, lost = judge.compare(candidate)
                if agreement >= AGREEMENT and (lost is None or lost <= MOST_POINTS_LOST):
                    counts = len(pictures.judging), len(calibrating)
                    return Int8(candidate, agreement, lost, *counts, errors, floats, gelus)
            kept = max(kept + 1, kept * 3 // 2)
    worst = ", ".join(f"{part} ({error:.3f})" for part, error in list(errors.items())[:5])
    loses = "" if lost is None else f", and int8 loses {lost:.1f} points, {MOST_POINTS_LOST} are allowed"
    raise QuantisationError(
        f"int8 and fp32 agree on {100 * agreement:.1f} % of {len(pictures.judging)} pictures, "
        f"{100 * AGREEMENT:.0f} % are needed{loses}; the layers that hurt "
        f"(relative error of the logits): {worst}; calibrate on more pictures like those to come, or use fp16"
    )


def unjudged(model: onnx.ModelProto, calibrating: np.ndarray) -> onnx.ModelProto:
    """Every part in 8 bits, whatever it costs in accuracy: to measure the speed of random weights."""
    nodes = [node for part in quantisable(model).values() for node in part]
    with tempfile.TemporaryDirectory(prefix="paca-int8-") as folder:
        return with_gelus(_Quantiser(model, calibrating, Path(folder)).quantise(nodes))[0]


def with_gelus(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A copy of an 8-bit graph in which every GELU between two 8-bit tensors is x · sigmoid(1.702 x) in 8
    bits, and how many these are.

    ONNX Runtime looks such a sigmoid up in a table of 256 bytes, so nothing becomes float on the way. The
    factor stands in the scale by which the sigmoid's input is read.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    values = {weight.name: weight for weight in copy.graph.initializer}
    makers = {output: node for node in copy.graph.node for output in node.output}
    readers: dict[str, list[str]] = {}
    for node in copy.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in copy.graph.node:
        maker = makers.get(node.input[0]) if node.op_type == "Gelu" else None
        if maker is None or maker.op_type != "DequantizeLinear" or set(readers[node.output[0]]) != {QUANTISE}:
            nodes.append(node)
            continue
        scale = GELU_SLOPE * onnx.numpy_helper.to_array(values[maker.input[1]])
        nodes += _sigmoid_gelu(node, maker, copy.graph, scale)
        count += 1
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy, count


def _sigmoid_gelu(
    gelu: onnx.NodeProto, maker: onnx.NodeProto, graph: onnx.GraphProto, scale: np.ndarray
) -> list[onnx.NodeProto]:
    """The nodes in place of `gelu`, whose 8-bit input `maker` reads; scale: by which the sigmoid reads it."""
    own: dict[str, np.ndarray] = {
        "steep_scale": scale.astype(np.float32),
        "gate_scale": np.array(1 / 255, np.float32),  # of numbers from 0 to 1
        "gate_zero": np.array(0, np.uint8),
    }
    graph.initializer.extend(
        onnx.numpy_helper.from_array(value, f"{gelu.name}/{name}") for name, value in own.items()
    )
    steep_scale, *gate = (f"{gelu.name}/{name}" for name in own)
    steep, sigmoid, eight, gated = (f"{gelu.name}/{name}" for name in ("steep", "sigmoid", "eight", "gate"))
    steps = (
        ("DequantizeLinear", [maker.input[0], steep_scale, *maker.input[2:]], steep),
        ("Sigmoid", [steep], sigmoid),
        (QUANTISE, [sigmoid, *gate], eight),
        ("DequantizeLinear", [eight, *gate], gated),
        ("Mul", [gelu.input[0], gated], gelu.output[0]),
    )
    return [onnx.helper.make_node(op, inputs, [output], name=output) for op, inputs, output in steps]


class _Judge:
    """What fp32 names, and how a smaller file compares with it."""

    def __init__(self, model: onnx.ModelProto, pictures: Calibration) -> None:
        self.pictures = pictures
        self.named = logits(model, pictures.judging).argmax(1)

    def compare(self, model: onnx.ModelProto) -> tuple[float, float | None]:
        """(agreement, points lost or None)."""
        named, labels = logits(model, self.pictures.judging).argmax(1), self.pictures.labels
        lost = None if labels is None else _accuracy(self.named, labels) - _accuracy(named, labels)
        return float(np.mean(named == self.named)), lost


def _accuracy(named: np.ndarray, labels: np.ndarray) -> float:
    """In per cent."""
    return 100 * float(np.mean(named == labels))


def quantisable(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Parts of the network that can be 8-bit, such as "stage1.0.mlp", and the names of their nodes:
    convolutions and matrix products by constant weights.

    Not the head; nor a convolution that reads the picture itself, whose few channels gain nothing.
    """
    shapes = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    parts: dict[str, list[str]] = {}
    for node in model.graph.node:
        shape = shapes.get(node.input[1], ()) if node.op_type in ("Conv", "MatMul") else ()
        layer = node.name.split("/")[0]
        first = (
            node.op_type == "Conv"
            and bool(shape)
            and shape[1] <= 4
            and not any(a.name == "group" and a.i > 1 for a in node.attribute)
        )
        if shape and not first and layer != "head":
            depth = 4 if ".clustering" in layer else 3
            parts.setdefault(".".join(layer.split(".")[:depth]), []).append(node.name)
    return parts


def logits(model: onnx.ModelProto, pictures: np.ndarray) -> np.ndarray:
    """(n, K) of `model` on the CPU."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["logits"], feed)[0] for feed in _feeds(pictures)])


def _feeds(pictures: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    return ({"image": pictures[i : i + BATCH]} for i in range(0, len(pictures), BATCH))


class _Reader(CalibrationDataReader):
    def __init__(self, pictures: np.ndarray) -> None:
        self.feeds = _feeds(pictures)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


class _Quantiser:
    """Quantises any choice of nodes; the ranges of activations are measured once."""

    def __init__(self, model: onnx.ModelProto, pictures: np.ndarray, folder: Path) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        del self.model.graph.value_info[:]
        add_pre_process_metadata(self.model)
        self.metadata = list(model.metadata_props)
        self.pictures = pictures
        self.ranges, self.out = folder / "ranges.json", folder / "int8.onnx"

    def quantise(self, nodes: Sequence[str]) -> onnx.ModelProto:
        source = onnx.ModelProto()
        source.CopyFrom(self.model)
        with contextlib.redirect_stdout(io.StringIO()):
            quantize_static(
                source,
                self.out,
                _Reader(self.pictures),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "MatMul"],
                nodes_to_quantize=list(nodes),
                per_channel=True,
                # 7 bits: processors without VNNI add pairs of products in 16 bits, which 8 would overflow
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={
                    "OpTypesToExcludeOutputQuantization": ["MatMul"],  # they go to norms and sums, in float
                    "CalibMovingAverage": True,  # of each batch's range: one odd picture does not set it
                },
                calibration_cache_path=self.ranges,
            )
        found = onnx.load(self.out)
        del found.graph.value_info[:], found.metadata_props[:]
        found.metadata_props.extend(self.metadata)
        return found
