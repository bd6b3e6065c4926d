"""Every PACA_* variable, in one class: type, default, unit, and when to change it. The only place that reads
the environment.

What a `config.json` may set for one model alone is a part of them, with the same types and ranges. The core
takes plain arguments and never looks here; `wiring` translates.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from .errors import BadArtifact
from .onnx_file import reading
from .providers import AUTO, choices
from .repository import FILES, embedded

MAX_CONFIG_BYTES = 65_536


def cores() -> int:
    """Cores this process may use, counting a container's limit."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(usable, round(int(quota) / int(period)))) if quota != "max" else usable
    except (OSError, ValueError):
        return usable


class ModelSettings(BaseModel):
    """The settings that one model may have for itself."""

    model_config = ConfigDict(extra="forbid", strict=True)

    provider: str = Field(
        AUTO, description="Execution provider. cuda demands a GPU: absent, the server does not start."
    )
    device_id: int = Field(0, ge=0, description="GPU number, with CUDA.")
    precision: str = Field(
        "fp32", description="Which file of a version is served: fp16 on GPUs, int8 for CPU throughput."
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
        description="Most pictures in one run. 0 = 16 on CUDA; on CPU 4 for networks below 1 GMAC, 1 for "
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
        known = choices() if info.field_name == "provider" else tuple(FILES)
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
    max_body_mb: float = Field(16.0, gt=0, le=1024, description="Megabytes (2^20 bytes) of a request body.")
    max_pixels: int = Field(
        40_000_000,
        ge=1024,
        description="Pixels of a picture, read from its header before decoding. Decoding needs up to 8 bytes "
        "each.",
    )
    max_images: int = Field(16, ge=1, le=1024, description="Pictures in one request.")
    root_path: str = Field("", description="Path prefix behind a reverse proxy, e.g. /vision.")
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="Server processes, each with its own model. More than one pays when decoding is the "
        "bottleneck.",
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

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    def for_model(self, own: ModelSettings) -> Settings:
        """These settings with those that a model has for itself."""
        return self.model_copy(update=own.model_dump(exclude_unset=True))
