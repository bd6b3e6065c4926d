"""The training loop: schedules, determinism, resuming, stopping, and what it writes."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from export.paca import PaCaConfig, PaCaViT
from export.training.augment import Augmentation
from export.training.data import DataError, Pictures
from export.training.loop import Recipe, class_weights, fit, out_of_patience, predict, start
from export.training.progress import plainly
from export.training.state import BEST, LAST, Run, best_weights

QUICK = Recipe(epochs=3, batch=4, lr=5e-3, warmup=1, ema=0.9, sizes=((0.5, 8), (1.0, 16)))
CPU = torch.device("cpu")


def train(
    config: PaCaConfig,
    pictures: Pictures,
    folder: Path,
    recipe: Recipe = QUICK,
    said: list[str] | None = None,
) -> Run:
    return fit(
        start(config, recipe, CPU),
        recipe,
        pictures,
        pictures,
        folder,
        plainly,
        (said if said is not None else []).append,
    )


def weights(run: Run) -> torch.Tensor:
    return torch.cat(
        [t.flatten().float() for t in (*run.model.state_dict().values(), *run.ema.state_dict().values())]
    )


def test_it_learns_to_tell_colours_apart(tiny: PaCaViT, pictures: Pictures, tmp_path: Path) -> None:
    recipe = dataclasses.replace(QUICK, epochs=15, augmentation=Augmentation(jitter=0.0))
    run = train(tiny.config, pictures, tmp_path, recipe)
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    assert run.best == 1.0
    assert (predict(run.ema, pictures).argmax(1).numpy() == pictures.labels).all()


def test_a_seed_is_a_run(tiny: PaCaViT, pictures: Pictures, tmp_path: Path) -> None:
    one, two = (train(tiny.config, pictures, tmp_path / name) for name in ("one", "two"))
    other = train(tiny.config, pictures, tmp_path / "other", dataclasses.replace(QUICK, seed=2))
    assert torch.equal(weights(one), weights(two))
    assert not torch.equal(weights(one), weights(other))


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(mixup=0.2, cutmix=1.0)])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    tiny: PaCaViT, pictures: Pictures, tmp_path: Path, augmentation: Augmentation
) -> None:
    recipe = dataclasses.replace(QUICK, augmentation=augmentation)
    whole = train(tiny.config, pictures, tmp_path / "whole", recipe)

    class PowerCutError(Exception): ...

    def until_the_second_epoch(steps: Iterable[int], count: int, what: str):
        for step in steps:
            if what.startswith("epoch 2") and step == 1:
                raise PowerCutError
            yield step

    with pytest.raises(PowerCutError):
        fit(
            start(tiny.config, recipe, CPU),
            recipe,
            pictures,
            pictures,
            tmp_path / "cut",
            until_the_second_epoch,
            lambda text: None,
        )
    said: list[str] = []
    resumed = train(tiny.config, pictures, tmp_path / "cut", recipe, said)
    assert said[0].startswith("going on after epoch 1")
    assert torch.equal(weights(whole), weights(resumed))
    assert [line["held_out"] for line in whole.history] == [line["held_out"] for line in resumed.history]


def test_a_folder_with_another_run_is_refused_and_says_what_differs(
    tiny: PaCaViT, pictures: Pictures, tmp_path: Path
) -> None:
    train(tiny.config, pictures, tmp_path)
    with pytest.raises(DataError, match=r"other settings \(recipe\.lr was 0\.005\)"):
        train(tiny.config, pictures, tmp_path, dataclasses.replace(QUICK, lr=1e-3))


def test_settings_that_are_newer_than_the_run_do_not_stop_it(
    tiny: PaCaViT, pictures: Pictures, tmp_path: Path
) -> None:
    train(tiny.config, pictures, tmp_path)
    written = json.loads((tmp_path / "recipe.json").read_text())
    del written["recipe"]["patience"], written["recipe"]["augmentation"]["mixup"]
    (tmp_path / "recipe.json").write_text(json.dumps(written))
    assert train(tiny.config, pictures, tmp_path).epoch == 3


def test_every_epoch_is_one_line_of_the_log(tiny: PaCaViT, pictures: Pictures, tmp_path: Path) -> None:
    train(tiny.config, pictures, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["size"] for line in lines] == [8, 8, 16]
    assert not list(tmp_path.glob("*.part"))


def test_the_best_weights_are_those_of_the_best_epoch(
    tiny: PaCaViT, pictures: Pictures, tmp_path: Path
) -> None:
    run = train(tiny.config, pictures, tmp_path)
    config, found, epoch = best_weights(tmp_path)
    model = PaCaViT(config)
    model.load_state_dict(found)
    assert float((predict(model, pictures).argmax(1).numpy() == pictures.labels).mean()) == pytest.approx(
        run.best
    )
    assert epoch == next(line["epoch"] for line in run.history if line["held_out"] == round(run.best, 4))
    (tmp_path / BEST).unlink()
    assert best_weights(tmp_path)[2] == 3
    (tmp_path / LAST).unlink()
    with pytest.raises(DataError, match="holds no training run"):
        best_weights(tmp_path)


def test_patience_counts_epochs_without_a_better_one() -> None:
    def history(*accuracies: float) -> list[dict]:
        return [{"held_out": a} for a in accuracies]

    assert not out_of_patience(history(0.5, 0.4, 0.4), patience=0)
    assert not out_of_patience(history(0.5, 0.4), patience=2)
    assert out_of_patience(history(0.5, 0.4, 0.5), patience=2)
    assert not out_of_patience(history(0.5, 0.4, 0.6), patience=2)
    assert not out_of_patience(history(0.5, 0.4, 0.6, 0.5), patience=2)


def test_out_of_patience_the_run_ends_early_and_stays_ended(
    tiny: PaCaViT, pictures: Pictures, tmp_path: Path
) -> None:
    still = dataclasses.replace(QUICK, epochs=20, lr=0.0, patience=2)
    assert train(tiny.config, pictures, tmp_path, still).epoch == 3
    assert train(tiny.config, pictures, tmp_path, still).epoch == 3


def test_rare_classes_weigh_more_and_the_mean_is_one(pictures: Pictures) -> None:
    uneven = pictures.take(
        torch.tensor([i for i, label in enumerate(pictures.labels) if label != 2 or i % 4 == 0]).numpy()
    )
    weight = class_weights(uneven)
    assert weight[2] > weight[0]
    assert weight[torch.from_numpy(uneven.labels)].mean() == pytest.approx(1.0)


def test_weights_of_another_network_start_all_but_its_head(tiny: PaCaViT) -> None:
    donor = {
        name: torch.full_like(t, 0.25) if t.is_floating_point() else t
        for name, t in tiny.state_dict().items()
    }
    run = start(dataclasses.replace(tiny.config, num_classes=7), QUICK, CPU, donor)
    assert run.model.head.weight.shape == (7, 16)
    assert run.model.head.weight.abs().max() < 0.2
    assert all((p == 0.25).all() for name, p in run.model.named_parameters() if not name.startswith("head."))


def test_the_rate_warms_up_and_ends_at_a_hundredth() -> None:
    recipe = Recipe(epochs=10, lr=1.0, warmup=2)
    assert recipe.lr_at(1) == pytest.approx(0.5)
    assert recipe.lr_at(2) == pytest.approx(1.0)
    assert recipe.lr_at(6) == pytest.approx(0.505)
    assert recipe.lr_at(10) == pytest.approx(0.01)
    assert Recipe(epochs=10).size_at(3) == 64
    assert Recipe(epochs=10).size_at(9) == 128
