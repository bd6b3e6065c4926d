"""Small classifiers in ONNX, made in code: a trunk of two convolutions and the end that a test is about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

FLOAT, UINT8, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8, onnx.TensorProto.INT64
CLASSES, WIDTH, SIDE = 5, 12, 32


class Net:
    """A graph being written. Each call adds a node that reads the last one."""

    def __init__(self, seed: int = 0, opset: int = 17) -> None:
        self.random = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.at = "x"

    def constant(self, value: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        array = np.asarray(value)
        self.constants[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
        return name

    def weights(self, *shape: int, scale: float = 0.3) -> str:
        return self.constant(self.random.normal(size=shape) * scale)

    def op(self, kind: str, *further: str, at: str | None = None, **attributes: Any) -> Net:
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [at or self.at, *further], [out], **attributes))
        self.at = out
        return self

    def trunk(self, width: int = WIDTH) -> Net:
        """(B, 3, 32, 32) → (B, width, 8, 8)."""
        self.op("Conv", self.weights(8, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1]).op("Relu")
        return self.op("Conv", self.weights(width, 8, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1]).op("Relu")

    def tokens(self, width: int = WIDTH, class_token: bool = False) -> Net:
        """(B, 64, width), or 65 with a class token first."""
        shape = self.constant(np.array([0, width, 64]))
        self.trunk(width).op("Reshape", shape).op("Transpose", perm=[0, 2, 1])
        if class_token:
            spread = self.op("ReduceMean", axes=[1], keepdims=1).at
            before = self.nodes[-1].input[0]
            self.op("Concat", before, at=spread, axis=1)
        return self

    def gemm(self, wide: int = WIDTH, classes: int = CLASSES) -> Net:
        return self.op("Gemm", self.weights(classes, wide), self.weights(classes), transB=1)

    def layer_norm(self, width: int = WIDTH) -> Net:
        return self.op("LayerNormalization", self.weights(width, scale=1), self.weights(width), axis=-1)

    def layer_norm_in_parts(self, width: int = WIDTH) -> Net:
        """As exporters wrote it before there was an operator."""
        x = self.at
        mean = self.op("ReduceMean", axes=[-1], keepdims=1).at
        apart = self.op("Sub", mean, at=x).at
        self.op("Pow", self.constant(np.array(2.0))).op("ReduceMean", axes=[-1], keepdims=1)
        deviation = self.op("Add", self.constant(np.array(1e-5))).op("Sqrt").at
        self.op("Div", deviation, at=apart)
        return self.op("Mul", self.weights(width, scale=1)).op("Add", self.weights(width))

    def gelu_in_parts(self) -> Net:
        x = self.at
        self.op("Div", self.constant(np.array(2**0.5))).op("Erf").op("Add", self.constant(np.array(1.0)))
        self.op("Mul", x)
        return self.op("Mul", self.constant(np.array(0.5)))

    def silu(self) -> Net:
        x = self.at
        return self.op("Sigmoid").op("Mul", x)

    def model(
        self,
        shape: tuple = ("N", 3, SIDE, SIDE),
        out: tuple = ("N", CLASSES),
        kind: int = FLOAT,
        listed: bool = False,
    ) -> onnx.ModelProto:
        """listed: whether the weights are listed as inputs too, as old files have them."""
        inputs = [helper.make_tensor_value_info("x", kind, shape)]
        weights = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        if listed:
            inputs = [helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in weights] + inputs
        graph = helper.make_graph(
            self.nodes, "toy", inputs, [helper.make_tensor_value_info(self.at, FLOAT, out)], weights
        )
        imports = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=imports, ir_version=3 if listed else 8)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "toy.onnx"
    onnx.save(model, path)
    return path


def _pooled(net: Net) -> Net:
    return net.trunk().op("GlobalAveragePool").op("Flatten", axis=1)


def _split(net: Net, *sizes: int) -> str:
    return net.constant(np.array(sizes))


LINEAR: dict[str, Callable[[Net], Net]] = {
    "global pool, Gemm": lambda n: _pooled(n).gemm(),
    "global pool, MatMul, Add": lambda n: (
        _pooled(n).op("MatMul", n.weights(WIDTH, CLASSES)).op("Add", n.weights(CLASSES))
    ),
    "ReduceMean, dropout, Gemm": lambda n: (
        n.trunk().op("ReduceMean", axes=[2, 3], keepdims=0).op("Dropout").gemm()
    ),
    "ReduceMean, Squeeze, Gemm": lambda n: (
        n.trunk().op("ReduceMean", axes=[-1, -2], keepdims=1).op("Squeeze", _split(n, 2, 3)).gemm()
    ),
    "AveragePool over the map": lambda n: (
        n.trunk().op("AveragePool", kernel_shape=[8, 8]).op("Reshape", _split(n, -1, WIDTH)).gemm()
    ),
    "pool, 1x1 convolution": lambda n: (
        n.trunk()
        .op("GlobalAveragePool")
        .op("Conv", n.weights(CLASSES, WIDTH, 1, 1), n.weights(CLASSES))
        .op("Flatten")
    ),
    "1x1 convolution, pool": lambda n: (
        n.trunk().op("Conv", n.weights(CLASSES, WIDTH, 1, 1)).op("GlobalAveragePool").op("Flatten")
    ),
    "1x1 convolution, ReLU, pool": lambda n: (
        n.trunk().op("Conv", n.weights(CLASSES, WIDTH, 1, 1)).op("Relu").op("GlobalAveragePool").op("Flatten")
    ),
    "two Gemms without anything between": lambda n: _pooled(n).gemm(WIDTH, 7).gemm(7),
    "batch norm and a temperature": lambda n: (
        _pooled(n)
        .op(
            "BatchNormalization",
            n.weights(WIDTH),
            n.weights(WIDTH),
            n.weights(WIDTH),
            n.constant(np.ones(WIDTH)),
        )
        .gemm()
        .op("Div", n.constant(np.array(2.5)))
    ),
    "tokens, norm before the mean": lambda n: (
        n.tokens().layer_norm().op("ReduceMean", axes=[1], keepdims=0).gemm()
    ),
    "channels last": lambda n: (
        n.trunk().op("Transpose", perm=[0, 2, 3, 1]).op("ReduceMean", axes=[1, 2], keepdims=0).gemm()
    ),
    "tokens last": lambda n: (
        n.tokens().op("Transpose", perm=[0, 2, 1]).op("GlobalAveragePool").op("Flatten", axis=1).gemm()
    ),
    "softmax at the end": lambda n: _pooled(n).gemm().op("Softmax", axis=1),
    "log-softmax at the end": lambda n: _pooled(n).gemm().op("LogSoftmax", axis=1),
}
FIRST_ORDER: dict[str, Callable[[Net], Net]] = {
    "layer norm": lambda n: _pooled(n).layer_norm().gemm(),
    "layer norm in parts": lambda n: _pooled(n).layer_norm_in_parts().gemm(),
    "ReLU": lambda n: _pooled(n).op("Relu").gemm(),
    "two Gemms and tanh": lambda n: _pooled(n).gemm(WIDTH, 7).op("Tanh").gemm(7),
    "three Gemms": lambda n: _pooled(n).gemm(WIDTH, 9).op("LeakyRelu").gemm(9, 7).op("Sigmoid").gemm(7),
    "GELU in parts": lambda n: _pooled(n).gemm(WIDTH, 7).gelu_in_parts().gemm(7),
    "SiLU": lambda n: _pooled(n).silu().gemm(),
    "1x1 convolution, hard swish": lambda n: (
        n.trunk()
        .op("GlobalAveragePool")
        .op("Conv", n.weights(9, WIDTH, 1, 1), n.weights(9))
        .op("HardSwish")
        .op("Flatten")
        .gemm(9)
    ),
    "clip": lambda n: _pooled(n).op("Clip", n.constant(np.array(-1.0)), n.constant(np.array(0.4))).gemm(),
    "softplus, hard sigmoid": lambda n: _pooled(n).op("Softplus").op("HardSigmoid").gemm(),
    "tokens, norm after the mean": lambda n: (
        n.tokens().op("ReduceMean", axes=[1], keepdims=0).layer_norm().gemm()
    ),
}
NO_HEAD: dict[str, tuple[Callable[[Net], Net], str]] = {
    "flatten": (lambda n: n.trunk().op("Flatten").gemm(WIDTH * 64), "flattens its last map"),
    "class token": (
        lambda n: n.tokens(class_token=True).op("Gather", n.constant(np.array(0)), axis=1).gemm(),
        "class token",
    ),
    "mean with the class token": (
        lambda n: n.tokens(class_token=True).op("ReduceMean", axes=[1], keepdims=0).gemm(),
        "65 tokens, no grid",
    ),
    "maximum": (lambda n: n.trunk().op("GlobalMaxPool").op("Flatten").gemm(), "maximum over places"),
    "mean of part of the map": (
        lambda n: (
            n.trunk().op("AveragePool", kernel_shape=[4, 4], strides=[4, 4]).op("Flatten").gemm(WIDTH * 4)
        ),
        "flattens its last map",
    ),
    "softmax inside the head": (
        lambda n: _pooled(n).op("Softmax", axis=1).gemm(),
        "Softmax, which has no rule",
    ),
    "mean of a single place": (
        lambda n: (
            n.trunk()
            .op("AveragePool", kernel_shape=[8, 8])
            .op("GlobalAveragePool")
            .op("Max", n.constant(np.array(0.1)))
            .op("Flatten")
            .gemm()
        ),
        "no exact map",
    ),
}
