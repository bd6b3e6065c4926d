"""What a caller asks for, from the query, form fields or JSON `parameters` alike: names, types, ranges and
their documentation in one place.

Whether a class, a stage or a method exists is the model's matter (`Predictor.check_options`); everything else
is decided here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ..errors import BadParameter, MalformedRequest
from ..options import MAX_CLUSTERS, MAX_SIDE, MAX_TARGETS, ClassifyOptions, ExplainOptions, Target

MAX_FIELDS = 64


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _words(value: object) -> object:
    """`render=overlay,mask`, `render=overlay&render=mask` and a JSON list say the same."""
    if isinstance(value, str):
        value = [value]
    return (
        [word.strip() for item in value for word in (item.split(",") if isinstance(item, str) else [item])]
        if isinstance(value, list)
        else value
    )


def _list(value: object) -> object:
    return value if isinstance(value, list) else [value]


Int = Annotated[int, BeforeValidator(_number)]
Float = Annotated[float, BeforeValidator(_number)]
Render = Literal["overlay", "heatmap", "mask", "masked", "segmentation", "clusters"]
ClassName = Annotated[str, Field(min_length=1, max_length=200)]
ClassId = Annotated[int, BeforeValidator(_number), Field(ge=0, le=1_000_000)]


class ClassifyParameters(BaseModel):
    """Parameters of both jobs."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: Annotated[str, Field(max_length=100)] | None = Field(
        None,
        description="Which model answers, as NAME or NAME:VERSION. Default: the server's default model, "
        "newest version.",
        examples=["imagenette"],
    )
    top_k: Int = Field(5, ge=1, le=1000, description="How many classes to answer, best first.", examples=[3])

    def options(self, labels: tuple[str, ...]) -> ClassifyOptions:
        return ClassifyOptions(top_k=min(self.top_k, len(labels)))


class ExplainParameters(ClassifyParameters):
    """Parameters of /explain on top."""

    target: Annotated[list[ClassName | ClassId], BeforeValidator(_list), Field(max_length=MAX_TARGETS)] = (
        Field(
            [],
            description="Classes to explain, by name or id, up to 5; give it several times for several. "
            "Default: the top class.",
            examples=[["golf ball"]],
        )
    )
    contrast: ClassName | ClassId | None = Field(
        None,
        description="A class, or `runner_up`: explain why the target and not this one.",
        examples=["runner_up"],
    )
    method: Literal["focus", "cam", "fine", "grouping"] | None = Field(
        None,
        description="How to explain. Default: `focus` where the model carries its gradient graph, else "
        "`cam`.",
        examples=["cam"],
    )
    top_clusters: Int = Field(
        5, ge=0, le=MAX_CLUSTERS, description="How many clusters to answer, strongest first.", examples=[5]
    )
    stage: Annotated[Int, Field(ge=1, le=16)] | None = Field(
        None,
        description="Whose clusters to answer: a stage, from 1. Default: the last that clusters.",
        examples=[4],
    )
    render: Annotated[list[Render], BeforeValidator(_words), Field(max_length=6)] = Field(
        ["overlay", "clusters"],
        description="Pictures to make, comma separated or repeated.",
        examples=[["overlay", "mask"]],
    )
    format: Literal["webp", "png", "jpeg"] = Field(
        "webp", description="File format of the pictures.", examples=["png"]
    )
    colormap: Literal["viridis", "inferno", "magma", "cividis"] = Field(
        "viridis", description="Colours of heatmaps.", examples=["inferno"]
    )
    alpha: Float = Field(0.6, ge=0, le=1, description="Strength of an overlay, 0 to 1.", examples=[0.5])
    size: Literal["original", "model"] | Annotated[Int, Field(ge=16, le=MAX_SIDE)] = Field(
        "original",
        description=f"Longer side of the pictures: `original` (at most {MAX_SIDE}), `model` (the network's "
        f"input), or pixels, 16 to {MAX_SIDE}.",
        examples=[512],
    )
    arrays: Literal["none", "f16"] = Field(
        "none", description="`f16` adds the heatmap's numbers as base64 float16.", examples=["f16"]
    )
    effect: bool = Field(
        False,
        description="Also answer each cluster's effect on the logit (needs the model's gradient graph).",
        examples=[True],
    )

    def options(self, labels: tuple[str, ...]) -> ExplainOptions:
        return ExplainOptions(
            top_k=min(self.top_k, len(labels)),
            targets=tuple(_target(target, labels) for target in self.target),
            contrast=None if self.contrast is None else _target(self.contrast, labels),
            render=tuple(dict.fromkeys(self.render)),
            **{name: getattr(self, name) for name in _SAME},
        )


_SAME = ("method", "top_clusters", "stage", "format", "colormap", "alpha", "size", "arrays", "effect")


def _target(value: Target, labels: tuple[str, ...]) -> Target:
    """A query knows only text: "8" is the class named so, else class 8."""
    return int(value) if isinstance(value, str) and value.isdecimal() and value not in labels else value


Parameters = TypeVar("Parameters", bound=ClassifyParameters)


def parse_query(query: bytes) -> dict[str, list[str]]:
    """A query string as name → values; MalformedRequest where it is not one."""
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS
        )
    except ValueError:
        raise MalformedRequest("the query string cannot be read; percent-encode it as UTF-8") from None
    return values_by_name(pairs)


def values_by_name(pairs: list[tuple[str, str]]) -> dict[str, list[str]]:
    """Pairs as name → values, in order."""
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return values


def parse(
    kind: type[Parameters], *texts: dict[str, list[str]], values: dict[str, Any] | None = None
) -> Parameters:
    """The parameters of a request, from text sources (query, form) and JSON. A name given twice, unknown, or
    with a bad value is a BadParameter."""
    lists = {name for name, field in kind.model_fields.items() if isinstance(field.default, list)}
    merged: dict[str, Any] = {}
    for source in (*texts, values or {}):
        for name, value in source.items():
            if name in merged:
                raise BadParameter(
                    f"{_shown(name)} is given in the query and in the body; give it once",
                    parameter=_shown(name),
                )
            if source is not values and name not in lists:
                if len(value) > 1:
                    raise BadParameter(
                        f"{_shown(name)} takes one value, {len(value)} were given", parameter=_shown(name)
                    )
                value = value[0]
            merged[name] = value
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise _explained(error, kind) from None


def _explained(error: ValidationError, kind: type[BaseModel]) -> BadParameter:
    first = error.errors(include_url=False, include_context=False)[0]
    name = _shown(str(first["loc"][0])) if first["loc"] else "parameters"
    if first["type"] == "extra_forbidden":
        return BadParameter(
            f"there is no parameter {name!r}; there are: {', '.join(kind.model_fields)}", parameter=name
        )
    messages = (
        e["msg"].removeprefix("Value error, ")
        for e in error.errors(include_url=False, include_context=False)
        if e["loc"][:1] == first["loc"][:1]
    )
    reasons = dict.fromkeys(message[:1].lower() + message[1:] for message in messages)
    return BadParameter(f"{name}: {', or '.join(reasons)}", parameter=name)


def _shown(name: str) -> str:
    """A client's text, short and harmless enough for an error message."""
    return "".join(c if c.isprintable() else "?" for c in name[:40])
