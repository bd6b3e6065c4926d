"""The demo page in a real browser against the real server: what a visitor does, and what they see, hear and
can reach."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Literal

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import FilePayload, Page, Route, expect

from service.colours import COLOUR_MAPS

DESKTOP, PHONE = (1280, 860), (390, 844)
DELIVER = """([kind, bytes, type]) => {
  const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(bytes)], "photo.jpg", { type }));
  const event = kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true })
    : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
  document.body.dispatchEvent(event);
}"""
PIXELS = (
    "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data].reduce((sum,"
    " value) => sum + value, 0)"
)


def explained(page: Page) -> None:
    """Waits until the page shows an answer and works on none."""
    expect(page.locator("#result")).to_be_visible()
    expect(page.locator("#main")).to_have_attribute("aria-busy", "false")


def choose(page: Page, data: bytes, name: str = "photo.jpg") -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name=re.compile("Choose a photo|New photo")).locator(
            "visible=true"
        ).click()
    chooser.value.set_files({"name": name, "mimeType": "image/jpeg", "buffer": data})


def painted(page: Page) -> int:
    return int(page.locator("#overlay").evaluate(PIXELS))


def test_a_chosen_photo_is_named_and_explained(page: Page, jpeg: bytes) -> None:
    choose(page, jpeg)
    explained(page)
    first = page.locator("#predictions button").first
    expect(first).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#answer")).to_have_text(first.locator(".name").inner_text())
    expect(page.locator("#answer")).to_be_focused()
    expect(first.locator(".value")).to_have_text(re.compile(r"^\d+\.\d %$"))
    assert painted(page) > 0
    expect(page.locator("#clusters img").first).to_be_visible()
    expect(page.locator("#timings")).to_contain_text(re.compile(r"inference\s*\d"))


def test_a_cluster_that_covers_one_patch_is_not_said_to_cover_nothing(page: Page, jpeg: bytes) -> None:
    def shrink(route: Route) -> None:
        answer = route.fetch()
        document = answer.json()
        for cluster, area in zip(document["explanations"][0]["clusters"], (1 / 256, 0.0, 0.25), strict=False):
            cluster["area"] = area
        route.fulfill(response=answer, json=document)

    page.route("**/explain*", shrink)
    choose(page, jpeg)
    explained(page)
    notes = page.locator("#clusters .small")
    expect(notes.nth(0)).to_have_text("under 1 % of the picture")
    expect(notes.nth(1)).to_have_text("0 % of the picture")
    expect(notes.nth(2)).to_have_text("25 % of the picture")
    page.unroute_all(behavior="wait")


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_a_photo_can_come_by_paste_or_drop(page: Page, jpeg: bytes, way: str) -> None:
    page.evaluate(DELIVER, [way, list(jpeg), "image/jpeg"])
    explained(page)


def test_the_sample_needs_no_photo_and_its_curl_line_runs_as_it_stands(
    page: Page, demo: str, tmp_path
) -> None:
    page.get_by_role("button", name="Try the sample").click()
    explained(page)
    page.get_by_role("button", name="Copy as curl").click()
    expect(page.locator("#copy")).to_have_text("Copied")
    line = page.evaluate("navigator.clipboard.readText()")
    assert line == page.locator("#curl").inner_text()
    (tmp_path / "sample.webp").write_bytes(page.request.get(f"{demo}sample.webp").body())
    told = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, check=True)
    assert json.loads(told.stdout)["predictions"][0]["label"] == page.locator("#answer").inner_text()


def test_other_colours_are_painted_without_asking_the_server_again(page: Page, jpeg: bytes) -> None:
    choose(page, jpeg)
    explained(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/explain" in request.url else None)
    colours = page.get_by_label("Colours of the overlay")
    assert colours.locator("option").all_inner_texts() == list(COLOUR_MAPS)
    canvas = "document.querySelector('#overlay').toDataURL()"
    before = page.evaluate(canvas)
    colours.select_option("inferno")
    assert page.evaluate(canvas) != before
    assert "colormap=inferno" in page.locator("#curl").inner_text()
    assert "rgb(252, 255, 164)" in page.locator("#ramp").evaluate("e => getComputedStyle(e).backgroundImage")
    assert asked == []


def test_another_class_and_a_contrast_are_asked_for_and_shown(page: Page, jpeg: bytes) -> None:
    choose(page, jpeg)
    explained(page)
    second = page.locator("#predictions button").nth(1)
    with page.expect_request(re.compile("explain.*target=")):
        second.click()
    explained(page)
    expect(second).to_have_attribute("aria-pressed", "true")
    expect(second).to_be_focused()
    expect(page.locator("#target option:checked")).to_have_text(second.locator(".name").inner_text())
    page.get_by_label("CAM").check(force=True)
    explained(page)
    expect(page.locator("#completeness")).to_contain_text("Adds up")
    page.get_by_label("Rather than").select_option("runner_up")
    explained(page)
    expect(page.locator("#completeness")).to_contain_text(" over ")
    page.get_by_label("Grouping").check(force=True)
    explained(page)
    expect(page.locator("#clusters-note")).to_contain_text("whatever the class")


def test_the_slider_fades_the_overlay_without_asking_the_server(page: Page, jpeg: bytes) -> None:
    choose(page, jpeg)
    explained(page)
    page.on("request", lambda request: pytest.fail(f"asked {request.url}"))
    slider = page.get_by_role("slider", name="Overlay")
    strong = painted(page)
    slider.fill("20")
    weak = painted(page)
    slider.fill("0")
    assert strong > weak > painted(page) == 0
    expect(page.locator("#opacity-value")).to_have_text("0 %")


def test_pointing_at_a_patch_or_a_card_lights_the_cluster(page: Page, jpeg: bytes) -> None:
    choose(page, jpeg)
    explained(page)
    before = painted(page)
    page.locator("#picture").hover()
    expect(page.locator("#tag")).to_have_text(re.compile(r"^Cluster \d+"))
    assert painted(page) != before
    page.locator("#answer").hover()
    expect(page.locator("#tag")).to_be_hidden()
    assert painted(page) == before
    card = page.locator("#clusters button").first
    card.hover()
    expect(page.locator("#tag")).to_contain_text(card.locator(".name").inner_text())


def test_a_refusal_is_told_in_the_servers_words_and_the_last_answer_stays(page: Page, jpeg: bytes) -> None:
    choose(page, b"no picture at all", "notes.jpg")
    expect(page.get_by_role("alert")).to_contain_text("Not an accepted image format")
    choose(page, jpeg)
    explained(page)
    expect(page.get_by_role("alert")).to_be_hidden()
    named = page.locator("#answer").inner_text()
    choose(page, jpeg[: len(jpeg) // 2], "half.jpg")
    expect(page.get_by_role("alert")).to_contain_text("Image cannot be decoded")
    expect(page.locator("#answer")).to_have_text(named)


def test_a_server_that_is_gone_is_said_and_can_be_tried_again(page: Page, jpeg: bytes) -> None:
    page.route("**/explain*", lambda route: route.abort())
    choose(page, jpeg)
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    page.unroute("**/explain*")
    page.get_by_role("button", name="Try again").click()
    explained(page)


def test_the_whole_page_works_from_the_keyboard(page: Page) -> None:
    press = page.keyboard.press

    def tab_to(selector: str, key: str = "Tab", steps: int = 40) -> None:
        for _ in range(steps):
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
            press(key)
        pytest.fail(f"{selector} cannot be reached with {key}")

    tab_to("#sample")
    press("Enter")
    explained(page)
    tab_to("#picture", "Shift+Tab")
    press("ArrowRight")
    expect(page.locator("#status")).to_have_text(re.compile(r"^Row \d+, column \d+: Cluster \d+"))
    press("Escape")
    expect(page.locator("#tag")).to_be_hidden()
    tab_to("#opacity")
    press("End")
    expect(page.locator("#opacity-value")).to_have_text("100 %")
    tab_to("#predictions [aria-pressed=false]")
    press("Enter")
    explained(page)
    expect(page.locator("#predictions button").nth(1)).to_be_focused()
    tab_to("#methods input")
    press("ArrowRight")
    explained(page)
    assert page.evaluate("document.activeElement.name") == "method"
    tab_to("#clusters button")
    expect(page.locator("#tag")).to_contain_text("Cluster")


def test_the_report_is_a_page_of_its_own(page: Page, jpeg: bytes) -> None:
    choose(page, jpeg)
    explained(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download report").click()
    assert download.value.suggested_filename == "photo-report.html"
    assert "<html" in download.value.path().read_text("utf-8").lower()


def test_the_picture_can_be_kept_as_it_is_seen(page: Page, jpeg: bytes, photo: np.ndarray) -> None:
    choose(page, jpeg)
    explained(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save picture").click()
    assert download.value.suggested_filename == "photo-explained.png"
    with Image.open(download.value.path()) as saved:
        assert saved.size == (photo.shape[1], photo.shape[0])
        apart = np.abs(np.asarray(saved.convert("RGB"), int) - photo)
    assert 3 < apart.mean() < 120  # the photo, with something on it


def test_it_works_behind_a_proxy_under_a_prefix(page: Page, demo: str, jpeg: bytes) -> None:
    def forward(route: Route) -> None:
        answer = route.fetch(url=route.request.url.replace("/behind/a/proxy/", "/"))
        route.fulfill(response=answer)

    page.route("**/behind/a/proxy/**", forward)
    page.goto(f"{demo}behind/a/proxy/")
    choose(page, jpeg)
    explained(page)
    assert "/behind/a/proxy/explain" in page.locator("#curl").inner_text()
    page.unroute_all(
        behavior="wait"
    )  # what is still being forwarded would fail when the page closes, in the next test


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_no_serious_accessibility_finding_and_nothing_wider_than_the_screen(
    page: Page, scheme: Literal["light", "dark"], size: tuple[int, int], tmp_path
) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.emulate_media(color_scheme=scheme)
    for view in ("welcome", "result"):
        if view == "result":
            page.get_by_role("button", name="Try the sample").click()
            explained(page)
        page.screenshot(path=tmp_path / f"{view}-{scheme}-{size[0]}.png", full_page=True)
        found = [
            f"{v['id']}: {v['help']}"
            for v in Axe().run(page).response["violations"]
            if v["impact"] in ("serious", "critical")
        ]
        assert not found
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_parts_can_be_shown_in_place_of_clusters(page: Page, jpeg: bytes) -> None:
    choose(page, jpeg)
    explained(page)
    page.get_by_label("Show").select_option("parts")
    expect(page.locator("#clusters-title")).to_have_text("Parts")
    explained(page)
    parts = page.locator("#clusters button")
    assert 1 <= parts.count() <= 5
    expect(parts.first.locator(".name")).to_have_text(re.compile(r"^Part \d$"))
    before = painted(page)
    parts.first.focus()
    expect(page.locator("#tag")).to_have_text(re.compile(r"^Part \d · [+−]"))
    assert painted(page) != before
    assert "render=overlay%2Cparts" in page.locator("#curl").inner_text()


def test_a_map_is_checked_on_request_and_the_result_is_said_in_words(page: Page, jpeg: bytes) -> None:
    choose(page, jpeg)
    explained(page)
    expect(page.locator("#check-says")).to_be_hidden()
    page.get_by_role("button", name="Check this map").click()
    expect(page.locator("#check-says")).to_have_text(
        re.compile(
            r"Hiding what the map shows takes the answer from \d+ % to \d+ %; hiding as much at random"
        )
    )
    page.locator("#predictions button").nth(1).click()
    explained(page)
    expect(page.get_by_role("button", name="Check this map")).to_be_visible()


def test_a_novel_picture_is_not_named_without_a_doubt(page: Page, jpeg: bytes) -> None:
    def doubt(route: Route) -> None:
        answer = route.fetch()
        document = answer.json()
        document["novelty"] = {"score": 0.99, "threshold": 0.95, "is_novel": True}
        route.fulfill(response=answer, json=document)

    page.route("**/explain*", doubt)
    choose(page, jpeg)
    explained(page)
    expect(page.locator("#answer")).to_have_text(re.compile(r"^Not sure: .*\?$"))
    expect(page.locator("#doubt")).to_contain_text("99.0 % of known photos look less unusual")
    page.unroute_all(behavior="wait")


def test_an_overlay_that_is_drawn_faintly_says_why(page: Page, jpeg: bytes) -> None:
    choose(page, jpeg)
    explained(page)
    strong = painted(page)
    page.locator("#predictions button").last.click()
    explained(page)
    expect(page.locator("#fading")).to_have_text(re.compile(r"drawn at \d+ % of its strength: .* speaks for"))
    assert painted(page) < strong


def test_the_page_says_what_the_model_knows_before_the_first_photo(page: Page, demo: str) -> None:
    [model] = page.request.get(f"{demo}models").json()["models"]
    expect(page.locator("#known-title")).to_have_text(f"This model knows {len(model['labels'])} things")
    assert page.locator("#known-labels li").all_inner_texts() == model["labels"]
    expect(page.locator("#known-search")).to_be_hidden()


def test_of_many_classes_some_are_shown_and_all_can_be_found(page: Page, demo: str) -> None:
    labels = [f"thing {i}" for i in range(1000)]

    def many(route: Route) -> None:
        answer = route.fetch()
        document = answer.json()
        document["models"][0]["labels"] = labels
        route.fulfill(response=answer, json=document)

    page.route("**/models", many)
    page.goto(demo)
    expect(page.locator("#known-labels li").last).to_have_text("and 976 more")
    page.get_by_label("Find a class").fill("thing 99")
    assert page.locator("#known-labels li").all_inner_texts() == ["thing 99", *labels[990:]]
    page.unroute_all(behavior="wait")


def test_words_that_a_layman_does_not_know_are_explained(page: Page, jpeg: bytes) -> None:
    choose(page, jpeg)
    explained(page)
    page.get_by_text("What do these words mean?").click()
    expect(page.get_by_text("what the patches add to a class", exact=False)).to_be_visible()


def several(page: Page, photos: dict[str, bytes]) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a photo").click()
    files: list[FilePayload] = [
        {"name": name, "mimeType": "image/jpeg", "buffer": data} for name, data in photos.items()
    ]
    chooser.value.set_files(files)


def test_several_photos_become_a_gallery_the_most_doubtful_first(page: Page, jpeg: bytes) -> None:
    def doubt(route: Route) -> None:
        answer = route.fetch()
        document = answer.json()
        document["results"][2]["novelty"] = {"score": 0.99, "threshold": 0.95, "is_novel": True}
        route.fulfill(response=answer, json=document)

    page.route("**/classify*", doubt)
    several(page, {"one.jpg": jpeg, "broken.jpg": b"no picture", "three.jpg": jpeg})
    expect(page.locator("#gallery-title")).to_have_text("3 photos")
    cards = page.locator("#gallery-photos button")
    assert [card.locator(".small").inner_text() for card in cards.all()] == [
        "three.jpg",
        "one.jpg",
        "broken.jpg",
    ]
    expect(cards.first.locator(".name")).to_have_text(re.compile("^Not sure: "))
    expect(cards.last).to_be_disabled()
    cards.nth(1).click()
    explained(page)
    expect(page.locator("#gallery")).to_be_hidden()
    page.get_by_role("button", name="All photos").click()
    expect(page.locator("#gallery-photos button")).to_have_count(3)
    page.unroute_all(behavior="wait")


def test_more_photos_than_one_request_takes_are_all_named(page: Page, jpeg: bytes) -> None:
    several(page, {f"{i:02}.jpg": jpeg for i in range(20)})
    expect(page.locator("#gallery-title")).to_have_text("20 photos", timeout=30_000)
    names = page.locator("#gallery-photos .small").all_inner_texts()
    assert sorted(names) == [f"{i:02}.jpg" for i in range(20)]


def test_a_reload_keeps_the_photo_and_the_settings_and_back_takes_a_step_back(
    page: Page, jpeg: bytes
) -> None:
    choose(page, jpeg)
    explained(page)
    page.locator("#methods label", has_text="CAM").click()
    explained(page)
    expect(page.get_by_role("radio", name="CAM")).to_be_checked()
    answer = page.locator("#answer").inner_text()
    page.reload()
    explained(page)
    expect(page.locator("#answer")).to_have_text(answer)
    expect(page.get_by_role("radio", name="CAM")).to_be_checked()
    page.go_back()
    explained(page)
    expect(page.get_by_role("radio", name="Focus")).to_be_checked()


def test_a_link_opens_the_same_settings(page: Page, demo: str, jpeg: bytes) -> None:
    page.goto(f"{demo}?method=cam&groups=parts&colormap=magma")
    choose(page, jpeg)
    explained(page)
    expect(page.get_by_role("radio", name="CAM")).to_be_checked()
    expect(page.locator("#clusters-title")).to_have_text("Parts")


@pytest.mark.parametrize("name", ["a pagoda", "a cat"])
def test_samples_that_the_model_does_not_know_are_offered_too(page: Page, demo: str, name: str) -> None:
    samples = page.locator("#samples")
    page.evaluate("document.querySelector('#samples').hidden = false")  # the tests' model has other classes
    samples.get_by_role("button", name=name).click()
    explained(page)
    expect(page.locator("#answer")).not_to_be_empty()
