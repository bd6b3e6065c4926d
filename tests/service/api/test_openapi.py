"""The OpenAPI document: complete enough for people and for client generators, and what the server does."""

from __future__ import annotations

import re

import pytest

from service import images


@pytest.fixture(scope="module")
def document(client) -> dict:
    return client.get("/openapi.json").json()


def operations(document):
    return [
        (f"{verb.upper()} {path}", item)
        for path, verbs in document["paths"].items()
        for verb, item in verbs.items()
    ]


def schemas(node, where="document"):
    """Every object schema with properties in the document, with its place."""
    if isinstance(node, dict):
        if isinstance(node.get("properties"), dict):
            yield where, node
        for key, value in node.items():
            yield from schemas(value, f"{where}.{key}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from schemas(value, f"{where}[{i}]")


def test_every_operation_has_a_name_of_its_own_a_description_and_a_known_tag(document):
    items = operations(document)
    ids = [item["operationId"] for _, item in items]
    tags = {tag["name"] for tag in document["tags"]}
    assert len(set(ids)) == len(ids)
    for name, item in items:
        assert item["description"], name
        assert set(item["tags"]) <= tags, name


def test_every_field_has_a_description_and_every_plain_one_an_example(document):
    for where, schema in schemas(document["components"]):
        for name, field in schema["properties"].items():
            if not {"$ref", "items"} & set(field) and "anyOf" not in field:
                assert field.get("description"), f"{where}.{name}"


def test_every_parameter_has_a_description(document):
    for name, item in operations(document):
        for parameter in item.get("parameters", []):
            assert parameter.get("description"), f"{name} {parameter['name']}"


def test_every_reference_leads_somewhere(document):
    known = document["components"]["schemas"]
    names = set(re.findall(r"#/components/schemas/([A-Za-z0-9_.-]+)", str(document)))
    assert names <= set(known)


@pytest.mark.parametrize("path", ["/classify", "/explain"])
def test_the_jobs_name_every_form_and_every_error(document, path):
    job = document["paths"][path]["post"]
    assert set(job["requestBody"]["content"]) == {
        *images.MEDIA_TYPES,
        "application/octet-stream",
        "multipart/form-data",
        "application/json",
    }
    assert set(job["responses"]) == {
        "200",
        "400",
        "401",
        "404",
        "406",
        "408",
        "413",
        "414",
        "415",
        "422",
        "431",
        "503",
        "504",
    }
    for status, answer in job["responses"].items():
        if status != "200":
            assert list(answer["content"]) == ["application/problem+json"]
    assert "Retry-After" in job["responses"]["503"]["headers"]


def test_explain_names_the_forms_its_answer_may_have(document):
    assert set(document["paths"]["/explain"]["post"]["responses"]["200"]["content"]) == {
        "application/json",
        "text/html",
        "image/webp",
        "image/png",
        "image/jpeg",
    }


def test_an_answer_has_exactly_the_documented_fields(client, document, jpeg):
    known = document["components"]["schemas"]

    def check(value, schema, where):
        schema = known[schema["$ref"].rsplit("/", 1)[-1]] if "$ref" in schema else schema
        if "properties" in schema and isinstance(value, dict):
            assert set(value) <= set(schema["properties"]), where
            assert set(schema.get("required", [])) <= set(value), where
            for name, item in value.items():
                check(item, schema["properties"][name], f"{where}.{name}")
        elif "items" in schema and isinstance(value, list):
            for item in value:
                check(item, schema["items"], f"{where}[]")
        elif isinstance(schema.get("additionalProperties"), dict):
            for name, item in value.items():
                check(item, schema["additionalProperties"], f"{where}.{name}")

    check(client.post("/classify", content=jpeg).json(), known["ClassifyResponse"], "classify")
    explained = client.post(
        "/explain?render=overlay,mask,clusters&arrays=f16&contrast=runner_up", content=jpeg
    ).json()
    check(explained, known["ExplainResponse"], "explain")
    check(client.get("/models").json(), known["ModelList"], "models")
    check(client.get("/v2/models/tiny").json(), known["ModelMetadata"], "metadata")
    check(
        client.post("/classify", content=b"").json(),
        known["Problem"] | {"properties": known["Problem"]["properties"]},
        "problem",
    )
