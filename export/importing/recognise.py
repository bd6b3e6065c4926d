"""How a classifier ends, read from its structure and never from names: does its answer come from a mean over
places, and is what follows linear?

Three cases. "linear": the mean of tokens times a matrix, so each place's part of the logit is exact. "first
order": something differentiable follows the mean, so the parts are those of its linearisation at one picture.
"none": no mean over places that everything passes through. Whether a claim holds in numbers is checked by
`verify`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx

from service.artifact import FIRST_ORDER, LINEAR, NO_HEAD, Head

from ..errors import ExportError
from .affine import RULES, VIEWS, Affine, Step
from .graph import Graph, attributes
from .linearise import unknown

SOFTMAXES = ("Softmax", "LogSoftmax")
# what ends the way back from the logits, where no mean does
REASONS = {
    "Gather": "it reads one token (a class token), not a mean over places",
    "GatherND": "it reads one token (a class token), not a mean over places",
    "Slice": "it reads one token (a class token), not a mean over places",
    "Split": "it reads one token (a class token), not a mean over places",
    "Flatten": "it flattens its last map without a mean over places",
    "Reshape": "it flattens its last map without a mean over places",
    "GlobalMaxPool": "it takes the maximum over places, not their mean",
    "MaxPool": "it takes the maximum over places, not their mean",
    "ReduceMax": "it takes the maximum over places, not their mean",
    "Concat": "it joins several vectors before its classifier",
}

# (axes of one picture, axes that a mean takes, the batch being axis 0) → whether channels come before places
LAYOUTS = {(3, (2, 3)): True, (3, (1, 2)): False, (2, (2,)): True, (2, (1,)): False}


@dataclass(frozen=True)
class Mean:
    """A mean over places. source: the tensor before it, output: after it. grid: (h, w) of its places. width:
    channels. channels_first: whether the source is (B, C, places...), else (B, places..., C)."""

    source: str
    output: str
    grid: tuple[int, int]
    width: int
    channels_first: bool


@dataclass(frozen=True)
class End:
    """logits: the tensor that holds them, (B, K) but for sizes of 1. classes: K. head: of `artifact.HEADS`.
    reason: one line for people. softmax: the operator that was taken off, or None. mean: None where `head`
    is none; weights: where it is linear."""

    logits: str
    classes: int
    head: str
    reason: str
    softmax: str | None = None
    mean: Mean | None = None
    weights: Head | None = None


def recognise(graph: Graph) -> End:
    """The end of a classifier; ExportError for what is none."""
    logits, softmax = _scores(graph)
    classes = _classes(graph, logits)
    mean, problem = _mean_before(graph, logits)
    if mean is None:
        return End(logits, classes, NO_HEAD, f"no exact map: {problem}", softmax)
    after = graph.between(mean.output, logits)
    names = " → ".join(node.op_type for node in after if node.op_type not in VIEWS)
    place = f"{mean.grid[0]} x {mean.grid[1]} places"
    map_ = _affine(graph, mean, logits)
    if map_ is not None and map_.weight.shape == (classes, mean.width):
        weights = Head(map_.weight.astype(np.float32), map_.bias.astype(np.float32))
        how = f"mean over {place}, then {names}" if names else f"the mean over {place} is the answer itself"
        return End(logits, classes, LINEAR, f"exact: {how}", softmax, mean, weights)
    if strange := [n.op_type for n in after if unknown(graph, n)]:
        reason = f"no exact map: its head has {strange[0]}, which has no rule here"
        return End(logits, classes, NO_HEAD, reason, softmax)
    reason = f"first order: mean over {place}, then {names}, not linear"
    return End(logits, classes, FIRST_ORDER, reason, softmax, mean)


def _scores(graph: Graph) -> tuple[str, str | None]:
    """(the tensor of the logits, the softmax that was after them)."""
    name, softmax = graph.model.graph.output[0].name, None
    while node := graph.producers.get(name):
        if node.op_type == "Sigmoid":
            raise ExportError(
                "the model ends in Sigmoid, which gives several labels at once; only one of many classes can "
                "be served, so export a model that ends in class scores"
            )
        if node.op_type in SOFTMAXES and softmax is None:
            softmax = node.op_type
        elif node.op_type not in VIEWS or len(graph.data_inputs(node)) != 1:
            break
        name = node.input[0]
    return name, softmax


def _classes(graph: Graph, logits: str) -> int:
    sizes = graph.sizes_of(logits) or graph.sizes_of(graph.model.graph.output[0].name)
    shown = graph.shape_of(logits)
    if sizes is None:
        raise ExportError(
            "the number of classes is not fixed in the file; export the model with a fixed picture size"
        )
    if sum(size > 1 for size in sizes) != 1:
        raise ExportError(
            f"its output is {shown}, not one score a class (B, K); detectors and segmenters cannot be "
            "imported, only classifiers"
        )
    return math.prod(sizes)


def _mean_before(graph: Graph, logits: str) -> tuple[Mean | None, str]:
    """The last mean over places that all ways to the logits lead through, or why there is none."""
    problem = ""
    for node in graph.backwards(logits):
        found = _mean(graph, node)
        if found is None or graph.depends_on_picture(logits, cut=node.output[0]):
            continue
        if isinstance(found, Mean):
            return found, ""
        problem = problem or found
    return None, problem or _why_none(graph, logits)


def _mean(graph: Graph, node: onnx.NodeProto) -> Mean | str | None:
    """The mean that a node takes, why it is of no use, or None where it takes none over places."""
    source, output = node.input[0], node.output[0]
    sizes = graph.sizes_of(source)
    axes = _averaged(graph, node, len(sizes) + 1) if sizes else None
    if sizes is None or axes is None:
        return None
    first = LAYOUTS.get((len(sizes), axes))
    if first is None:
        return None
    places, width = (sizes[1:], sizes[0]) if first else (sizes[:-1], sizes[-1])
    grid = _grid(graph, places)
    if math.prod(places) == 1:
        return "its last map has a single place"
    if grid is None:
        return f"its mean is over {math.prod(places)} tokens, no grid over the picture (a class token?)"
    return Mean(source, output, grid, width, first)


def _averaged(graph: Graph, node: onnx.NodeProto, rank: int) -> tuple[int, ...] | None:
    """The axes over which a node takes the whole mean."""
    values = attributes(node)
    if node.op_type == "GlobalAveragePool":
        return tuple(range(2, rank))
    if node.op_type == "AveragePool":
        return tuple(range(2, rank)) if _covers(graph, node) else None
    if node.op_type != "ReduceMean":
        return None
    given = values.get("axes")
    if given is None and len(node.input) > 1 and node.input[1] in graph.constants:
        given = graph.constants[node.input[1]].tolist()
    return tuple(sorted(int(axis) % rank for axis in given)) if given else None


def _covers(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether the one window of an AveragePool holds the whole map, each place counting the same."""
    values = attributes(node)
    sizes = (graph.sizes_of(node.input[0]) or ())[1:]
    before = values.get("pads", [0] * 2 * len(sizes))[: len(sizes)]
    reach = [kernel - pad for kernel, pad in zip(values["kernel_shape"], before, strict=True)]
    return (
        set((graph.sizes_of(node.output[0]) or ())[1:]) == {1}
        and all(far >= size for far, size in zip(reach, sizes, strict=True))
        and not (any(values.get("pads", ())) and values.get("count_include_pad", 0))
    )


def _grid(graph: Graph, places: tuple[int, ...]) -> tuple[int, int] | None:
    """(h, w): as it stands, or of a list of tokens the grid of the picture's own proportions."""
    if len(places) == 2:
        return places[0], places[1]
    height, width = picture_size(graph.shape)
    rows = max(1, math.isqrt(places[0] * height // width))
    columns = places[0] // rows
    fits = rows * columns == places[0] and rows * width == columns * height
    return (rows, columns) if fits else None


def picture_size(shape: tuple[int | str, ...]) -> tuple[int, int]:
    """(H, W) of an input's shape, (B, 3, H, W) or (B, H, W, 3)."""
    sizes = [size for size in shape[1:] if isinstance(size, int)]
    return (sizes[1], sizes[2]) if sizes[0] == 3 else (sizes[0], sizes[1])


def _affine(graph: Graph, mean: Mean, logits: str) -> Affine | None:
    """All that lies between the mean and the logits, as one affine map, or None."""
    at, map_ = mean.output, Affine.identity(mean.width)
    for node in graph.between(mean.output, logits):
        data = [i for i, name in enumerate(node.input) if name == at]
        if len(data) != 1 or len(graph.data_inputs(node)) != 1 or node.op_type not in RULES:
            return None
        inputs = [graph.constants.get(name) for name in node.input]
        if node.op_type not in VIEWS and any(
            name and value is None and i != data[0]
            for i, (name, value) in enumerate(zip(node.input, inputs, strict=True))
        ):
            return None
        step = RULES[node.op_type](map_, Step(attributes(node), inputs, data[0]))
        sizes = graph.sizes_of(node.output[0])
        if step is None or (sizes and math.prod(sizes) != len(step.bias)):
            return None
        at, map_ = node.output[0], step
    return map_ if at == logits else None


def _why_none(graph: Graph, logits: str) -> str:
    """The first thing on the way back from the logits that a mean would have to come before."""
    name = logits
    while node := graph.producers.get(name):
        data = graph.data_inputs(node)
        flattens = node.op_type in ("Flatten", "Reshape") and _flattens(graph, node)
        if flattens or (node.op_type in REASONS and node.op_type not in VIEWS):
            return REASONS[node.op_type]
        if not data:
            break
        name = data[0]
    return "no mean over places leads to its answer"


def _flattens(graph: Graph, node: onnx.NodeProto) -> bool:
    before, after = (graph.sizes_of(name) or () for name in (node.input[0], node.output[0]))
    return sum(size > 1 for size in before) > 1 and sum(size > 1 for size in after) == 1
