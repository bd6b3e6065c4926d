"""POST /classify and POST /explain, with a real model."""

from __future__ import annotations

import base64
import io
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import onnx
import pytest
from PIL import Image

from service.colours import COLOUR_MAPS, DEFAULT_COLOUR_MAP, css_gradient
from service.settings import Settings
from tests.service.api.conftest import opened


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def labels(answer) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [p["label"] for p in answer.json()["predictions"]]


def test_an_answer_has_the_documented_members(client, jpeg):
    answer = client.post("/classify?top_k=2", content=jpeg, headers={"X-Request-ID": "order-7"})
    body = answer.json()
    assert set(body) == {"id", "model", "model_version", "image", "predictions", "timings_ms", "warnings"}
    assert (body["id"], body["model"], body["model_version"]) == ("order-7", "tiny", "1")
    assert body["image"] == {"width": 451, "height": 300, "format": "JPEG"}
    assert len(body["predictions"]) == 2
    assert set(body["predictions"][0]) == {"label", "class_id", "score", "logit"}
    assert set(body["timings_ms"]) == {"decode", "queue", "inference", "total"}
    assert body["predictions"][0]["score"] >= body["predictions"][1]["score"]


def test_every_form_of_a_picture_gets_the_same_answer(client, jpeg):
    forms = [
        client.post("/classify", content=jpeg, headers={"Content-Type": "image/jpeg"}),
        client.post("/classify", content=jpeg, headers={"Content-Type": "image/png"}),
        client.post("/classify", content=jpeg, headers={"Content-Type": "application/x-www-form-urlencoded"}),
        client.post("/classify", content=jpeg),
        client.post("/classify", files={"file": ("cat.txt", jpeg, "text/plain")}),
        client.post("/classify", json={"image": b64(jpeg)}),
        client.post("/classify", json={"image": "data:image/png;base64," + b64(jpeg)}),
        client.post("/classify", json={"inputs": b64(jpeg)}),
    ]
    assert all(form.json()["predictions"] == forms[0].json()["predictions"] for form in forms)


def test_parameters_come_in_the_query_in_form_fields_or_in_json(client, jpeg):
    forms = [
        client.post("/classify?top_k=2", content=jpeg),
        client.post("/classify", files={"file": jpeg}, data={"top_k": "2"}),
        client.post("/classify", json={"inputs": b64(jpeg), "parameters": {"top_k": 2}}),
    ]
    assert [len(labels(form)) for form in forms] == [2, 2, 2]


def test_several_pictures_are_answered_in_order_and_a_bad_one_fails_alone(client, jpeg, encode, photo):
    small = encode(photo[:50, :70], "PNG")
    answer = client.post(
        "/classify",
        files=[("file", jpeg), ("file", jpeg[:5000]), ("file", b"text"), ("file", small)],
        headers={"X-Request-ID": "r"},
    )
    first, truncated, text, last = answer.json()["results"]
    assert answer.status_code == 200
    assert (first["id"], first["image"]["width"]) == ("r-0", 451)
    assert (truncated["status"], truncated["request_id"]) == (422, "r-1")
    assert (text["status"], text["type"]) == (415, "urn:paca:problem:not-an-image")
    assert (last["id"], last["image"]) == ("r-3", {"width": 70, "height": 50, "format": "PNG"})


def test_a_list_in_json_is_answered_with_a_list(client, jpeg):
    results = client.post("/classify", json={"images": [b64(jpeg), "§"]}).json()["results"]
    assert results[0]["predictions"]
    assert results[1]["status"] == 400


def test_too_many_pictures_are_refused_with_the_limit(open_app, jpeg):
    with open_app(max_images=2) as client:
        answer = client.post("/classify", files=[("file", jpeg)] * 3)
    assert answer.status_code == 413
    assert (answer.json()["limit"], answer.json()["value"]) == ("max_images", 2)


def test_a_model_is_chosen_by_name_and_version(client, jpeg):
    assert labels(client.post("/classify?model=tiny:1", content=jpeg)) == labels(
        client.post("/classify?model=tiny", content=jpeg)
    )


@pytest.mark.parametrize("model", ["other", "tiny:2", ":2", "tiny:x", "../tiny", "tiny:1:1"])
def test_an_unknown_model_is_404_and_lists_what_there_is(client, jpeg, model):
    answer = client.post("/classify", params={"model": model}, content=jpeg)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("target=purple", "red"),
        ("target=99", "0 to 3"),
        ("stage=9", "stage"),
        ("contrast=purple", "red"),
        ("method=magic", "grouping"),
    ],
)
def test_what_the_model_cannot_do_is_422_and_says_what_it_can(client, jpeg, query, said):
    answer = client.post(f"/explain?{query}", content=jpeg)
    assert answer.status_code == 422, answer.text
    assert said in answer.json()["detail"]


def test_an_explanation_names_its_class_its_method_and_its_clusters(client, jpeg):
    body = client.post("/explain?target=green&target=2&top_clusters=2&method=cam", content=jpeg).json()
    assert [e["target"]["label"] for e in body["explanations"]] == ["green", "blue"]
    for e in body["explanations"]:
        assert e["method"]["name"] == "cam"
        assert len(e["clusters"]) == 2
        assert set(e["images"]) == {"overlay"}
        assert "array" not in e["heatmap"]
    assert {"explain", "render"} <= set(body["timings_ms"])


def test_an_explanation_predicts_what_classify_predicts(client, jpeg):
    assert (
        client.post("/explain", content=jpeg).json()["predictions"]
        == client.post("/classify", content=jpeg).json()["predictions"]
    )


@pytest.mark.parametrize(
    ("accept", "kind"),
    [("image/*", "WEBP"), ("image/png", "PNG"), ("image/jpeg, application/json;q=0.5", "JPEG")],
)
def test_a_caller_that_prefers_a_picture_gets_the_first_one(client, jpeg, accept, kind):
    answer = client.post("/explain", content=jpeg, headers={"Accept": accept})
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert (picture.format, picture.size) == (kind, (451, 300))
    assert answer.headers["content-type"] == f"image/{kind.lower()}"


def test_a_browser_gets_a_page_that_needs_nothing_else(client, jpeg):
    answer = client.post(
        "/explain", content=jpeg, headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    )
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.text.lstrip().lower().startswith("<!doctype html>")
    assert "data:image/webp;base64," in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_the_picture_asked_for_is_the_first(client, jpeg):
    overlay = client.post("/explain?format=png&size=64", content=jpeg, headers={"Accept": "image/*"})
    mask = client.post("/explain?format=png&size=64&render=mask", content=jpeg, headers={"Accept": "image/*"})
    assert mask.headers["content-type"] == "image/png"
    assert mask.content != overlay.content


@pytest.mark.parametrize(
    ("path", "accept", "status"),
    [
        ("/classify", "image/*", 406),
        ("/classify", "text/html", 406),
        ("/explain", "video/*", 406),
        ("/explain?format=png", "image/jpeg", 406),
        ("/explain?format=png", "image/jpeg, */*;q=0.1", 200),
    ],
)
def test_where_nothing_is_acceptable_the_answer_is_406(client, jpeg, path, accept, status):
    assert client.post(path, content=jpeg, headers={"Accept": accept}).status_code == status


def test_several_pictures_have_no_single_picture_to_answer_with(client, jpeg):
    assert (
        client.post("/explain", files=[("file", jpeg)] * 2, headers={"Accept": "image/*"}).status_code == 406
    )


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "image/jpeg", 400),
        (b"plain text", "text/plain", 415),
        (b"plain text", "image/jpeg", 415),
        (b"GIF89a" + bytes(50), "image/gif", 415),
        (b"{", "application/json", 400),
        (b"--x", "multipart/form-data; boundary=x", 400),
        (b"\xff\xd8\xff" + bytes(500), "image/jpeg", 422),
    ],
)
@pytest.mark.parametrize("path", ["/classify", "/explain"])
def test_a_bad_body_gets_its_4xx_as_a_problem(client, path, body, kind, status):
    answer = client.post(path, content=body, headers={"Content-Type": kind})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["status"] == status
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_a_body_over_the_limit_is_413(open_app, jpeg):
    with open_app(max_body_mb=0.01) as client:
        answer = client.post("/classify", content=jpeg + bytes(20_000))
    assert (answer.status_code, answer.json()["limit"], answer.json()["value"]) == (
        413,
        "max_body_bytes",
        10485,
    )


def test_a_deadline_that_passes_is_504(open_app, jpeg):
    with open_app(deadline_ms=100) as client:
        client.app.state.paca.settings.deadline_ms = 0
        answer = client.post("/classify", content=jpeg)
    assert answer.status_code == 504


def test_a_full_house_is_503_with_retry_after(client, jpeg):
    plane = client.app.state.paca.plane
    admission = plane.admission(plane.select(None))
    with admission.admit(admission.limit):
        answer = client.post("/classify", content=jpeg)
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:paca:problem:overloaded")
    assert int(answer.headers["retry-after"]) >= 1


def test_a_refusal_says_the_measured_wait(open_app, jpeg, monkeypatch):
    with open_app(queue_size=2, instances=1, max_batch=1, provider="cpu") as client:
        predictor = client.app.state.paca.registry.get()
        run, go_on = predictor._engine.run, threading.Event()

        def slow(*arguments):
            assert go_on.wait(30)
            time.sleep(1.5)
            return run(*arguments)

        monkeypatch.setattr(predictor._engine, "run", slow)
        go_on.set()
        assert client.post("/classify", content=jpeg).status_code == 200  # measures one run
        go_on.clear()
        with ThreadPoolExecutor(3) as callers:
            waiting = [callers.submit(client.post, "/classify", content=jpeg) for _ in range(3)]
            while predictor.batcher.depth < 2:
                time.sleep(0.01)
            refused = client.post("/classify", content=jpeg)
            go_on.set()
            assert [answer.result().status_code for answer in waiting] == [200, 200, 200]
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 5  # three pictures of 1.5 s each


def test_server_timing_repeats_the_timings(client, jpeg):
    answer = client.post("/classify", content=jpeg)
    timings = answer.json()["timings_ms"]
    given = dict(item.split(";dur=") for item in answer.headers["server-timing"].split(", "))
    assert {name: float(value) for name, value in given.items()} == pytest.approx(timings, abs=1e-3)


@pytest.mark.parametrize("colormap", [None, *COLOUR_MAPS])
def test_the_report_s_colour_bar_is_that_of_its_overlays(client, jpeg, colormap):
    query = f"?colormap={colormap}" if colormap else ""
    page = client.post(f"/explain{query}", content=jpeg, headers={"Accept": "text/html"}).text
    shown = {name for name, row in COLOUR_MAPS.items() if css_gradient(row.table) in page}
    assert shown == {colormap or DEFAULT_COLOUR_MAP}


def test_where_classes_are_named_by_numbers_the_named_one_is_explained(tiny_repository, tmp_path, jpeg):
    """Text is a name first, whatever its source; a JSON number is a class id."""
    shutil.copytree(tiny_repository / "tiny", tmp_path / "tiny")
    path = tmp_path / "tiny" / "1" / "model.onnx"
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    manifest = json.loads(metadata["paca.manifest"]) | {"labels": ["10", "0", "2", "1"]}
    onnx.helper.set_model_props(model, metadata | {"paca.manifest": json.dumps(manifest)})
    onnx.save(model, path)
    picture = base64.b64encode(jpeg).decode()

    def explained(client, target, where):
        if where == "query":
            answer = client.post(f"/explain?method=cam&target={target}", content=jpeg)
        else:
            parameters = {"method": "cam", "target": target}
            answer = client.post("/explain", json={"image": picture, "parameters": parameters})
        return answer.json()["explanations"][0]["target"]

    with opened(Settings(models=tmp_path)) as client:
        for where, target, label in (
            ("query", "2", "2"),
            ("query", "1", "1"),
            ("json", "0", "0"),
            ("json", 0, "10"),
            ("json", 1, "0"),
            ("query", "3", "1"),  # no class is called so: an id
        ):
            target_info = explained(client, target, where)
            assert target_info["label"] == label, (where, target)
