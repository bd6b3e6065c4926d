"""What a session's calls to a device wait for."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from service.session import Gate


def test_runs_pass_side_by_side_and_a_capture_is_alone() -> None:
    gate, running, most = Gate(), 0, 0
    lock = threading.Lock()
    seen: list[int] = []  # runs under way during each capture
    both = threading.Barrier(3, timeout=10)

    def run() -> None:
        nonlocal running, most
        with gate.run():
            with lock:
                running += 1
                most = max(most, running)
            both.wait()  # the two runs meet inside, or this breaks
            time.sleep(0.01)
            with lock:
                running -= 1

    def capture() -> None:
        with gate.capture():
            for _ in range(5):
                seen.append(running)
                time.sleep(0.002)

    first = [threading.Thread(target=run) for _ in range(2)]
    for thread in first:
        thread.start()
    both.wait()
    captures = [threading.Thread(target=capture) for _ in range(3)]
    for thread in captures:
        thread.start()
    for thread in (*first, *captures):
        thread.join(20)
    assert most == 2
    assert seen == [0] * 15


def test_a_call_that_fails_leaves_the_gate_open() -> None:
    gate = Gate()
    for way in (gate.run, gate.capture):
        with suppress(RuntimeError), way():
            raise RuntimeError
        with gate.capture():  # waits for ever where something is left inside
            pass
