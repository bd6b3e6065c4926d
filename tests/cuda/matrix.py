"""The table of docs/cuda.md: every file, what ONNX Runtime does with it. `make cuda-check ALL=1` prints it.

INERT_CUDA=DIR INERT_CUDA_ALL=1 python tests/cuda/matrix.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.cuda.artifacts import CLASSIFIERS
from tests.cuda.conftest import in_inert_process
from tests.cuda.test_batches import LAUNCHES, PASSES
from tests.cuda.test_placement import ATTEND, CUDA, PLACE

HEAD = (
    "file",
    "nodes on CUDA",
    "on CPU",
    "Memcpy",
    "attention, SM 7.5",
    "attention, SM 9.0",
    "explain.onnx: CUDA, CPU, Memcpy",
    "plans, launches, allocations in 64 runs once warm",
)


def main() -> None:
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    for artifact in CLASSIFIERS:
        model = artifact.model
        nodes, memcpy, on_cpu = in_inert_process(PLACE, model)
        gradients, copies, shapes = in_inert_process(PLACE, model.with_name("explain.onnx"))
        kernels = [in_inert_process(ATTEND, model, sm=sm) for sm in (75, 90)]
        _, used = in_inert_process(PASSES, model)
        launches = sum(used[name] for name in LAUNCHES)
        cells = (
            f"{artifact.variant}, {artifact.size} px, {artifact.precision}",
            nodes[CUDA],
            len(on_cpu),
            memcpy,
            *(", ".join(f"{name} x{count}" for name, count in kernel.items()) for kernel in kernels),
            f"{gradients[CUDA]}, {len(shapes)}, {copies}",
            f"{used['cudnn_plans']}, {launches}, {used['mallocs']}",
        )
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
