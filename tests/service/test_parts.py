"""Parts: groups of tokens that look alike, the same every time."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.explain import shares
from service.parts import PARTS, memberships, parts

RANDOM = np.random.default_rng(5)


def quarters(size: int, channels: int) -> np.ndarray:
    """Tokens of four kinds, a quarter of the picture each."""
    kinds = RANDOM.normal(size=(2, 2, channels)).astype(np.float32)
    tokens = np.kron(kinds, np.ones((size // 2, size // 2, 1), np.float32))
    return tokens + RANDOM.normal(size=tokens.shape).astype(np.float32) * 0.05


def test_things_that_look_alike_become_one_part() -> None:
    labels = parts(quarters(8, 32), count=4)
    assert labels.shape == (8, 8)
    blocks = {tuple(np.unique(labels[r : r + 4, c : c + 4])) for r in (0, 4) for c in (0, 4)}
    assert blocks == {(0,), (1,), (2,), (3,)}


def test_finer_tokens_give_finer_parts() -> None:
    fine = quarters(16, 24)
    labels = parts(np.ones((4, 4, 8), np.float32), fine, count=4)
    assert labels.shape == (16, 16)
    assert len(np.unique(labels[:8, :8])) == 1


def test_a_picture_without_detail_is_one_part() -> None:
    assert parts(np.ones((8, 8, 16), np.float32)).max() == 0


@settings(max_examples=30)
@given(rows=st.integers(1, 6), columns=st.integers(1, 6), seed=st.integers(0, 999))
def test_parts_cover_the_picture_and_their_shares_are_all_the_evidence(
    rows: int, columns: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    labels = parts(random.normal(size=(rows, columns, 7)).astype(np.float32))
    assert sorted(np.unique(labels)) == list(range(labels.max() + 1))
    assert labels.max() < PARTS
    members = memberships(labels)
    np.testing.assert_array_equal(members.sum(0), 1)
    cam = random.normal(size=(rows, columns))
    np.testing.assert_allclose(shares(cam, members).sum(), cam.sum(), atol=1e-9)


def test_equal_tokens_give_equal_parts() -> None:
    tokens = RANDOM.normal(size=(8, 8, 16)).astype(np.float32)
    np.testing.assert_array_equal(parts(tokens), parts(tokens.copy()))
