"""What every clustering promises, whatever its kind."""

import pytest
import torch

from export.paca.clustering import CLUSTERINGS, build_clustering

KINDS = sorted(CLUSTERINGS)
CLASSIC = ("kmeans", "gmm", "hierarchical", "dbscan")
DIM, GRID = 11, (5, 7)  # primes, so that a swapped axis fails
N = GRID[0] * GRID[1]


def tokens(batch: int = 3, seed: int = 0, n: int = N) -> torch.Tensor:
    return torch.randn(batch, n, DIM, generator=torch.Generator().manual_seed(seed))


def clustering(kind: str, clusters: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_clustering(kind, DIM, clusters).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clusters", [1, 13, 53])
def test_every_row_is_a_distribution_over_the_patches_also_with_more_clusters_than_patches(
    kind: str, clusters: int
) -> None:
    z = clustering(kind, clusters)(tokens(), GRID)
    assert z.shape == (3, clusters, N)
    assert (z >= 0).all()
    torch.testing.assert_close(z.sum(-1), torch.ones(3, clusters))


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_clustered_by_its_own_tokens_not_by_its_neighbours_in_the_batch(kind: str) -> None:
    net, x = clustering(kind, 6), tokens()
    alone = torch.cat([net(x[i : i + 1], GRID) for i in range(3)])
    torch.testing.assert_close(net(x, GRID), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_tokens_give_equal_assignments(kind: str) -> None:
    net = clustering(kind, 6)
    assert torch.equal(net(tokens(), GRID), net(tokens(), GRID))


@pytest.mark.parametrize("kind", KINDS)
def test_a_blank_picture_gives_finite_rows_and_gradients(kind: str) -> None:
    x = torch.zeros(2, N, DIM, requires_grad=True)
    z = clustering(kind, 6)(x, GRID)
    (z @ x).square().sum().backward()
    torch.testing.assert_close(z.sum(-1), torch.ones(2, 6))
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_learn_through_the_cluster_tokens(kind: str) -> None:
    x = tokens().requires_grad_()
    z = clustering(kind, 6)(x, GRID)
    (z @ x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", CLASSIC)
def test_only_the_mixture_has_a_gradient_of_its_own(kind: str) -> None:
    assert clustering(kind, 6)(tokens().requires_grad_(), GRID).requires_grad == (kind == "gmm")


@pytest.mark.parametrize("kind", CLASSIC)
def test_classic_clusterings_have_no_parameters_and_stay_in_float32_under_autocast(kind: str) -> None:
    net = clustering(kind, 6)
    assert not list(net.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = net(tokens(), GRID)
    assert z.dtype == torch.float32
    assert torch.equal(z, net(tokens(), GRID))


def test_an_unknown_kind_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown clustering 'k-means'; known: .*kmeans.*teacher"):
        build_clustering("k-means", 8, 4)
