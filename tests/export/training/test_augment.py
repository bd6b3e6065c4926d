"""Augmentation of batches: sizes, ranges, and that every random number comes from the given generator."""

import pytest
import torch

from export.training.augment import (
    Augmentation,
    augment,
    augment_with_crops,
    blur,
    compress,
    mix,
    normalise,
    view,
)

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
NOTHING = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter=0.0, erase=0.0)


def pictures(count: int = 5, size: int = 12) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def augmented(how: Augmentation, size: int = 12, seed: int = 0) -> torch.Tensor:
    return augment(pictures(), size, how, MEAN, STD, torch.Generator().manual_seed(seed))


def test_with_everything_off_it_is_the_normalisation() -> None:
    torch.testing.assert_close(augmented(NOTHING), normalise(pictures(), MEAN, STD), atol=1e-5, rtol=0)


def test_the_same_seed_gives_the_same_batch_and_another_seed_another() -> None:
    assert torch.equal(augmented(Augmentation(), seed=1), augmented(Augmentation(), seed=1))
    assert not torch.equal(augmented(Augmentation(), seed=1), augmented(Augmentation(), seed=2))


def test_any_size_comes_out_within_the_range_of_pixels() -> None:
    x = augmented(Augmentation(), size=7)
    assert x.shape == (5, 3, 7, 7)
    pixels = x * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6


def test_erased_rectangles_are_the_mean_of_the_data() -> None:
    x = augmented(
        Augmentation(
            scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter=0.0, erase=1.0, erase_side=(0.5, 0.5)
        )
    )
    erased = (x == 0).all(1).float().mean((1, 2))
    assert ((erased > 0.2) & (erased < 0.4)).all()  # a quarter of the area, give or take a row


def test_a_flip_mirrors() -> None:
    x = augmented(Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=1.0, jitter=0.0, erase=0.0))
    torch.testing.assert_close(x, normalise(pictures(), MEAN, STD).flip(-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "how", [Augmentation(mixup=0.4), Augmentation(cutmix=1.0), Augmentation(mixup=0.4, cutmix=1.0)]
)
def test_mixed_targets_are_in_the_proportion_of_the_pixels(how: Augmentation) -> None:
    x = torch.zeros(2, 3, 16, 16)
    x[1] = 1.0
    for seed in range(8):
        mixed, target = mix(x, torch.tensor([0, 1]), 3, how, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(target.sum(1), torch.ones(2))
        torch.testing.assert_close(mixed[0].mean(), target[0, 1])
        torch.testing.assert_close(mixed[1].mean(), target[1, 1])
        assert target[:, 2].eq(0).all()


def test_a_crop_is_the_same_place_in_the_picture_and_in_its_maps() -> None:
    how = Augmentation((0.4, 0.9), jitter=0, erase=0)
    images = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    one = torch.ones(3)
    x, crops = augment_with_crops(images, 8, how, (0 * one, one), torch.Generator().manual_seed(0))
    maps = images.permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(view(maps, crops, (8, 8)), x)


def test_blur_and_compression_change_some_pictures_and_keep_their_form() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 3, 24, 24)
    blurred = blur(x, 0.5, generator)
    untouched = (blurred == x).flatten(1).all(1)
    assert 8 < untouched.sum() < 32
    assert blurred[~untouched].std() < x.std()
    images = torch.randint(0, 256, (40, 24, 24, 3), dtype=torch.uint8)
    squeezed = compress(images, 0.5, generator)
    assert 8 < (squeezed == images).flatten(1).all(1).sum() < 32
    assert squeezed.shape == images.shape
