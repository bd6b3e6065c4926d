"""The classic clusterings as ONNX graphs: what ONNX Runtime computes is what torch computes."""

import logging

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.paca.clustering import CLUSTERINGS
from export.paca.clustering.hierarchical import Hierarchical

DIM, SIDE, CLUSTERS = 24, 8, 10
EXPORTABLE = ("kmeans", "gmm", "dbscan")


class OnGrid(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.clustering = CLUSTERINGS[kind](DIM, CLUSTERS)

    def forward(self, x: Tensor) -> Tensor:
        return self.clustering(x, (SIDE, SIDE))


def tokens(batch: int, seed: int) -> Tensor:
    """Groups of patches around a few centres, as real tokens are."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(batch, 6, DIM, generator=generator)
    which = torch.randint(0, 6, (SIDE * SIDE,), generator=generator)
    return F.layer_norm(
        centres[:, which] + 0.5 * torch.randn(batch, SIDE * SIDE, DIM, generator=generator), (DIM,)
    )


@pytest.mark.parametrize("kind", EXPORTABLE)
def test_the_graph_computes_what_torch_computes(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    net = OnGrid(kind).eval()
    with torch.no_grad():
        axes = ({0: torch.export.Dim("batch", min=1, max=64)},)
        program = torch.onnx.export(
            net, (tokens(2, 0),), dynamo=True, opset_version=23, dynamic_shapes=axes, verbose=False
        )
    assert program is not None
    operators = [node.op_type for node in program.model_proto.graph.node]
    assert operators.count("Softmax") == net.clustering.softmaxes
    assert not {"Shape", "Loop", "If", "Einsum"} & set(operators)
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    same = []
    for batch in (1, 3, 16):
        x = tokens(batch, batch)
        (z,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        same += (np.abs(z - net(x).numpy()).max((1, 2)) < 1e-3).tolist()
    assert sum(same) >= len(same) - 1  # near-ties: a patch may change sides in one of the twenty pictures


def test_hierarchical_says_in_one_line_why_it_has_no_graph() -> None:
    reason = Hierarchical.not_exportable
    assert "depends on the picture" in reason
    assert "\n" not in reason
