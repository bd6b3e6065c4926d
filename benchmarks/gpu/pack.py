"""What a borrowed machine without network needs to run `run.py`, in folders of at most 60 MiB, one a call.

    python benchmarks/gpu/pack.py [--python 3.12]   here: wheels and models into build/gpu/parts/
    python benchmarks/gpu/pack.py --unpack          there: joined and checked, installed into build/gpu/site,
                                                    models into build/gpu/models

PyTorch and CUDA's libraries are too large to carry: that machine has to have them. Models go without their
random weights, of which only mean and deviation are kept. There they are drawn anew, and the logits that the
self-test expects are measured anew on that machine's CPU: what the GPU gives is compared with them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "gpu"
PARTS, MODELS, SITE = FOLDER / "parts", FOLDER / "models", FOLDER / "site"
PART_BYTES = 60 * 2**20
PACKAGES = ("onnxruntime-gpu", "onnx", "psutil", "packaging")  # beside what the server needs
LARGE = 256  # elements; smaller tensors are kept as they are
STATISTICS = "paca.bench.statistics"  # of a model without weights: name → [mean, deviation]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--unpack", action="store_true")
    parser.add_argument("--python", default=f"{sys.version_info.major}.{sys.version_info.minor}")
    requested = parser.parse_args()
    sys.path[:0] = [str(ROOT)]
    if requested.unpack:
        unpack()
    else:
        pack(requested.python)


def pack(python: str) -> None:
    """Writes the parts."""
    cargo = FOLDER / "cargo"
    shutil.rmtree(cargo, ignore_errors=True)
    shutil.rmtree(PARTS, ignore_errors=True)
    (cargo / "wheels").mkdir(parents=True)
    download(cargo / "wheels", python)
    for path in sorted(MODELS.glob("*/1/model*.onnx")):
        target = cargo / path.relative_to(FOLDER)
        target.parent.mkdir(parents=True, exist_ok=True)
        freeze(path, target)
    archive = FOLDER / "cargo.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(cargo, ".")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    names: list[str] = []
    with archive.open("rb") as file:
        while chunk := file.read(PART_BYTES):
            part = PARTS / f"{len(names):02}" / "part"
            part.parent.mkdir(parents=True)
            part.write_bytes(chunk)
            names.append(part.parent.name)
    for name in names:
        (PARTS / name / "all.json").write_text(json.dumps({"parts": names, "sha256": digest}))
    print(f"{len(names)} parts in {PARTS}, {archive.stat().st_size / 2**20:.0f} MiB in all")


def download(folder: Path, python: str) -> None:
    """The server's packages and ONNX Runtime's for GPUs, without CUDA's own libraries."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:"),
            *("--python-version", python, "--dest", str(folder), "-c", str(ROOT / "constraints.txt")),
            *project["dependencies"],
            *PACKAGES,
        ],
        check=True,
    )


def freeze(path: Path, target: Path) -> None:
    """A model without its large weights."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    from service.artifact import HEAD_KEY, Head, Manifest

    model = onnx.load(path)
    statistics: dict[str, list[float]] = {}
    for tensor in _weights(model):
        values = numpy_helper.to_array(tensor).astype(np.float64)
        statistics[tensor.name] = [float(values.mean()), float(values.std())]
        tensor.ClearField("raw_data")
    metadata = {prop.key: prop for prop in model.metadata_props}
    labels = len(Manifest.from_metadata({key: prop.value for key, prop in metadata.items()}).labels)
    head = Head.from_metadata({HEAD_KEY: metadata[HEAD_KEY].value}, labels)
    metadata[HEAD_KEY].value = Head(np.zeros_like(head.weight), np.zeros_like(head.bias)).to_text()
    model.metadata_props.add(key=STATISTICS, value=json.dumps(statistics))
    onnx.save(model, target)


def _weights(model: Any) -> Iterator[Any]:
    """Large tensors of floats that lie in raw bytes."""
    import math

    from onnx import TensorProto

    floats = (TensorProto.FLOAT, TensorProto.FLOAT16)
    for tensor in model.graph.initializer:
        if tensor.data_type in floats and math.prod(tensor.dims) > LARGE:
            yield tensor


def thaw(frozen: Path, target: Path) -> None:
    """Draws the weights of a frozen model, and measures what its self-test expects on this CPU."""
    import numpy as np
    import onnx
    from onnx import helper

    from service.artifact import MANIFEST_KEY, golden_picture
    from service.engine import Device, Engine

    model = onnx.load(frozen)
    metadata = {prop.key: prop for prop in model.metadata_props}
    statistics = json.loads(metadata[STATISTICS].value)
    for tensor in _weights(model):
        mean, deviation = statistics[tensor.name]
        rng = np.random.default_rng(zlib.crc32(tensor.name.encode()))
        kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        tensor.raw_data = rng.normal(mean, deviation, tuple(tensor.dims)).astype(kind).tobytes()
    model.metadata_props.remove(metadata[STATISTICS])
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, target)
    engine = Engine(target, Device("cpu"))
    manifest = engine.manifest
    if manifest.golden:
        picture = golden_picture(manifest.preprocessing.size, manifest.golden.seed)
        logits = engine.run(picture[None]).logits[0]
        golden = replace(
            manifest.golden,
            top=int(logits.argmax()),
            logits=tuple(map(float, logits[: len(manifest.golden.logits)])),
        )
        metadata[MANIFEST_KEY].value = replace(manifest, golden=golden).to_json()
        onnx.save(model, target)


def unpack() -> None:
    """Installs the packages and makes the models."""
    told = json.loads(next(PARTS.glob("*/all.json")).read_text())
    archive = FOLDER / "cargo.tar.gz"
    with archive.open("wb") as file:
        for name in told["parts"]:
            file.write((PARTS / name / "part").read_bytes())
    if hashlib.sha256(archive.read_bytes()).hexdigest() != told["sha256"]:
        sys.exit(f"the parts in {PARTS} do not belong together, or one is damaged; carry them again")
    cargo = FOLDER / "cargo"
    shutil.rmtree(cargo, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(cargo, filter="data")
    wheels = sorted(str(path) for path in (cargo / "wheels").glob("*.whl"))
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"),
            *("--upgrade", "--target", str(SITE), *wheels),
        ],
        check=True,
    )
    sys.path.insert(0, str(SITE))
    for path in sorted((cargo / "models").glob("*/1/*.onnx")):
        thaw(path, MODELS / path.relative_to(cargo / "models"))
        print(f"{path.parent.parent.name} {path.name}: ready")


if __name__ == "__main__":
    main()
