"""What a caller may ask for, as plain values with the documented defaults. Parsing and error texts are the
edge's; `explain` and `render` obey."""

from __future__ import annotations

from dataclasses import dataclass

METHODS = ("focus", "cam", "fine", "grouping")
RENDERS = ("overlay", "heatmap", "mask", "masked", "segmentation", "clusters")
FORMATS = ("webp", "png", "jpeg")
COLORMAPS = ("viridis", "inferno", "magma", "cividis")
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp"}
)  # of picture files in a folder; what a file is, only its bytes say
MAX_TARGETS = 5
MAX_CLUSTERS = 16
MAX_SIDE = 1024  # of a rendered picture whose size was asked for in pixels, and cap of "original"

Target = str | int  # a class name or a class id


@dataclass(frozen=True)
class ClassifyOptions:
    top_k: int = 5


@dataclass(frozen=True)
class ExplainOptions(ClassifyOptions):
    """targets: classes to explain, empty = the top class. contrast: a class, or "runner_up": why the target
    and not this one. method: one of METHODS, None = the best the artifact offers. stage: whose clusters to
    show (from 1), None = the last that clusters. size: side in pixels of the longer edge, or "original" /
    "model". alpha: strength of the overlay, 0 to 1. arrays: "none" or "f16". effect: also compute each
    cluster's first-order effect on the logit, where the artifact can.
    """

    targets: tuple[Target, ...] = ()
    contrast: Target | None = None
    method: str | None = None
    top_clusters: int = 5
    stage: int | None = None
    render: tuple[str, ...] = ("overlay", "clusters")
    format: str = "webp"
    colormap: str = "viridis"
    alpha: float = 0.6
    size: str | int = "original"
    arrays: str = "none"
    effect: bool = False
