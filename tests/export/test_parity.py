"""Numbers of the published implementation, reproduced in PyTorch and through ONNX Runtime.

The fixtures hold outputs of upstream's unmodified code; their weights follow a recipe by tensor name, so that
each file is small.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from export.lowering import lower
from export.paca import PaCaViT, create
from export.trace import trace

TINY, TEACHER = "pacavit_tiny_p2cconv_100_0", "pacavit_convmixer_tiny_100"
NAMES = (TINY, "pacavit_small_p2cmlp_100_0", "pacavit_small_p2cconv_100_blockwise", TEACHER)
LOGITS, ASSIGNMENT = 2e-5, 1e-6


@dataclass
class Case:
    """One reference: a normalised image (2, 3, H, W) and what upstream computed for it."""

    image: np.ndarray
    logits: np.ndarray
    assignments: dict[int, np.ndarray]  # by stage from 1, every (M // 8)-th cluster and (N // 64)-th patch
    strongest: dict[int, np.ndarray]  # (2, M): the patch that counts most for each cluster

    def check(self, logits: np.ndarray, assignments: dict[int, np.ndarray]) -> None:
        """assignments: (2, M, N) by stage."""
        np.testing.assert_allclose(logits, self.logits, atol=LOGITS, rtol=0)
        assert assignments.keys() == self.assignments.keys()
        for stage, z in assignments.items():
            clusters, patches = (max(1, z.shape[1] // 8), max(1, z.shape[2] // 64))
            np.testing.assert_allclose(
                z[:, ::clusters, ::patches], self.assignments[stage], atol=ASSIGNMENT, rtol=0
            )
            at_theirs = np.take_along_axis(z, self.strongest[stage][..., None], -1)[..., 0]
            np.testing.assert_allclose(
                at_theirs, z.max(-1), atol=ASSIGNMENT, rtol=0
            )  # the same patch, or as good as a tie


@dataclass
class Fixture:
    name: str
    cases: dict[tuple[int, int], Case]
    weights: dict[str, torch.Tensor]

    def model(self) -> PaCaViT:
        model = create(self.name).eval()
        model.load_state_dict(self.weights, strict=True)
        return model


def read(folder: Path, name: str) -> Fixture:
    recipe: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    stored = np.load(folder / f"{name}.npz")
    weights = {key: _drawn(key, *spec) for key, spec in recipe["tensors"].items()}
    weights |= {
        key.removeprefix("bn/"): torch.from_numpy(np.asarray(stored[key]))
        for key in stored.files
        if key.startswith("bn/")
    }
    cases = {}
    for case in recipe["cases"]:
        height, width = case["size"]
        found = {
            key.removeprefix(f"{height}x{width}/"): stored[key]
            for key in stored.files
            if key.startswith(f"{height}x{width}/")
        }
        image = (
            np.random.default_rng(case["input_seed"])
            .standard_normal((2, 3, height, width))
            .astype(np.float32)
        )
        stages = [int(key[5]) for key in found if key.endswith("/argmax")]
        cases[height, width] = Case(
            image,
            found["logits"],
            {s: found[f"stage{s}/assignment"] for s in stages},
            {s: found[f"stage{s}/argmax"] for s in stages},
        )
    return Fixture(name, cases, weights)


def _drawn(key: str, shape: list[int], loc: float, scale: float) -> torch.Tensor:
    drawn = loc + scale * np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    return torch.from_numpy(drawn.astype(np.float32))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_torch_gives_the_published_numbers_as_written_and_lowered(name: str, parity_folder: Path) -> None:
    fixture = read(parity_folder, name)
    model = fixture.model()
    for size, case in fixture.cases.items():
        for form in (model, lower(model, size)):
            found = form.features(torch.from_numpy(case.image))
            assignments = {stage: z.numpy() for stage, z in enumerate(found.assignments, 1) if z is not None}
            case.check(form.classify(found.tokens[-1]).numpy(), assignments)


def run(graph: bytes, case: Case) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    found = dict(zip(outputs, session.run(outputs, {"image": case.image}), strict=True))
    stages = {
        int(name.removeprefix("assignment_")): z
        for name, z in found.items()
        if name.startswith("assignment_")
    }
    return found["logits"], {stage: z.reshape(*z.shape[:2], -1) for stage, z in stages.items()}


def test_one_dynamic_file_gives_the_published_numbers_at_square_oblong_and_odd_sizes(
    parity_folder: Path,
) -> None:
    fixture = read(parity_folder, TINY)
    graph = trace(fixture.model(), input_kind="float32", dynamic_size=True).SerializeToString()
    assert len(fixture.cases) == 4
    for case in fixture.cases.values():
        case.check(*run(graph, case))


def test_the_served_graph_of_fixed_size_gives_the_published_numbers_with_a_teacher(
    parity_folder: Path,
) -> None:
    fixture = read(parity_folder, TEACHER)
    case = fixture.cases[224, 224]
    case.check(*run(trace(fixture.model(), input_kind="float32").SerializeToString(), case))
