"""The limits of the container or service that this process runs in, as Linux control groups state them.

Version 1 (a folder for each controller), version 2 (one tree), and groups within groups: the tightest limit
on the way from this process's group up to the root counts. Without any, the machine is the limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")  # this process's groups, one `number:controllers:path` a line


def cpu_limit(root: Path = ROOT, own: Path = OWN) -> float | None:
    """Cores this process's groups may use; None where nothing limits them."""
    limits = []
    for group in _groups("cpu", root, own):
        words = _words(group / "cpu.max") or [
            *_words(group / "cpu.cfs_quota_us"),
            *_words(group / "cpu.cfs_period_us"),
        ]
        if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[1]):
            limits.append(int(words[0]) / int(words[1]))  # unlimited: "max" in version 2, -1 in version 1
    return min(limits, default=None)


def memory_used(root: Path = ROOT, own: Path = OWN) -> float:
    """Part of the tightest memory limit that is in use, page cache that can be dropped left out; 0 where
    nothing is limited."""
    return max((_memory_used(group) for group in _groups("memory", root, own)), default=0.0)


def _memory_used(group: Path) -> float:
    for limit, usage, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        most, used = _words(group / limit), _words(group / usage)
        if most and most[0].isdecimal() and int(most[0]) and used:  # version 1 has 2^63 for unlimited
            stat = _words(group / "memory.stat")
            droppable = int(stat[stat.index(cache) + 1]) if cache in stat else 0
            return (int(used[0]) - droppable) / int(most[0])
    return 0.0


def _groups(controller: str, root: Path, own: Path) -> Iterator[Path]:
    """The folders of this process's groups under a controller, from its own up to the root."""
    paths = {PurePosixPath("/")}
    for line in _lines(own):
        _, _, where = line.partition(":")
        controllers, _, path = where.partition(":")
        if path and ".." not in path and (not controllers or controller in controllers.split(",")):
            group = PurePosixPath(path)
            paths |= {group, *group.parents}
    for group in sorted(paths, reverse=True):
        for tree in (root, root / controller):
            yield tree / group.relative_to("/")


def _words(file: Path) -> list[str]:
    return " ".join(_lines(file)).split()


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:  # another version's file, or a folder that only the host sees
        return []
