"""Small cases whose answer is known without a computer: points on a line, in groups that anyone would see."""

import pytest
import torch

from export.paca.clustering.dbscan import Dbscan
from export.paca.clustering.gmm import GaussianMixture
from export.paca.clustering.hierarchical import Hierarchical
from export.paca.clustering.kmeans import KMeans

LINE = (1, 6)
GROUPS = torch.tensor([0.0, 0.1, 5.0, 5.1, 5.2, 9.0]).view(1, 6, 1)  # two, three, one
EXPECTED = torch.tensor([[1 / 2, 1 / 2, 0, 0, 0, 0], [0, 0, 1 / 3, 1 / 3, 1 / 3, 0], [0, 0, 0, 0, 0, 1]])


@pytest.mark.parametrize("make", [KMeans, Hierarchical])
def test_three_groups_on_a_line_become_three_rows(make: type) -> None:
    torch.testing.assert_close(make(1, 3)(GROUPS, LINE)[0], EXPECTED)


def test_three_groups_far_apart_become_three_components() -> None:
    far = torch.tensor([0.0, 0.1, 50.0, 50.1, 50.2, 100.0]).view(1, 6, 1)
    torch.testing.assert_close(
        GaussianMixture(1, 3)(far, LINE)[0], EXPECTED, atol=5e-3, rtol=0
    )  # soft: the floor is a tenth of the variance


def test_a_cluster_without_patches_is_a_uniform_row() -> None:
    same = torch.tensor([1.0, 1.0, 1.0, 7.0]).view(1, 4, 1)
    z = KMeans(1, 3)(same, (1, 4))[0]
    torch.testing.assert_close(z, torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0], [1 / 4] * 4, [0, 0, 0, 1]]))


def test_with_more_clusters_than_patches_each_patch_is_a_cluster_and_the_rest_is_uniform() -> None:
    z = Hierarchical(1, 8)(GROUPS, LINE)[0]
    torch.testing.assert_close(z, torch.cat([torch.eye(6), torch.full((2, 6), 1 / 6)]))


def test_ward_joins_small_groups_before_large_ones() -> None:
    # centres 0 (four patches), 1.9 (one), 4 (four): by distance alone 1.9 joins 0; joining costs 1.9²·4/5 =
    # 2.9 against 2.1²·4/5 = 3.5
    x = torch.tensor([0.0, 0, 0, 0, 1.9, 4, 4, 4, 4]).view(1, 9, 1)
    z = Hierarchical(1, 2)(x, (1, 9))[0]
    torch.testing.assert_close(z, torch.tensor([[1 / 5] * 5 + [0] * 4, [0] * 5 + [1 / 4] * 4]))


def test_noise_of_dbscan_has_no_weight_and_slots_without_cluster_are_uniform() -> None:
    z = Dbscan(1, 3, neighbours=2, eps=0.5)(GROUPS, LINE)[0]
    largest, next_one, unused = z
    torch.testing.assert_close(largest, EXPECTED[1])
    torch.testing.assert_close(next_one, EXPECTED[0])
    torch.testing.assert_close(unused, torch.full((6,), 1 / 6))


def test_dbscan_keeps_the_largest_clusters_when_slots_are_few() -> None:
    z = Dbscan(1, 1, neighbours=2, eps=0.5)(GROUPS, LINE)[0]
    torch.testing.assert_close(z, EXPECTED[1:2])


def test_dbscan_follows_a_chain_of_neighbours_to_its_end() -> None:
    chain = torch.arange(37.0).view(1, 37, 1)  # each within eps of the next only: 36 steps from end to end
    z = Dbscan(1, 2, neighbours=2, eps=1.1)(chain, (1, 37))[0]
    torch.testing.assert_close(z, torch.full((2, 37), 1 / 37))  # one cluster of all, one unused slot


def test_a_border_patch_joins_the_nearest_core() -> None:
    # 1.0 has only 0.2 and 1.9 within eps = 0.95, too few to be core; it is 0.8 from the left group and 0.9
    # from the right one
    x = torch.tensor([0.0, 0.02, 0.04, 0.2, 1.0, 1.9, 2.0, 2.1, 2.2]).view(1, 9, 1)
    z = Dbscan(1, 2, neighbours=4, eps=0.95)(x, (1, 9))[0]
    torch.testing.assert_close(z, torch.tensor([[1 / 5] * 5 + [0] * 4, [0] * 5 + [1 / 4] * 4]))
