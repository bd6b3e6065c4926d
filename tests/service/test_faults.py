"""What ONNX Runtime's messages mean. The texts are those of version 1.31.1."""

from __future__ import annotations

import pytest

from service.faults import Fault, fault_of


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=gpu", Fault.LOST),
        ("CUDA failure 719: unspecified launch failure ; GPU=0", Fault.LOST),
        ("CUDA failure 214: uncorrectable ECC error encountered ; GPU=0", Fault.LOST),
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=gpu", Fault.MEMORY),
        ("bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 50331648", Fault.MEMORY),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", Fault.MEMORY),
        ("CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0", Fault.DEVICE),
        ("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0", Fault.DEVICE),
        ("CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version", Fault.DEVICE),
        ("pthread_create() failed: Resource temporarily unavailable", Fault.DEVICE),
        ("Got invalid dimensions for input: image", Fault.OTHER),
        ("CUDA failure 7: 700 something", Fault.DEVICE),
    ],
)
def test_the_message_decides(text: str, fault: Fault) -> None:
    assert fault_of(RuntimeError(text)) is fault


def test_pythons_own_error_of_memory_is_one() -> None:
    assert fault_of(MemoryError()) is Fault.MEMORY
