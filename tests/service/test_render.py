"""Pictures people can read: every mark lies where it belongs, the photo keeps its brightness, colours mean
what the bar says."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.colours import CLUSTERS, COLOUR_MAPS, DIVERGING, css_gradient
from service.render import RENDERS, UNSEEN, Canvas, Layers, fit
from service.results import Heatmap, Picture


def photo(width: int, height: int, value: int = 100) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.data)).convert("RGB")).astype(int)


def canvas(
    width: int = 40, height: int = 30, window: tuple[float, float, float, float] | None = None, **how: Any
) -> Canvas:
    return Canvas(
        photo(width, height), window or (0, 0, width, height), (width, height), **{"fmt": "png", **how}
    )


def hot(grid: tuple[int, int], row: int, column: int) -> np.ndarray:
    values = np.zeros(grid, np.float32)
    values[row, column] = 1
    return values


class TestGeometry:
    @settings(max_examples=150, deadline=None)
    @given(
        data=st.data(),
        width=st.integers(8, 240),
        height=st.integers(8, 240),
        rows=st.integers(1, 16),
        columns=st.integers(1, 16),
    )
    def test_a_mark_at_a_pixel_is_found_at_that_pixel(
        self, data: st.DataObject, width: int, height: int, rows: int, columns: int
    ):
        """Whatever part of the photo was cropped, or added around it, and whatever its aspect and the
        overlay's size."""
        x0, y0 = (
            data.draw(st.floats(-0.3 * width, 0.4 * width)),
            data.draw(st.floats(-0.3 * height, 0.4 * height)),
        )
        x1, y1 = (
            data.draw(st.floats(0.6 * width, 1.3 * width)),
            data.draw(st.floats(0.6 * height, 1.3 * height)),
        )
        x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
        column, row = (
            int((x + 0.5 - x0) / (x1 - x0) * columns // 1),
            int((y + 0.5 - y0) / (y1 - y0) * rows // 1),
        )
        if not (0 <= column < columns and 0 <= row < rows and x0 < x + 0.5 < x1 and y0 < y + 0.5 < y1):
            return  # the network did not see that pixel
        drawn = pixels(canvas(width, height, (x0, y0, x1, y1)).overlay(hot((rows, columns), row, column)))
        changed = np.abs(drawn - 100).sum(-1)
        # The strongest pixels lie in the marked cell, to within the pixel that its border may cut.
        found_y, found_x = np.nonzero(changed == changed.max())
        cell = (x1 - x0) / columns, (y1 - y0) / rows
        assert x0 + column * cell[0] - 1 <= found_x.mean() + 0.5 <= x0 + (column + 1) * cell[0] + 1
        assert y0 + row * cell[1] - 1 <= found_y.mean() + 0.5 <= y0 + (row + 1) * cell[1] + 1

    @pytest.mark.parametrize("size", [(80, 40), (13, 7), (200, 100)])
    def test_a_mark_in_the_middle_stays_in_the_middle_at_every_size(self, size: tuple[int, int]):
        drawn = pixels(Canvas(photo(80, 40), (20, 0, 60, 40), size, fmt="png").overlay(hot((5, 5), 2, 2)))
        weight = np.abs(drawn - 100).sum(-1).astype(float)
        assert drawn.shape[:2] == size[::-1]
        assert (weight.sum(0) @ (np.arange(size[0]) + 0.5)) / weight.sum() == pytest.approx(
            size[0] / 2, abs=0.3
        )
        assert (weight.sum(1) @ (np.arange(size[1]) + 0.5)) / weight.sum() == pytest.approx(
            size[1] / 2, abs=0.3
        )

    def test_what_the_network_did_not_see_stays_the_photo(self):
        drawn = pixels(canvas(40, 30, (5, 0, 35, 30)).overlay(np.ones((3, 3))))
        assert (drawn[:, :5] == 100).all()
        assert (drawn[:, 35:] == 100).all()
        assert (drawn[:, 5:35] != 100).any(-1).all()

    def test_and_is_grey_in_a_bare_heatmap(self):
        drawn = pixels(canvas(40, 30, (0, 6, 40, 24)).heatmap(np.ones((2, 2))))
        assert (drawn[[0, 5, 24, 29]] == UNSEEN).all()
        assert (drawn[6:24] == COLOUR_MAPS["viridis"].table[255]).all()


class TestOverlay:
    def test_of_nothing_is_the_photo_untouched(self):
        for signed in (False, True):
            assert (pixels(canvas().overlay(np.zeros((4, 4)), signed=signed)) == 100).all()

    def test_blends_the_strongest_place_with_alpha(self):
        drawn = pixels(canvas(alpha=0.6).overlay(np.ones((2, 2))))
        assert drawn[15, 20] == pytest.approx(0.4 * 100 + 0.6 * np.array([253, 231, 37]), abs=1)

    def test_is_the_weaker_the_smaller_the_number(self):
        values = np.array([[0.0, 0.2, 0.4, 1.0]])
        on_black, on_white = (
            pixels(Canvas(photo(40, 30, v), (0, 0, 40, 30), (40, 30), fmt="png").overlay(values))
            for v in (0, 255)
        )
        opacity = 1 - (on_white - on_black)[15, [4, 15, 25, 36], 0] / 255
        assert opacity == pytest.approx([0, 0.18, 0.36, 0.6], abs=0.03)

    def test_shows_for_in_orange_and_against_in_blue_around_zero(self):
        drawn = pixels(canvas(alpha=1.0).overlay(np.array([[-2.0, 0.0, 2.0]]), signed=True))
        (blue, nothing, orange) = drawn[15, 3], drawn[15, 20], drawn[15, 37]
        assert blue[2] > blue[0]
        assert (abs(nothing - 100) <= 8).all()
        assert orange[0] > orange[2]

    def test_with_a_limit_compares_between_pictures(self):
        weak = pixels(canvas().overlay(np.full((2, 2), 0.5), limit=2.0))
        assert (weak == pixels(canvas().overlay(np.full((2, 2), 5.0), limit=20.0))).all()
        assert (weak != pixels(canvas().overlay(np.full((2, 2), 0.5)))).any()

    @pytest.mark.parametrize("fmt", ["webp", "png", "jpeg"])
    def test_comes_in_every_format_at_the_size_asked_for(self, fmt: str):
        drawn = Canvas(photo(300, 200), (0, 0, 300, 200), (90, 60), fmt=fmt).overlay(np.eye(4))
        assert (drawn.mime, drawn.width, drawn.height) == (f"image/{fmt}", 90, 60)
        assert Image.open(io.BytesIO(drawn.data)).format == fmt.upper()
        assert Image.open(io.BytesIO(drawn.data)).size == (90, 60)

    def test_is_the_same_bytes_every_time_and_from_every_thread(self):
        values = np.random.default_rng(0).random((8, 8))

        def draw(_: int) -> bytes:
            return Canvas(photo(120, 90), (0, 0, 120, 90), (120, 90)).overlay(values).data

        with ThreadPoolExecutor(8) as pool:
            assert len({draw(0), *pool.map(draw, range(24))}) == 1


class TestMask:
    REGION = np.kron([[True, False], [False, False]], np.ones((15, 20))).astype(
        bool
    )  # the upper left quarter

    def test_is_one_bit_and_exact(self):
        drawn = canvas(fmt="jpeg").mask(self.REGION)
        image = Image.open(io.BytesIO(drawn.data))
        assert (drawn.mime, image.mode) == ("image/png", "1")
        assert (np.asarray(image) == self.REGION).all()

    def test_keeps_the_photo_inside_and_pales_it_outside(self):
        drawn = pixels(canvas().masked(self.REGION))
        assert (drawn[2, 2] == 100).all()
        assert (drawn[25, 35] > 200).all()


class TestSegmentation:
    def test_tints_ranks_in_order_and_leaves_the_others(self):
        drawn = pixels(canvas(60, 20, alpha=1.0).segmentation(np.array([[0, 1, 255]])))
        assert (drawn[10, 5] == CLUSTERS[0]).all()
        assert (drawn[10, 30] == CLUSTERS[1]).all()
        assert (drawn[10, 55] == 100).all()

    def test_draws_white_lines_between_clusters(self):
        drawn = pixels(canvas(60, 20).segmentation(np.array([[0, 1]])))
        assert (drawn[10, 29] == 255).all()
        assert (drawn[10, 10] == drawn[3, 20]).all()

    def test_leaves_what_the_network_did_not_see(self):
        drawn = pixels(canvas(60, 20, (10, 0, 50, 20)).segmentation(np.zeros((2, 2), int)))
        assert (drawn[:, :9] == 100).all()


class TestSize:
    def test_fits_the_longer_side_and_keeps_the_aspect(self):
        assert fit((500, 375), 256) == (256, 192)
        assert fit((3, 3000), 100) == (1, 100)
        assert fit((50, 100), 200) == (100, 200)

    def test_a_smaller_canvas_draws_the_same_place_smaller(self):
        big = canvas(400, 200, (100, 0, 300, 200))
        small = big.smaller(100)
        assert small.size == (100, 50)
        assert small.window == (25, 0, 75, 50)
        assert big.smaller(400) is big
        assert np.asarray(pixels(small.overlay(np.ones((1, 1)))))[25, 24].tolist() == [100, 100, 100]


class TestColours:
    PUBLISHED: ClassVar[dict[str, list[tuple[int, int, int]]]] = {  # rows 0, 128 and 255
        "viridis": [(68, 1, 84), (33, 145, 140), (253, 231, 37)],
        "inferno": [(0, 0, 4), (188, 55, 84), (252, 255, 164)],
        "magma": [(0, 0, 4), (183, 55, 121), (252, 253, 191)],
        "cividis": [(0, 34, 78), (125, 124, 120), (254, 232, 56)],
    }

    @pytest.mark.parametrize("name", COLOUR_MAPS)
    def test_are_the_published_tables_and_get_lighter_all_the_way(self, name: str):
        assert COLOUR_MAPS[name].note
        table = COLOUR_MAPS[name].table
        assert [tuple(row) for row in table[[0, 128, 255]].tolist()] == self.PUBLISHED[name]
        lightness = (table / 255.0) ** 2.2 @ (0.2126, 0.7152, 0.0722)
        assert (np.diff(np.convolve(lightness, np.ones(5) / 5, "valid")) > 0).all()

    def test_of_signed_maps_are_pale_in_the_middle_and_alike_in_lightness_on_both_sides(self):
        lightness = (DIVERGING / 255.0) ** 2.2 @ (0.2126, 0.7152, 0.0722)
        assert lightness.argmax() in (127, 128)
        assert np.abs(lightness - lightness[::-1]).max() < 0.15

    def test_of_clusters_differ(self):
        apart = np.abs(CLUSTERS[:, None].astype(int) - CLUSTERS[None]).sum(-1) + 999 * np.eye(len(CLUSTERS))
        assert apart.min() > 60

    def test_make_a_bar_for_a_page(self):
        assert (
            css_gradient(COLOUR_MAPS["viridis"].table, 3)
            == "linear-gradient(to right,#440154,#21918c,#fde725)"
        )


class TestRenders:
    @pytest.mark.parametrize("name", [name for name, row in RENDERS.items() if row.draw])
    def test_each_draws_what_there_is_and_nothing_where_there_is_nothing(self, name: str):
        canvas = Canvas(np.full((8, 8, 3), 90, np.uint8), (0, 0, 8, 8), (8, 8), fmt="png")
        heat = Heatmap(np.eye(2, dtype=np.float32), signed=False, units="relative")
        draw = RENDERS[name].draw
        assert draw is not None
        drawn = draw(canvas, Layers(heat, np.eye(2, dtype=bool), np.eye(2, dtype=int), np.eye(2, dtype=int)))
        assert drawn is not None
        assert (drawn.width, drawn.height) == (8, 8)
        assert draw(canvas, Layers()) is None
        assert RENDERS[name].caption


def test_a_map_of_almost_nothing_is_a_map_of_nothing() -> None:
    canvas = Canvas(np.full((8, 8, 3), 90, np.uint8), (0, 0, 8, 8), (8, 8), fmt="png")
    faint = np.full((2, 2), 1e-40, np.float32)
    assert canvas.overlay(faint).data == canvas.overlay(np.zeros((2, 2), np.float32)).data
    assert canvas.overlay(-faint, signed=True).data == canvas.photo().data
