"""Patches learn to speak for their own place: pasted regions are named from their own patches, painted ones
get no share."""

import math

import pytest
import torch

from export.paca.model import Features
from export.training.locality import OWN, PAINTED, PASTED, SILENCE, distract, region_loss


def pictures(count: int = 4, side: int = 12) -> torch.Tensor:
    """Pictures of one colour each: picture i is i + 1 everywhere."""
    return torch.arange(1.0, count + 1).view(-1, 1, 1, 1).expand(count, 3, side, side).clone()


def test_cells_say_what_the_picture_shows_there() -> None:
    x, cells = distract(pictures(), grid=6, generator=torch.Generator().manual_seed(0))
    shown = x[:, 0, ::2, ::2]
    for i in range(4):
        assert (shown[i][cells[i] == OWN] == i + 1).all()
        assert (shown[i][cells[i] == PASTED] == 4 - i).all()  # of the batch read backwards
        assert len(shown[i][cells[i] == PAINTED].unique()) == 1


@pytest.mark.parametrize("grid", [1, 2, 5, 8])
def test_every_grid_has_room_for_both_regions(grid: int) -> None:
    x, cells = distract(pictures(side=4 * grid), grid, torch.Generator().manual_seed(1))
    assert x.shape[-1] == 4 * grid
    assert cells.shape == (4, grid, grid)
    assert (cells == PAINTED).flatten(1).any(1).all()


def test_the_same_seed_gives_the_same_regions() -> None:
    first, second = (distract(pictures(), 6, torch.Generator().manual_seed(5))[0] for _ in range(2))
    assert torch.equal(first, second)


def found(evidence: list[list[float]], shares: list[float]) -> Features:
    """One picture twice, its patches' features being the evidence for two classes, gated by `shares`."""
    a = torch.tensor([shares, shares])
    return Features(tokens=[torch.tensor([evidence, evidence]) * a[..., None] * len(shares)], shares=a)


HEAD = torch.nn.Linear(2, 2, bias=False)
HEAD.weight = torch.nn.Parameter(torch.eye(2))
LABELS = torch.tensor([0, 1])
HALVES = torch.tensor([[[OWN, PASTED]], [[OWN, PASTED]]])


def test_each_region_is_named_from_its_own_patches_whatever_its_share() -> None:
    right = [[9.0, 0.0], [0.0, 9.0]]
    for shares in ([0.5, 0.5], [0.99, 0.01]):
        one = region_loss(
            found(right, shares), HEAD, LABELS[:1].expand(2), torch.tensor([[[OWN, PASTED]]] * 2), 0.0
        )
        first = 0.5 * math.log1p(math.exp(-9.0)) + 0.5 * math.log1p(
            math.exp(9.0)
        )  # both regions are asked for class 0
        assert math.isclose(one.item(), first, rel_tol=1e-4)
    # the first picture's regions are right (0, then 1), the second's (1, then 0) both wrong
    assert math.isclose(
        region_loss(found(right, [0.5, 0.5]), HEAD, LABELS, HALVES, 0.0).item(), 4.5, rel_tol=1e-3
    )


def test_a_silent_patch_may_say_anything() -> None:
    cells = torch.full((2, 1, 3), OWN)
    quiet = region_loss(
        found([[9.0, 0.0], [9.0, 0.0], [0.0, 99.0]], [0.5, 0.5, 0.0]),
        HEAD,
        torch.zeros(2, dtype=torch.long),
        cells,
        0.0,
    )
    assert quiet < 1e-3


def test_a_painted_region_costs_its_share() -> None:
    cells = torch.tensor([[[OWN, PAINTED]]] * 2)
    loss = region_loss(
        found([[40.0, 0.0], [40.0, 0.0]], [0.75, 0.25]), HEAD, torch.zeros(2, dtype=torch.long), cells, 0.0
    )
    assert math.isclose(loss.item(), -SILENCE * math.log(0.75), rel_tol=1e-4)
