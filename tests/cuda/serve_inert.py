"""`paca serve` over the inert libraries: python serve_inert.py serve [flags]. Workers that it starts import
this file too, so they run over the kit as well.

The numbers of a model are garbage here, so self-tests run whole but may not judge them. SIGUSR1: from now on
every call to the device fails, as after an illegal address. SIGUSR2: 1 MiB of device memory is left; again:
no limit any more."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable

import inert

inert.load(os.environ["INERT_CUDA"])

from service.cli import main  # noqa: E402  # what imports onnxruntime comes after the kit
from service.engine import Engine, GradientEngine  # noqa: E402
from service.errors import BadArtifact  # noqa: E402


def unjudged(step: Callable[..., None]) -> Callable[..., None]:
    def run(*arguments: object) -> None:
        try:
            step(*arguments)
        except BadArtifact as error:
            if not str(error).startswith("self-test failed"):
                raise

    return run


limits = itertools.cycle((True, False))


def limit(*_: object) -> None:
    inert.limit_memory(inert.counters().memory_in_use + 2**20 if next(limits) else None)


for kind, step in ((Engine, "_self_test"), (GradientEngine, "_check_maps")):
    setattr(kind, step, unjudged(getattr(kind, step)))
signal.signal(signal.SIGUSR1, lambda *_: inert.fail_with(inert.ILLEGAL_ADDRESS))
signal.signal(signal.SIGUSR2, limit)

if __name__ == "__main__":
    main()
