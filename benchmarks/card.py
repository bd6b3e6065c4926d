"""What every benchmark prints: the machine and versions, a fixed-width table, and one JSON line with the same
data; `--save` keeps it for `make figures`."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

RESULTS = Path(__file__).with_name("results")
Row = Mapping[str, object]


def machine() -> dict[str, object]:
    """Processor, cores, memory and the versions that matter."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next(
        (line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")),
        platform.processor(),
    )
    flags = next(
        (set(line.split(":", 1)[1].split()) for line in info.splitlines() if line.startswith("flags")), set()
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": model,
        "instructions": [
            f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile") if f in flags
        ],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory),
        "python": platform.python_version(),
        "versions": {
            name: version
            for name in ("onnxruntime", "torch", "numpy", "pillow", "openvino")
            if (version := _version(name))
        },
        "load": round(os.getloadavg()[0], 2),
    }


def _version(name: str) -> str | None:
    """Of the module that runs; its package may be called otherwise, as onnxruntime-gpu's is."""
    if name in sys.modules:
        return str(getattr(sys.modules[name], "__version__", None))
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def table(rows: Sequence[Row]) -> str:
    """Rows with equal keys as a fixed-width table."""
    head = list(rows[0])
    cells = [[cell(row.get(key)) for key in head] for row in rows]
    widths = [max(len(str(key)), *(len(line[i]) for line in cells)) for i, key in enumerate(head)]
    lines = [" ".join(str(key).ljust(width) for key, width in zip(head, widths, strict=True))]
    lines += [" ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join(line.rstrip() for line in lines)


def cell(value: object) -> str:
    """One value as it stands in a table: three digits for small numbers, none after the point for large
    ones."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return "" if value is None else str(value)


def finish(name: str, rows: Sequence[Row], *, save: bool, **notes: object) -> None:
    """Prints machine, table and the JSON line; with `save` also writes results/<name>.json."""
    card = machine()
    result = {
        "benchmark": name,
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "machine": card,
        **notes,
        "rows": list(rows),
    }
    print(f"\n{card['processor']}, {card['cores']} cores, load {card['load']}, {card['versions']}")
    print(table(rows))
    for key, value in notes.items():
        print(f"{key}: {value}")
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
