"""The one call of torch.onnx.export: quiet, at the opset we verify, and cleaned of what a published file
should not carry.

The exporter writes stack traces with the paths of the exporting machine into every node; they go. Nothing is
checked here.
"""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence

import onnx
import torch
from torch import Tensor, nn

from .attention_node import OPSET


def to_onnx(
    module: nn.Module,
    args: tuple[Tensor, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    axes: Sequence[dict[int, object]],
) -> onnx.ModelProto:
    """`module` traced with `args` as an ONNX model with named inputs and outputs; axes: per input, dimension
    → `torch.export.Dim`."""
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            args,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_shapes=tuple(axes),
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _strip(proto.graph)
    del proto.metadata_props[:]
    return proto


def _strip(graph: onnx.GraphProto) -> None:
    """Names every node after the module it comes from, such as "stage1.0.mlp.fc1/Conv_12"; removes stack
    traces and intermediate shapes."""
    for i, node in enumerate(graph.node):
        node.name = f"{_module(node)}/{node.op_type}_{i}"
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]


def _module(node: onnx.NodeProto) -> str:
    """The innermost module's path within the network; the exporter lists the modules around a node, outermost
    first, then the node itself."""
    scopes = next(
        (ast.literal_eval(p.value) for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"),
        ["", ""],
    )
    return scopes[-2].removeprefix("model.")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's progress and its remarks about libraries we do not use; errors still raise."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
