"""What a caller may ask for, and what it is told when it asks for something else."""

import pytest
from pydantic_core import PydanticUndefined

from service.api.parameters import parse, parse_query
from service.errors import BadParameter, MalformedRequest
from service.methods import METHODS
from service.options import COLORMAPS, FORMATS, ClassifyOptions, ExplainOptions
from service.render import RENDERS


def request(query: str, kind=ExplainOptions, **values):
    return parse(kind, parse_query(query.encode()), values=values)


def test_without_parameters_the_defaults_hold():
    assert request("", ClassifyOptions) == ClassifyOptions()
    assert request("top_k=3") == ExplainOptions(top_k=3)


def test_the_documented_choices_are_those_of_the_tables():
    schema = ExplainOptions.model_json_schema()["properties"]
    assert schema["render"]["items"]["enum"] == list(RENDERS)
    assert schema["format"]["enum"] == list(FORMATS)
    assert schema["colormap"]["enum"] == list(COLORMAPS)
    assert schema["method"]["anyOf"][0]["enum"] == list(METHODS)


def test_every_parameter_has_a_description_an_example_and_a_default():
    for name, field in ExplainOptions.model_fields.items():
        assert field.description, name
        assert field.examples, name
        assert field.default is not PydanticUndefined, name


def test_a_query_and_json_say_the_same():
    text = request(
        "target=cat&target=golf+ball&render=overlay,mask&alpha=0.5&size=300&effect=true&method=cam"
    )
    json = request(
        "",
        target=["cat", "golf ball"],
        render=["overlay", "mask"],
        alpha=0.5,
        size=300,
        effect=True,
        method="cam",
    )
    assert text == json
    assert text.targets == ("cat", "golf ball")
    assert text.size == 300


def test_a_text_stays_a_text_until_the_model_is_known():
    assert request("target=1&target=7").targets == ("1", "7")
    assert request("", target=[1, "7"]).targets == (1, "7")


def test_a_name_of_a_class_may_hold_a_comma():
    assert request("target=red+fox,+Vulpes").targets == ("red fox, Vulpes",)


@pytest.mark.parametrize(
    ("query", "hint"),
    [
        ("top_k=0", "top_k: input should be greater than or equal to 1"),
        ("top_k=many", "top_k: input should be a valid integer"),
        ("top_k=2&top_k=3", "takes one value"),
        ("topk=3", "there are: model, top_k"),
        ("method=magic", "choose one of: focus, cam, fine, grouping, occlusion"),
        ("render=overlay,shiny", "render"),
        ("alpha=nan", "alpha"),
        ("alpha=1.5", "less than or equal to 1"),
        ("size=15", "size"),
        ("size=1000000", "size"),
        ("target=", "target"),
        ("&".join(f"target={i}" for i in range(6)), "target"),
        ("top_clusters=17", "less than or equal to 16"),
        ("colormap=jet", "choose one of: viridis"),
    ],
)
def test_what_is_not_allowed_is_refused_with_what_is(query, hint):
    with pytest.raises(BadParameter) as refusal:
        request(query)
    assert hint in str(refusal.value)


@pytest.mark.parametrize(
    "values",
    [
        {"top_k": True},
        {"top_k": [3]},
        {"top_k": None},
        {"target": {"a": 1}},
        {"render": "all"},
        {"alpha": "x"},
    ],
)
def test_json_parameters_of_the_wrong_type_are_refused(values):
    with pytest.raises(BadParameter):
        request("", **values)


def test_a_parameter_in_both_query_and_body_is_refused():
    with pytest.raises(BadParameter, match="give it once"):
        request("top_k=3", top_k=3)


def test_an_unknown_name_is_shown_short_and_harmless():
    with pytest.raises(BadParameter) as refusal:
        request("%1b%0d%0a" + "x" * 5000 + "=1")
    assert len(str(refusal.value)) < 300
    assert refusal.value.message.isprintable()


@pytest.mark.parametrize("query", [b"top_k=%ff", b"\xff=1", b"&".join(b"a%d=1" % i for i in range(100))])
def test_a_query_that_is_no_query_is_malformed(query):
    with pytest.raises(MalformedRequest):
        parse_query(query)
