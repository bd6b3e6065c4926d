"""`paca export` on the command line: its result is printed once, for people or for machines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from export import cli, pipeline
from export.pipeline import ExportReport, Request
from export.verify import Verification
from service.engine import Device, Engine


@pytest.fixture
def requests(tiny_repository: Path, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """What was asked of the exporter, which answers with a report of the tiny model in no time."""
    path = tiny_repository / "tiny" / "1" / "model.onnx"
    manifest = Engine(path, Device("cpu")).manifest
    checks = Verification(23, 100, 3, 2, (1, 3, 8), ((32, 32),), {"logits": 1.23456789e-7}, {"logits": 2e-5})
    received: list[Request] = []

    def run(request: Request, say: object) -> ExportReport:
        received.append(request)
        return ExportReport(path, manifest, checks, 123_456, None, "a single stage", ("a note",))

    monkeypatch.setattr(pipeline, "run", run)
    return received


def test_machines_get_one_line_of_json(requests: list[Request], capsys: pytest.CaptureFixture[str]) -> None:
    known, foreign = Path("known"), Path("foreign.npz")
    cli.export(
        "paca_small_128",
        out=Path("m.onnx"),
        precision="fp16",
        trained_on="leaves",
        reference=known,
        foreign=foreign,
    )
    shown = capsys.readouterr()
    assert json.loads(shown.out)["name"] == "tiny"
    assert shown.err == ""
    (request,) = requests
    assert (request.variant, request.out, request.trained_on) == ("paca_small_128", Path("m.onnx"), "leaves")
    assert request.format.precision == "fp16"
    assert (request.format.reference, request.format.foreign) == (known, foreign)


@pytest.mark.usefixtures("requests")
def test_people_get_a_table_with_four_digits_and_nothing_twice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    cli.export("paca_small_128")
    shown = capsys.readouterr().out
    assert shown.count("attention nodes") == 1
    assert "1.235e-07" in shown
    assert "123,456" in shown
    assert "{" not in shown
