"""Networks that nobody here wrote, each imported, served and explained, with seeded random weights: what
structure was found, and at what cost. It tests structure, not skill.

    python benchmarks/import_zoo.py [NAME ...] [--save]

`light_*` are the graphs of the onnx package's own test data; the others are made by transformers from their
configurations and exported by torch. --save writes the table into docs/import.md.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import gc
import io
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from PIL import Image

from export.importing.run import Request, run
from service.options import ExplainOptions
from service.predictor import Predictor

DOCS = Path(__file__).parents[1] / "docs" / "import.md"
START, END = "<!-- import-zoo -->", "<!-- /import-zoo -->"
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
SIDE = 224
CASES = {"linear": "exact", "first_order": "first order", "none": "none"}
# what each is by its paper: the row fails where another case is recognised
EXPECTED = {
    "light_resnet50": "linear",
    "light_densenet121": "linear",
    "light_inception_v1": "linear",
    "light_inception_v2": "linear",
    "light_squeezenet": "linear",
    "light_shufflenet": "linear",
    "light_vgg19": "none",
    "light_bvlc_alexnet": "none",
    "light_zfnet512": "none",
    "ResNet": "linear",
    "RegNet": "linear",
    "ConvNext": "first_order",
    "ConvNextV2": "first_order",
    "MobileNetV1": "linear",
    "MobileNetV2": "linear",
    "Swin": "linear",
    "Swinv2": "linear",
    "ViT": "none",
    "DeiT": "none",
    "Beit": "first_order",
    "Pvt": "none",
    "PoolFormer": "linear",
    "Cvt": "linear",
}
# smaller than published, where the published one is large: structure is what is looked at
SMALLER: dict[str, dict[str, Any]] = {
    "ResNet": {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]},
    "RegNet": {"hidden_sizes": [32, 64, 160, 384], "depths": [2, 2, 4, 2], "groups_width": 16},
    "ConvNext": {"depths": [2, 2, 4, 2]},
    "ConvNextV2": {"hidden_sizes": [40, 80, 160, 320], "depths": [2, 2, 6, 2]},
    "Swin": {"depths": [2, 2, 2, 2], "num_heads": [3, 6, 12, 24]},
    "Swinv2": {"depths": [2, 2, 2, 2], "image_size": 256, "window_size": 8},
    "ViT": {"num_hidden_layers": 4, "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
    "DeiT": {"num_hidden_layers": 4, "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
    "Beit": {"num_hidden_layers": 4, "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="Rows to run; all by default.")
    parser.add_argument("--save", action="store_true", help="Write the table into docs/import.md.")
    parser.add_argument("--rows", type=Path, default=Path("build/import-zoo.json"), help="Rows so far.")
    options = parser.parse_args()
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(options.rows.read_text()) if options.rows.is_file() else {}
    for name in options.names or [name for name in EXPECTED if name not in rows]:
        rows[name] = _row(name)
        print(name, json.dumps(rows[name]), flush=True)
        options.rows.write_text(json.dumps(rows))
        gc.collect()
    if options.save:
        text = DOCS.read_text()
        before, rest = text.split(START)
        DOCS.write_text(before + START + "\n" + _table(rows) + END + rest.split(END)[1])


def _row(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"{name}.onnx"
        try:
            _make(name, source)
        except Exception as error:  # libraries of others, at whatever version
            return {"problem": f"not made: {_line(error)}"}
        try:
            began = time.monotonic()
            report = run(Request(source=source, out=Path(folder) / "zoo" / "1" / "model.onnx"))
            seconds = time.monotonic() - began
            served = asyncio.run(_served(report.path))
        except Exception as error:  # a row that fails is a row
            return {"problem": _line(error)}
    if report.end.head != EXPECTED[name]:
        return {"problem": f"wrong case: {report.end.reason}"}
    checks = report.manifest.verification
    return {
        "case": report.end.head,
        "reason": report.end.reason,
        "batch": "any" if len(checks["batches"]) > 1 else "1",
        "difference": checks["difference"]["logits"],
        "account": checks.get("completeness", checks.get("slopes")),
        "parameters": report.manifest.parameters,
        "macs": report.manifest.macs,
        "seconds": seconds,
        **served,
    }


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:150]}"


def _make(name: str, path: Path) -> None:
    if name.startswith("light_"):
        onnx.save(_filled(onnx.load(LIGHT / f"{name}.onnx")), path)
    else:
        _from_transformers(name, path)


def _filled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The weights of these files are constants, which would make every answer the same: seeded random numbers
    take their place, of the size that their layer wants."""
    random = np.random.default_rng(0)
    readers: dict[str, tuple[onnx.NodeProto, int]] = {}
    for node in model.graph.node:
        for index, tensor in enumerate(node.input):
            readers.setdefault(tensor, (node, index))
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        reader, index = readers[node.output[0]]
        while reader.op_type == "Unsqueeze":
            reader, index = readers[reader.output[0]]
        shape = tuple(int(size) for size in constants[node.input[0]])
        values = _values(random, reader.op_type, index, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.ir_version = 8
    _calmed(model)
    return model


def _calmed(model: onnx.ModelProto) -> None:
    """Random networks without training make huge numbers: the last layer is divided by what it makes of
    noise."""
    last = next(node for node in reversed(model.graph.node) if node.op_type in ("Gemm", "Conv"))
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.append(helper.make_tensor_value_info(last.output[0], onnx.TensorProto.FLOAT, None))
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    session = onnxruntime.InferenceSession(probe.SerializeToString(), quiet, ["CPUExecutionProvider"])
    weights = {tensor.name for tensor in model.graph.initializer}
    name = next(i.name for i in session.get_inputs() if i.name not in weights)
    noise = np.random.default_rng(1).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)
    spread = float(np.std(session.run([last.output[0]], {name: noise})[0])) or 1.0
    for tensor in model.graph.initializer:
        if tensor.name in last.input[1:2]:
            values = (numpy_helper.to_array(tensor) * (3 / spread)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _values(random: np.random.Generator, kind: str, index: int, shape: tuple[int, ...]) -> np.ndarray:
    if kind in ("Conv", "Gemm") and index == 1:
        fan_in = int(np.prod(shape[1:]))
        return random.normal(size=shape) * np.sqrt(2 / fan_in)
    if kind == "Mul" or (kind == "BatchNormalization" and index in (1, 4)):
        return random.uniform(0.8, 1.2, size=shape)
    return random.normal(size=shape) * 0.05


def _from_transformers(name: str, path: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SMALLER.get(name, {}))
    config.num_labels = 1000
    network = getattr(transformers, f"{name}ForImageClassification")(config).eval()
    for module in network.modules():  # libraries' own random weights fade to nothing over many layers
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight)
    side = getattr(config, "image_size", SIDE)
    side = side if isinstance(side, int) else SIDE
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    if norms:  # they take the statistics of one batch of noise
        with torch.no_grad():
            network.train()(torch.randn(4, 3, side, side))
    network.eval()

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.network(pixel_values=pixel_values, return_dict=True).logits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _export(Logits(), path, side, batch=2)
        except Exception:  # some networks can be exported for one batch size alone
            _export(Logits(), path, side, batch=1)


def _export(network: Any, path: Path, side: int, batch: int) -> None:
    """batch: 1 fixes it, more leave it free."""
    import torch

    free = ({0: torch.export.Dim("batch", min=1, max=64)},) if batch > 1 else None
    torch.onnx.export(
        network.eval(),
        (torch.zeros(batch, 3, side, side),),
        path,
        dynamo=True,
        external_data=False,
        verbose=False,
        dynamic_shapes=free,
        input_names=["pixel_values"],
        output_names=["logits"],
    )


async def _served(path: Path) -> dict[str, Any]:
    """Through the server's own predictor: what answers, and what it costs beside a classification."""
    random = np.random.default_rng(0)
    buffer = io.BytesIO()
    small = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
    small.resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    predictor = Predictor.open(path)
    classified = await predictor.classify(buffer.getvalue())
    result = await predictor.explain(buffer.getvalue(), ExplainOptions(check=True))
    explanation = result.explanations[0]
    await predictor.close()
    return {
        "method": explanation.method.name,
        "residual": abs(explanation.completeness.residual) if explanation.completeness else None,
        "parts": len(explanation.parts),
        "classify_ms": classified.timings.total,
        "explain_ms": result.timings.total,
    }


def _table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| network | parameters | GMAC | case | how it ends | batch | logits off | account off | answers | "
        "explain / classify ms |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if "problem" in row:
            lines.append(f"| {name} | | | **failed** | {row['problem']} | | | | | |")
            continue
        account = "" if row["account"] is None else f"{row['account']:.1g}"
        lines.append(
            f"| {name} | {row['parameters'] / 1e6:.1f} M | {row['macs'] / 1e9:.2f} | {CASES[row['case']]} | "
            f"{row['reason'].partition(': ')[2]} | {row['batch']} | {row['difference']:.1g} | {account} | "
            f"{row['method']} | {row['explain_ms']:.0f} / {row['classify_ms']:.0f} |"
        )
    done = sum("problem" not in row for row in rows.values())
    lines += [
        "",
        f"{done} of {len(rows)} imported, served and explained with the case that their papers say.",
        "*Logits off*: the original file on floats against ours on bytes, relative.",
        "*Account off*, relative: exact = parts and bias against the logit; first order = slopes against "
        "finite differences.",
        "*Explain* includes `check=true` and, where occlusion answers, its 64 runs; the machine was busy.",
        "",
        f"`make import-zoo`, {datetime.datetime.now(datetime.UTC).date()}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
