"""What lies in a version's folder belongs together, and was tested as the bytes that are served."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from export.annotate import annotate, weights_id
from export.card import MARK
from export.errors import ExportError
from export.paca import PaCaConfig, PaCaViT, StageConfig
from export.pipeline import Format, Source, export_model
from export.release import Draft, release
from service.artifact import EXPLAIN_KEY, Golden, Manifest
from service.engine import Device, Engine, GradientEngine
from service.errors import BadArtifact

CPU = Device("cpu")
STAGES = (StageConfig(6, 1, 2, 3), StageConfig(10, 1, 5))


def network(seed: int) -> PaCaViT:
    torch.manual_seed(seed)
    config = PaCaConfig("toy", STAGES, num_classes=3, image_size=32, patch_size=2, resize="stretch", crop=1.0)
    model = PaCaViT(config).eval()
    torch.nn.init.normal_(model.head.weight, std=2.0)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions: 1 in float32 and float16, 2 of other weights in float32. Not to be written into."""
    folder = tmp_path_factory.mktemp("versions")
    for version, name, precision in ((1, "model.onnx", "fp32"), (1, "model.fp16.onnx", "fp16")):
        source = Source(network(version), "toy", ("a", "b", "c"), trained_on="drawn")
        export_model(source, folder / str(version) / name, Format(precision=precision))
    export_model(Source(network(2), "toy", ("a", "b", "c")), folder / "2" / "model.onnx")
    return folder


@pytest.fixture
def versions(made: Path, tmp_path: Path) -> Path:
    """A copy of both that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "toy"))


def draft(versions: Path, name: str = "model.onnx") -> Draft:
    """The files of version 2 as they lie in an export's scratch folder."""
    scratch = Path(shutil.copytree(versions / "2", versions / "scratch"))
    return Draft(scratch / name, scratch / "explain.onnx")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def is_served(folder: Path) -> bool:
    """Whether a server would take the pair that lies in `folder` now, rather than see two versions in it."""
    model, explain = Engine(folder / "model.onnx", CPU), GradientEngine(folder / "explain.onnx", CPU)
    if explain.manifest and model.manifest.weights_id == explain.manifest.weights_id:
        explain.self_test(model)
        return True
    with pytest.raises(BadArtifact, match="made from different weights"):
        explain.self_test(model)
    return False


def changed(model: Path, **members: Any) -> None:
    """Writes other members into a file's manifest."""
    engine, proto = Engine(model, CPU), onnx.load(model)
    annotate(proto, dataclasses.replace(engine.manifest, **members), engine.head)
    onnx.save(proto, model)


def test_all_files_of_a_version_carry_one_weights_id(made: Path) -> None:
    full, half = (Engine(made / "1" / name, CPU) for name in ("model.onnx", "model.fp16.onnx"))
    explain = GradientEngine(made / "1" / "explain.onnx", CPU)
    assert explain.manifest is not None
    ids = {full.manifest.weights_id, half.manifest.weights_id, explain.manifest.weights_id}
    assert ids == {weights_id(network(1))}
    assert weights_id(network(1)) != weights_id(network(2))


def test_explain_onnx_goes_with_every_precision_that_lies_beside_it(made: Path) -> None:
    explain = GradientEngine(made / "1" / "explain.onnx", CPU)
    assert explain.manifest is not None
    assert set(explain.manifest.golden) == {"fp32", "fp16"}
    for name in ("model.onnx", "model.fp16.onnx"):
        explain.self_test(Engine(made / "1" / name, CPU))
    assert json.loads(explain.manifest.to_json())["golden"]["fp16"]["maps"].keys() == {"map_1"}


@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx"])
def test_golden_logits_are_those_of_the_very_file(made: Path, name: str) -> None:
    engine = Engine(made / "1" / name, CPU)
    golden = engine.manifest.golden
    assert golden is not None
    changed_tolerance = dataclasses.replace(golden, tolerance=1e-5)
    engine.manifest = dataclasses.replace(engine.manifest, golden=changed_tolerance)
    engine.self_test()


def test_the_table_of_outputs_says_what_the_graph_has(made: Path) -> None:
    full, half = (
        {output.name: output for output in Engine(made / "1" / name, CPU).manifest.outputs}
        for name in ("model.onnx", "model.fp16.onnx")
    )
    assert {name: output.role for name, output in full.items()} == {
        "logits": "logits",
        "tokens": "tokens",
        "assignment_1": "assignment",
        "features": "features",
    }
    assert full["assignment_1"].shape == ("batch", 3, 16, 16)
    assert full["logits"].tolerance == 2e-5
    assert (half["logits"].tolerance, half["tokens"].tolerance) == (2e-2, None)


def test_no_moment_of_a_replacement_is_served_as_a_mixed_pair(
    versions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (versions / "1" / "model.fp16.onnx").unlink()
    moments = []
    rename = Path.replace

    def observed(part: Path, target: Path) -> Path:
        done = rename(part, target)
        moments.append((target.name, is_served(target.parent)))
        return done

    monkeypatch.setattr(Path, "replace", observed)
    release(draft(versions), versions / "1" / "model.onnx")
    assert moments == [("explain.onnx", False), ("model.onnx", True), ("README.md", True)]
    assert Engine(versions / "1" / "model.onnx", CPU).manifest.weights_id == weights_id(network(2))


def test_files_of_other_weights_are_not_put_beside_each_other(versions: Path) -> None:
    before = contents(versions / "1")
    with pytest.raises(
        ExportError, match=r"model\.fp16\.onnx was made from other weights.*a new version's folder"
    ):
        release(draft(versions), versions / "1" / "model.onnx")
    assert contents(versions / "1") == before


def test_files_with_another_explain_onnx_are_not_put_beside_each_other(versions: Path) -> None:
    changed(versions / "1" / "model.fp16.onnx", explain=None)
    full = Draft(versions / "1" / "model.onnx", versions / "1" / "explain.onnx")
    with pytest.raises(ExportError, match=r"model\.fp16\.onnx was made with another explain\.onnx"):
        release(full, versions / "1" / "model.onnx")


def test_a_file_that_fails_its_self_test_replaces_nothing(versions: Path) -> None:
    (versions / "1" / "model.fp16.onnx").unlink()
    before, new = contents(versions / "1"), draft(versions)
    changed(new.model, golden=Golden(0, 0, (1e3,), 1e-3))
    with pytest.raises(BadArtifact, match="golden picture's logits are"):
        release(new, versions / "1" / "model.onnx")
    assert contents(versions / "1") == before


def test_the_card_says_what_is_known_and_what_nobody_said(made: Path) -> None:
    first, second = ((made / version / "README.md").read_text() for version in "12")
    for text in (
        "# toy",
        "| trained on | drawn |",
        "| task | classification, 3 classes |",
        "| input | 32 x 32 pixels, stretch |",
        "a, b, c",
        "| model.onnx | fp32 |",
        "| model.fp16.onnx | fp16 |",
        "| model.fp16.onnx | logits against PyTorch, largest difference |",
        "| model.onnx | golden picture | passed |",
    ):
        assert text in first, text
    assert "| trained on | not stated |" in second
    assert "## What it is worth\n\nnot stated" in second
    assert second.rstrip().endswith("It never does: exported without `--reference`.")


def test_a_card_of_the_users_own_stays(versions: Path) -> None:
    (versions / "1" / "model.fp16.onnx").unlink()
    readme = versions / "1" / "README.md"
    assert readme.read_text().startswith(MARK)
    readme.write_text("my own words")
    remarks = release(draft(versions), versions / "1" / "model.onnx")
    assert readme.read_text() == "my own words"
    assert remarks == ("README.md beside it is not a card of paca export and was left as it is",)


def test_a_manifest_of_schema_1_beside_it_is_of_unknown_weights(versions: Path) -> None:
    """Such a file cannot say what it was made from; replacing it is fine, leaving it beside is not."""
    old = versions / "1" / "model.fp16.onnx"
    proto = onnx.load(old)
    for entry in proto.metadata_props:
        if entry.key == "paca.manifest":
            values = json.loads(entry.value)
            entry.value = json.dumps({**values, "schema": 1, "weights_id": None})
    onnx.save(proto, old)
    assert Manifest.from_metadata({p.key: p.value for p in proto.metadata_props}).schema == 1
    with pytest.raises(ExportError, match="made from other weights"):
        release(draft(versions), versions / "1" / "model.onnx")
    release(draft_of_fp16(versions), old)


def draft_of_fp16(versions: Path) -> Draft:
    """Version 1 in float32 under the name of the float16 file: the same weights as what lies beside it."""
    scratch = Path(shutil.copytree(versions / "1", versions / "scratch-1"))
    changed(scratch / "model.onnx", precision="fp16")
    return Draft(scratch / "model.onnx", scratch / "explain.onnx")


def test_explain_onnx_holds_its_manifest_in_its_own_metadata(made: Path) -> None:
    proto = onnx.load(made / "2" / "explain.onnx")
    (entry,) = (p for p in proto.metadata_props if p.key == EXPLAIN_KEY)
    assert json.loads(entry.value)["schema"] == 2
    assert np.isfinite(json.loads(entry.value)["golden"]["fp32"]["maps"]["map_1"]).all()
