"""The score is the share of known pictures that look less novel, and statistics survive the file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from service.errors import BadArtifact
from service.novelty import MAX_TEXT, NOVELTY_KEY, Statistics, energy

CLASSES, WIDTH = 3, 4


def probe(**changes: object) -> Statistics:
    """Statistics whose raw value is the energy plus the first number of the pooled token."""
    values: dict = {
        "scale": np.array([[0, 0], [1, 1]], np.float32),
        "sorted_scores": np.sort(np.random.default_rng(0).normal(size=99)).astype(np.float32),
        "probe": np.array([1, 0, 0, 0, 0], np.float32),
        "measured": {"flagged_foreign": 0.5},
    }
    return Statistics(**values | changes)


def distances() -> Statistics:
    rng = np.random.default_rng(1)
    precision = np.stack([np.eye(2), np.eye(2)]).astype(np.float32)
    return probe(
        probe=None,
        means=rng.normal(size=(CLASSES + 1, 2)).astype(np.float32),
        axes=rng.normal(size=(WIDTH, 2)).astype(np.float32),
        precision=precision,
    )


def test_the_energy_is_minus_the_log_of_the_sum_of_exponentials() -> None:
    logits = np.array([[1.0, 2.0, 3.0], [1e4, 0.0, -1e4]])
    np.testing.assert_allclose(energy(logits), [-np.log(np.exp(logits[0]).sum()), -1e4])


def test_known_pictures_themselves_are_spread_evenly_from_0_to_1() -> None:
    statistics = probe()
    logits = np.zeros((99, CLASSES), np.float32)
    pooled = np.zeros((99, WIDTH), np.float32)
    pooled[:, 0] = statistics.sorted_scores + np.log(CLASSES)  # raw value = the known pictures' own
    np.testing.assert_allclose(statistics.score(logits, pooled), np.arange(99) / 100, atol=0.011)


def test_no_picture_is_more_novel_than_all_known_ones_for_certain() -> None:
    pooled = np.array([[1e6, 0, 0, 0]], np.float32)
    assert probe().score(np.zeros((1, CLASSES)), pooled) == [0.99]  # 99 of 100: one more could be as novel


@pytest.mark.parametrize("statistics", [probe(), distances()], ids=["probe", "distances"])
def test_statistics_come_back_from_a_file_as_they_were(statistics: Statistics) -> None:
    metadata = {NOVELTY_KEY: statistics.to_text()}
    again = Statistics.from_metadata(metadata, CLASSES, WIDTH)
    assert again is not None
    assert again.method == statistics.method
    assert again.measured == {"flagged_foreign": 0.5}
    rng = np.random.default_rng(2)
    logits, pooled = rng.normal(size=(5, CLASSES)), rng.normal(size=(5, WIDTH))
    np.testing.assert_allclose(again.raw(logits, pooled), statistics.raw(logits, pooled), rtol=1e-6)


def test_a_model_without_statistics_has_none() -> None:
    assert Statistics.from_metadata({}, CLASSES, WIDTH) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"arrays": {}, "measured": {}}',
        json.dumps({"arrays": {"scale": {"shape": [2, 2], "data": "AAAA"}}, "measured": {}}),
        probe(probe=np.zeros(9, np.float32)).to_text(),  # of another width
        probe(scale=np.zeros((2, 2), np.float32)).to_text(),  # divides by 0
        probe(sorted_scores=np.zeros(0, np.float32)).to_text(),
        probe(probe=None).to_text(),
        "x" * (MAX_TEXT + 1),
    ],
)
def test_statistics_that_cannot_be_used_make_a_bad_artifact(text: str) -> None:
    with pytest.raises(BadArtifact, match="novelty"):
        Statistics.from_metadata({NOVELTY_KEY: text}, CLASSES, WIDTH)
