"""Every PACA_* variable, in one class: type, default, unit, and when to change it. The only place that reads
the environment.

What a `config.json` may set for one model alone is a part of them, with the same types and ranges. The core
takes plain arguments and never looks here; `wiring` translates.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from . import cgroup
from . import precision as precisions
from .errors import BadArtifact
from .onnx_file import reading
from .providers import AUTO, choices
from .repository import AUTO as AUTO_PRECISION
from .repository import embedded

MAX_CONFIG_BYTES = 65_536

# Of the tests and of the command line itself; no settings, and no spelling mistakes.
OTHER_VARIABLES = frozenset(
    {"PACA_DATA", "PACA_PARITY", "PACA_CI", "PACA_SOAK", "PACA_SOAK_FILE", "PACA_CLI_DEBUG"}
)
# What Kubernetes sets in every pod beside a Service named paca.
SERVICE_LINKS = re.compile(r"PACA_(SERVICE_HOST|SERVICE_PORT\w*|PORT_\d+_\w+)")
# A browser leaves them out of the origin.
DEFAULT_PORTS = {"http": ":80", "https": ":443"}
PREFIX = re.compile(r"(/[\w.~%!$&'()*+,;=:@-]+)*", re.ASCII)


def cores() -> int:
    """Cores this process may use, counting the limit of its container or service."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cgroup.cpu_limit()
    return usable if limit is None else max(1, min(usable, round(limit)))


class ModelSettings(BaseModel):
    """The settings that one model may have for itself."""

    model_config = ConfigDict(extra="forbid", strict=True)

    provider: str = Field(
        AUTO, description="Execution provider. cuda demands a GPU: absent, the server does not start."
    )
    device_id: int = Field(0, ge=0, description="GPU number, with CUDA.")
    precision: str = Field(
        AUTO_PRECISION,
        description="Which file of a version is served. auto: on CPU int8 where the processor has 8-bit dot "
        "products and the file passed both gates, on CUDA fp16, else fp32; /models says which and why.",
    )
    instances: int = Field(
        0,
        ge=0,
        le=64,
        description="Runs at the same time. 0 = one a core on CPU, one on CUDA. `paca tune` finds the best.",
    )
    threads: int = Field(
        0, ge=0, le=256, description="Threads of one run on CPU. 0 = cores divided by instances."
    )
    max_batch: int = Field(
        0,
        ge=0,
        le=256,
        description="Most pictures in one run. 0 = 64 on CUDA; on CPU 4 for networks below 1 GMAC, 1 for "
        "larger ones.",
    )
    max_wait_ms: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Milliseconds a batch waits to fill. 0 = never: what queued while busy is the batch.",
    )

    @field_validator("provider", "precision")
    @classmethod
    def _known(cls, value: str, info: ValidationInfo) -> str:
        known = choices() if info.field_name == "provider" else precisions.choices()
        if value not in known:
            raise ValueError(f"choose one of: {', '.join(known)}")
        return value

    @classmethod
    def read(cls, path: Path) -> ModelSettings:
        """What a version's config.json says; BadArtifact, in one line, where it cannot be meant."""
        with reading(path.name):
            text = path.read_bytes()[: MAX_CONFIG_BYTES + 1]
        if len(text) > MAX_CONFIG_BYTES:
            raise BadArtifact(f"{path.name} is larger than {MAX_CONFIG_BYTES} bytes")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(map(str, first["loc"]))
            if first["type"] == "extra_forbidden":
                known = ", ".join(cls.model_fields)
                raise BadArtifact(f"{path.name} has the unknown key {key!r}; known are: {known}") from None
            where = f"{key}={first['input']!r}"[:100] if key else "it"
            raise BadArtifact(f"{path.name}: {where} is not valid: {first['msg']}") from None


class Settings(ModelSettings, BaseSettings):
    """The server's settings. Each is an environment variable with the prefix PACA_, the important ones are
    flags of `paca serve` too."""

    model_config = SettingsConfigDict(env_prefix="PACA_", env_ignore_empty=True, extra="ignore", strict=False)

    host: str = Field(
        "127.0.0.1", description="Address to listen on. 0.0.0.0 in a container or behind a firewall."
    )
    port: int = Field(
        8000, ge=0, le=65535, description="TCP port. 0 lets the system choose; the ready line says which."
    )
    grpc_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="TCP port of gRPC (Open Inference Protocol), on the same address. 0 = off. Needs the "
        "extra grpc.",
    )
    models: Path = Field(
        default_factory=embedded,
        description="Model repository: <name>/<version>/model.onnx. Default: the embedded one.",
    )
    default_model: str | None = Field(
        None, description="Model that answers when none is named. Default: the first in alphabetical order."
    )
    queue_size: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Pictures that may wait for the engine; beyond it requests get 503 at once. 0 = 16, or "
        "two full rounds of runs.",
    )
    deadline_ms: int = Field(
        15_000, ge=100, description="Milliseconds from a complete request to its answer; later ones get 504."
    )
    max_body_mb: float = Field(32.0, gt=0, le=1024, description="Megabytes (2^20 bytes) of a request body.")
    max_pixels: int = Field(
        64_000_000,
        ge=1024,
        description="Pixels of a picture, read from its header before decoding. Decoding needs up to 8 bytes "
        "each.",
    )
    max_map_pixels: int = Field(
        25_000_000,
        ge=1024,
        description="Pixels of a label map of /segment; larger photos get a smaller map, and a warning.",
    )
    max_images: int = Field(16, ge=1, le=1024, description="Pictures in one request.")
    novelty_threshold: float = Field(
        0.95,
        ge=0,
        le=1,
        description="Novelty from which a picture is called novel. 0.95 flags 1 in 20 known pictures.",
    )
    answer_log: Path | None = Field(
        None,
        description="File to which every answer is appended as a line of JSON, with the picture's sha256. "
        "Rotated at 64 MiB; opens POST /feedback. Default: no log.",
    )
    root_path: str = Field("", description="Path prefix behind a reverse proxy, e.g. /vision.")
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="Server processes, each with its own model. More than one pays when decoding is the "
        "bottleneck.",
    )
    devices: Annotated[tuple[int, ...], NoDecode] = Field(
        (),
        description="GPU numbers for several workers, comma separated: each worker takes the next. Default: "
        "PACA_DEVICE_ID for all.",
    )
    api_keys: Path | None = Field(
        None, description="File with one API key a line; without it the server is open."
    )
    cors_origins: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="Origins that browsers may call from, comma separated. Default: none.",
    )
    log_format: Literal["json", "console"] = Field(
        "console", description="json for log collectors, console for people."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least important lines that are written."
    )
    otel: bool = Field(
        False,
        description="OpenTelemetry traces; configure with the standard OTEL_* variables. Needs the extra "
        "otel.",
    )
    metrics: bool = Field(True, description="Serve Prometheus metrics at /metrics.")
    docs: bool = Field(True, description="Serve /docs and /openapi.json.")
    demo: bool = Field(True, description="Serve the demo page at /.")
    watch_models: float = Field(
        0.0, ge=0, description="Seconds between looks for new versions in the repository. 0 = only on SIGHUP."
    )

    @field_validator("port", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        if isinstance(value, str) and "://" in value:
            raise ValueError(
                "this is no port; Kubernetes sets it where a Service is named paca: say `enableServiceLinks: "
                "false` in the pod, or set PACA_PORT there"
            )
        return value

    @field_validator("root_path")
    @classmethod
    def _prefix(cls, value: str) -> str:
        path = value.strip().strip("/")
        if path and not PREFIX.fullmatch(f"/{path}"):
            raise ValueError("a prefix is a path such as /vision, without a host, a query or spaces")
        return f"/{path}" if path else ""

    @field_validator("devices", mode="before")
    @classmethod
    def _numbers(cls, value: object) -> object:
        """GPU numbers as a comma separated text."""
        if not isinstance(value, str):
            return value
        numbers = [part.strip() for part in value.split(",") if part.strip()]
        if not all(number.isdecimal() for number in numbers):
            raise ValueError("these are numbers of GPUs, e.g. 0,1")
        return tuple(map(int, numbers))

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Origins as a comma separated text, or as a JSON list."""
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except ValueError:
                raise ValueError("this begins like a JSON list, but is none") from None
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: list[str]) -> list[str]:
        return [_origin(text) for text in value]

    def for_worker(self, place: int) -> Settings:
        """These settings for the worker of that place, from 0: with the GPU that is its own."""
        if not self.devices:
            return self
        return self.model_copy(update={"device_id": self.devices[place % len(self.devices)]})

    def for_model(self, own: ModelSettings) -> Settings:
        """These settings with those that a model has for itself."""
        return self.model_copy(update=own.model_dump(exclude_unset=True))


def _origin(text: str) -> str:
    """An origin as browsers send it; ValueError where it is none. Browsers compare letter by letter."""
    if text == "*":
        return text
    parts = urlsplit(text)
    host = parts.netloc.lower().removesuffix(DEFAULT_PORTS.get(parts.scheme, "\n"))
    if (
        not parts.scheme
        or not host
        or parts.path not in ("", "/")
        or "@" in host
        or parts.query + parts.fragment
    ):
        raise ValueError(
            f"{text[:80]!r} is no origin; one is https://host or https://host:port, without a path"
        )
    return f"{parts.scheme}://{host}"


def misspelt(names: Iterable[str]) -> list[str]:
    """One line for each variable that begins with PACA_ and is no setting."""
    known = {f"PACA_{name.upper()}" for name in Settings.model_fields}
    lines = []
    for name in sorted(names):
        upper = name.upper()
        if (
            not upper.startswith("PACA_")
            or upper in known | OTHER_VARIABLES
            or SERVICE_LINKS.fullmatch(upper)
        ):
            continue
        near = get_close_matches(upper, known, 1, 0.8)
        lines.append(
            f"{name[:80]} is no setting and has no effect" + (f"; is {near[0]} meant?" if near else "")
        )
    return lines
