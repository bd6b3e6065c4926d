"""Limits of control groups: versions 1 and 2, and groups within groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.cgroup import cpu_limit, memory_used

MB = 2**20


@pytest.fixture
def tree(tmp_path: Path):
    """Writes files of a control group tree; returns its root and this process's place in it."""

    def make(own: str, files: dict[str, str]) -> tuple[Path, Path]:
        for name, text in files.items():
            (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "fs" / name).write_text(text + "\n")
        (tmp_path / "own").write_text(own + "\n")
        return tmp_path / "fs", tmp_path / "own"

    return make


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {}, None),
        ("", {"cpu.max": "200000 100000"}, 2),
        ("0::/../../x", {"cpu.max": "200000 100000"}, 2),
        ("0::/a.slice/b.service", {"a.slice/b.service/cpu.max": "50000 100000"}, 0.5),
        (
            "0::/a.slice/b.service",
            {"a.slice/cpu.max": "100000 100000", "a.slice/b.service/cpu.max": "400000 100000"},
            1,
        ),
        (
            "4:cpu,cpuacct:/docker/123",
            {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"},
            2,
        ),
        (
            "4:cpu,cpuacct:/docker/123\n3:memory:/other",
            {"cpu/docker/123/cpu.cfs_quota_us": "50000", "cpu/docker/123/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/", {"cpu.max": "nonsense"}, None),
    ],
)
def test_the_tightest_limit_of_cores_counts(tree, own, files, cores):
    assert cpu_limit(*tree(own, files)) == cores


@pytest.mark.parametrize(
    ("own", "files", "used"),
    [
        (
            "0::/",
            {
                "memory.max": str(512 * MB),
                "memory.current": str(256 * MB),
                "memory.stat": f"anon {128 * MB}\ninactive_file {128 * MB}",
            },
            0.25,
        ),
        ("0::/", {"memory.max": "max", "memory.current": str(256 * MB)}, 0),
        ("0::/", {}, 0),
        (
            "0::/a.slice/b.service",
            {
                "a.slice/memory.max": str(400 * MB),
                "a.slice/memory.current": str(300 * MB),
                "a.slice/b.service/memory.max": str(800 * MB),
                "a.slice/b.service/memory.current": str(300 * MB),
            },
            0.75,
        ),
        (
            "3:memory:/docker/123",
            {
                "memory/memory.limit_in_bytes": str(512 * MB),
                "memory/memory.usage_in_bytes": str(512 * MB),
                "memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {128 * MB}",
            },
            0.75,
        ),
        (
            "3:memory:/",
            {"memory/memory.limit_in_bytes": str(2**63 - 4096), "memory/memory.usage_in_bytes": str(MB)},
            pytest.approx(0, abs=1e-9),
        ),
    ],
)
def test_the_tightest_limit_of_memory_counts_without_cache_that_can_go(tree, own, files, used):
    assert memory_used(*tree(own, files)) == used
