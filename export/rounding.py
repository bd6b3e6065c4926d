"""How far two runtimes may be apart where float32 itself is the reason.

A network may amplify rounding (an untrained teacher's BatchNorms do, 8e-5 in its assignments). Where a fixed
tolerance is exceeded, PyTorch in float32 is held against PyTorch in float64 on the same inputs. Two runtimes
that each are that far from the truth may be twice that apart, and as much again for luck. What is compared,
and the fixed tolerances, stay with `verify` and `gradients`.
"""

from __future__ import annotations

FACTOR = 4
MAX_ALLOWANCE = 1e-3  # whatever the noise: a network that needs more is broken, or the graph is


def allowance(noise: float) -> float:
    """The largest relative difference allowed between ONNX Runtime and PyTorch, where PyTorch in float32 is
    `noise` (relative) away from float64."""
    return min(FACTOR * noise, MAX_ALLOWANCE)
