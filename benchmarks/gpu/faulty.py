"""`paca serve` whose GPU can be broken: SIGUSR1 makes a kernel of PyTorch fail an assertion on the device.
Then every call of this process to the GPU fails, those of ONNX Runtime included. For `run.py` alone."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from service.cli import main


def break_device(*_: object) -> None:
    def lookup() -> None:
        import torch

        torch.zeros(1, device="cuda")[torch.tensor([1 << 20], device="cuda")].cpu()

    threading.Thread(target=lookup).start()


signal.signal(signal.SIGUSR1, break_device)

if __name__ == "__main__":
    main()
