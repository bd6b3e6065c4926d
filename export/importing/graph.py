"""A foreign ONNX graph, made easy to ask: one file, constants folded, shapes inferred, who makes a tensor.

What the graph is asked for stands in `recognise` and `surgery`; what cannot be read at all is refused here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import compose, helper, inliner, numpy_helper, shape_inference, version_converter
from onnx.reference import ReferenceEvaluator

from ..errors import ExportError

MAX_BYTES = 2**31 - 2**20  # of a protocol buffer, less what is added to it
OLDEST, RAISED = 7, 13  # opset: the oldest that ONNX Runtime promises to run; what older ones are raised to
PREFIX = "net/"  # of every foreign name, so that none is one of ours
STANDARD = ("", "ai.onnx")
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial")
QUANTISED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger")
SUBGRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
MAX_FOLDED = 2**28  # numbers of one folded constant
Size = int | str


def read_model(path: Path) -> onnx.ModelProto:
    """The model with its external data inside, local functions inlined, in an opset that ONNX Runtime runs.
    ExportError where it cannot be used."""
    try:
        bare = onnx.load(path, load_external_data=False)
        bytes_outside = sum(_outside(tensor) for tensor in bare.graph.initializer)
        if path.stat().st_size + bytes_outside > MAX_BYTES:
            raise ExportError(f"{path.name} has more than 2 GB with its data, the most that is served")
        onnx.load_external_data_for_model(bare, str(path.parent))
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror or error}") from None
    except DecodeError:
        raise ExportError(
            f"{path.name} is no ONNX file; export one first, as with torch.onnx.export or tf2onnx"
        ) from None
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"{path.name} keeps its weights in another file that cannot be read; put it beside the model "
            f"({str(error).splitlines()[0][:120]})"
        ) from None
    if not bare.graph.node:
        raise ExportError(f"{path.name} is no ONNX file, or has no nodes; export the model again")
    model = inliner.inline_local_functions(bare) if bare.functions else bare
    _refuse_foreign_numbers(model)
    if opset(model) < OLDEST:
        model = _raised(model)
    model.ir_version = max(model.ir_version, 8)  # before 4, initialisers had to be inputs
    return compose.add_prefix(model, PREFIX)


def opset(model: onnx.ModelProto) -> int:
    """Of ONNX's own operators."""
    return next((o.version for o in model.opset_import if o.domain in STANDARD), 1)


def _outside(tensor: onnx.TensorProto) -> int:
    return sum(int(e.value) for e in tensor.external_data if e.key == "length")


def _raised(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return version_converter.convert_version(model, RAISED)
    except Exception as error:  # what the converter raises is no contract
        raise ExportError(
            f"the file has opset {opset(model)}, which cannot be raised ({str(error).splitlines()[0][:80]}); "
            f"export it again with opset {OLDEST} or later"
        ) from None


def _refuse_foreign_numbers(model: onnx.ModelProto) -> None:
    """Files that are quantised or in half precision already would be called fp32."""
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    if any(node.op_type in QUANTISED for node in model.graph.node):
        raise ExportError(
            "the file is quantised already; import the float file, and add --precision int8 --calibration DIR"
        )
    if onnx.TensorProto.FLOAT16 in kinds or onnx.TensorProto.BFLOAT16 in kinds:
        raise ExportError("the file computes in 16 bits; import the float32 file, and add --precision fp16")


class Graph:
    """A model to be asked. shape of its picture is fixed but for the batch, which has the name or number
    `batch`."""

    def __init__(self, model: onnx.ModelProto, picture: str, shape: tuple[Size, ...]) -> None:
        """picture: the input that takes pictures. shape: what it is to be, batch first. The model is
        copied."""
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.picture, self.shape = picture, shape
        graph = self.model.graph
        kept = [i for i in graph.input if i.name == picture]
        was = kept[0].type.tensor_type
        old_batch = was.shape.dim[0].dim_value
        kind = was.elem_type
        del graph.input[:], graph.value_info[:]
        graph.input.append(helper.make_tensor_value_info(picture, kind, shape))
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        for output in graph.output:
            output.type.tensor_type.ClearField("shape")
        self._fold()
        if isinstance(shape[0], str):
            self._free_batch(old_batch or 1)
        self._infer()

    def _fold(self) -> None:
        """Nodes that depend on no input become constants."""
        nodes = self.model.graph.node
        kept = [node for node in nodes if not self._is_constant(node) or not self._fold_node(node)]
        del self.model.graph.node[:]
        self.model.graph.node.extend(kept)

    def _is_constant(self, node: onnx.NodeProto) -> bool:
        return (
            not _has_subgraphs(node)
            and node.domain in STANDARD
            and node.op_type not in RANDOM
            and all(not name or name in self.constants for name in node.input)
        )

    def _fold_node(self, node: onnx.NodeProto) -> bool:
        if node.op_type == "ConstantOfShape" and int(self.constants[node.input[0]].prod()) > MAX_FOLDED:
            return False
        made = [onnx.ValueInfoProto(name=o) for o in node.output if o]
        graph = helper.make_graph([node], "constant", [], made)
        proto = helper.make_model(graph, opset_imports=self.model.opset_import)
        proto.graph.input.extend(onnx.ValueInfoProto(name=n) for n in dict.fromkeys(node.input) if n)
        try:
            values = ReferenceEvaluator(proto).run(None, {n: self.constants[n] for n in node.input if n})
        except Exception:  # an operator that onnx's own evaluator lacks stays a node
            return False
        named = [o for o in node.output if o]
        self.constants.update(zip(named, map(np.asarray, values), strict=True))
        return True

    def _free_batch(self, old: int) -> None:
        """Reshapes that were written for one batch size take any: the batch is the first size of what they
        make, or part of it."""
        for node in self.model.graph.node:
            target = self.constants.get(node.input[1]) if node.op_type == "Reshape" else None
            if target is None or not target.size or int(target[0]) <= 0:
                continue
            free = target.copy()
            if -1 not in target:
                free[0] = -1
            elif int(target[0]) == old:
                free[0] = 0
            name = f"{node.output[0]}/shape"
            self.constants[name] = free
            node.input[1] = name

    def _infer(self) -> None:
        graph = self.model.graph
        used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
        del graph.initializer[:]
        graph.initializer.extend(
            numpy_helper.from_array(value, name) for name, value in self.constants.items() if name in used
        )
        try:
            inferred = shape_inference.infer_shapes(self.model, data_prop=True)
        except Exception:  # shapes stay unknown, and what needs them says so
            inferred = self.model
        known = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
        self._shapes = {
            info.name: tuple(d.dim_value or d.dim_param or "?" for d in info.type.tensor_type.shape.dim)
            for info in known
            if info.type.tensor_type.HasField("shape")
        }

    @cached_property
    def producers(self) -> dict[str, onnx.NodeProto]:
        return {name: node for node in self.model.graph.node for name in node.output if name}

    def shape_of(self, name: str) -> tuple[Size, ...] | None:
        """Batch first; None where it is not known."""
        if name in self.constants:
            return self.constants[name].shape
        return self._shapes.get(name)

    def sizes_of(self, name: str) -> tuple[int, ...] | None:
        """Of one picture, without the batch; None where a size is not known."""
        shape = self.shape_of(name)
        if not shape or not all(isinstance(size, int) for size in shape[1:]):
            return None
        return tuple(int(size) for size in shape[1:])

    def data_inputs(self, node: onnx.NodeProto) -> list[str]:
        """The inputs that depend on the picture by value: not constants, and not through a shape."""
        return [name for name in node.input if name and name in self._data]

    @cached_property
    def _data(self) -> set[str]:
        data = {self.picture}
        for node in self.model.graph.node:
            if (
                node.op_type not in ("Shape", "Size") and any(name in data for name in node.input)
            ) or _has_subgraphs(node):
                data.update(node.output)
        return data

    def depends_on_picture(self, name: str, cut: str) -> bool:
        """Whether the values of a tensor depend on the picture by a way that does not lead through `cut`."""
        seen, open_ = set(), [name]
        while open_:
            at = open_.pop()
            if at == self.picture:
                return True
            if at == cut or at in seen or at not in self.producers:
                continue
            seen.add(at)
            node = self.producers[at]
            if _has_subgraphs(node):
                return True
            open_ += self.data_inputs(node)
        return False

    def between(self, start: str, end: str) -> list[onnx.NodeProto]:
        """The nodes on the ways from one tensor to another, in order."""
        needed, open_ = set(), [end]
        while open_:
            at = open_.pop()
            if at != start and at not in needed:
                needed.add(at)
                open_ += self.data_inputs(self.producers[at]) if at in self.producers else []
        return [node for node in self.model.graph.node if any(name in needed for name in node.output)]

    def backwards(self, name: str) -> Iterator[onnx.NodeProto]:
        """The nodes whose values a tensor depends on, the last first."""
        yield from reversed(self.between(self.picture, name))


def _has_subgraphs(node: onnx.NodeProto) -> bool:
    return any(a.type in SUBGRAPHS for a in node.attribute)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Values by name; texts as str."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def float_tensors(tensors: Iterable[onnx.TensorProto]) -> Iterator[np.ndarray]:
    """The weights among the initialisers."""
    return (numpy_helper.to_array(t) for t in tensors if t.data_type in FLOATS)
