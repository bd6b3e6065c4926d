"""One row a method: what it needs, what its map is, and that a method of several runs can be said."""

from __future__ import annotations

import numpy as np
import pytest

from service.methods import CLUSTERS, GRADIENTS, METHODS, TOKENS, Evidence, available, occlusion
from service.results import Heatmap

CAM = np.array([[1.0, -2.0], [3.0, 0.5]], np.float32)
MAPS = {1: np.arange(16, dtype=np.float32).reshape(4, 4)}


@pytest.mark.parametrize(
    ("name", "signed", "units", "complete"),
    [("cam", True, "logit", True), ("focus", False, "relative", False), ("fine", True, "relative", False)],
)
def test_a_map_says_what_it_is(name: str, signed: bool, units: str, complete: bool) -> None:
    method = METHODS[name]
    assert method.heatmap is not None
    heat = method.heatmap(Evidence(CAM, MAPS))
    assert heat is not None
    assert (heat.signed, heat.units, method.complete, method.class_specific) == (
        signed,
        units,
        complete,
        True,
    )


def test_grouping_has_no_map_and_is_not_about_a_class() -> None:
    grouping = METHODS["grouping"]
    assert grouping.heatmap is not None
    assert grouping.heatmap(Evidence(CAM, MAPS)) is None
    assert not grouping.class_specific


def test_a_model_is_offered_what_its_parts_allow_the_default_first() -> None:
    assert [m.name for m in available({TOKENS, GRADIENTS, CLUSTERS})] == [
        "focus",
        "cam",
        "fine",
        "grouping",
        "occlusion",
    ]
    assert [m.name for m in available({TOKENS})] == ["cam", "occlusion"]
    assert [m.name for m in available(set())] == ["occlusion"]


def test_every_method_explains_itself_and_makes_one_map() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        assert method.title
        assert method.note.endswith(".")
        assert (method.heatmap is None) != (method.probe is None)


class Toy:
    """A network whose first logit is the brightness of one corner, and whose second never changes."""

    def __init__(self, size: int, dtype: type) -> None:
        self.size, self.dtype, self.runs = size, dtype, 0

    def picture(self) -> np.ndarray:
        rgb = np.zeros((self.size, self.size, 3), np.uint8)
        rgb[: self.size // 8, : self.size // 8] = 255
        return rgb if self.dtype is np.uint8 else rgb.transpose(2, 0, 1).astype(np.float32) / 255

    def logits(self, pictures: np.ndarray) -> np.ndarray:
        self.runs += len(pictures)
        rows = pictures if self.dtype is np.uint8 else pictures.transpose(0, 2, 3, 1)
        side = self.size // 8
        bright = rows[:, :side, :side].mean((1, 2, 3), dtype=np.float64) / (
            255 if self.dtype is np.uint8 else 1
        )
        return np.stack([bright, np.full(len(rows), 7.0)], 1)


def run(evidence: Evidence, toy: Toy) -> Heatmap:
    probe = occlusion(evidence)
    pictures = next(probe)
    while True:
        try:
            pictures = probe.send(toy.logits(pictures))
        except StopIteration as done:
            return done.value


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_occlusion_finds_the_place_that_the_answer_rests_on_in_64_runs(dtype: type) -> None:
    toy = Toy(64, dtype)
    tensor = toy.picture()
    logits = toy.logits(tensor[None])[0]
    toy.runs = 0
    heat = run(Evidence(weights=np.array([1.0, 0.0]), logits=logits, tensor=tensor), toy)
    assert toy.runs == 64
    assert heat.values.shape == (8, 8)
    assert np.unravel_index(heat.values.argmax(), (8, 8)) == (0, 0)
    assert heat.values[0, 0] == 1
    assert np.abs(heat.values[4:, 4:]).max() < 0.05


def test_occlusion_of_a_logit_that_never_changes_is_nothing() -> None:
    toy = Toy(64, np.uint8)
    tensor = toy.picture()
    logits = toy.logits(tensor[None])[0]
    heat = run(Evidence(weights=np.array([0.0, 1.0]), logits=logits, tensor=tensor), toy)
    assert not heat.values.any()
