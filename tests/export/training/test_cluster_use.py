"""Do the clusters matter: the two measures, on networks whose answer is known."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from export.paca import PaCaConfig, PaCaViT, StageConfig
from export.paca.layout import Grid
from export.training.cluster_use import (
    Another,
    clusters_in_use,
    stage_use,
    uniform_assignment_accuracy,
    with_clusterings,
    without_clusters,
)
from export.training.data import Pictures
from export.training.loop import predict


def network(**stage: Any) -> PaCaViT:
    torch.manual_seed(0)
    teacher = (1, 1) if stage.get("clustering") == "teacher" else ()
    stages = (StageConfig(8, 2, 2, 4, **stage), StageConfig(16, 1, 4))
    return PaCaViT(
        PaCaConfig("tiny", stages, num_classes=3, image_size=16, patch_size=2, teacher_depths=teacher)
    ).eval()


@pytest.mark.parametrize(
    "stage", [{}, {"cluster_every": 1}, {"clustering": "kmeans"}, {"clustering": "teacher"}]
)
def test_without_clusters_every_row_is_uniform_and_the_original_is_untouched(
    stage: dict, pictures: Pictures
) -> None:
    model = network(**stage)
    before = predict(model, pictures)
    z = without_clusters(model).features(torch.randn(2, 3, 16, 16)).assignments[0]
    assert z is not None
    torch.testing.assert_close(z, torch.full((2, 4, 64), 1 / 64))
    assert torch.equal(predict(model, pictures), before)


def test_a_network_that_does_not_cluster_loses_nothing(pictures: Pictures) -> None:
    torch.manual_seed(0)
    plain = PaCaViT(
        PaCaConfig("plain", (StageConfig(8, 1, 2),), num_classes=3, image_size=16, patch_size=2)
    ).eval()
    right = float((predict(plain, pictures).argmax(1).numpy() == pictures.labels).mean())
    assert uniform_assignment_accuracy(plain, pictures) == right
    assert clusters_in_use(plain, pictures) == ()


class Fixed(nn.Module):
    """Two clusters on one patch each, two uniform."""

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        z = torch.full((x.shape[0], 4, x.shape[1]), 1 / x.shape[1])
        z[:, :2] = 0
        z[:, 0, 3] = z[:, 1, 40] = 1
        return z


def test_uniform_rows_are_not_in_use_and_equal_rows_count_once(pictures: Pictures) -> None:
    model = network()
    model.stage1[0].attn.clustering = Fixed()
    for block in model.stage1:
        nn.init.zeros_(block.attn.q.weight)  # attention looks at all clusters alike
    (use,) = clusters_in_use(model, pictures)
    assert (use.stage, use.clusters, use.in_use) == (1, 4, 2)
    assert use.effective == pytest.approx(4.0)
    assert 2.0 <= use.rank < 3.0


def test_a_cluster_that_nobody_attends_to_is_not_in_use() -> None:
    z = torch.eye(4, 64).expand(3, 4, 64)  # four clusters of one patch each
    use = stage_use(2, torch.tensor([0.97, 0.01, 0.01, 0.01]), z)
    assert (use.stage, use.in_use) == (2, 1)
    assert use.effective == pytest.approx(1.2, abs=0.05)
    assert use.rank == 4.0


def competing_network() -> PaCaViT:
    torch.manual_seed(0)
    last = StageConfig(16, 1, 4, 4, normalise="clusters", source="previous")
    stages = (StageConfig(8, 2, 2, 4, normalise="clusters"), last)
    return PaCaViT(PaCaConfig("rival", stages, num_classes=3, image_size=16, patch_size=2)).eval()


def test_without_clusters_competing_ones_share_every_patch_evenly(pictures: Pictures) -> None:
    model = competing_network()
    found = without_clusters(model).features(torch.randn(2, 3, 16, 16))
    torch.testing.assert_close(found.memberships[0], torch.full((2, 4, 64), 1 / 4))
    torch.testing.assert_close(found.assignments[0], torch.full((2, 4, 64), 1 / 64))
    assert [use.stage for use in clusters_in_use(model, pictures)] == [1, 2]


def test_with_another_pictures_clusters_each_gets_those_of_the_next() -> None:
    model, x = competing_network(), torch.randn(3, 3, 16, 16)
    own, lent = model.features(x), with_clusterings(model, Another).features(x)
    first_own, first_lent = own.assignments[0], lent.assignments[0]
    assert first_own is not None
    assert first_lent is not None
    assert not torch.allclose(first_lent, first_own)
    first = model.stage1[0].attn.clustering
    seen: list[Tensor] = []
    first.register_forward_hook(lambda module, args, out: seen.append(out))
    borrowed = with_clusterings(model, Another)
    model.features(x)
    borrowed.stage1[0].attn.register_forward_hook(lambda module, args, out: seen.append(out[1].membership))
    borrowed.features(x)
    torch.testing.assert_close(seen[-1], seen[0].roll(-1, 0))
