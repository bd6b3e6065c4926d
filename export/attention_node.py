"""How one PaCa block becomes exactly one ai.onnx `Attention` node (opset 23), and how to count them in a
finished file.

The node takes the 3-D tensors (B, N, C), (B, M, C) as they are and splits the heads itself, so that neither
transposes nor reshapes surround it. ONNX operator specification: Attention-23, inputs of rank 3 with
q_num_heads and kv_num_heads.
"""

from __future__ import annotations

from collections import Counter

import onnx
import torch
from torch import Tensor

OPSET = 23  # 24 and 25 place nodes on CPU under CUDA; 26 writes an invalid file (docs/decisions.md)


def attention_node(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v as one ONNX node. q: (B, N, C); k, v: (B, M, C); returns (B, N, C). Has no
    gradient: for tracing only."""
    return torch.onnx.ops.attention(q, k, v, q_num_heads=heads, kv_num_heads=heads)[0]


def node_counts(model: onnx.ModelProto) -> Counter[str]:
    """How often each operator occurs in the graph."""
    return Counter(node.op_type for node in model.graph.node)
