"""Descriptions in the API's document hold what real responses show."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from service.methods import METHODS

ALL = 5  # clusters of the tiny model's first stage


@pytest.fixture(scope="module")
def schemas(client):
    return client.get("/openapi.json").json()["components"]["schemas"]


def said(schemas, name: str, field: str) -> str:
    return schemas[name]["properties"][field]["description"]


@pytest.fixture(scope="module")
def explained(client, jpeg):
    """The explanation of one class by each method, with all clusters of a stage and their numbers."""
    query = f"target=2&stage=1&top_clusters={ALL}&arrays=f16"
    answers = {name: client.post(f"/explain?method={name}&{query}", content=jpeg) for name in METHODS}
    return {name: answer.json()["explanations"][0] for name, answer in answers.items()}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_target_and_shares_in_logits(explained, schemas, method):
    one = explained[method]
    assert one["target"]["class_id"] == 2
    assert "absent" not in said(schemas, "Explanation", "target") + said(schemas, "Cluster", "share")
    total = sum(cluster["share"] for cluster in one["clusters"]) + one["target"]["bias"]
    assert total == pytest.approx(one["target"]["logit"], abs=1e-4)
    assert "in logits" in said(schemas, "Cluster", "share")


@pytest.mark.parametrize("method", METHODS)
def test_maps_of_clusters_are_probabilities(explained, schemas, method):
    maps = [cluster["heatmap"] for cluster in explained[method]["clusters"]]
    assert len(maps) == ALL
    values = [np.frombuffer(base64.b64decode(m["array"]), "<f2").reshape(m["grid"]) for m in maps]
    assert np.sum(values, axis=0) == pytest.approx(np.ones(maps[0]["grid"]), abs=5e-3)
    assert "P(cluster | patch)" in said(schemas, "Cluster", "heatmap")


@pytest.mark.parametrize("method", METHODS)
def test_maps_are_in_logits_where_they_are_complete(explained, schemas, method):
    one = explained[method]
    complete = one["method"]["complete"]
    assert ("completeness" in one) == complete
    if "heatmap" in one:
        assert one["heatmap"]["scale"]["units"] == ("logit" if complete else "relative")
    assert "`logit` for complete maps" in said(schemas, "Scale", "units")


def test_steps_that_only_an_explanation_has_are_said_to_be_so(client, schemas, jpeg):
    only = {name for name in schemas["Timings"]["properties"] if " only." in said(schemas, "Timings", name)}
    classified = client.post("/classify", content=jpeg).json()["timings_ms"]
    drawn = client.post("/explain", content=jpeg).json()["timings_ms"]
    assert set(drawn) - set(classified) == only


def test_the_example_of_a_digest_is_as_long_as_a_real_one(client, schemas):
    (model,) = client.get("/models").json()["models"]
    (example,) = schemas["ModelInfo"]["properties"]["sha256"]["examples"]
    assert len(example) == len(model["sha256"])
