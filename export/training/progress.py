"""How long work shows itself: a progress bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rich.console import Console
from rich.progress import track as bar

Track = Callable[
    [Iterable[int], int, str], Iterable[int]
]  # (steps, how many, what they are) → the same steps, shown
Say = Callable[[str], None]


def plainly(steps: Iterable[int], count: int, what: str) -> Iterable[int]:
    """Shows nothing: whoever prints a line an epoch has said enough for a log file."""
    return steps


def showing(console: Console) -> tuple[Track, Say]:
    """(track, say) for this console."""

    def track(steps: Iterable[int], count: int, what: str) -> Iterable[int]:
        return (
            bar(steps, what, total=count, console=console, transient=True) if console.is_terminal else steps
        )

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    return track, say
