"""requirements/*.txt, what the server image installs: whole, hashed, from nowhere in particular, and what
pyproject.toml and constraints.txt say."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = pytest.mark.parametrize("runtime", ["cpu", "gpu"])


def locked(runtime: str) -> dict[str, tuple[str, list[str]]]:
    """Package → (version, hashes)."""
    text = (ROOT / "requirements" / f"{runtime}.txt").read_text().replace("\\\n", "")
    found = [
        re.match(r"([\w.-]+)==([\w.]+)(?: ;[^#]*?)?((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*$", line)
        for line in text.splitlines()
    ]
    assert all(found), "each line is one pinned package with its hashes; run make lock"
    return {match[1]: (match[2], match[3].split()) for match in found if match}


@LOCKS
def test_the_lock_holds_what_the_project_asks_for(runtime):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    texts = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"][runtime],
        *project["project"]["optional-dependencies"]["grpc"],
        *project["build-system"]["requires"],
    ]
    for requirement in map(Requirement, texts):
        version, _ = locked(runtime)[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, (
            f"{requirement} is asked for, {version} is locked; run make lock"
        )


@LOCKS
def test_the_lock_agrees_with_the_constraints(runtime):
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.M)
    constraints = {canonicalize_name(name): version for name, version in pins}
    versions = {canonicalize_name(name): version for name, (version, _) in locked(runtime).items()}
    agreed = {name: constraints.get(name, version) for name, version in versions.items()}
    assert agreed == versions, "run make lock"


@LOCKS
def test_the_lock_is_closed(runtime):
    """Whatever a locked package needs is locked too: `--require-hashes` would refuse the rest."""
    names = locked(runtime)
    for name in names:
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # of another system, or of the other runtime
        for requirement in map(Requirement, needed):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert canonicalize_name(requirement.name) in names, f"{name} needs {requirement}"


def test_the_locks_name_no_place_to_download_from():
    for file in (ROOT / "requirements").glob("*.txt"):
        assert not re.search(r"://|index|find-links", file.read_text())


def test_the_image_installs_nothing_but_locked_files():
    installs = re.findall(r"pip install (.*?)(?: \\)?$", (ROOT / "Dockerfile").read_text(), re.M)
    assert installs
    for arguments in installs:
        assert "--require-hashes" in arguments or "--no-deps --no-build-isolation ." in arguments
