"""The network does what the paper says, at any size."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from export.paca import PaCaConfig, PaCaViT, StageConfig
from export.paca.layout import to_map, to_tokens
from export.paca.model import attend, attend_explicit, use_attention

CONFIG = PaCaConfig(
    "toy",
    (StageConfig(8, 2, 2, 5), StageConfig(12, 3, 3, 4, "mlp", 1), StageConfig(16, 1, 4)),
    num_classes=3,
    image_size=32,
    patch_size=4,
)


COMPETING = dataclasses.replace(
    CONFIG,
    stages=(
        StageConfig(8, 2, 2, 5),
        StageConfig(12, 2, 3, 4, normalise="clusters"),
        StageConfig(16, 1, 4, 4, normalise="clusters", source="previous"),
    ),
    pool="cluster",
)


@pytest.fixture
def model() -> PaCaViT:
    torch.manual_seed(0)
    return PaCaViT(CONFIG).eval()


@pytest.mark.parametrize("size", [(32, 32), (48, 20), (33, 41), (17, 18)])
def test_any_size_runs_and_every_assignment_row_is_a_distribution_over_patches(
    model: PaCaViT, size: tuple[int, int]
) -> None:
    found = model.features(torch.randn(2, 3, *size))
    assert tuple(found.grids) == CONFIG.grids(size)
    for tokens, z, (h, w), stage in zip(
        found.tokens, found.assignments, found.grids, CONFIG.stages, strict=True
    ):
        assert tokens.shape == (2, h * w, stage.dim)
        if z is None:
            assert not stage.clusters
        else:
            assert z.shape == (2, stage.clusters, h * w)
            torch.testing.assert_close(z.sum(-1), torch.ones(2, stage.clusters))


def test_logits_are_a_sum_of_what_each_token_contributes(model: PaCaViT) -> None:
    image = torch.randn(1, 3, 32, 32)
    tokens = model.features(image).tokens[-1]
    contributions = tokens @ model.head.weight.T / tokens.shape[1]
    torch.testing.assert_close(contributions.sum(1) + model.head.bias, model(image))


def test_a_gate_gives_patches_shares_of_the_mean_and_logits_stay_their_sum() -> None:
    torch.manual_seed(2)
    model = PaCaViT(dataclasses.replace(CONFIG, pool="gated")).eval()
    torch.nn.init.normal_(model.get_parameter("pool.score.weight"))
    image = torch.randn(2, 3, 32, 32)
    found = model.features(image)
    torch.testing.assert_close(found.shares.sum(1), torch.ones(2))
    assert found.shares.max() > 2 * found.shares.min()
    contributions = found.tokens[-1] @ model.head.weight.T / found.tokens[-1].shape[1]
    torch.testing.assert_close(contributions.sum(1) + model.head.bias, model(image))


@pytest.mark.parametrize("size", [(32, 32), (48, 20), (33, 41)])
def test_competing_clusters_share_every_patch_and_their_rows_stay_distributions(
    size: tuple[int, int],
) -> None:
    torch.manual_seed(3)
    found = PaCaViT(COMPETING).eval().features(torch.randn(2, 3, *size))
    assert [a is None for a in found.assignments] == [False, False, True]
    assert [m is None for m in found.memberships] == [True, False, True]
    membership, assignment = found.memberships[1], found.assignments[1]
    assert membership is not None
    height, width = found.grids[1]
    torch.testing.assert_close(membership.sum(1), torch.ones(2, height * width))
    torch.testing.assert_close(assignment, membership / membership.sum(-1, keepdim=True))


def test_the_last_stage_reads_the_clusters_of_the_stage_before_on_its_own_grid() -> None:
    torch.manual_seed(3)
    model = PaCaViT(COMPETING).eval()
    seen = []
    model.stage3[0].register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    found = model.features(torch.randn(2, 3, 32, 32))
    membership = found.memberships[1]
    assert membership is not None
    coarse = F.avg_pool2d(membership.unflatten(2, (4, 4)), 2).flatten(2)
    torch.testing.assert_close(seen[0].membership, coarse)
    torch.testing.assert_close(seen[0].assignment.sum(-1), torch.ones(2, 4))
    again = model.after(found.tokens[1], 2, found.grids[1])
    torch.testing.assert_close(again.tokens[-1], found.tokens[-1])


def test_with_the_gate_of_clusters_a_patch_speaks_as_loud_as_its_clusters() -> None:
    torch.manual_seed(3)
    model = PaCaViT(COMPETING).eval()
    torch.nn.init.normal_(model.get_parameter("pool.cluster_score.weight"))
    image = torch.randn(2, 3, 32, 32)
    found = model.features(image)
    torch.testing.assert_close(found.shares.sum(1), torch.ones(2))
    assert found.memberships[1] is not None
    a = F.avg_pool2d(found.memberships[1].unflatten(2, (4, 4)), 2).flatten(2)
    tokens = a / a.sum(-1, keepdim=True) @ found.ungated
    spoken = (a * model.pool.cluster_score(tokens).exp()).sum(1)
    torch.testing.assert_close(found.shares, spoken / spoken.sum(1, keepdim=True))
    contributions = found.tokens[-1] @ model.head.weight.T / found.tokens[-1].shape[1]
    torch.testing.assert_close(contributions.sum(1) + model.head.bias, model(image))


def test_an_indifferent_gate_is_the_mean(model: PaCaViT) -> None:
    gated = PaCaViT(dataclasses.replace(CONFIG, pool="gated")).eval()
    gated.load_state_dict(model.state_dict(), strict=False)
    torch.nn.init.zeros_(gated.get_parameter("pool.score.weight"))
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(gated(image), model(image))
    torch.testing.assert_close(model.features(image).shares, torch.full((2, 4), 0.25))


def test_a_picture_is_classified_alike_alone_and_in_a_batch(model: PaCaViT) -> None:
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(torch.cat([model(image[None]) for image in images]), model(images))


def test_the_tail_continues_from_a_later_stage(model: PaCaViT) -> None:
    image = torch.randn(1, 3, 32, 32)
    found = model.features(image)
    entering = model.transition1(to_map(found.tokens[0], found.grids[0]))
    torch.testing.assert_close(model.classify(model.tail(entering, first=2).tokens[-1]), model(image))


def test_both_ways_to_write_attention_agree(model: PaCaViT) -> None:
    q, k = torch.randn(2, 7, 12), torch.randn(2, 5, 12)
    torch.testing.assert_close(attend(q, k, k, 3), attend_explicit(q, k, k, 3))
    image = torch.randn(1, 3, 32, 32)
    before = model(image)
    use_attention(model, attend_explicit)
    torch.testing.assert_close(model(image), before)


def test_attention_is_softmax_of_scaled_products_a_head_at_a_time() -> None:
    q, k, v = torch.randn(1, 4, 6), torch.randn(1, 3, 6), torch.randn(1, 3, 6)
    heads = [F.softmax(q[..., s] @ k[..., s].mT / 3**0.5, -1) @ v[..., s] for s in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(attend(q, k, v, 2), torch.cat(heads, -1))


def test_blocks_without_a_clustering_reuse_the_assignment_and_blockwise_ones_make_their_own(
    model: PaCaViT,
) -> None:
    assert [block.attn.owns_clustering for block in model.stage1] == [True, False]
    assert [block.attn.owns_clustering for block in model.stage2] == [True, True, True]
    assert not hasattr(model.stage3[0].attn, "cluster_norm")


def test_maps_and_tokens_are_row_major_views_of_each_other() -> None:
    x = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    tokens = to_tokens(x)
    assert torch.equal(tokens[1, 2 * 5 + 3], x[1, :, 2, 3])
    assert torch.equal(to_map(tokens, (4, 5)), x)
    assert tokens.data_ptr() == x.data_ptr()


def test_training_mode_drops_whole_residual_branches_and_evaluation_mode_none() -> None:
    torch.manual_seed(0)
    model = PaCaViT(
        PaCaConfig("deep", (StageConfig(8, 4, 2, 3),), num_classes=3, image_size=32, drop_path=0.9)
    )
    image = torch.randn(1, 3, 32, 32)
    assert len({tuple(model.train()(image)[0].tolist()) for _ in range(8)}) > 1
    assert len({tuple(model.eval()(image)[0].tolist()) for _ in range(3)}) == 1
