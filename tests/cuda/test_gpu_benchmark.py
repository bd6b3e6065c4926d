"""benchmarks/gpu/run.py, the one command for a machine with a GPU: over the kit it reaches its end, with
every stage and the same calls. No number of it means anything here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.cuda.artifacts import DEFAULT
from tests.cuda.conftest import ROOT, inert_environment


def test_the_dry_run_reaches_the_end(tmp_path: Path) -> None:
    (tiny,) = (artifact for artifact in DEFAULT if artifact.variant == "tiny")
    folder = tmp_path / "models" / "tiny" / "1"
    folder.mkdir(parents=True)
    for path in (tiny.model, tiny.model.with_name("explain.onnx")):
        os.link(path, folder / path.name)
    command = [sys.executable, "benchmarks/gpu/run.py", "--dry-run", "--models", str(tmp_path / "models")]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "rows.jsonl")],
        cwd=ROOT,
        env=inert_environment(),
        capture_output=True,
        text=True,
        timeout=290,
    )
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert done.returncode == 0, [row for row in rows if "failed" in row]
    assert all(row["dry run"] for row in rows)
    stages = [row["stage"] for row in rows if row.get("done")]
    assert stages == [
        "environment",
        "placement",
        "logits",
        "trace",
        "speed",
        "graphs",
        "server",
        "torch",
        "fault",
        "all",
    ]
    by_stage = {stage: [row for row in rows if row["stage"] == stage] for stage in stages}
    assert by_stage["placement"][0]["memcpy_nodes"] == 0
    assert by_stage["placement"][0]["kernels"] == {"Flash Attention": 10}
    assert {row["batch"] for row in by_stage["speed"] if "batch" in row} == {1, 16, 64, 256}
    assert [row["connections"] for row in by_stage["server"] if "connections" in row] == [1, 64, 256]
    assert by_stage["fault"][0]["as_promised"]
    assert rows[-1]["seconds"] < 540
