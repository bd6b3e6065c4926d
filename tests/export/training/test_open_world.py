"""One batch of the embedded model's objective: every part gives gradients to what it should teach."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from export.paca import PaCaConfig, PaCaViT, StageConfig
from export.training import coherence, open_world
from export.training.augment import Augmentation, normalise
from export.training.coherence import Coherence
from export.training.data import Pictures
from export.training.loop import Recipe, fit, start
from export.training.objective import Batch, Usual
from export.training.open_world import Material, OpenWorld, Supervision
from export.training.progress import plainly
from export.training.state import Run
from export.training.teacher import DEEP, FINE, Lessons

OFF = Coherence(0, 0, 0, 0, 0)
ALONE = Supervision(0, 0, 0, 0, 0, 0, OFF)
CONFIG = PaCaConfig(
    "rival",
    (
        StageConfig(8, 1, 2, 3),
        StageConfig(12, 1, 3, 4, normalise="clusters"),
        StageConfig(16, 1, 4, 4, normalise="clusters", source="previous"),
    ),
    num_classes=10,
    image_size=32,
    patch_size=2,
    pool="cluster",
)


def lessons(count: int) -> Lessons:
    shapes = (count, 1000), (count, DEEP, 8, 8), (count, FINE, 16, 16), (DEEP, 1000)
    return Lessons(*(torch.randn(shape).half() for shape in shapes))


@pytest.fixture
def material() -> Material:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 32, 32, 3), np.uint8)
    known = Pictures(images, np.arange(20) % 10, tuple("abcdefghij"))
    return Material(
        known, torch.from_numpy(images[:6]), torch.from_numpy(images[6:9]), (lessons(20), lessons(6))
    )


def objective(material: Material, how: Supervision, model: PaCaViT) -> OpenWorld:
    plain = Augmentation((1.0, 1.0), (1.0, 1.0), flip=0, jitter=0, erase=0)
    return OpenWorld(material, how, Usual(plain, 0.1, locality=True), model)


def batch(model: PaCaViT, step: int = 0) -> Batch:
    return Batch(model, torch.arange(8), 32, step, torch.Generator().manual_seed(1))


PARTS = {
    "foreign": dataclasses.replace(ALONE, foreign=4, even=1.0),
    "ten": dataclasses.replace(ALONE, ten=0.5),
    "thousand": dataclasses.replace(ALONE, foreign=4, thousand=1.0),
    "deep": dataclasses.replace(ALONE, foreign=4, deep=1.0),
    "fine": dataclasses.replace(ALONE, fine=1.0),
    "coherence": dataclasses.replace(ALONE, coherence=Coherence()),
    "all": Supervision(foreign=4),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("step", [0, 1], ids=["whole", "regions"])
def test_every_part_changes_the_loss_and_teaches_the_network(
    part: str, step: int, material: Material
) -> None:
    model = PaCaViT(CONFIG)
    bare = objective(material, ALONE, model).loss(batch(model, step))
    found = objective(material, PARTS[part], model)
    loss = found.loss(batch(model, step))
    loss.backward()
    assert torch.isfinite(loss)
    only_on_whole_pictures = part in ("ten", "coherence")
    assert (loss.item() != pytest.approx(bare.item())) != (only_on_whole_pictures and step == 1)
    assert model.stage1[0].attn.q.weight.grad.abs().sum() > 0
    heads = {name for name, p in found.extra.named_parameters() if p.grad is not None and p.grad.any()}
    if part in ("thousand", "deep", "fine"):
        assert {name.split(".")[0] for name in heads} == {part}


def test_the_target_of_a_whole_picture_is_what_the_teacher_said_of_it(material: Material) -> None:
    model = PaCaViT(CONFIG)
    found = objective(material, Supervision(), model)
    whole = torch.eye(2, 3).expand(5, 2, 3)
    lesson = found._lesson(torch.arange(3), torch.tensor([5, 8]), whole, [(16, 16), (16, 16), (8, 8)])
    assert lesson is not None
    assert material.lessons is not None
    torch.testing.assert_close(
        lesson.logits[:3], material.lessons[0].logits[:3].float(), atol=1e-3, rtol=1e-3
    )
    torch.testing.assert_close(lesson.deep[:3], material.lessons[0].deep[:3].float(), atol=1e-3, rtol=1e-3)
    assert lesson.has.tolist() == [1, 1, 1, 1, 0]


def test_foreign_pictures_get_the_even_answer_where_no_teacher_speaks(material: Material) -> None:
    model = PaCaViT(CONFIG)
    found = objective(dataclasses.replace(material, lessons=None), PARTS["foreign"], model)
    even, sure = torch.zeros(4, 10), torch.zeros(4, 10)
    sure[:, 0] = 9
    assert found._even(even, None) < found._even(sure, None)


def test_prepared_clusters_follow_the_targets(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coherence, "SEEDING_STEPS", 60)
    monkeypatch.setattr(open_world, "SEEDED_ON", 12)
    model = PaCaViT(CONFIG)
    found = objective(material, Supervision(foreign=4), model)
    mean, std = torch.tensor(CONFIG.mean), torch.tensor(CONFIG.std)
    x = normalise(torch.from_numpy(material.known.images[:12]), mean, std)
    found.prepare(model)
    assert found.extra.book.abs().sum() > 0
    membership = model.eval().features(x).memberships[1]
    assert membership is not None
    assert membership.amax(1).mean() > 0.3


def test_without_a_teacher_clusters_follow_the_networks_own_tokens(material: Material) -> None:
    model = PaCaViT(CONFIG)
    how = dataclasses.replace(ALONE, coherence=Coherence())
    found = objective(dataclasses.replace(material, lessons=None), how, model)
    assert found.extra.book.shape == (4, 12 + 16)
    assert torch.isfinite(found.loss(batch(model)))


def test_an_interrupted_run_goes_on_with_its_auxiliary_heads(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coherence, "SEEDING_STEPS", 5)
    monkeypatch.setattr(open_world, "SEEDED_ON", 8)
    how = Recipe(epochs=2, batch=8, sizes=((1.0, 32),), locality=True, supervision=Supervision(foreign=4))

    def trained(folder: Path, until: int) -> Run:
        run = start(
            CONFIG, how, torch.device("cpu"), None, lambda model: objective(material, PARTS["all"], model)
        )
        stop = [run] if until < how.epochs else []

        def say(text: str) -> None:
            if stop and run.epoch == until:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            fit(run, how, material.known, material.known, folder, plainly, say)
        return run

    straight = trained(tmp_path / "straight", 2)
    trained(tmp_path / "interrupted", 1)
    resumed = trained(tmp_path / "interrupted", 2)
    assert straight.objective is not None
    assert resumed.objective is not None
    for a, b in ((straight.model, resumed.model), (straight.objective.extra, resumed.objective.extra)):
        for name, values in a.state_dict().items():
            assert torch.equal(values, b.state_dict()[name]), name
