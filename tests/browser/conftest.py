"""A real Chromium on the demo page of a real server, and what no page may do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.conftest import unavailable
from tests.serving import served

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium under Playwright, for one module: while it is open its event loop runs in this
    thread, and asyncio.run would refuse. Without one the tests are skipped, or fail where CI must have
    everything."""
    binary = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if binary is None:
        unavailable("no Chromium on this machine; apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=binary)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def demo(browser: Browser, tiny_repository: Path) -> Iterator[str]:
    """The demo page's address, served by `paca serve` with the tiny model."""
    with served(tiny_repository, log_level="warning") as serving:
        yield f"{serving.url}/"


@pytest.fixture
def page(browser: Browser, demo: str) -> Iterator[Page]:
    """The demo page, freshly opened. At its end: no script error, nothing asked of another host, nothing the
    content security policy had to stop."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 860},
        permissions=["clipboard-read", "clipboard-write"],
        reduced_motion="reduce",
    )
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console",
        lambda message: wrong.append(message.text) if "Content Security Policy" in message.text else None,
    )
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith((demo, "blob:", "data:")) else wrong.append(f"asked {request.url}")
        ),
    )
    page.goto(demo)
    page.wait_for_load_state("networkidle")
    yield page
    context.close()
    assert not wrong
