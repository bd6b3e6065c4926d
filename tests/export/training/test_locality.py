"""Tokens learn to speak for their own place: pasted regions carry their class, painted ones carry none, and the picture's target counts what is left."""

import math

import torch

from export.training.locality import FREE, SILENT, distract, token_loss


def pictures(count: int = 4, side: int = 12) -> torch.Tensor:
    """Pictures of one colour each: picture i is i + 1 everywhere."""
    return torch.arange(1.0, count + 1).view(-1, 1, 1, 1).expand(count, 3, side, side).clone()


def test_tokens_say_what_lies_under_them() -> None:
    x, _, tokens = distract(pictures(), torch.tensor([0, 1, 2, 3]), grid=6, classes=4, generator=torch.Generator().manual_seed(0))
    cells = x[:, 0, ::2, ::2]
    for i in range(4):
        assert (cells[i][tokens[i] == FREE] == i + 1).all()
        assert (cells[i][tokens[i] >= 0] == 4 - i).all()  # of the batch read backwards
        assert (tokens[i][tokens[i] >= 0] == 3 - i).all()
        painted = cells[i][tokens[i] == SILENT]
        assert len(painted.unique()) == 1


def test_the_pictures_target_is_the_area_that_is_left_of_each_class() -> None:
    _, target, tokens = distract(pictures(), torch.tensor([0, 1, 2, 3]), grid=6, classes=4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(target.sum(1), torch.ones(4))
    own, pasted = (tokens[0] == FREE).sum(), (tokens[0] == 3).sum()
    torch.testing.assert_close(target[0], torch.stack([own / (own + pasted), torch.tensor(0.0), torch.tensor(0.0), pasted / (own + pasted)]))


def test_the_same_seed_gives_the_same_regions() -> None:
    first, second = (distract(pictures(), torch.tensor([0, 1, 2, 3]), 6, 4, torch.Generator().manual_seed(5))[0] for _ in range(2))
    assert torch.equal(first, second)


def test_tokens_without_a_target_cost_nothing() -> None:
    evidence = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    assert token_loss(evidence, torch.full((1, 2, 2), FREE)).item() == 0


def test_a_silent_token_costs_least_when_it_names_no_class() -> None:
    silent = torch.full((1, 1, 1), SILENT)
    even, certain = torch.zeros(1, 1, 3), torch.tensor([[[9.0, 0.0, 0.0]]])
    assert math.isclose(token_loss(even, silent).item(), math.log(3), rel_tol=1e-6)
    assert token_loss(certain, silent) > token_loss(even, silent)
    assert token_loss(certain, torch.zeros(1, 1, 1, dtype=torch.long)).item() < 1e-3
