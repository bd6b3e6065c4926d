"""Which file runs unasked: only one that was judged, on a processor that has the instructions for it."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from service import onnx_file, precision
from service.artifact import MANIFEST_KEY, Gates, Golden, Manifest
from service.errors import BadArtifact, ProviderUnavailable
from service.precision import Candidates, Choice, Machine, flags_of, load_best
from service.predictor import Predictor
from service.repository import AUTO, ModelFiles, embedded, find
from service.settings import Settings
from service.wiring import build_registry

GOOD = Gates(pictures=500, agreement=0.99, points_lost=0.5)
VNNI = Machine(frozenset({"avx2", "avx512_vnni"}))
PLAIN = Machine(frozenset({"avx2", "fma"}))
X86 = """processor\t: 0
model name\t: Some Processor with amx_int8 in its name
flags\t\t: fpu avx2 avx512_vnni amx_int8

processor\t: 1
flags\t\t: fpu avx2 avx512_vnni
"""
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\n"


def reduced(files: ModelFiles, gates: Gates | None, **changed: Any) -> ModelFiles:
    """The version with a file that says it is in 8 bits and was judged so."""
    model = onnx.load(files.model)
    (entry,) = (p for p in model.metadata_props if p.key == MANIFEST_KEY)
    manifest = dataclasses.replace(Manifest.from_json(entry.value), precision="int8", gates=gates, **changed)
    entry.value = manifest.to_json()
    files.of("int8").model.write_bytes(model.SerializeToString())
    return files


@pytest.fixture
def files(repository: Path) -> ModelFiles:
    return dataclasses.replace(find(repository, "tiny"), explain=None)


@pytest.mark.parametrize(
    ("cpuinfo", "flags"),
    [
        (X86, {"fpu", "avx2", "avx512_vnni"}),  # what only one of the cores has does not count
        (ARM, {"fp", "asimd", "asimddp"}),
        ("machine\t: PowerMac\n", None),
    ],
    ids=["x86", "Arm", "neither"],
)
def test_flags_are_those_of_all_cores(cpuinfo: str, flags: set[str] | None) -> None:
    assert flags_of(cpuinfo) == flags


def test_the_flags_of_this_machine_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(ARM)
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
    assert "asimddp" in (Machine.this().flags or ())
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "absent")
    assert Machine.this() == Machine(None)


@pytest.mark.parametrize("flag", ["avx512_vnni", "avx_vnni", "amx_int8", "asimddp"])
def test_a_judged_file_runs_in_8_bits_where_the_processor_has_dot_products(
    files: ModelFiles, flag: str
) -> None:
    reduced(files, GOOD)
    chosen = Candidates(files, Machine(frozenset({flag}))).choose(AUTO, "cpu")
    assert (chosen.precision, chosen.may_fall_back) == ("int8", True)
    assert flag in chosen.reason
    assert "99.0 % of 500 labelled pictures and loses 0.50 points" in chosen.reason


@pytest.mark.parametrize(
    ("gates", "machine", "reason"),
    [
        (GOOD, PLAIN, "no 8-bit dot products"),
        (GOOD, Machine(None), "does not tell"),
        (None, VNNI, "never judged on labelled pictures"),
        (dataclasses.replace(GOOD, pictures=499), VNNI, "of 499 labelled pictures .* at least 500"),
        (dataclasses.replace(GOOD, agreement=0.989), VNNI, r"98\.9 %.* needed are 99 %"),
        (dataclasses.replace(GOOD, points_lost=0.51), VNNI, r"loses 0\.51 points.* at most 0\.5"),
    ],
    ids=["no instructions", "unknown processor", "not judged", "too few", "disagrees", "loses"],
)
def test_otherwise_it_is_fp32_and_the_reason_is_said(
    files: ModelFiles, gates: Gates | None, machine: Machine, reason: str
) -> None:
    reduced(files, gates)
    chosen = Candidates(files, machine).choose(AUTO, "cpu")
    assert chosen.precision == "fp32"
    assert chosen.reason.startswith("not int8: ")
    assert re.search(reason, chosen.reason)


def test_a_file_that_cannot_be_read_is_a_reason_too(files: ModelFiles) -> None:
    files.of("int8").model.write_bytes(b"half a file")
    chosen = Candidates(files, VNNI).choose(AUTO, "cpu")
    assert chosen == Choice("fp32", "not int8: model.int8.onnx is not an ONNX file, or not whole")


def test_on_cuda_half_precision_runs_where_it_is_there_and_8_bits_never(files: ModelFiles) -> None:
    reduced(files, GOOD)
    assert Candidates(files, VNNI).choose(AUTO, "cuda") == Choice(
        "fp32", "not fp16: there is no model.fp16.onnx"
    )
    files.of("fp16").model.write_bytes(b"whatever: its self-test comes at loading")
    assert Candidates(files, VNNI).choose(AUTO, "cuda").precision == "fp16"
    with pytest.raises(BadArtifact, match="int8 is not served on cuda"):
        Candidates(files, VNNI).choose("int8", "cuda")


def test_what_is_set_runs_whatever_was_judged(files: ModelFiles) -> None:
    reduced(files, None)
    chosen = Candidates(files, PLAIN).choose("int8", "cpu")
    assert (chosen.precision, chosen.may_fall_back) == ("int8", False)


def test_the_embedded_model_runs_in_8_bits_where_there_are_dot_products() -> None:
    files = find(embedded(), "imagenette")
    assert Candidates(files, VNNI).choose(AUTO, "cpu").precision == "int8"
    assert Candidates(files, PLAIN).choose(AUTO, "cpu").precision == "fp32"


@pytest.fixture
def vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "this", lambda: VNNI)


@pytest.mark.usefixtures("vnni")
def test_a_provider_that_cannot_be_used_gives_way_to_the_next_with_its_own_choice(files: ModelFiles) -> None:
    reduced(files, GOOD)
    tried: list[tuple[str, str]] = []

    def load(chosen: ModelFiles, provider: str) -> str:
        tried.append((chosen.model.name, provider))
        if provider == "cuda":
            raise ProviderUnavailable("no driver")
        return provider

    loaded, choice = load_best(files, AUTO, ("cuda", "cpu"), load)
    assert (loaded, choice.precision) == ("cpu", "int8")
    assert tried == [("model.onnx", "cuda"), ("model.int8.onnx", "cpu")]
    with pytest.raises(ProviderUnavailable):
        load_best(files, AUTO, ("cuda",), load)


def golden_of(files: ModelFiles) -> Golden:
    golden = Manifest.from_metadata(onnx_file.metadata(files.model)).golden
    assert golden is not None
    return golden


def served(folder: Path, **settings: Any) -> tuple[str, str, str]:
    """(file, precision, reason) of what a server loads."""

    async def main() -> tuple[str, str, str]:
        registry = build_registry(Settings(models=folder, provider="cpu", instances=1, **settings))
        await registry.start()
        try:
            predictor: Predictor = registry.get()
            return predictor._engine._session._path.name, predictor.precision, predictor.precision_reason
        finally:
            await registry.close()

    return asyncio.run(main())


@pytest.mark.usefixtures("vnni")
def test_the_server_runs_8_bits_unasked_and_says_why(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "paca.registry")
    files = find(repository, "tiny")
    files.model.with_name("explain.onnx").unlink()
    reduced(files, GOOD)
    name, runs, reason = served(repository)
    assert (name, runs) == ("model.int8.onnx", "int8")
    assert "avx512_vnni" in reason
    assert f"loaded model tiny version 1 on cpu, int8 ({reason})" in caplog.text


Spoil = Callable[[ModelFiles], object]


@pytest.mark.usefixtures("vnni")
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda files: reduced(
                files,
                GOOD,
                golden=dataclasses.replace(golden_of(files), logits=(99.0,)),
            ),
            "golden picture's logits are",
        ),
        (lambda files: reduced(files, GOOD), "explain.onnx goes with fp32 files, not with int8"),
    ],
    ids=["golden picture", "golden maps"],
)
def test_8_bits_that_fail_their_self_test_here_give_way_to_fp32(
    repository: Path, spoil: Spoil, reason: str
) -> None:
    spoil(find(repository, "tiny"))
    name, runs, told = served(repository)
    assert (name, runs) == ("model.onnx", "fp32")
    assert told.startswith("not int8: ")
    assert reason in told
    with pytest.raises(Exception, match=reason):
        served(repository, precision="int8")


@pytest.mark.usefixtures("vnni")
def test_a_version_in_8_bits_alone_is_served_once_it_is_judged(repository: Path) -> None:
    files = find(repository, "tiny")
    files.model.with_name("explain.onnx").unlink()
    reduced(files, None)
    files.model.unlink()
    with pytest.raises(Exception, match=r"there is no model\.onnx.*never judged"):
        served(repository)
    (repository / "tiny" / "1" / "config.json").write_text('{"precision": "int8"}')
    assert served(repository)[1] == "int8"
