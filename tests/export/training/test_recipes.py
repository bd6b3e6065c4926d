"""The recipes: which network, which pictures, and what is the same in every row of the comparison."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export.paca import PaCaViT, create
from export.paca.clustering import CLUSTERINGS
from export.paca.cost import parameters
from export.training import recipes
from export.training.checkpoint import save_final
from export.training.foreign import PACK
from export.training.loop import start
from export.training.recipes import Options, plan, with_clustering
from export.training.teacher import DEEP, FINE, Lessons


def write_pack(path: Path, count: int, side: int) -> None:
    rng = np.random.default_rng(0)
    files = []
    for _ in range(count):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(out, "JPEG")
        files.append(out.getvalue())
    offset = np.cumsum([0, *map(len, files)])
    np.savez(
        path,
        jpeg=np.frombuffer(b"".join(files), np.uint8),
        offset=offset,
        label=np.arange(count) % 10,
        classes=np.array([f"class {i}" for i in range(10)]),
    )


@pytest.fixture
def packs(tmp_path: Path) -> Path:
    for name, count, side in (
        ("imagenette_train_128", 40, 128),
        ("imagenette_val_128", 10, 128),
        ("cifar10_train_jpeg", 60, 32),
        ("cifar10_test_jpeg", 10, 32),
    ):
        write_pack(tmp_path / f"{name}.npz", count, side)
    return tmp_path


def test_imagenette_holds_out_the_last_tenth_of_the_training_pack_and_scores_the_validation_pack(
    packs: Path,
) -> None:
    ready = plan("imagenette", Options(packs, packs / "run", epochs=5))
    assert (len(ready.train), len(ready.held_out), {name: len(p) for name, p in ready.tests.items()}) == (
        36,
        4,
        {"validation": 10},
    )
    assert ready.config.name == "paca_small_128"
    assert ready.recipe.epochs == 5
    assert ready.weights is None


def test_every_row_of_the_comparison_differs_in_its_clustering_alone(packs: Path) -> None:
    rows = {
        kind: plan("cifar10", Options(packs, packs / "run", clustering=kind))
        for kind in (*CLUSTERINGS, "teacher")
    }
    assert len({row.recipe for row in rows.values()}) == 1
    assert {row.config.stages[0].clustering for row in rows.values()} == set(rows)
    assert {(s.dim, s.depth, s.clusters) for row in rows.values() for s in row.config.stages} == {
        (64, 1, 32),
        (128, 2, 16),
        (192, 2, 0),
    }


def test_from_a_trunk_every_row_learns_its_clustering_anew(packs: Path, tmp_path: Path) -> None:
    trunk = tmp_path / "trunk.safetensors"
    save_final(
        PaCaViT(with_clustering(create("paca_cifar_32").config, "linear")),
        trunk,
        tuple(f"class {i}" for i in range(10)),
        1.0,
        {},
    )
    rows = {
        kind: plan("cifar10", Options(packs, packs / "run", clustering=kind, start_from=trunk))
        for kind in ("linear", "kmeans", "teacher")
    }
    assert len({row.recipe for row in rows.values()}) == 1
    for row in rows.values():
        assert row.weights
        assert not any(".clustering." in name for name in row.weights)
        assert "stage1.0.attn.q.weight" in row.weights
        assert "head.weight" in row.weights  # of the very same classes


def test_the_small_network_for_cifar_is_small_and_ends_on_a_grid_worth_looking_at() -> None:
    model = create("paca_cifar_32")
    assert 1.3e6 < parameters(model) < 1.9e6
    assert model.config.grids()[-1] == (4, 4)


def test_a_teacher_comes_and_goes_with_its_clustering() -> None:
    config = with_clustering(create("paca_cifar_32").config, "teacher")
    assert PaCaViT(config).paca_teacher is not None
    assert with_clustering(config, "conv").teacher_depths == ()


def test_a_head_is_kept_only_for_the_very_same_classes(
    packs: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for names in (("a", "b", "c"), ("a", "b", "d")):
        root = tmp_path / "".join(names)
        for name in names:
            (root / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (8, 8), (60 * i, 20 * ord(name) % 256, 0)).save(root / name / f"{i}.png")
    same = plan("folder", Options(tmp_path / "abc", tmp_path / "one", start_from=tiny_checkpoint))
    other = plan("folder", Options(tmp_path / "abd", tmp_path / "two", start_from=tiny_checkpoint))
    assert same.weights is not None
    assert other.weights is not None
    assert "head.weight" in same.weights
    assert set(same.weights) - set(other.weights) == {"head.weight", "head.bias"}
    assert other.config.image_size == 16


def test_the_embedded_model_learns_from_no_held_out_photo_and_starts_from_the_old_gate(
    packs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pack(packs / PACK, 40, 128)
    with np.load(packs / PACK) as pack:
        kinds = dict(pack)
    np.savez(packs / PACK, **kinds, source=np.repeat(["one", "two"], 20))
    asked: dict[str, int] = {}

    def answers(images: dict[str, np.ndarray], cache: Path) -> dict[str, Lessons]:
        asked.update({name: len(pictures) for name, pictures in images.items()})
        return {
            name: Lessons(
                torch.zeros(len(x), 1000),
                torch.zeros(len(x), DEEP, 8, 8),
                torch.zeros(len(x), FINE, 16, 16),
                torch.zeros(DEEP, 1000),
            )
            for name, x in images.items()
        }

    monkeypatch.setattr(recipes, "lessons", answers)
    monkeypatch.setattr(recipes, "DRAWINGS", 9)
    old = create("paca_small_128", num_classes=10)
    save_final(old, packs / "old.safetensors", tuple(f"class {i}" for i in range(10)), 1.0, {})
    ready = plan("embedded", Options(packs, packs / "run", start_from=packs / "old.safetensors"))
    assert ready.config.name == "paca_compete_128"
    assert (asked["known"], len(ready.held_out)) == (36, 4)
    assert asked["foreign"] < 40
    assert ready.weights is not None
    assert torch.equal(
        ready.weights["pool.score.weight"], old.get_parameter("pool.score.weight").half().float()
    )
    assert ready.objective is not None
    run = start(ready.config, ready.recipe, torch.device("cpu"), ready.weights, ready.objective)
    assert torch.equal(run.model.get_parameter("pool.score.weight"), ready.weights["pool.score.weight"])
    learned = sum(p.numel() for group in run.optimizer.param_groups for p in group["params"])
    assert learned > parameters(run.model) + 256 * 1000
