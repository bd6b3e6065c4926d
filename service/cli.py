"""The command `paca`: sub-commands come from the entry points of the group `paca.commands`; the server's own
stand here.

Exit codes: 0 done, 1 failed with a one-line reason (a traceback only with --debug), 2 wrong usage, 69 the
device failed for good. Tables in a terminal, JSON with --json. What the commands do stands in `predictor` and
in the HTTP layer; this file only reads arguments and prints.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any, Generic, Self, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from .colours import DEFAULT_COLOUR_MAP
from .dataplane import Call, DataPlane, OneModel
from .errors import BadImage, DeviceLost, PacaError
from .files import write_text
from .methods import METHODS
from .options import (
    COLORMAPS,
    FORMATS,
    SEGMENT_RENDERS,
    ClassifyOptions,
    ExplainOptions,
    SegmentOptions,
)
from .precision import choices as precisions
from .providers import choices
from .render import DEFAULT_FORMAT, RENDERS
from .results import Classification, ExplainResult, Novelty, Result, SegmentResult
from .version import this_build

GROUP = "paca.commands"
R = TypeVar("R", bound=Result)


# which extra brings a library that only some commands need
EXTRAS = {
    "import onnx": "import",  # of one command
    "torch": "export",
    "onnx": "export",
    "onnxscript": "export",
    "safetensors": "export",
    "sklearn": "train",
}


class Commands(TyperGroup):
    """Collects sub-commands when they are needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(commands())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        point = commands().get(cmd_name)
        if point is None:
            return None
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(cmd_name)(point.load())
        return typer.main.get_command(single)


def commands() -> dict[str, EntryPoint]:
    """The sub-commands of installed packages by name; in a checkout that was never installed, those that its
    pyproject.toml would install."""
    found = {point.name: point for point in entry_points(group=GROUP)}
    project = Path(__file__).parents[1] / "pyproject.toml"
    if "serve" not in found and project.is_file():
        table = tomllib.loads(project.read_text("utf-8"))["project"]["entry-points"][GROUP]
        found |= {name: EntryPoint(name, where, GROUP) for name, where in table.items()}
    return found


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="PaCa-ViT in production: export, serve, explain.",
)


def _show_version(requested: bool) -> None:
    if requested:
        print(this_build())
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Show version, ONNX Runtime, providers."
        ),
    ] = False,
) -> None:
    os.environ["PACA_CLI_DEBUG"] = "1" if debug else ""


def main() -> None:
    """Runs the command line; turns every failure into one line and exit code 1, a missing library into
    exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal's encoding has no letters for
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        app()
    except Exception as error:
        if os.environ.get("PACA_CLI_DEBUG"):
            raise
        if isinstance(error, ModuleNotFoundError) and (extra := _extra(str(error.name).partition(".")[0])):
            _say(
                f"paca: this needs the extra '{extra}' ({error.name} is missing): in the clone, run `make "
                f"setup` or `pip install '.[{extra},cpu]'`"
            )
            sys.exit(2)
        _say(f"paca: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        if isinstance(error, DeviceLost):  # Python's own end would free what lies on the device, and crash
            os._exit(error.exit_code)
        sys.exit(1)


def _extra(library: str) -> str | None:
    """The extra that brings a library to the command that was called."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    return EXTRAS.get(f"{command} {library}") or EXTRAS.get(library)


Model = Annotated[
    Path | None, typer.Option("--model", "-m", help="An exported .onnx. Default: the embedded model.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]
Inputs = Annotated[
    list[str], typer.Argument(help="Pictures, folders of pictures, or - for one picture on standard input.")
]


def _one_of(values: Iterable[str]) -> Any:
    """An option with these values, which the shell's completion offers; whether one is allowed is checked
    where it is used."""
    return typer.Option(help=f"One of: {', '.join(values)}.", autocompletion=lambda: list(values))


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port, 0 = any free one.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="TCP port of gRPC, 0 = off.")] = None,
    models: Annotated[
        Path | None, typer.Option(help="Model repository: <name>/<version>/model.onnx.")
    ] = None,
    provider: Annotated[str | None, _one_of(choices())] = None,
    precision: Annotated[str | None, _one_of(precisions())] = None,
    instances: Annotated[int | None, typer.Option(help="Runs at the same time.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of one run.")] = None,
    workers: Annotated[int | None, typer.Option(help="Server processes.")] = None,
    root_path: Annotated[str | None, typer.Option(help="Path prefix behind a proxy.")] = None,
) -> None:
    """Serve models over HTTP and gRPC. Every setting is a PACA_* variable; flags win over variables."""
    from .api.launch import serve as run
    from .settings import Settings

    flags = {
        key: value for key, value in locals().items() if key in Settings.model_fields and value is not None
    }
    run(_settings(Settings, flags))


def _settings(cls: type, flags: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    try:
        return cls(**flags)
    except ValidationError as error:
        first = error.errors()[0]
        name = "PACA_" + "_".join(map(str, first["loc"])).upper()
        reason = first["msg"].removeprefix("Value error, ")
        raise PacaError(f"{name}={first['input']!r} is not valid: {reason}") from None


def classify(
    inputs: Inputs,
    model: Model = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, max=1000, help="How many classes.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Classify pictures without a server."""
    options = ClassifyOptions(top_k=top_k)
    with _Classes(as_json) as results:
        asyncio.run(
            _each(inputs, model, lambda plane, data: plane.classify([data], options, Call()), results.add)
        )


def explain(
    inputs: Inputs,
    model: Model = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for overlays and reports.")] = Path("out"),
    target: Annotated[
        list[str] | None,
        typer.Option("--target", "-t", help="Class name or id; repeatable. Default: the top class."),
    ] = None,
    contrast: Annotated[
        str | None, typer.Option(help="A class, or runner_up: why the target and not this one.")
    ] = None,
    method: Annotated[str | None, _one_of(METHODS)] = None,
    stage: Annotated[int | None, typer.Option(help="Whose clusters to show.")] = None,
    clusters: Annotated[int, typer.Option(help="How many clusters.")] = 5,
    render: Annotated[
        list[str] | None,
        typer.Option(help=f"Pictures to make, of: {', '.join(RENDERS)}; repeatable."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Also hide what the map shows, and random places, and compare.")
    ] = False,
    colormap: Annotated[str, _one_of(COLORMAPS)] = DEFAULT_COLOUR_MAP,
    fmt: Annotated[str, typer.Option("--format", help=f"One of: {', '.join(FORMATS)}.")] = DEFAULT_FORMAT,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, max=1000)] = 5,
    as_json: AsJson = False,
) -> None:
    """Explain pictures without a server: overlays and a self-contained HTML report each in the folder
    --out."""
    options = ExplainOptions(
        top_k=top_k,
        targets=tuple(target or ()),
        contrast=contrast,
        method=method,
        top_clusters=clusters,
        stage=stage,
        **({"render": render} if render else {}),
        check=check,
        colormap=colormap,
        format=fmt,
    )
    paths = list(_sources(inputs, []))
    names = dict(zip(paths, report_names(paths), strict=True))
    out.mkdir(parents=True, exist_ok=True)
    with _Classes(as_json) as results:

        def receive(path: str, result: ExplainResult | PacaError) -> None:
            results.add(path, result)
            if not isinstance(result, PacaError):
                _write_report(out, names[path], result, colormap)

        asyncio.run(_each(inputs, model, lambda plane, data: plane.explain([data], options, Call()), receive))
    if not as_json:
        _say(f"overlays and reports are in {out}")


def segment(
    inputs: Inputs,
    model: Model = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for maps, overlays and reports.")] = Path(
        "out"
    ),
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", "-c", help="Class name or id to tell of; repeatable. Default: all."),
    ] = None,
    min_area: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out segments of a smaller part of the picture.")
    ] = 0.0,
    alpha: Annotated[float, typer.Option(min=0, max=1, help="Strength of the overlay.")] = 0.6,
    as_json: AsJson = False,
) -> None:
    """Segment pictures without a server: a label map (PNG, a pixel is its class's id), an overlay and a
    self-contained HTML report each in the folder --out."""
    options = SegmentOptions(
        classes=tuple(classes or ()), min_area=min_area, alpha=alpha, render=SEGMENT_RENDERS
    )
    paths = list(_sources(inputs, []))
    names = dict(zip(paths, report_names(paths), strict=True))
    out.mkdir(parents=True, exist_ok=True)
    with _Segments(as_json) as results:

        def receive(path: str, result: SegmentResult | PacaError) -> None:
            results.add(path, result)
            if not isinstance(result, PacaError):
                _write_segments(out, names[path], result)

        asyncio.run(
            _each(
                inputs, model, lambda plane, data: plane.segment([data], options, Call()), receive, "segment"
            )
        )
    if not as_json:
        _say(f"maps, overlays and reports are in {out}")


def inspect(
    model: Annotated[
        Path | None, typer.Argument(help="An exported .onnx. Default: the embedded model.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what an artifact says of itself: variant, labels, sizes, clusters, opset, attention nodes,
    precision, checks passed."""
    from .artifact import readable
    from .engine import Device, Engine

    path = _model_path(model)
    engine = Engine(path, Device("cpu"))
    engine.self_test()
    manifest = json.loads(engine.manifest.to_json())
    if as_json:
        novelty = {"novelty": engine.novelty.facts if engine.novelty else None}
        facts = {"file": path.name, "sha256": engine.sha256, "self_test": "passed", **manifest, **novelty}
        print(json.dumps(facts))
        return
    table = Table(title=escape(path.name), show_header=False)
    shown = (
        "schema",
        "name",
        "variant",
        "task",
        "head",
        "precision",
        "input",
        "channels",
        "dynamic_size",
        "opset",
        "attention_nodes",
        "parameters",
        "macs",
        "temperature",
        "weights_id",
        "checkpoint_sha256",
    )
    for key in shown:
        table.add_row(key.replace("_", " "), escape(readable(manifest[key])))
    p = manifest["preprocessing"]
    table.add_row("image size", f"{p['size'][0]} x {p['size'][1]}, {p['resize']}, {p['interpolation']}")
    labels = manifest["labels"]
    first = ", ".join(labels[:10]) + (" …" if len(labels) > 10 else "")
    table.add_row("labels", escape(f"{len(labels)}: {first}"))
    for stage in manifest["stages"]:
        clusters = (
            f"{stage['clusters']} clusters ({stage['clustering']})" if stage["clusters"] else "no clusters"
        )
        table.add_row(
            f"stage {stage['stage']}",
            f"{stage['grid'][0]} x {stage['grid'][1]} grid, width {stage['dim']}, {stage['blocks']} blocks, "
            f"{clusters}",
        )
    for output in manifest["outputs"]:
        shape = " x ".join(map(str, output["shape"] or ["shape not stated"]))
        tolerance = f", within {readable(output['tolerance'])}" if output["tolerance"] else ""
        table.add_row(f"output {escape(output['name'])}", escape(f"{output['role']}: {shape}{tolerance}"))
    for kind in ("verification", "accuracy", "tools"):
        table.add_row(kind, escape(readable(manifest[kind])))
    table.add_row("novelty", escape(readable(engine.novelty.facts if engine.novelty else None)))
    table.add_row("sha256", engine.sha256)
    table.add_row("self-test", "passed")
    Console().print(table)


def bench(
    url: Annotated[
        str | None,
        typer.Argument(
            help="A running server, e.g. http://127.0.0.1:8000/classify. Default: this machine, without a "
            "server."
        ),
    ] = None,
    model: Model = None,
    image: Annotated[
        Path | None, typer.Option(help="The photo to send. Default: a drawn 640 x 480 JPEG.")
    ] = None,
    connections: Annotated[
        int, typer.Option("--connections", "-c", min=1, max=1024, help="Requests in flight.")
    ] = 16,
    seconds: Annotated[float, typer.Option(min=0.5, max=600, help="How long to measure.")] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Measure the engine on this machine, or load-test a running server."""
    from . import bench as measure
    from .engine import Device

    photo = _photo(image)
    if url:
        done = measure.load(url, photo, connections=connections, seconds=seconds)
        values: dict[str, Any] = {
            "answers a second": round(done.rate, 1),
            **{f"p{int(100 * q)} ms": round(done.percentile(q), 2) for q in (0.5, 0.95, 0.99)},
            **{f"status {status}": count for status, count in sorted(done.statuses.items())},
            "failed connections": done.failures,
        }
    else:
        values = {
            f"{step}, ms": round(ms, 2)
            for step, ms in measure.steps(_model_path(model), Device("cpu"), photo, seconds / 3).items()
        }
    if as_json:
        print(json.dumps(values))
        return
    table = Table(show_header=False)
    for key, value in values.items():
        table.add_row(key, str(value))
    Console().print(table)


def tune(
    model: Model = None,
    image: Annotated[
        Path | None, typer.Option(help="The photo to measure with. Default: a drawn 640 x 480 JPEG.")
    ] = None,
    goal: Annotated[str, typer.Option("--for", help="throughput or latency.")] = "throughput",
    seconds: Annotated[float, typer.Option(min=0.2, max=60, help="Per setting.")] = 3.0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Env file to write, for `docker compose --env-file` or `set -a; . FILE`."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the instances x threads x batch that suit this machine, by measuring them."""
    from . import bench as measure

    if goal not in ("throughput", "latency"):
        raise PacaError("--for must be throughput or latency")
    found = []
    settings = measure.candidates()
    err = Console(stderr=True)
    with err.status("measuring") as status:
        for result in measure.tune(_model_path(model), _photo(image), seconds, settings):
            found.append(result)
            status.update(f"measuring {len(found)} of {len(settings)}")
    chosen = measure.best(found, goal)
    if out:
        write_text(out, measure.environment(chosen.setting))
    if as_json:
        rows = [{**vars(m.setting), "rate": m.rate, "p50_ms": m.p50} for m in found]
        print(json.dumps({"best": vars(chosen.setting), "for": goal, "measured": rows}))
        return
    table = Table("instances", "threads", "batch", "pictures/s", "p50 ms", "")
    for m in found:
        mark = f"best for {goal}" if m is chosen else ""
        table.add_row(
            str(m.setting.instances),
            str(m.setting.threads),
            str(m.setting.max_batch),
            f"{m.rate:.1f}",
            f"{m.p50:.1f}",
            mark,
        )
    Console().print(table)
    print(measure.environment(chosen.setting), end="")


def _photo(path: Path | None) -> bytes:
    from .bench import sample

    return path.read_bytes() if path else sample()


def _model_path(model: Path | None) -> Path:
    from .repository import embedded, find, names

    return model or find(embedded(), names(embedded())[0]).model


def _sources(inputs: Sequence[str], left_out: list[str]) -> Iterator[str]:
    """The pictures' files that `inputs` name, one at a time, "-" for standard input; what a folder holds
    besides goes into `left_out`. PacaError for a name that is nothing, or where no picture is found."""
    from .folders import LeftOut, walk
    from .images import accepted

    for name in inputs:
        if name != "-" and not os.path.exists(name):
            raise PacaError(f"{name} is neither a file nor a folder")
    empty = True
    for name in inputs:
        for item in walk(Path(name)) if os.path.isdir(name) else [Path(name)]:
            if isinstance(item, LeftOut):
                left_out.append(f"{Path(name) / item.path}: {item.reason}")
            else:
                empty = False
                yield str(item)
    if empty:
        raise PacaError(f"no pictures found; name {accepted()} files, or folders with some in them")


def report_names(paths: Sequence[str]) -> list[str]:
    """A file name without suffix for the report of each picture, no two alike in any file system: its own,
    with as many of its folders before it as tell it from the others, and a number where they do not."""
    parts = [_parts(path) for path in paths]
    names = [part[-1] for part in parts]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        alike = Counter(map(_folded, names))
        names = [
            "-".join(part[-depth:]) if alike[_folded(name)] > 1 else name
            for name, part in zip(names, parts, strict=True)
        ]
    taken: set[str] = set()
    for i, name in enumerate(names):
        number = 2
        while _folded(names[i]) in taken:
            names[i] = f"{name}-{number}"
            number += 1
        taken.add(_folded(names[i]))
    return names


def _parts(path: str) -> tuple[str, ...]:
    if path == "-":
        return ("stdin",)
    folders = [part for part in Path(path).parent.parts if part not in ("/", "..")]
    return (*folders, Path(path).stem)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


async def _each(
    inputs: Sequence[str],
    model: Path | None,
    run: Callable[[DataPlane, bytes], Awaitable[list[R | PacaError]]],
    receive: Callable[[str, R | PacaError], None],
    job: str = "classify",
) -> None:
    """Runs one picture after the other and gives its name and result, or what was wrong with it, to `receive`
    at once: never more than one picture is held. job: what an embedded model must be able to do."""
    from .folders import summary
    from .predictor import Predictor

    left_out: list[str] = []
    sources = _sources(inputs, left_out)
    first = next(sources)
    if model is not None and not model.is_file():
        raise PacaError(f"{model} is not a file; make a model with `paca export`")
    predictor = Predictor.open(model, job=job)
    try:
        plane = DataPlane(OneModel(predictor))
        for name in itertools.chain([first], sources):
            receive(name, await _one(plane, name, run))
    finally:
        await predictor.close()
        for line in summary(left_out):
            _say(f"left out: {line}")


async def _one(
    plane: DataPlane,
    name: str,
    run: Callable[[DataPlane, bytes], Awaitable[list[R | PacaError]]],
) -> R | PacaError:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        return BadImage(f"cannot be read: {error.strerror}")
    [result] = await run(plane, data)
    return result


def _write_report(out: Path, stem: str, result: ExplainResult, colormap: str) -> None:
    from .report import render_report

    write_text(out / f"{stem}.html", render_report(result, colormap))
    for explanation in result.explanations:
        for kind, picture in explanation.images.items():
            label = explanation.target.class_id if explanation.target else "all"
            suffix = picture.mime.removeprefix("image/")
            (out / f"{stem}.{label}.{kind}.{suffix}").write_bytes(picture.data)


def _write_segments(out: Path, stem: str, result: SegmentResult) -> None:
    from .segment_report import segment_report

    write_text(out / f"{stem}.html", segment_report(result))
    pictures = {"map": result.map, **result.images}
    pictures |= {f"{s.class_id}.cluster": s.cluster for s in result.segments if s.cluster}
    for kind, picture in pictures.items():
        (out / f"{stem}.{kind}.{picture.mime.removeprefix('image/')}").write_bytes(picture.data)


def _say(text: str) -> None:
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


class _Results(Generic[R]):
    """Prints results: JSON lines as they come, or one table at the end. Leaving it raises the last PacaError
    of a picture, so that the exit code says that one failed."""

    columns = ("picture", "class", "score", "then")

    def __init__(self, as_json: bool) -> None:
        self._table = None if as_json else Table(*self.columns)
        self._failure: PacaError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, _: object) -> None:
        if self._table is not None and self._table.row_count:
            Console().print(self._table)
        if self._failure and error is None:
            raise self._failure

    def add(self, name: str, result: R | PacaError) -> None:
        """Takes one picture's result."""
        if isinstance(result, PacaError):
            self._failure = PacaError(f"{name}: {result}")
            if self._table is None:
                print(json.dumps({"file": name, "error": str(result)}), flush=True)
            else:
                self._table.add_row(escape(Path(name).name), "[red]failed[/red]", "", escape(str(result)))
        elif self._table is None:
            common = {"file": name, "model": result.model, "model_version": result.model_version}
            warnings = {"warnings": list(result.warnings)} if result.warnings else {}
            print(json.dumps({**common, **self.members(result), **warnings}), flush=True)
        else:
            self._table.add_row(escape(Path(name).name), *self.cells(result))

    def members(self, result: R) -> dict[str, Any]:
        """A result in JSON."""
        raise NotImplementedError

    def cells(self, result: R) -> tuple[str, ...]:
        """A result in the table, after the picture's name."""
        raise NotImplementedError


class _Classes(_Results[Classification]):
    """Of classify and explain."""

    def members(self, result: Classification) -> dict[str, Any]:
        return {
            "predictions": [vars(prediction) for prediction in result.predictions],
            **({"novelty": _novelty(result.novelty)} if result.novelty else {}),
            **({"checks": checks} if (checks := _checks(result)) else {}),
        }

    def cells(self, result: Classification) -> tuple[str, ...]:
        first, *rest = result.predictions
        then = ", ".join(f"{p.label} {p.score:.3f}" for p in rest[:3])
        novel = result.novelty and result.novelty.is_novel
        doubt = "[yellow]perhaps none of these[/yellow] " if novel else ""
        return escape(first.label), f"{first.score:.3f}", doubt + escape(then)


class _Segments(_Results[SegmentResult]):
    """Of segment."""

    columns = ("picture", "largest", "area", "then")

    def members(self, result: SegmentResult) -> dict[str, Any]:
        told = ("label", "class_id", "area", "pixels", "bbox", "score")
        return {"segments": [{name: getattr(s, name) for name in told} for s in result.segments]}

    def cells(self, result: SegmentResult) -> tuple[str, ...]:
        if not result.segments:
            return "none", "", ""
        first, *rest = result.segments
        then = ", ".join(f"{s.label} {100 * s.area:.1f} %" for s in rest[:5])
        return escape(first.label), f"{100 * first.area:.1f} %", escape(then)


def _novelty(novelty: Novelty) -> dict[str, Any]:
    return {**vars(novelty), "is_novel": novelty.is_novel}


def _checks(result: Classification) -> list[dict[str, Any]]:
    """What `--check` found, a row for each explained class."""
    explanations = result.explanations if isinstance(result, ExplainResult) else ()
    return [{"label": e.target.label, **vars(e.check)} for e in explanations if e.check and e.target]
