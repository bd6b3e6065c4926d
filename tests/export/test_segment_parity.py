"""The published segmenters' numbers, reproduced in PyTorch as written and lowered, and through ONNX
Runtime."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from export.lowering import lower_segmenter
from export.paca.segmentation import PaCaSegmenter
from export.segmenters import from_weights
from export.trace import trace_segmenter

TINY = "seg_pacahead_tiny_p2cconv_100_0"
NAMES = (TINY, "seg_pacahead_small_p2cmlp_100_0", "seg_pacahead_convmixer_small_100")
LOGITS, NOISES, ASSIGNMENT = 2e-5, 8, 2e-3


@dataclass
class Case:
    """One reference: a normalised image, and what the reference computed for it. noise: float32 against
    float64."""

    image: np.ndarray
    rows: list[int]
    columns: list[int]
    noise: float
    steps: dict[str, list[int]]
    stored: dict[str, np.ndarray]

    def check(self, logits: np.ndarray, assignments: dict[str, np.ndarray]) -> None:
        """logits: (B, K, H, W). assignments: (B, M, N) by name: assignment_0, stage1, ..."""
        tolerance = max(LOGITS, NOISES * self.noise)
        sampled = logits[:, :, self.rows][..., self.columns]
        np.testing.assert_allclose(sampled, self.stored["logits"], atol=tolerance, rtol=0)
        best = np.sort(logits, 1)
        clear = best[:, -1] - best[:, -2] > 2 * tolerance
        assert (logits.argmax(1) == self.stored["argmax"])[clear].all()
        assert clear.mean() > 0.99
        for name, z in assignments.items():
            m, n = self.steps[name]
            expected = self.stored[f"{name}/assignment"]
            np.testing.assert_allclose(z[:, ::m, ::n], expected, rtol=ASSIGNMENT, atol=1e-9)


def read(folder: Path, name: str) -> tuple[PaCaSegmenter, list[Case]]:
    recipe: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    with np.load(folder / f"{name}.npz") as file:
        stored = {key: np.asarray(file[key]) for key in file.files}
    weights = {key: drawn(key, *spec) for key, spec in recipe["tensors"].items()}
    weights |= {k.removeprefix("bn/"): torch.from_numpy(v) for k, v in stored.items() if k.startswith("bn/")}
    assert len(weights) == recipe["keys"]
    model, _ = from_weights(weights)
    assert sum(p.numel() for p in model.parameters()) == recipe["params"]
    return model, list(cases(recipe, stored))


def drawn(key: str, shape: list[int], loc: float, scale: float) -> torch.Tensor:
    values = loc + scale * np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    return torch.from_numpy(values.astype(np.float32))


def cases(recipe: dict[str, Any], stored: dict[str, np.ndarray]) -> Iterator[Case]:
    cell, share = recipe["input"]["cell"], recipe["input"]["mix"]
    for case in recipe["cases"]:
        height, width = case["size"]
        rng = np.random.default_rng(case["input_seed"])
        coarse = rng.standard_normal((case["batch"], 3, -(-height // cell), -(-width // cell)))
        blocks = coarse.repeat(cell, 2).repeat(cell, 3)[:, :, :height, :width]
        image = (blocks + share * rng.standard_normal(blocks.shape)).astype(np.float32)
        place = f"{height}x{width}/"
        own = {key.removeprefix(place): value for key, value in stored.items() if key.startswith(place)}
        yield Case(image, case["rows"], case["cols"], case["float32_noise"], case["assignment_steps"], own)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_torch_gives_the_published_numbers_as_written_and_lowered(name: str, parity_folder: Path) -> None:
    model, references = read(parity_folder, name)
    for form, some in ((model, references), (lower_segmenter(model), references[-1:])):
        for case in some:
            found, features = form.segment(torch.from_numpy(case.image))
            assignments = {
                f"stage{i}": z.numpy() for i, z in enumerate(features.assignments, 1) if z is not None
            }
            case.check(found.logits.numpy(), {**assignments, "assignment_0": found.assignment.numpy()})


def test_one_file_gives_the_published_numbers_at_square_oblong_and_odd_sizes(parity_folder: Path) -> None:
    model, references = read(parity_folder, TINY)
    graph = trace_segmenter(model, input_kind="float32").SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    assert len(references) == 3
    for case in references:
        logits, z = session.run(["logits", "assignment_0"], {"image": case.image})
        case.check(logits, {"assignment_0": z.reshape(*z.shape[:2], -1)})
