"""Keeps freed memory in the process while training on CPU: glibc otherwise maps, zeroes and returns every
large tensor anew, a tenth of a step's time."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def keep_memory() -> None:
    """Raises the thresholds above which glibc asks the kernel; does nothing where there is no glibc."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for option, value in (
            (M_MMAP_THRESHOLD, 1 << 30),
            (M_TRIM_THRESHOLD, 2**31 - 1),
            (M_TOP_PAD, 1 << 26),
        ):
            mallopt(option, value)
