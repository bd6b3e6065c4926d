"""The sub-commands `export`, `train` and `evaluate`: arguments in, a report out. What they do is `pipeline`'s
and `training`'s.

Heavy imports stand inside the functions, so that `paca --help` stays fast, and that a command runs where
only the libraries of others are absent.
"""

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


def export(
    variant: Annotated[
        str, typer.Argument(help="A variant's name, or 'auto' to recognise it from the checkpoint.")
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint", "-c", help="Weights: .pth, .pt, .tar or .safetensors. Default: random weights."
        ),
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Text file with one class name a line.")] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=2, help="Classes, where there is no checkpoint.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the network's input in pixels. Default: the variant's.")
    ] = None,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="One file for many picture sizes.")
    ] = False,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    input_kind: Annotated[
        str, typer.Option("--input", help="uint8 (B,H,W,3), or float32 normalised (B,3,H,W).")
    ] = "uint8",
    calibration: Annotated[
        Path | None, typer.Option(help="Folder of pictures, or a .npz pack, for int8.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Known pictures for novelty: a .npz pack, or a folder with one sub-folder a class, some of "
            "them held out of training."
        ),
    ] = None,
    foreign: Annotated[
        Path | None,
        typer.Option(help="Pictures of none of the classes, folder or pack: novelty is fitted against them."),
    ] = None,
    explain_from: Annotated[
        int | None,
        typer.Option(
            help="Stage after which explain.onnx takes over: earlier gives finer maps and cluster effects, "
            "at more cost."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="The model's name. Default: the repository folder's, the checkpoint's, or the variant's."
        ),
    ] = None,
    trained_on: Annotated[
        str | None, typer.Option(help="What the model learned from, in your words, for its card.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path("model.onnx"),
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Turn a checkpoint into a verified ONNX artifact with fused attention. Nothing is written unless every
    check passes."""
    from .pipeline import Format, Request
    from .segment import run

    err = Console(stderr=True)
    request = Request(
        variant,
        checkpoint=checkpoint,
        labels=labels,
        num_classes=num_classes,
        image_size=image_size,
        name=name,
        trained_on=trained_on,
        out=out,
        format=Format(
            precision=precision,
            calibration=calibration,
            reference=reference,
            foreign=foreign,
            input_kind=input_kind,
            dynamic_size=dynamic_size,
            explain_from=explain_from,
        ),
    )
    with err.status("exporting", spinner="dots") as status:
        report = run(request, say=lambda text: status.update(text))
    if as_json or not sys.stdout.isatty():
        print(json.dumps(report.to_dict()))
        return
    table = Table(title=escape(str(report.path)), show_header=False)
    for member, value in report.to_dict().items():
        table.add_row(member.replace("_", " "), escape(readable(value)))
    Console().print(table)


def train(
    recipe: Annotated[str, typer.Argument(help="embedded, imagenette, cifar10, folder or masks.")],
    data: Annotated[Path, typer.Option("--data", "-d", help="Where the pictures are.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder of the run. Default: runs/<recipe>. An unfinished run in it is resumed.",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Default: the recipe's.")] = None,
    start_from: Annotated[
        Path | None, typer.Option("--from", help="Checkpoint to start from, with a new head.")
    ] = None,
    clustering: Annotated[
        str | None, typer.Option(help="Clustering inside PaCa: conv, mlp, linear, kmeans, ...")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train a PaCa-ViT: on Imagenette, on CIFAR-10, on your own folder of pictures (one sub-folder a class),
    or on your own masks (images/ and masks/)."""
    from .training import masks
    from .training.run import run

    if recipe == masks.NAME:
        masks.run(data, out, epochs=epochs, start_from=start_from, seed=seed, device=device)
        return
    run(
        recipe,
        data,
        out,
        epochs=epochs,
        start_from=start_from,
        clustering=clustering,
        seed=seed,
        device=device,
    )


def evaluate(
    model: Annotated[Path, typer.Argument(help="An exported .onnx, or a checkpoint.")],
    data: Annotated[
        Path,
        typer.Argument(
            help="A .npz pack, a folder with one sub-folder a class, or one with images/ and masks/."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for evaluation.json and the confusion matrix as PNG."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Also measure how true the explanations are: minutes. Boxes, if any, in DATA/boxes.csv.",
        ),
    ] = False,
    pictures: Annotated[int, typer.Option(min=1, help="Pictures that --explain looks at, at most.")] = 200,
) -> None:
    """Accuracy, top-5, precision, recall, F1, ECE and confusion matrix of what is served; of a segmenter
    mIoU, IoU by class, pixels right, boundary IoU."""
    from .pictures import DataError
    from .training import evaluate as classes
    from .training import mask_evaluate as masks

    if masks.is_segmenter(model):
        if explain:
            raise DataError("--explain measures classifiers; a segmenter's map is what evaluate scores")
        masks.command(model, data, out=out, as_json=as_json)
        return
    classes.command(model, data, out=out, as_json=as_json, explain=pictures if explain else 0)
