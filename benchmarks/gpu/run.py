"""PaCa on an NVIDIA GPU, in one command of at most nine minutes: what ran underneath, whether the numbers are
right, how fast it is, and what happens when the GPU fails.

    python benchmarks/gpu/run.py [--models DIR] [--out FILE] [--stages a,b]
    python benchmarks/gpu/run.py --dry-run      over the kit of tests/cuda (INERT_CUDA names it): the same
                                                calls without a GPU; proves that it runs to its end, no number
                                                of it means anything

Each stage has a time limit of its own, and each row is written at once, as one line of JSON: a machine that
goes away costs what was not measured yet, nothing else. README.md beside this file says how to take it to a
borrowed machine without network.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
KIT = ROOT / "tests" / "cuda" / "kit"
TOTAL_SECONDS = 540
Row = dict[str, object]


@dataclass
class Bench:
    """models: a repository, `<name>/1/model.onnx` and so on. dry: over the kit. out: where rows go. ends:
    monotonic seconds at which the stage that runs has to stop."""

    models: Path
    dry: bool
    out: Path
    stage: str = ""
    ends: float = 0.0
    rows: int = 0
    names: tuple[str, ...] = ("tiny", "small", "base")
    precisions: dict[str, str] = field(
        default_factory=lambda: {"fp16": "model.fp16.onnx", "fp32": "model.onnx"}
    )

    @property
    def seconds(self) -> float:
        """Of one cell of a table."""
        return 0.02 if self.dry else 0.8

    @property
    def time_is_up(self) -> bool:
        return time.monotonic() >= self.ends

    def files(self) -> Iterator[tuple[str, str, Path]]:
        """(name, precision, file) of every model that is there, the small ones first."""
        for name in self.names:
            for precision, file in self.precisions.items():
                path = self.models / name / "1" / file
                if path.is_file():
                    yield name, precision, path

    def write(self, **row: object) -> None:
        """Appends a row, and says it."""
        self.rows += 1
        line = json.dumps({"stage": self.stage, **({"dry run": True} if self.dry else {}), **row})
        with self.out.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--models", type=Path, default=ROOT / "build" / "gpu" / "models")
    parser.add_argument("--out", type=Path, help="default: rows.jsonl in $OUT or build/gpu")
    parser.add_argument("--stages", help="comma separated; default: all")
    requested = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    if requested.dry_run:
        sys.path.insert(0, str(KIT))
        import inert

        inert.load(os.environ["INERT_CUDA"])
    else:
        _with_torch_libraries()

    from stages import STAGES, export_missing

    out = requested.out or Path(os.environ.get("OUT", ROOT / "build" / "gpu")) / "rows.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    bench = Bench(requested.models, requested.dry_run, out)
    if not requested.dry_run:
        export_missing(bench)
    return run(bench, STAGES, requested.stages)


def run(
    bench: Bench, stages: dict[str, tuple[float, Callable[[Bench], None]]], only: str | None = None
) -> int:
    """Every stage in its order, each within its share of the time; what fails is a row, and the next goes on.
    Returns the exit code: 1 where a stage failed."""
    chosen = only.split(",") if only else list(stages)
    began, failed = time.monotonic(), []
    for name in chosen:
        seconds, stage = stages[name]
        left = began + TOTAL_SECONDS - time.monotonic()
        bench.stage, bench.ends = name, time.monotonic() + min(seconds, left)
        started = time.monotonic()
        try:
            stage(bench)
        except Exception as error:  # whatever it is, it must not cost the other stages
            failed.append(name)
            bench.write(failed=f"{type(error).__name__}: {error}"[:2000])
        bench.write(done=True, seconds=round(time.monotonic() - started, 1), in_time=not bench.time_is_up)
    bench.stage = "all"
    bench.write(done=True, seconds=round(time.monotonic() - began, 1), failed=failed)
    return 1 if failed else 0


def _with_torch_libraries() -> None:
    """Starts this program again with the CUDA libraries that PyTorch brings in the loader's path: an
    onnxruntime-gpu that lies in another folder finds them only there."""
    import importlib.util

    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None or os.environ.get("PACA_GPU_BENCH"):
        return
    site = Path(spec.origin).parents[1]
    folders = [str(path) for path in sorted(site.glob("nvidia/**/lib")) if path.is_dir()]
    known = os.environ.get("LD_LIBRARY_PATH", "")
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join([*folders, *([known] if known else [])])
    os.environ["PACA_GPU_BENCH"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606


if __name__ == "__main__":
    sys.exit(main())
