"""Where models can run: one row an execution provider. A new one is a row here and its test.

Reads and opens nothing; `engine` opens sessions with these rows, `wiring` takes its defaults from them,
settings and the command line their choices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .errors import CannotStart

SMALL_NETWORK_MACS = 1e9  # on CPU smaller ones answer more when pictures share a run (docs/decisions.md)


@dataclass(frozen=True)
class FixedBatches:
    """How a device runs on which a new batch size is dear: few sizes, each prepared before the first request.
    sizes: ascending; a batch is padded to the next. memory: ONNX Runtime's name for where buffers lie.
    options: of a session that runs one size only."""

    sizes: tuple[int, ...]
    memory: str
    options: Mapping[str, str]


@dataclass(frozen=True)
class Provider:
    """name: ours. ort_name: ONNX Runtime's. options: its options for a device number. batching_pays: whether
    pictures that share a run cost less each. max_batch: default pictures a run of a network of so many
    multiply-accumulates. fixed_batches: None where a batch of any size costs no preparation. one_instance: by
    default one run at a time fills it; else one a core. remedy: what to do where it is missing. smaller:
    number formats that pay there, best first. refused: those that are not served there, with the reason."""

    name: str
    ort_name: str
    options: Callable[[int], Mapping[str, str]]
    batching_pays: bool
    max_batch: Callable[[float], int]
    fixed_batches: FixedBatches | None
    one_instance: bool
    remedy: str
    smaller: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


ROWS = (  # in the order in which `auto` tries them
    Provider(
        name="cuda",
        ort_name="CUDAExecutionProvider",
        options=lambda device_id: {
            "device_id": str(device_id),
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": "1",  # float32 products in TF32, 10 bits of mantissa; the self-test allows for it
        },
        batching_pays=True,
        max_batch=lambda macs: 64,
        fixed_batches=FixedBatches((1, 4, 8, 16, 32, 64, 128), "cuda", {"enable_cuda_graph": "1"}),
        one_instance=True,
        remedy="run `pip install '.[gpu]'` in the clone, check driver and CUDA libraries, or set "
        "PACA_PROVIDER=cpu",
        smaller=("fp16",),
        refused={
            "int8": "it has no 8-bit kernels there: it runs in float with 5 times as many kernel launches"
        },
    ),
    Provider(
        name="cpu",
        ort_name="CPUExecutionProvider",
        options=lambda device_id: {},
        batching_pays=False,
        max_batch=lambda macs: 4 if macs < SMALL_NETWORK_MACS else 1,
        fixed_batches=None,
        one_instance=False,
        remedy="run `pip install '.[cpu]'` in the clone",
        smaller=("int8",),
    ),
)
PROVIDERS: dict[str, Provider] = {row.name: row for row in ROWS}
AUTO = "auto"


def choices() -> tuple[str, ...]:
    """What `PACA_PROVIDER` may say."""
    return (AUTO, *PROVIDERS)


def candidates(choice: str) -> tuple[Provider, ...]:
    """The rows that a choice allows, in the order of trying; CannotStart for one that is not known."""
    if choice == AUTO:
        return tuple(PROVIDERS.values())
    if choice not in PROVIDERS:
        raise CannotStart(f"unknown provider {choice!r}; choose one of: {', '.join(choices())}")
    return (PROVIDERS[choice],)
