"""From logits on a coarse grid to a label map of the photo, and what is said and drawn of it."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service import segment
from service.artifact import Preprocessing
from service.colours import class_colours
from service.results import RunLengths

RNG = np.random.default_rng(0)


def logits(classes: int, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Smooth ones, as a network's: most classes win nowhere."""
    coarse = np.random.default_rng(seed).standard_normal((classes, -(-rows // 4), -(-columns // 4)))
    fine = coarse.repeat(4, 1).repeat(4, 2)[:, :rows, :columns]
    return (4 * fine + 0.3 * np.random.default_rng(seed + 1).standard_normal(fine.shape)).astype(np.float32)


def all_at_once(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(K, H, W): every class resized whole."""
    return np.stack([np.asarray(Image.fromarray(v).resize(size, Image.Resampling.BILINEAR)) for v in values])


@pytest.mark.parametrize("size", [(96, 64), (95, 61), (640, 480), (1, 300), (300, 1), (11, 7), (1, 1)])
@pytest.mark.parametrize("classes", [2, 40])
def test_the_map_is_the_best_class_of_resized_logits(classes: int, size: tuple[int, int]) -> None:
    values = segment.log_probabilities(logits(classes, 16, 24))
    found = segment.label_map(values, size)
    whole = all_at_once(values, size)
    assert np.array_equal(found.labels, whole.argmax(0))
    assert found.pixels.sum() == size[0] * size[1]
    for k in np.flatnonzero(found.pixels):
        inside = found.labels == k
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        assert found.boxes[k].tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert found.scores[k] == pytest.approx(np.exp(whole[k][inside]).mean(), abs=1e-5)


def test_bands_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    values = segment.log_probabilities(logits(5, 16, 24))
    whole = segment.label_map(values, (333, 222))
    monkeypatch.setattr(segment, "BAND_PIXELS", 333 * 7)
    bands = segment.label_map(values, (333, 222))
    assert (bands.labels != whole.labels).mean() < 1e-3  # coordinates of a band are rounded to float32
    np.testing.assert_allclose(bands.scores, whole.scores, atol=1e-3)


def test_labels_are_never_resized_so_a_class_between_two_others_can_win() -> None:
    left, middle, right = [9.0, 0.0], [8.0, 8.0], [0.0, 9.0]
    values = segment.log_probabilities(np.array([[left], [middle], [right]], np.float32))
    found = segment.label_map(values, (100, 1))
    assert set(np.unique(found.labels)) == {0, 1, 2}


def test_a_temperature_makes_scores_milder_and_the_map_stays() -> None:
    sharp = segment.label_map(segment.log_probabilities(logits(3, 16, 24)), (50, 40))
    mild = segment.label_map(segment.log_probabilities(logits(3, 16, 24), 4.0), (50, 40))
    assert np.array_equal(sharp.labels, mild.labels)
    assert (mild.scores <= sharp.scores).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_run_lengths_give_back_the_mask(height: int, width: int, seed: int, share: float) -> None:
    inside = np.random.default_rng(seed).random((height, width)) < share
    runs = segment.run_lengths(inside)
    assert runs.size == (height, width)
    assert sum(runs.counts) == height * width
    assert all(runs.counts[1:])
    assert np.array_equal(segment.from_run_lengths(runs), inside)


def test_run_lengths_are_coco_s_column_by_column_and_begin_outside() -> None:
    inside = np.array([[1, 0], [1, 1]], bool)
    assert segment.run_lengths(inside) == RunLengths((2, 2), (0, 2, 1, 1))


def test_a_map_is_an_8_bit_palette_png_whose_pixels_are_class_ids() -> None:
    labels = np.array([[0, 1], [2, 1]], np.uint8)
    manifest = SimpleNamespace(palette=((0, 0, 0), (230, 159, 0), (86, 180, 233)))
    picture = segment.map_picture(labels, manifest)  # type: ignore[arg-type]
    assert picture.data[24] == 8  # bits a sample, in the header
    with Image.open(io.BytesIO(picture.data)) as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), labels)
        assert image.convert("RGB").getpixel((0, 1)) == (86, 180, 233)


@pytest.mark.parametrize(
    ("size", "most", "expected"),
    [
        ((4000, 3000), 25_000_000, (4000, 3000)),
        ((8000, 6000), 12_000_000, (4000, 3000)),
        ((1, 9), 4, (1, 6)),
    ],
)
def test_a_map_is_made_smaller_in_proportion(
    size: tuple[int, int], most: int, expected: tuple[int, int]
) -> None:
    assert segment.within(size, most) == expected


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ((640, 480), (192, 256)),
        ((480, 640), (256, 192)),
        ((1000, 1000), (192, 192)),
        ((2000, 1000), (192, 384)),
        ((4000, 1000), (96, 384)),
        ((1, 5000), (384, 32)),
        ((10, 10), (192, 192)),
    ],
)
def test_pictures_keep_their_aspect_in_few_sizes(picture: tuple[int, int], expected: tuple[int, int]) -> None:
    how = Preprocessing((192, 192), "aspect", 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3, step=32, longest=384)
    assert how.input_size(*picture) == expected


def test_colours_differ_and_what_is_left_over_is_black() -> None:
    colours = class_colours(["Background", *(f"class {i}" for i in range(150))])
    assert colours[0] == (0, 0, 0)
    assert len(set(colours)) == 151
