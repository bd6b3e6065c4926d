"""Faults, scripted. `make test` runs them at small counts and checks what must hold on any machine; `make
soak` (PACA_SOAK=1) runs the same tests at full counts, checks the figures too, and appends them to
PACA_SOAK_FILE (build/soak.jsonl), where a test that is already recorded is not run again."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import soak as counts
from tests.soak import SOAK

FAILED = pytest.StashKey[bool]()
FILE = Path(os.environ.get("PACA_SOAK_FILE", "build/soak.jsonl"))


@pytest.fixture(scope="session")
def count() -> Callable[[int, int], int]:
    """count(few, many): how often, here."""
    return counts.count


@pytest.fixture(scope="session")
def soak() -> bool:
    """Whether figures count: a quiet machine and full counts."""
    return SOAK


@pytest.fixture(autouse=True)
def record(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """record(name=value, …): figures of this test, for the report."""
    name = request.node.name
    if (
        SOAK
        and FILE.exists()
        and any(json.loads(line)["test"] == name for line in FILE.read_text().splitlines())
    ):
        pytest.skip(f"recorded in {FILE}; delete the line to run it again")
    figures: dict[str, object] = {}
    began = time.monotonic()
    yield figures.update
    if SOAK and figures and not request.node.stash.get(FAILED, False):
        FILE.parent.mkdir(parents=True, exist_ok=True)
        with FILE.open("a") as out:
            out.write(
                json.dumps({"test": name, "seconds": round(time.monotonic() - began, 1), **figures}) + "\n"
            )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture(scope="session")
def pictures(photo: np.ndarray) -> list[bytes]:
    """Twenty different photos as JPEG files."""

    def encode(image: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=88)
        return buffer.getvalue()

    return [encode(np.roll(photo, 20 * i, axis=1)) for i in range(20)]
