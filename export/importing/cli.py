"""The sub-command `import`: arguments in, a report out. What it does is `run`'s."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.artifact import readable

from ..errors import ExportError


def import_model(
    model: Annotated[Path, typer.Argument(help="An ONNX image classifier.")],
    labels: Annotated[
        str | None,
        typer.Option(help="Text file with one class name a line; or the word imagenet, for its 1,000 names."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=8, max=4096, help="Side of its picture, where the file leaves it free.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Mean and std: imagenet (default), inception or unit (0 to 1).")
    ] = None,
    mean: Annotated[str | None, typer.Option(help="a,b,c of R, G, B values in 0..1.")] = None,
    std: Annotated[str | None, typer.Option(help="a,b,c of R, G, B values in 0..1.")] = None,
    resize: Annotated[
        str, typer.Option(help="shortest: the shorter side, then the centre; stretch: the whole picture.")
    ] = "shortest",
    crop: Annotated[float, typer.Option(help="The centre's part of the shorter side.")] = 0.875,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    calibration: Annotated[
        Path | None, typer.Option(help="Folder of pictures, or a .npz pack, for int8.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Known pictures for novelty: a .npz pack, or a folder with one sub-folder a class."
        ),
    ] = None,
    foreign: Annotated[
        Path | None, typer.Option(help="Pictures of none of the classes: novelty is fitted against them.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name. Default: its folder's or file's.")
    ] = None,
    trained_on: Annotated[
        str | None, typer.Option(help="What the model learned from, in your words, for its card.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path("model.onnx"),
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Turn somebody else's ONNX classifier into a verified artifact. Nothing is written unless every check
    passes."""
    from ..finish import Format
    from .run import Request, Sight, run

    request = Request(
        source=model,
        labels=labels,
        sight=Sight(
            size=size,
            preset=preset,
            mean=_three("mean", mean),
            std=_three("std", std),
            resize=resize,
            crop=crop,
        ),
        format=Format(precision=precision, calibration=calibration, reference=reference, foreign=foreign),
        name=name,
        trained_on=trained_on,
        out=out,
    )
    with Console(stderr=True).status("importing", spinner="dots") as status:
        report = run(request, say=lambda text: status.update(text))
    if as_json or not sys.stdout.isatty():
        print(json.dumps(report.to_dict()))
        return
    table = Table(title=escape(str(report.path)), show_header=False)
    for member, value in report.to_dict().items():
        table.add_row(member.replace("_", " "), escape(readable(value)))
    Console().print(table)


def _three(option: str, text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise ExportError(f"--{option} takes three numbers, as in --{option} 0.5,0.5,0.5") from None
    return red, green, blue
