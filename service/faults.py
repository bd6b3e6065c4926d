"""What a failed run or load means, read from the message: ONNX Runtime's exception types do not tell.

Says only what happened. What follows from it is decided in `session` (open again, give the device up),
`registry` (try again later) and `api/server` (end the process).
"""

from __future__ import annotations

import re
from enum import Enum


class Fault(Enum):
    """MEMORY: it is short now; what is loaded lives on. LOST: the device's context is broken until the
    process ends. DEVICE: the device or the system failed, which may pass. OTHER: the file's or the input's
    fault."""

    MEMORY = "memory"
    LOST = "lost"
    DEVICE = "device"
    OTHER = "other"


# Errors after which "the process must be terminated and relaunched" (CUDA Runtime API, cudaError), errors
# that the hardware cannot correct, a context that is gone, and the unknown error.
STICKY_CUDA_CODES = (214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 999)
PATTERNS = (  # the first that matches decides
    (Fault.MEMORY, r"out of memory|bad_alloc|(failed|unable|cannot) to? ?allocate|failure 2:|ALLOC_FAILED"),
    (Fault.LOST, rf"cuda failure ({'|'.join(map(str, STICKY_CUDA_CODES))}):"),
    (Fault.DEVICE, r"(cuda|cudnn|cublas)\w* (failure|error)|resource temporarily unavailable"),
)


def fault_of(error: BaseException) -> Fault:
    """What an error of ONNX Runtime, numpy or Python means."""
    if isinstance(error, MemoryError):
        return Fault.MEMORY
    text = str(error)
    return next((fault for fault, pattern in PATTERNS if re.search(pattern, text, re.I)), Fault.OTHER)
