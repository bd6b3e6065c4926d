"""A foreign graph → the served one: bytes of a picture in, `logits` (B, K) out, and `tokens` if it has some.

Nothing inside is changed. Preprocessing goes before it, the softmax at its end goes, and nodes that nothing
needs any more go with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from service.artifact import FIRST_ORDER, Preprocessing

from ..errors import ExportError
from .graph import FLOATS, PREFIX, Graph, Size
from .recognise import End, Mean

PARTS = 24  # that int8 measures one by one, at most
UINT8 = onnx.TensorProto.UINT8
KINDS = (onnx.TensorProto.FLOAT, UINT8)


@dataclass(frozen=True)
class Picture:
    """The input that takes pictures. size: (H, W). channels_first: (B, 3, H, W), else (B, H, W, 3). batch:
    the number that the file fixes, or None. takes_bytes: whether it takes uint8 as it is."""

    name: str
    size: tuple[int, int]
    channels_first: bool
    batch: int | None
    takes_bytes: bool

    def shape(self, batch: Size) -> tuple[Size, ...]:
        return (batch, 3, *self.size) if self.channels_first else (batch, *self.size, 3)

    def fed(self, images: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
        """uint8 (B, H, W, 3) as the original file takes it."""
        if self.takes_bytes:
            return images.transpose(0, 3, 1, 2) if self.channels_first else images
        first = preprocessing.to_float(images)
        return np.ascontiguousarray(first if self.channels_first else first.transpose(0, 2, 3, 1))


def find_picture(model: onnx.ModelProto, side: int | None) -> Picture:
    """The one input of an image classifier; ExportError for anything else. side: of the picture, where the
    file leaves that free."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in weights]
    names = ", ".join(i.name.removeprefix(PREFIX) for i in inputs)
    if len(inputs) != 1:
        raise ExportError(
            f"the model has {len(inputs)} inputs ({names or 'none'}), one picture is expected; cut the "
            "others off with onnx.utils.extract_model"
        )
    if len(model.graph.output) != 1:
        given = ", ".join(o.name.removeprefix(PREFIX) for o in model.graph.output)
        raise ExportError(
            f"the model has {len(model.graph.output)} outputs ({given}), only class scores are expected; "
            "keep them alone with onnx.utils.extract_model"
        )
    tensor = inputs[0].type.tensor_type
    sizes = [d.dim_value for d in tensor.shape.dim]  # 0 = free
    if tensor.elem_type not in KINDS or len(sizes) != 4:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        raise ExportError(
            f"the input {names} is {kind} with {len(sizes)} axes, not a batch of pictures (float32 or uint8, "
            "4 axes); only image classifiers can be imported"
        )
    first = sizes[1] == 3 or (sizes[3] != 3 and sizes[1] == 0)
    if not first and sizes[3] != 3:
        raise ExportError(
            f"the input {names} has {sizes[1] if sizes[1] < sizes[3] else sizes[3]} channels in "
            f"{sizes}, but pictures have 3 (RGB); export a model for RGB pictures"
        )
    fixed = sizes[2:] if first else sizes[1:3]
    if side is not None and any(size not in (0, side) for size in fixed):
        raise ExportError(f"the file fixes pictures of {fixed[1]} x {fixed[0]}; leave out --size")
    if side is None and 0 in fixed:
        raise ExportError("the file leaves the picture's size free; give it, as in --size 224")
    height, width = (size or side or 0 for size in fixed)
    return Picture(inputs[0].name, (height, width), first, sizes[0] or None, tensor.elem_type == UINT8)


def served(graph: Graph, end: End, picture: Picture, preprocessing: Preprocessing) -> onnx.ModelProto:
    """The graph that is served; its outputs are `logits` and, by the end's head, `tokens` and `features`."""
    height, width = picture.size
    batch = graph.shape[0]
    before, constants = _preprocessing(picture, preprocessing)
    after = [helper.make_node("Flatten", [end.logits], ["logits"], "head/logits", axis=1)]
    outputs: dict[str, tuple[Size, ...]] = {"logits": (batch, end.classes)}
    if end.mean:
        nodes, shape = _tokens(end.mean)
        after += nodes
        constants |= {"paca/places": np.array(shape, np.int64)}
        outputs["tokens"] = (batch, math.prod(end.mean.grid), end.mean.width)
    if end.head == FIRST_ORDER:
        after.append(helper.make_node("Identity", ["tokens"], ["features"], "head/features"))
        outputs["features"] = outputs["tokens"]
    inner = _named(_needed(graph, [end.logits, *([end.mean.source] if end.mean else [])]), graph, end)
    nodes = [*before, *inner, *after]
    used = {name for node in nodes for name in _reads(node)}
    weights = [t for t in graph.model.graph.initializer if t.name in used]
    weights += [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used]
    proto = helper.make_graph(
        nodes,
        "served",
        [helper.make_tensor_value_info("image", UINT8, (batch, height, width, 3))],
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n, shape in outputs.items()],
        weights,
    )
    return helper.make_model(proto, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version)


def _preprocessing(
    picture: Picture, preprocessing: Preprocessing
) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Bytes (B, H, W, 3) → what the foreign graph takes."""
    at, nodes, constants = "image", [], {}

    def then(kind: str, *further: str, **attributes: Any) -> None:
        nonlocal at
        name = f"paca/{kind.lower()}"
        named = f"preprocessing/{kind.lower()}"
        nodes.append(helper.make_node(kind, [at, *further], [name], named, **attributes))
        at = name

    if picture.channels_first:
        then("Transpose", perm=[0, 3, 1, 2])
    if not picture.takes_bytes:
        mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
        shape = (3, 1, 1) if picture.channels_first else (3,)
        constants["paca/scale"] = (1 / (255 * std)).astype(np.float32).reshape(shape)
        constants["paca/shift"] = (-mean / std).astype(np.float32).reshape(shape)
        then("Cast", to=onnx.TensorProto.FLOAT)
        then("Mul", "paca/scale")
        then("Add", "paca/shift")
    nodes.append(helper.make_node("Identity", [at], [picture.name], "preprocessing/input"))
    return nodes, constants


def _tokens(mean: Mean) -> tuple[list[onnx.NodeProto], list[int]]:
    """(nodes from the source of the mean to `tokens` (B, N, C), the sizes of their reshape)."""
    places = math.prod(mean.grid)
    if not mean.channels_first:
        return [helper.make_node("Reshape", [mean.source, "paca/places"], ["tokens"], "head/tokens")], [
            0,
            places,
            mean.width,
        ]
    flat = helper.make_node("Reshape", [mean.source, "paca/places"], ["paca/flat"], "head/flat")
    turned = helper.make_node("Transpose", ["paca/flat"], ["tokens"], "head/tokens", perm=[0, 2, 1])
    return [flat, turned], [0, mean.width, places]


def _reads(node: onnx.NodeProto) -> list[str]:
    """What a node takes, its sub-graphs' nodes included."""
    graphs = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return [*node.input, *(name for g in graphs for inner in g.node for name in _reads(inner))]


def _needed(graph: Graph, ends: list[str]) -> list[onnx.NodeProto]:
    """The nodes that these tensors need, in order."""
    needed, open_ = set(), list(ends)
    while open_:
        at = open_.pop()
        if at not in needed:
            needed.add(at)
            open_ += _reads(graph.producers[at]) if at in graph.producers else []
    return [node for node in graph.model.graph.node if any(name in needed for name in node.output)]


def _named(nodes: list[onnx.NodeProto], graph: Graph, end: End) -> list[onnx.NodeProto]:
    """Copies with names as `quantise` reads them: the head, and parts of neighbouring layers."""
    tail = {n.output[0] for n in graph.between(end.mean.output, end.logits)} if end.mean else {end.logits}
    layers = [n for n in nodes if n.op_type in ("Conv", "MatMul")]
    each = max(1, -(-len(layers) // PARTS))
    copies, layer = [], 0
    for number, node in enumerate(nodes):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        layer += node.op_type in ("Conv", "MatMul")
        part = "head" if node.output[0] in tail else f"part{max(layer - 1, 0) // each + 1}"
        copy.name = f"{part}/{number}.{node.op_type}"
        copies.append(copy)
    return copies


def parameters(graph: Graph) -> int:
    """Numbers of the network's float weights."""
    return sum(
        math.prod(tensor.dims) for tensor in graph.model.graph.initializer if tensor.data_type in FLOATS
    )


def macs(graph: Graph) -> int:
    """Multiply-accumulates of one picture in convolutions and matrix products, as far as shapes are known."""
    total = 0
    for node in graph.model.graph.node:
        out = graph.sizes_of(node.output[0])
        if out is None or node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        kernel = graph.shape_of(node.input[1])
        sizes = graph.sizes_of(node.input[0])
        if node.op_type == "Conv" and kernel:
            total += math.prod(out) * math.prod(int(k) for k in kernel[1:])
        elif sizes:
            total += math.prod(out) * sizes[-1]
    return total
