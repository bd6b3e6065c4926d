"""The page with a model that segments: regions on the photo, their names, areas, opacity, saving, by mouse
and keys."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.test_page import DESKTOP, PHONE, choose, explained
from tests.serving import served


@pytest.fixture(scope="module")
def demo(masks_repository: Path) -> Iterator[str]:
    """The page of a server with a classifier and a segmenter, both loaded."""
    with served(masks_repository, log_level="warning") as serving:
        for _ in range(600):
            if httpx.get(f"{serving.url}/models/tiny-masks").status_code == 200:
                break
        yield f"{serving.url}/"


def segmented(page: Page, jpeg: bytes) -> None:
    """The photo, with the segmenter chosen."""
    page.locator("#model").select_option("tiny-masks")
    choose(page, jpeg)
    expect(page.locator("#segmented")).to_be_visible()
    expect(page.locator("#main")).to_have_attribute("aria-busy", "false")


def painted(page: Page) -> np.ndarray:
    """(H, W, 4): the canvas over the photo."""
    url = page.locator("#regions-map").evaluate("canvas => canvas.toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGBA"))


def test_a_photo_shows_its_regions_and_the_classes_with_their_areas(page: Page, jpeg: bytes) -> None:
    segmented(page, jpeg)
    rows = page.locator("#regions-list button")
    assert rows.count() >= 2
    areas = [int(re.sub(r"\D", "", text)) for text in page.locator("#regions-list .value").all_inner_texts()]
    assert sum(areas) == pytest.approx(100, abs=rows.count())
    expect(page.locator("#regions-answer")).to_be_focused()
    shown = painted(page)
    assert 0 < (shown[..., 3] > 0).mean() < 1  # the background stays the photo


def test_pointing_names_a_region_and_lights_it(page: Page, jpeg: bytes) -> None:
    segmented(page, jpeg)
    before = painted(page)
    box = page.locator("#regions").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tag = page.locator("#regions-tag")
    expect(tag).to_contain_text("of the picture")
    assert not np.array_equal(painted(page), before)
    expect(page.locator("#regions-list .lit")).to_contain_text(tag.inner_text().partition(" · ")[0])
    page.mouse.move(5, 5)
    expect(tag).to_be_hidden()


def test_keys_reach_every_class_and_the_opacity(page: Page, jpeg: bytes) -> None:
    segmented(page, jpeg)
    page.locator("#regions-list button").nth(1).focus()
    expect(page.locator("#regions-tag")).to_be_visible()
    before = int(painted(page)[..., 3].max())
    page.locator("#regions-opacity").focus()
    page.keyboard.press("Home")
    expect(page.locator("#regions-opacity-value")).to_have_text("0 %")
    assert int(painted(page)[..., 3].max()) < before


def test_the_picture_can_be_saved(page: Page, jpeg: bytes) -> None:
    segmented(page, jpeg)
    with page.expect_download() as download:
        page.locator("#regions-save").click()
    assert download.value.suggested_filename == "photo-regions.png"
    with Image.open(download.value.path()) as image:
        assert image.size == (451, 300)


def test_going_back_to_a_classifier_explains_the_same_photo(page: Page, jpeg: bytes) -> None:
    segmented(page, jpeg)
    page.locator("#model").select_option("tiny")
    explained(page)
    expect(page.locator("#segmented")).to_be_hidden()
    assert page.locator("#photo").evaluate("image => image.naturalWidth") == 451


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_it_fits_and_has_no_barriers_at_two_widths(page: Page, jpeg: bytes, size: tuple[int, int]) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    segmented(page, jpeg)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
