"""No version with a known hole: neither allowed by pyproject.toml, nor pinned, nor installed here."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FLOORS = {
    # CVE-2026-54283, CVE-2025-54121, GHSA-f96h-pmfr-66vw, GHSA-7f5h-v6xp-fcq8: forms and ranges that block or
    # exhaust
    "starlette": "1.3.1",
    # CVE-2024-24762, -53981, CVE-2026-24486, -40347, -42561: parts and their headers without bounds
    "python-multipart": "0.0.31",
    # CVE-2024-28219, CVE-2025-48379, CVE-2026-25990, -40192, -42308 to -42311, -55379, -55380, -59200 to
    # -59204: decoders
    "pillow": "12.3.0",
    "onnx": "1.21.0",  # CVE-2026-28500, -34445, -34446, -34447, -27489: external data that leaves its folder
    "onnxruntime": "1.31",  # has the checks of external data of microsoft/onnxruntime#26776 and #27430
    "torch": "2.10.0",  # CVE-2025-32434, CVE-2026-24747: weights_only that runs code
}


def allowed() -> dict[str, str]:
    """The lower bound of every requirement in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [
        *project["dependencies"],
        *(text for extra in project["optional-dependencies"].values() for text in extra),
    ]
    bounds = {}
    for requirement in map(Requirement, texts):
        for bound in requirement.specifier:
            if bound.operator in (">=", "=="):
                bounds[requirement.name.lower()] = bound.version
    return bounds


def pinned() -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.M))


@pytest.mark.parametrize("name", FLOORS)
def test_nothing_older_than_its_security_floor_is_allowed_pinned_or_installed(name):
    floor = Version(FLOORS[name])
    assert Version(allowed()[name]) >= floor
    assert Version(pinned()[name]) >= floor
    assert Version(metadata.version(name)) >= floor


def test_the_gpu_runtime_is_the_cpu_runtime_s_version():
    assert allowed()["onnxruntime-gpu"] == allowed()["onnxruntime"]
    assert pinned()["onnxruntime-gpu"] == pinned()["onnxruntime"]
