"""explain.onnx for a head that is not linear: (tokens, weights over the logits) → what each place adds, to
first order at that picture.

The nodes between the mean and the logits are copied and followed backwards by the chain rule, in ONNX: the
server needs no gradients of its own. The map is token x gradient / N, summed over channels. A table holds one
rule an operator; only operators that come after a mean are worth a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .graph import Graph, attributes, opset

if TYPE_CHECKING:
    from .recognise import End, Mean

STAGE = 1  # foreign models have one stage: the map before the mean
MAP = f"map_{STAGE}"


@dataclass
class Tape:
    """Nodes being written. Names are made here and never clash with those of the foreign graph."""

    graph: Graph
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"gradient/{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, value: np.ndarray) -> str:
        name = f"gradient/c{len(self.constants)}"
        self.constants[name] = value if value.dtype == np.int64 else value.astype(np.float32)
        return name

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def like(self, name: str, tensor: str) -> str:
        """`tensor` in the shape of the foreign tensor `name`."""
        return self.reshape(tensor, self.graph.sizes_of(name) or ())

    def reshape(self, tensor: str, sizes: tuple[int, ...]) -> str:
        return self.op("Reshape", tensor, self.constant(np.array([-1, *sizes], np.int64)))

    def mean(self, tensor: str, width: int) -> str:
        """Over the last axis, which stays with size 1."""
        return self.op("MatMul", tensor, self.constant(np.full((width, 1), 1 / width)))

    def width(self, name: str) -> int:
        """The last size of a foreign tensor."""
        return (self.graph.sizes_of(name) or (1,))[-1]


# (tape, node, gradient of its output) → gradient of each input that holds data, by position
Rule = Callable[[Tape, onnx.NodeProto, str], dict[int, str]]


def _view(tape: Tape, node: onnx.NodeProto, gradient: str) -> dict[int, str]:
    return {0: tape.like(node.input[0], gradient)}


def _transpose(tape: Tape, node: onnx.NodeProto, gradient: str) -> dict[int, str]:
    axes = attributes(node)["perm"]
    return {0: tape.op("Transpose", gradient, perm=np.argsort(axes).tolist())}


def _gemm(tape: Tape, node: onnx.NodeProto, gradient: str) -> dict[int, str]:
    values = attributes(node)
    matrix = tape.graph.constants[node.input[1]]
    matrix = (matrix if values.get("transB", 0) else matrix.T) * values.get("alpha", 1.0)
    return {0: tape.op("MatMul", gradient, tape.constant(matrix))}


def _matmul(tape: Tape, node: onnx.NodeProto, gradient: str) -> dict[int, str]:
    return {0: tape.op("MatMul", gradient, tape.constant(tape.graph.constants[node.input[1]].T))}


def _conv(tape: Tape, node: onnx.NodeProto, gradient: str) -> dict[int, str]:
    kernel = tape.graph.constants[node.input[1]]
    flat = tape.reshape(gradient, (kernel.shape[0],))
    matrix = tape.constant(kernel.reshape(kernel.shape[:2]))
    return {0: tape.like(node.input[0], tape.op("MatMul", flat, matrix))}


def _batch_norm(tape: Tape, node: onnx.NodeProto, gradient: str) -> dict[int, str]:
    scale, _, _, variance = (tape.graph.constants[name] for name in node.input[1:5])
    factor = scale / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
    ones = len(tape.graph.sizes_of(node.input[0]) or ()) - 1
    return {0: tape.op("Mul", gradient, tape.constant(factor.reshape(-1, *[1] * ones)))}


def _to_operands(tape: Tape, node: onnx.NodeProto, gradients: dict[int, str]) -> dict[int, str]:
    """The gradients of operands that were broadcast along the last axis, summed over it."""
    out = {}
    for position, gradient in gradients.items():
        name = node.input[position]
        whole, own = tape.width(node.output[0]), tape.width(name)
        summed = tape.op("MatMul", gradient, tape.constant(np.ones((whole, 1)))) if own < whole else gradient
        out[position] = summed
    return out


def _data(tape: Tape, node: onnx.NodeProto) -> list[int]:
    held = set(tape.graph.data_inputs(node))
    return [i for i, name in enumerate(node.input) if name in held]


def _add(tape: Tape, node: onnx.NodeProto, gradient: str) -> dict[int, str]:
    return _to_operands(tape, node, dict.fromkeys(_data(tape, node), gradient))


def _sub(tape: Tape, node: onnx.NodeProto, gradient: str) -> dict[int, str]:
    signed = {i: tape.op("Neg", gradient) if i else gradient for i in _data(tape, node)}
    return _to_operands(tape, node, signed)


def _mul(tape: Tape, node: onnx.NodeProto, gradient: str) -> dict[int, str]:
    parts = {i: tape.op("Mul", gradient, node.input[1 - i]) for i in _data(tape, node)}
    return _to_operands(tape, node, parts)


def _div(tape: Tape, node: onnx.NodeProto, gradient: str) -> dict[int, str]:
    over = tape.op("Div", gradient, node.input[1])
    minus = tape.op("Neg", tape.op("Mul", over, node.output[0]))
    parts = {i: minus if i else over for i in _data(tape, node)}
    return _to_operands(tape, node, parts)


def _pow(tape: Tape, node: onnx.NodeProto, gradient: str) -> dict[int, str]:
    exponent = float(tape.graph.constants[node.input[1]].ravel()[0])
    power = tape.op("Pow", node.input[0], tape.number(exponent - 1))
    return {0: tape.op("Mul", gradient, tape.op("Mul", power, tape.number(exponent)))}


def _reduce_mean(tape: Tape, node: onnx.NodeProto, gradient: str) -> dict[int, str]:
    """Over the last axis, kept: what a LayerNorm is made of."""
    width = tape.width(node.input[0])
    return {0: tape.op("Mul", gradient, tape.constant(np.full(width, 1 / width)))}


def _layer_norm(tape: Tape, node: onnx.NodeProto, gradient: str) -> dict[int, str]:
    """Ba et al. 2016, over the last axis: (g s - mean(g s) - x̂ mean(g s x̂)) / deviation."""
    x, width = node.input[0], tape.width(node.input[0])
    apart = tape.op("Sub", x, tape.mean(x, width))
    variance = tape.mean(tape.op("Mul", apart, apart), width)
    epsilon = tape.number(attributes(node).get("epsilon", 1e-5))
    deviation = tape.op("Sqrt", tape.op("Add", variance, epsilon))
    unit = tape.op("Div", apart, deviation)
    scaled = tape.op("Mul", gradient, node.input[1])
    along = tape.op("Mul", unit, tape.mean(tape.op("Mul", scaled, unit), width))
    rest = tape.op("Sub", tape.op("Sub", scaled, tape.mean(scaled, width)), along)
    return {0: tape.op("Div", rest, deviation)}


def _pointwise(slope: Callable[[Tape, onnx.NodeProto], str]) -> Rule:
    """Of a function of single numbers, by its derivative."""
    return lambda tape, node, gradient: {0: tape.op("Mul", gradient, slope(tape, node))}


def _above(tape: Tape, x: str, value: float) -> str:
    return tape.op("Cast", tape.op("Greater", x, tape.number(value)), to=onnx.TensorProto.FLOAT)


def _between(tape: Tape, x: str, low: float, high: float) -> str:
    return tape.op("Sub", _above(tape, x, low), _above(tape, x, high))


def _sigmoid(tape: Tape, node: onnx.NodeProto) -> str:
    y = node.output[0]
    return tape.op("Mul", y, tape.op("Sub", tape.number(1), y))


def _tanh(tape: Tape, node: onnx.NodeProto) -> str:
    y = node.output[0]
    return tape.op("Sub", tape.number(1), tape.op("Mul", y, y))


def _bell(tape: Tape, x: str, factor: float, over: float) -> str:
    """factor · exp(-x² / over)."""
    exponent = tape.op("Mul", tape.op("Mul", x, x), tape.number(-1 / over))
    return tape.op("Mul", tape.op("Exp", exponent), tape.number(factor))


def _gelu(tape: Tape, node: onnx.NodeProto) -> str:
    """Φ(x) + x φ(x)."""
    x = node.input[0]
    erf = tape.op("Erf", tape.op("Mul", x, tape.number(math.sqrt(0.5))))
    phi = tape.op("Mul", tape.op("Add", erf, tape.number(1)), tape.number(0.5))
    bell = _bell(tape, x, 1 / math.sqrt(2 * math.pi), 2)
    return tape.op("Add", phi, tape.op("Mul", x, bell))


def _hard_swish(tape: Tape, node: onnx.NodeProto) -> str:
    x = node.input[0]
    ramp = tape.op("Add", tape.op("Mul", x, tape.number(1 / 3)), tape.number(0.5))
    return tape.op("Add", _above(tape, x, 3), tape.op("Mul", _between(tape, x, -3, 3), ramp))


def _hard_sigmoid(tape: Tape, node: onnx.NodeProto) -> str:
    alpha, beta = (attributes(node).get(name, default) for name, default in (("alpha", 0.2), ("beta", 0.5)))
    inside = _between(tape, node.input[0], -beta / alpha, (1 - beta) / alpha)
    return tape.op("Mul", inside, tape.number(alpha))


def _leaky(tape: Tape, node: onnx.NodeProto) -> str:
    alpha, above = attributes(node).get("alpha", 0.01), _above(tape, node.input[0], 0)
    return tape.op("Add", tape.op("Mul", above, tape.number(1 - alpha)), tape.number(alpha))


def _clip(tape: Tape, node: onnx.NodeProto) -> str:
    values, constants = attributes(node), tape.graph.constants
    bounds = [values.get("min", -3e38), values.get("max", 3e38)]
    for i, name in enumerate(node.input[1:]):
        bounds[i] = float(constants[name].ravel()[0]) if name else bounds[i]
    return _between(tape, node.input[0], *bounds)


GRADIENTS: dict[str, Rule] = {
    **dict.fromkeys(("Identity", "Dropout", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze"), _view),
    "Transpose": _transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    "Add": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Pow": _pow,
    "ReduceMean": _reduce_mean,
    "LayerNormalization": _layer_norm,
    "Relu": _pointwise(lambda tape, node: _above(tape, node.input[0], 0)),
    "LeakyRelu": _pointwise(_leaky),
    "Clip": _pointwise(_clip),
    "Sigmoid": _pointwise(_sigmoid),
    "HardSigmoid": _pointwise(_hard_sigmoid),
    "HardSwish": _pointwise(_hard_swish),
    "Tanh": _pointwise(_tanh),
    "Softplus": _pointwise(lambda tape, node: tape.op("Sigmoid", node.input[0])),
    "Gelu": _pointwise(_gelu),
    "Erf": _pointwise(lambda tape, node: _bell(tape, node.input[0], 2 / math.sqrt(math.pi), 1)),
    "Exp": _pointwise(lambda tape, node: node.output[0]),
    "Sqrt": _pointwise(lambda tape, node: tape.op("Div", tape.number(0.5), node.output[0])),
    "Neg": _pointwise(lambda tape, node: tape.number(-1)),
}
# of these, only the first input may hold data
ALONE = ("Gemm", "MatMul", "Conv", "BatchNormalization", "Pow", "LayerNormalization", "Clip")


def unknown(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether there is no rule for this node as it stands."""
    sizes = graph.sizes_of(node.output[0])
    inputs = [graph.sizes_of(name) for name in graph.data_inputs(node)]
    if node.op_type not in GRADIENTS or sizes is None or None in inputs:
        return True
    values, data = attributes(node), graph.data_inputs(node)
    if node.op_type in ALONE and data != [node.input[0]]:
        return True
    if any(len(size or ()) != len(sizes) for size in inputs) and node.op_type in ("Add", "Sub", "Mul", "Div"):
        return True
    last = len(sizes)  # of the axes, batch included
    if node.op_type == "ReduceMean":
        axes = values.get("axes") or (graph.constants[node.input[1]].tolist() if len(node.input) > 1 else [])
        return [axis % (last + 1) for axis in axes] != [last] or not values.get("keepdims", 1)
    if node.op_type == "LayerNormalization":
        return values.get("axis", -1) % (last + 1) != last
    if node.op_type == "Gelu":
        return values.get("approximate", "none") != "none"
    if node.op_type == "MatMul":
        return graph.constants.get(node.input[1], np.zeros(0)).ndim != 2
    if node.op_type == "Conv":
        return graph.constants[node.input[1]].shape[2:] != (1, 1) or values.get("group", 1) != 1
    return False


def linearised(graph: Graph, end: End) -> onnx.ModelProto:
    """explain.onnx of a model whose end is of first order: `features` (B, N, C), `weights` (B, K) → the
    map (B, h, w)."""
    assert end.mean is not None
    tape, mean = Tape(graph), end.mean
    places = math.prod(mean.grid)
    averaging = tape.constant(np.full((1, places), 1 / places))
    pooled = tape.op("MatMul", averaging, "features")  # (B, 1, C)
    forward = graph.between(mean.output, end.logits)
    shaped = tape.like(mean.output, pooled)
    tape.nodes.append(helper.make_node("Identity", [shaped], [mean.output]))
    tape.nodes.extend(forward)
    gradients = {end.logits: tape.like(end.logits, "weights")}
    for node in reversed(forward):
        gradient = gradients.get(node.output[0])
        if gradient is None:
            continue
        for position, part in GRADIENTS[node.op_type](tape, node, gradient).items():
            name = node.input[position]
            gradients[name] = tape.op("Add", gradients[name], part) if name in gradients else part
    column = tape.reshape(gradients[mean.output], (mean.width, 1))
    summed = tape.op("MatMul", "features", column)  # (B, N, 1)
    scaled = tape.op("Mul", summed, tape.number(1 / places))
    tape.nodes.append(
        helper.make_node("Reshape", [scaled, tape.constant(np.array([-1, *mean.grid], np.int64))], [MAP])
    )
    return _model(tape, end, mean)


def _model(tape: Tape, end: End, mean: Mean) -> onnx.ModelProto:
    graph, kind = tape.graph, onnx.TensorProto.FLOAT
    used = {name for node in tape.nodes for name in node.input}
    constants = {**{n: v for n, v in graph.constants.items() if n in used}, **tape.constants}
    batch, places = graph.shape[0], math.prod(mean.grid)
    proto = helper.make_graph(
        tape.nodes,
        "explain",
        [
            helper.make_tensor_value_info("features", kind, (batch, places, mean.width)),
            helper.make_tensor_value_info("weights", kind, (batch, end.classes)),
        ],
        [helper.make_tensor_value_info(MAP, kind, (batch, *mean.grid))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", opset(graph.model))]
    return helper.make_model(proto, opset_imports=imports, ir_version=graph.model.ir_version)
