"""Every PACA_* variable, in one class: type, default, unit, and when to change it. The only place that reads
the environment.

The core takes plain arguments and never looks here; `wiring` translates.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from .repository import embedded


def cores() -> int:
    """Cores this process may use, counting a container's limit."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(usable, round(int(quota) / int(period)))) if quota != "max" else usable
    except (OSError, ValueError):
        return usable


class Settings(BaseSettings):
    """The server's settings. Each is an environment variable with the prefix PACA_, the important ones are
    flags of `paca serve` too."""

    model_config = SettingsConfigDict(env_prefix="PACA_", env_ignore_empty=True, extra="ignore")

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
    provider: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Execution provider. cuda demands a GPU: absent, the server does not start."
    )
    device_id: int = Field(0, ge=0, description="GPU number, with CUDA.")
    precision: Literal["fp32", "fp16", "int8"] = Field(
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
        description="Milliseconds a batch waits for company. 0 = never: what queued while busy is the batch.",
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
