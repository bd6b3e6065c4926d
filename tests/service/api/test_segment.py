"""POST /segment through the app with a real segmenter: the map, what is told of each class, forms and
refusals."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from service.results import RunLengths
from service.segment import from_run_lengths
from service.settings import Settings
from tests.service.api.conftest import opened

ORIENTATION = 0x0112


@contextmanager
def segmenting(models: Path, **settings: Any) -> Iterator[TestClient]:
    """An app whose segmenter is loaded; until then the path answers 503."""
    with opened(Settings(models=models, **settings)) as ready:
        until = time.monotonic() + 60
        while (answer := ready.get("/models/tiny-masks")).status_code != 200:
            assert time.monotonic() < until, answer.text
            time.sleep(0.02)
        yield ready


@pytest.fixture(scope="module")
def client(masks_repository: Path) -> Iterator[TestClient]:
    with segmenting(masks_repository) as ready:
        yield ready


def picture(member: dict[str, Any]) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(member["data"]))) as image:
        assert image.size == (member["width"], member["height"])
        return np.asarray(image)


def test_a_photo_gets_a_map_of_its_size_and_every_class_is_accounted_for(
    client: TestClient, jpeg: bytes
) -> None:
    answer = client.post("/segment", content=jpeg).json()
    assert answer["image"] == {"width": 451, "height": 300, "format": "JPEG"}
    labels = picture(answer["map"])
    assert labels.shape == (300, 451)
    assert sum(s["area"] for s in answer["segments"]) == pytest.approx(1)
    assert [s["area"] for s in answer["segments"]] == sorted(
        (s["area"] for s in answer["segments"]), reverse=True
    )
    for s in answer["segments"]:
        inside = labels == s["class_id"]
        assert s["pixels"] == inside.sum()
        assert s["area"] == pytest.approx(inside.mean())
        x0, y0, x1, y1 = s["bbox"]
        assert inside[y0:y1, x0:x1].sum() == s["pixels"]
        assert 0.25 <= s["score"] <= 1
    assert set(answer["timings_ms"]) == {"decode", "queue", "inference", "render", "total"}
    assert "images" in answer


def test_the_model_that_segments_answers_where_none_is_named_and_the_default_stays_the_classifier(
    client: TestClient, jpeg: bytes
) -> None:
    assert client.post("/segment", content=jpeg).json()["model"] == "tiny-masks"
    assert client.post("/classify", content=jpeg).json()["model"] == "tiny"
    rows = {model["name"]: model for model in client.get("/models").json()["models"]}
    assert rows["tiny"]["default"]
    assert not rows["tiny-masks"]["default"]
    assert (rows["tiny-masks"]["task"], rows["tiny-masks"]["jobs"]) == ("segmentation", ["segment"])
    assert rows["tiny-masks"]["methods"] == []
    assert len(rows["tiny-masks"]["palette"]) == 4


@pytest.mark.parametrize(
    ("path", "model", "right"),
    [
        ("/classify", "tiny-masks", "/segment"),
        ("/explain", "tiny-masks", "/segment"),
        ("/segment", "tiny", "/classify or /explain"),
    ],
)
def test_the_wrong_path_for_a_task_names_the_right_one(
    client: TestClient, jpeg: bytes, path: str, model: str, right: str
) -> None:
    answer = client.post(f"{path}?model={model}", content=jpeg)
    assert answer.status_code == 422
    assert right in answer.json()["detail"]


def test_without_a_segmenter_the_path_says_so(open_app, jpeg: bytes) -> None:
    with open_app() as only_a_classifier:
        answer = only_a_classifier.post("/segment", content=jpeg)
    assert answer.status_code == 422
    assert "is for classification" in answer.json()["detail"]


@pytest.mark.parametrize("masks", ["rle", "png"])
def test_masks_are_the_map_s_classes(client: TestClient, jpeg: bytes, masks: str) -> None:
    answer = client.post(f"/segment?masks={masks}", content=jpeg).json()
    labels = picture(answer["map"])
    for s in answer["segments"]:
        if masks == "png":
            inside = picture(s["mask"])
        else:
            inside = from_run_lengths(RunLengths(tuple(s["mask"]["size"]), tuple(s["mask"]["counts"])))
        assert np.array_equal(inside, labels == s["class_id"])


def test_classes_and_areas_choose_what_is_told_and_the_map_holds_all(client: TestClient, jpeg: bytes) -> None:
    every = client.post("/segment", content=jpeg).json()
    first, *rest = every["segments"]
    named = client.post("/segment", params={"classes": first["label"]}, content=jpeg).json()
    assert [s["label"] for s in named["segments"]] == [first["label"]]
    assert named["map"] == every["map"]
    large = client.post("/segment", params={"min_area": first["area"]}, content=jpeg).json()
    assert [s["label"] for s in large["segments"]] == [first["label"]]
    by_id = client.post(f"/segment?classes=0&classes={first['class_id']}", content=jpeg).json()
    assert {s["class_id"] for s in by_id["segments"]} <= {0, first["class_id"]}
    assert rest


def test_pictures_are_drawn_where_requested(client: TestClient, jpeg: bytes) -> None:
    answer = client.post("/segment?render=overlay,clusters&alpha=0.8", content=jpeg).json()
    assert picture(answer["images"]["overlay"]).shape == (300, 451, 3)
    for s in answer["segments"]:
        assert max(s["cluster"]["width"], s["cluster"]["height"]) <= 256
        picture(s["cluster"])


def test_accept_chooses_the_map_or_the_overlay(client: TestClient, jpeg: bytes) -> None:
    answer = client.post("/segment", content=jpeg).json()
    map_ = client.post("/segment", content=jpeg, headers={"Accept": "image/png"})
    assert map_.headers["content-type"] == "image/png"
    assert map_.content == base64.b64decode(answer["map"]["data"])
    overlay = client.post("/segment", content=jpeg, headers={"Accept": "image/webp"})
    with Image.open(io.BytesIO(overlay.content)) as image:
        assert (image.format, image.size) == ("WEBP", (451, 300))
    assert client.post("/segment", content=jpeg, headers={"Accept": "text/html"}).status_code == 406


def test_several_pictures_of_any_sizes_are_answered_in_order_and_a_bad_one_fails_alone(
    client: TestClient, encode: Callable[..., bytes], photo: np.ndarray
) -> None:
    files = [encode(photo), b"no picture", encode(photo[:, :120]), encode(photo[:60])]
    answer = client.post(
        "/segment", files=[("file", (f"{i}.jpg", data)) for i, data in enumerate(files)]
    ).json()
    first, bad, tall, wide = answer["results"]
    assert bad["status"] == 415
    sizes = [(r["map"]["width"], r["map"]["height"]) for r in (first, tall, wide)]
    assert sizes == [(451, 300), (120, 300), (451, 60)]
    alone = client.post("/segment", content=files[2]).json()
    assert alone["map"] == tall["map"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_map_is_upright_whatever_the_camera_held(
    client: TestClient, photo: np.ndarray, encode: Callable[..., bytes], orientation: int
) -> None:
    upright = photo[:256, :384]
    turn = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.ascontiguousarray(turn(upright))
    expected = client.post("/segment", content=encode(upright, "PNG")).json()
    answer = client.post("/segment", content=encode(stored, "PNG", exif=exif.tobytes())).json()
    assert (answer["image"]["width"], answer["image"]["height"]) == (384, 256)
    assert answer["map"] == expected["map"]
    assert answer["segments"] == expected["segments"]


@pytest.mark.parametrize(
    ("array", "mode"),
    [
        (np.zeros((1, 900), np.uint8), "L"),
        (np.zeros((900, 1), np.uint8), "L"),
        (np.zeros((1, 1), np.uint8), "L"),
        (np.full((40, 60, 4), 127, np.uint8), "RGBA"),
        (np.full((40, 60), 40_000, np.uint16), "I;16"),
    ],
)
def test_odd_pictures_get_maps_of_their_size(client: TestClient, array: np.ndarray, mode: str) -> None:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    answer = client.post("/segment", content=file.getvalue())
    assert answer.status_code == 200, mode
    labels = picture(answer.json()["map"])
    assert labels.shape == array.shape[:2]


def test_a_large_photo_gets_a_smaller_map_and_a_warning(masks_repository: Path, jpeg: bytes) -> None:
    with segmenting(masks_repository, max_map_pixels=10_000) as small:
        answer = small.post("/segment?masks=rle", content=jpeg).json()
    assert answer["map"]["width"] * answer["map"]["height"] <= 10_000
    assert "PACA_MAX_MAP_PIXELS" in answer["warnings"][0]
    assert sum(s["pixels"] for s in answer["segments"]) == pytest.approx(451 * 300, abs=4)
    assert all(s["bbox"][2] <= 451 and s["bbox"][3] <= 300 for s in answer["segments"])


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("masks=dense", "choose one of: none, rle, png"),
        ("classes=violet", "there is no class 'violet'"),
        ("min_area=2", "less than or equal to 1"),
        ("render=heatmap", "choose one of: overlay, clusters"),
        ("top_k=3", "there is no parameter 'top_k'"),
    ],
)
def test_bad_parameters_are_422_and_say_what_is_allowed(
    client: TestClient, jpeg: bytes, query: str, said: str
) -> None:
    answer = client.post(f"/segment?{query}", content=jpeg)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


def test_tensors_of_any_bucket_run_and_sizes_are_never_mixed(
    client: TestClient, encode: Callable[..., bytes], photo: np.ndarray
) -> None:
    metadata = client.get("/v2/models/tiny-masks").json()
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert {o["name"]: o["shape"] for o in metadata["outputs"]} == {
        "logits": [-1, 4, -1, -1],
        "assignment_0": [-1, 4, -1, -1],
    }

    def infer(name: str, tensor: dict[str, Any], **output: Any) -> Any:
        outputs = [{"name": "logits", "parameters": output}]
        return client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor], "outputs": outputs})

    pixels = photo[:64, :96].ravel().tolist()
    given = {"name": "image", "datatype": "UINT8", "shape": [1, 64, 96, 3], "data": pixels}
    answer = infer("tiny-masks", given)
    assert answer.json()["outputs"][0]["shape"] == [1, 4, 16, 24]
    assert "for segmentation" in infer("tiny-masks", given, classification=2).json()["error"]
    huge = {"name": "image", "datatype": "UINT8", "shape": [1, 160, 160, 3], "data": [0] * (160 * 160 * 3)}
    assert "64 pixels on its shorter side" in infer("tiny-masks", huge).json()["error"]
    files = [base64.b64encode(encode(part)).decode() for part in (photo, photo[:, :120])]
    several = {"name": "image", "datatype": "BYTES", "shape": [2], "data": files}
    refused = infer("tiny-masks-image", several)
    assert refused.status_code == 422 or refused.status_code == 400
    assert "2 sizes" in refused.json()["error"]
    assert infer("tiny-masks-image", several | {"data": [files[0]] * 2}).status_code == 200
