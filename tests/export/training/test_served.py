"""Pictures for evaluation, read as the server reads them."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.pictures import prepare
from export.training.data import DataError
from export.training.served import read
from service import images
from service.artifact import Preprocessing

LABELS = ("red", "green", "blue", "grey")
STRETCH = Preprocessing((16, 16), "stretch", 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
SHORTEST = Preprocessing((16, 16), "shortest", 0.875, "bicubic", (0.5,) * 3, (0.5,) * 3)


def test_class_folders_are_matched_by_name_whatever_the_models_order(
    class_folder: Callable[[int], Path],
) -> None:
    found = read(class_folder(3), LABELS, STRETCH)
    assert found.labels.tolist() == [2] * 3 + [1] * 3 + [0] * 3
    assert found.classes == LABELS
    assert found.images.shape == (9, 16, 16, 3)


@pytest.mark.parametrize("preprocessing", [STRETCH, SHORTEST])
def test_a_photo_goes_through_the_decoder_and_the_preprocessing_of_the_server(
    photo: np.ndarray, preprocessing: Preprocessing
) -> None:
    out = io.BytesIO()
    Image.fromarray(photo).save(out, "PNG")
    height, width = photo.shape[:2]
    decoded = images.decode(out.getvalue(), images.Limits(), images.needed_side(preprocessing))
    assert np.array_equal(
        prepare(out.getvalue(), preprocessing),
        images.preprocess(decoded.rgb, width, height, preprocessing)[0],
    )
    assert np.array_equal(
        prepare(photo, preprocessing), images.preprocess(photo, width, height, preprocessing)[0]
    )


def test_what_the_server_refuses_is_skipped_and_listed(class_folder: Callable[[int], Path]) -> None:
    folder = class_folder(2)
    (folder / "red" / "zz.jpg").write_bytes(b"no picture at all")
    found = read(folder, LABELS, STRETCH)
    assert len(found) == 6
    assert [line.split(":")[0] for line in found.skipped] == ["red/zz.jpg"]


def test_a_class_that_the_model_does_not_know_is_named(class_folder: Callable[[int], Path]) -> None:
    with pytest.raises(
        DataError, match="has the class 'green', which the model does not know; it knows red, blue"
    ):
        read(class_folder(1), ("red", "blue"), STRETCH)


def pack(path: Path, classes: tuple[str, ...]) -> None:
    np.savez(
        path,
        image=np.zeros((len(classes), 16, 16, 3), np.uint8),
        label=np.arange(len(classes)),
        classes=np.array(classes),
    )


def test_a_folder_of_packs_answers_with_the_one_test_pack_of_the_models_classes(tmp_path: Path) -> None:
    pack(tmp_path / "colours_train.npz", LABELS)
    pack(tmp_path / "colours_val.npz", LABELS[::-1])
    pack(tmp_path / "animals_val.npz", ("cat", "dog"))
    assert read(tmp_path, LABELS, STRETCH).labels.tolist() == [3, 2, 1, 0]
    pack(tmp_path / "colours_test.npz", LABELS)
    with pytest.raises(DataError, match=r"2 of its packs fit \(colours_test\.npz, colours_val\.npz\)"):
        read(tmp_path, LABELS, STRETCH)
    with pytest.raises(DataError, match="none of its packs"):
        read(tmp_path, ("a", "b"), STRETCH)
