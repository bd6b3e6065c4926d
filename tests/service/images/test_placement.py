"""The network's input has the pixels of its training, and its place on the picture is known."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from service.artifact import Preprocessing
from service.images import Limits, decode, needed_side, preprocess
from tests.service.images.files import file

HALF = (0.5, 0.5, 0.5)


def how(
    size: tuple[int, int], resize: str = "stretch", crop: float = 1.0, interpolation: str = "bilinear"
) -> Preprocessing:
    return Preprocessing(size, resize, crop, interpolation, HALF, HALF)


def mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_stretch_is_pillows_resize_of_the_whole_picture(interpolation: str, photo: np.ndarray) -> None:
    pixels, place = preprocess(photo, 451, 300, how((64, 96), interpolation=interpolation))
    wanted = Image.fromarray(photo).resize((96, 64), Image.Resampling[interpolation.upper()])
    assert np.array_equal(pixels, np.asarray(wanted))
    assert place.box == (0, 0, 451, 300)


def test_shortest_is_the_usual_resize_and_centre_crop_without_rounding(photo: np.ndarray) -> None:
    pixels, place = preprocess(photo, 451, 300, how((90, 90), "shortest", 0.9, "bicubic"))
    whole = Image.fromarray(photo).resize(
        (150, 100), Image.Resampling.BICUBIC
    )  # the usual way rounds 150.3 to whole pixels, then cuts at 30, 5
    assert mean_difference(pixels, np.asarray(whole.crop((30, 5, 120, 95)))) < 1.5
    assert place.box == pytest.approx((90.5, 15, 360.5, 285))


def test_shortest_covers_oblong_inputs_and_upright_pictures() -> None:
    tall = np.zeros((400, 200, 3), np.uint8)
    pixels, place = preprocess(tall, 200, 400, how((30, 60), "shortest"))
    assert pixels.shape == (30, 60, 3)
    assert place.box == (0, 150, 200, 250)


def test_the_place_is_that_of_the_pixels() -> None:
    """A white square drawn where the network's cell (2, 5) of an 8 x 8 grid should lie is what that cell
    shows."""
    picture = np.zeros((333, 517, 3), np.uint8)
    _, place = preprocess(picture, 517, 333, how((64, 64), "shortest", 0.875))
    across, down = (place.x1 - place.x0) / 8, (place.y1 - place.y0) / 8
    x, y = place.x0 + 5 * across, place.y0 + 2 * down
    picture[round(y) : round(y + down), round(x) : round(x + across)] = 255
    cells = (
        preprocess(picture, 517, 333, how((64, 64), "shortest", 0.875))[0]
        .reshape(8, 8, 8, 8, 3)
        .mean((1, 3, 4))
    )
    assert cells[2, 5] > 220
    cells[2, 5] = 0
    assert cells.max() < 20


def test_a_picture_of_the_right_size_is_taken_as_it_is(photo: np.ndarray) -> None:
    square = photo[:128, :128]
    assert preprocess(square, 128, 128, how((128, 128)))[0] is square


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 3)])
@pytest.mark.parametrize("resize", ["stretch", "shortest"])
def test_degenerate_pictures_work(shape: tuple[int, int], resize: str) -> None:
    pixels, _ = preprocess(np.full((*shape, 3), 7, np.uint8), shape[1], shape[0], how((32, 32), resize, 0.9))
    assert pixels.shape == (32, 32, 3)
    assert (pixels == 7).all()


def test_the_needed_side_is_twice_what_the_resize_makes() -> None:
    assert needed_side(how((128, 128))) == 256
    assert needed_side(how((96, 224), "shortest", 0.9)) == 2 * 248


@pytest.mark.parametrize("fmt", ["JPEG", "PNG"])
@pytest.mark.parametrize("wanted", [how((64, 64)), how((72, 72), "shortest", 0.9, "bicubic")])
def test_a_picture_decoded_smaller_gives_nearly_the_same_input(
    fmt: str, wanted: Preprocessing, photo: np.ndarray
) -> None:
    """The error that `needed_side` states, with a little room."""
    detailed = np.tile(photo, (3, 3, 1))[:801, :1203]
    data = file(detailed, fmt, **({"quality": 90} if fmt == "JPEG" else {}))
    full, reduced = decode(data, Limits()), decode(data, Limits(), needed_side(wanted))
    assert full.rgb.shape[0] >= 3.9 * reduced.rgb.shape[0]
    a, b = (preprocess(d.rgb, d.width, d.height, wanted) for d in (full, reduced))
    assert a[1] == b[1]
    assert mean_difference(a[0], b[0]) <= 1.5
    assert np.abs(a[0].astype(int) - b[0]).max() <= 20


def test_pieces_of_a_pixel_at_the_edge_do_not_shift_a_reduced_picture() -> None:
    """1003 columns divided by 4 are 251, the last of which is a quarter empty: the picture's middle must stay
    the middle."""
    ramp = np.broadcast_to(np.linspace(0, 255, 1003), (803, 1003)).astype(np.uint8)
    data = file(ramp, "PNG")
    full, reduced = decode(data, Limits()), decode(data, Limits(), 200)
    assert reduced.rgb.shape == (201, 251, 3)
    inputs = [preprocess(d.rgb, d.width, d.height, how((50, 50)))[0].astype(int) for d in (full, reduced)]
    assert np.abs(inputs[0] - inputs[1])[:, 1:-1].max() <= 1
