"""A network with a classic clustering as an artifact: fused attention, verified up to near-ties; or refused
with the reason."""

from pathlib import Path

import pytest
import torch

from export.errors import ExportError
from export.paca import PaCaConfig, PaCaViT, StageConfig
from export.pipeline import Source, export_model


def network(kind: str) -> PaCaViT:
    torch.manual_seed(0)
    stages = (StageConfig(16, 1, 2, 6, kind), StageConfig(24, 2, 3, 4, kind), StageConfig(32, 1, 4))
    return PaCaViT(PaCaConfig("tiny", stages, num_classes=5, image_size=32, patch_size=4)).eval()


@pytest.mark.parametrize(("kind", "softmaxes"), [("kmeans", 0), ("gmm", 2), ("dbscan", 0)])
def test_it_exports_with_one_attention_node_a_block(kind: str, softmaxes: int, tmp_path: Path) -> None:
    report = export_model(Source(network(kind), kind, tuple("abcde")), tmp_path / "model.onnx")
    assert report.verification.attention_nodes == 4
    assert report.verification.softmax_nodes == softmaxes
    assert report.verification.near_ties <= 0.5


def test_hierarchical_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="a number of rounds that depends on the picture"):
        export_model(Source(network("hierarchical"), "h", tuple("abcde")), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
