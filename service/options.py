"""What a caller may request, declared once: names, types, ranges, defaults and their documentation.

HTTP, the command line and Python callers all make these objects, so each range is checked in one place, here.
Whether a class, a stage or a method exists depends on the model: that is checked by `plan`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from .colours import COLOUR_MAPS, DEFAULT_COLOUR_MAP
from .errors import BadParameter
from .methods import METHODS
from .render import DEFAULT_FORMAT, ENCODINGS, RENDERS

FORMATS = tuple(ENCODINGS)
COLORMAPS = tuple(COLOUR_MAPS)
MAX_TARGETS = 5
MAX_SEGMENT_CLASSES = 32
MAX_CLUSTERS = 16
MAX_SIDE = 1024  # of a rendered picture whose size was given in pixels, and cap of "original"

Target = str | int  # a class name or a class id


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _words(value: object) -> object:
    """`render=overlay,mask`, `render=overlay&render=mask` and a JSON list say the same."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple):
        return value
    words = [item.split(",") if isinstance(item, str) else [item] for item in value]
    return tuple(
        dict.fromkeys(word.strip() if isinstance(word, str) else word for few in words for word in few)
    )


def _several(value: object) -> object:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


class OneOf:
    """Says of an annotated text that it must be one of `values`: in the API's document an enumeration."""

    def __init__(self, values: Iterable[str]) -> None:
        self.values = tuple(values)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, _: CoreSchema, __: Any) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.values)}

    def _check(self, value: str) -> str:
        if value not in self.values:
            raise ValueError(f"{printable(value)!r} is not known; choose one of: {', '.join(self.values)}")
        return value


Int = Annotated[int, BeforeValidator(_number)]
Float = Annotated[float, BeforeValidator(_number)]
ClassName = Annotated[str, Field(min_length=1, max_length=200)]
ClassId = Annotated[int, BeforeValidator(_number), Field(ge=0, le=1_000_000)]


class JobOptions(BaseModel):
    """What every job takes."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_by_name=True, validate_by_alias=True
    )

    model: Annotated[str, Field(max_length=100)] | None = Field(
        None,
        description="Which model answers, as NAME or NAME:VERSION. Default: the server's default model, "
        "newest "
        "version.",
        examples=["imagenette"],
    )

    def __init__(self, **values: Any) -> None:
        """Raises BadParameter, which names the parameter and what is allowed."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _bad_parameter(error, type(self)) from None

    @classmethod
    def names(cls) -> list[str]:
        """The parameters as callers write them."""
        return [field.alias or name for name, field in cls.model_fields.items()]


class ClassifyOptions(JobOptions):
    """What the jobs of classifiers take."""

    top_k: Int = Field(5, ge=1, le=1000, description="How many classes to answer, best first.", examples=[3])


class ExplainOptions(ClassifyOptions):
    """What an explanation takes on top."""

    targets: Annotated[
        tuple[ClassName | ClassId, ...], BeforeValidator(_several), Field(max_length=MAX_TARGETS)
    ] = Field(
        (),
        alias="target",
        description="Classes to explain, by name or id, up to 5; give it several times for several. A number "
        "is a class id, unless it is a text that names a class. Default: the top class.",
        examples=[["golf ball"]],
    )
    contrast: ClassName | ClassId | None = Field(
        None,
        description="A class, or `runner_up`: explain why the target and not this one.",
        examples=["runner_up"],
    )
    method: Annotated[str, OneOf(METHODS)] | None = Field(
        None,
        description="How to explain. Default: the first of "
        + ", ".join(f"`{m.name}`" for m in METHODS.values() if m.default)
        + " that the model has.",
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
    render: Annotated[
        tuple[Annotated[str, OneOf(RENDERS)], ...],
        BeforeValidator(_words),
        Field(max_length=len(RENDERS)),
    ] = Field(
        (),  # not set: the plan chooses, for it knows the model
        description="Pictures to make, comma separated or repeated. Default: `overlay` and `clusters`, or "
        "`overlay` and `parts` where the model has no clusters.",
        examples=[["overlay", "mask"]],
        json_schema_extra=_without_default,
    )
    check: bool = Field(
        False,
        description="Also hide the map's strongest tenth of the picture, and as much at random places, and "
        "answer what each did to the score: five further runs for each target.",
        examples=[True],
    )
    scale: Literal["evidence", "relative"] = Field(
        "evidence",
        description="How strongly an overlay is drawn: `evidence` fades it where the picture is novel, "
        "little speaks for the class, or the check fails; `relative` always draws it in full.",
        examples=["relative"],
    )
    format: Annotated[str, OneOf(FORMATS)] = Field(
        DEFAULT_FORMAT, description="File format of the pictures.", examples=["png"]
    )
    colormap: Annotated[str, OneOf(COLORMAPS)] = Field(
        DEFAULT_COLOUR_MAP, description="Colours of heatmaps.", examples=[COLORMAPS[-1]]
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


SEGMENT_RENDERS = ("overlay", "clusters")
MASKS = ("none", "rle", "png")


class SegmentOptions(JobOptions):
    """What a segmentation takes."""

    masks: Annotated[str, OneOf(MASKS)] = Field(
        "none",
        description="A mask for each segment: `rle` = COCO's uncompressed run lengths, `png` = a "
        "black-and-white "
        "picture.",
        examples=["rle"],
    )
    classes: Annotated[
        tuple[ClassName | ClassId, ...], BeforeValidator(_several), Field(max_length=MAX_SEGMENT_CLASSES)
    ] = Field(
        (),
        description="Classes to tell of, by name or id; give it several times for several. The map always "
        "holds "
        "all. Default: all.",
        examples=[[1]],
    )
    min_area: Float = Field(
        0.0, ge=0, le=1, description="Leave out segments of a smaller part of the picture.", examples=[0.01]
    )
    render: Annotated[
        tuple[Annotated[str, OneOf(SEGMENT_RENDERS)], ...],
        BeforeValidator(_words),
        Field(max_length=len(SEGMENT_RENDERS)),
    ] = Field(
        (),
        description="Pictures to make besides the map: `overlay` = the photo tinted by class, `clusters` = "
        "for each "
        "class the places that its cluster gathers.",
        examples=[["overlay"]],
    )
    alpha: Float = Field(0.6, ge=0, le=1, description="Strength of an overlay, 0 to 1.", examples=[0.5])


def _bad_parameter(error: ValidationError, kind: type[JobOptions]) -> BadParameter:
    errors = error.errors(include_url=False, include_context=False)
    first = errors[0]
    name = printable(str(first["loc"][0])) if first["loc"] else "parameters"
    if first["type"] == "extra_forbidden":
        return BadParameter(
            f"there is no parameter {name!r}; there are: {', '.join(kind.names())}", parameter=name
        )
    messages = (e["msg"].removeprefix("Value error, ") for e in errors if e["loc"][:1] == first["loc"][:1])
    reasons = dict.fromkeys(message[:1].lower() + message[1:] for message in messages)
    return BadParameter(f"{name}: {', or '.join(reasons)}", parameter=name)


def printable(name: str) -> str:
    """A caller's text, short and harmless enough for an error message."""
    return "".join(c if c.isprintable() else "?" for c in name[:40])
