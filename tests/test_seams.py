"""What can grow stands in one place: a second source file that lists it is a fault.

The tables are read, and every source file is searched for their names as quoted texts. One name may stand in
another file, where it means something by itself; two make a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from service.colours import COLOUR_MAPS
from service.images.formats import IMAGE_FORMATS
from service.methods import METHODS
from service.providers import PROVIDERS

ROOT = Path(__file__).parent.parent
SOURCES = [
    path
    for folder in ("service", "export")
    for suffix in ("*.py", "*.js", "*.html")
    for path in sorted((ROOT / folder).rglob(suffix))
]
# Names torch's devices, of which two are called as two of our providers are.
TORCH = {ROOT / "export/training/loop.py"}


def naming(names: Iterable[str]) -> set[str]:
    """The source files in which at least two of these names stand as quoted texts."""
    patterns = [re.compile(rf"""["']{re.escape(name)}["']""") for name in names]
    return {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        if path not in TORCH
        and sum(bool(pattern.search(path.read_text("utf-8"))) for pattern in patterns) >= 2
    }


@pytest.mark.parametrize(
    ("names", "place"),
    [
        (METHODS, "service/methods.py"),
        (COLOUR_MAPS, "service/colours.py"),
        (PROVIDERS, "service/providers.py"),
        ([row.name for row in IMAGE_FORMATS], "service/images/formats.py"),
    ],
    ids=["methods", "colour maps", "providers", "image formats"],
)
def test_a_table_is_the_only_list_of_its_names(names: Iterable[str], place: str) -> None:
    assert naming(names) <= {place}
