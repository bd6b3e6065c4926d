"""Which file of a version runs: the rule of `PACA_PRECISION`, as a table. Opens no session.

A provider's row says which smaller number formats pay there, `NEEDS` what must hold before one of them runs
unasked. The first of which all holds is loaded; where it then fails its self-test, the next one is, and fp32
in the end. Every choice comes with its reason, for /models and the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from . import onnx_file
from .artifact import Manifest
from .errors import BadArtifact, ProviderUnavailable
from .providers import PROVIDERS
from .repository import AUTO, FILES, ModelFiles

log = logging.getLogger("paca.precision")
FULL = "fp32"  # always allowed, and what the others are judged by
LEAST_PICTURES = 500
LEAST_AGREEMENT = 0.99
MOST_POINTS_LOST = 0.5
# Of /proc/cpuinfo: four 8-bit products and their sum in one instruction. AMX and VNNI of Intel and AMD,
# dotprod of Arm.
INT8_PRODUCTS = ("amx_int8", "avx512_vnni", "avx_vnni", "asimddp")
CPUINFO = Path("/proc/cpuinfo")
CPUINFO_FLAGS = ("flags", "Features")  # what x86 and Arm call them
T = TypeVar("T")


def choices() -> tuple[str, ...]:
    """What `PACA_PRECISION` may say."""
    return (AUTO, *FILES)


@dataclass(frozen=True)
class Choice:
    """precision: a key of FILES. reason: why it runs. may_fall_back: whether another may take its place where
    it fails."""

    precision: str
    reason: str
    may_fall_back: bool = False


@dataclass(frozen=True)
class Finding:
    """Whether a need holds, and what was found, in words."""

    holds: bool
    text: str


@dataclass(frozen=True)
class Machine:
    """flags: what the processor says that it can, of all cores; None where the system does not tell."""

    flags: frozenset[str] | None

    @classmethod
    def this(cls) -> Machine:
        """The one we run on."""
        try:
            return cls(flags_of(CPUINFO.read_text("utf-8", "replace")))
        except OSError:
            return cls(None)


def flags_of(cpuinfo: str) -> frozenset[str] | None:
    """The flags that all processors of a /proc/cpuinfo have; None where it names none."""
    pairs = (line.partition(":") for line in cpuinfo.splitlines())
    cores = [frozenset(value.split()) for name, _, value in pairs if name.strip() in CPUINFO_FLAGS]
    return frozenset.intersection(*cores) if cores else None


def _is_there(path: Path, machine: Machine) -> Finding:
    return Finding(path.is_file(), f"there is {'a' if path.is_file() else 'no'} {path.name}")


def _has_products(path: Path, machine: Machine) -> Finding:
    if machine.flags is None:
        return Finding(False, "this system does not tell whether the processor has 8-bit dot products")
    found = [flag for flag in INT8_PRODUCTS if flag in machine.flags]
    if not found:
        return Finding(False, "this processor has no 8-bit dot products (VNNI, AMX or Arm dotprod)")
    return Finding(True, f"this processor has 8-bit dot products ({', '.join(found)})")


def _was_judged(path: Path, machine: Machine) -> Finding:
    try:
        gates = Manifest.from_metadata(onnx_file.metadata(path)).gates
    except BadArtifact as error:
        return Finding(False, error.message)
    if gates is None:
        return Finding(False, f"{path.name} was never judged on labelled pictures")
    measured = (
        f"{path.name} names the class that {FULL} names on {100 * gates.agreement:.1f} % of {gates.pictures} "
        f"labelled pictures and loses {gates.points_lost:.2f} points of accuracy"
    )
    holds = (
        gates.pictures >= LEAST_PICTURES
        and gates.agreement >= LEAST_AGREEMENT
        and gates.points_lost <= MOST_POINTS_LOST
    )
    needed = (
        f"; needed are {100 * LEAST_AGREEMENT:.0f} % of at least {LEAST_PICTURES}, at most "
        f"{MOST_POINTS_LOST} points lost"
    )
    return Finding(holds, measured + ("" if holds else needed))


# What must hold before a smaller format runs unasked, in the order in which it is looked at.
NEEDS: dict[str, tuple[Callable[[Path, Machine], Finding], ...]] = {
    "fp16": (_is_there,),
    "int8": (_is_there, _has_products, _was_judged),
}


@dataclass(frozen=True)
class Candidates:
    """The files of one version on one machine. failed: precision → why its file cannot be served."""

    files: ModelFiles
    machine: Machine = field(default_factory=Machine.this)
    failed: Mapping[str, str] = field(default_factory=dict)

    def choose(self, requested: str, provider: str) -> Choice:
        """The file to run on a provider. BadArtifact where the one requested is refused there."""
        row = PROVIDERS[provider]
        if requested != AUTO:
            if reason := row.refused.get(requested):
                raise BadArtifact(
                    f"{requested} is not served on {provider}: {reason}; set PACA_PRECISION={AUTO}"
                )
            return Choice(requested, "set by PACA_PRECISION or config.json")
        objections = []
        for precision in row.smaller:
            findings = self._findings(precision)
            if all(finding.holds for finding in findings):
                told = "; ".join(finding.text for finding in findings[1:]) or findings[0].text
                return Choice(precision, told, may_fall_back=True)
            objections.append(f"not {precision}: {next(f.text for f in findings if not f.holds)}")
        return Choice(FULL, "; ".join(objections) or f"what {provider} runs best")

    def _findings(self, precision: str) -> list[Finding]:
        if precision in self.failed:
            return [Finding(False, self.failed[precision])]
        path = self.files.of(precision).model
        findings: list[Finding] = []
        for need in NEEDS[precision]:  # the later ones may rely on the earlier ones
            findings.append(need(path, self.machine))
            if not findings[-1].holds:
                break
        return findings


def load_best(
    files: ModelFiles,
    requested: str,
    providers: Sequence[str],
    load: Callable[[ModelFiles, str], T],
) -> tuple[T, Choice]:
    """What `load` makes of the file to run and the provider's name, and the choice. providers: those that may
    be tried, best first. Raises what `load` raises of the last that may be tried."""
    for provider in providers[:-1]:
        try:
            return _load_on(provider, files, requested, load)
        except ProviderUnavailable as error:
            log.warning("%s; trying the next provider", error)
    return _load_on(providers[-1], files, requested, load)


def _load_on(
    provider: str, files: ModelFiles, requested: str, load: Callable[[ModelFiles, str], T]
) -> tuple[T, Choice]:
    failed: dict[str, str] = {}
    machine = Machine.this()
    while True:
        choice = Candidates(files, machine, failed).choose(requested, provider)
        chosen = files.of(choice.precision)
        if not chosen.model.exists():
            raise BadArtifact(
                f"there is no {chosen.model.name}, which the precision {choice.precision} needs "
                f"({choice.reason})"
            )
        try:
            return load(chosen, provider), choice
        except BadArtifact as error:
            if not choice.may_fall_back:
                raise
            log.warning("%s cannot be served: %s", chosen.model.name, error)
            failed[choice.precision] = error.message
