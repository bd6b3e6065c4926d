"""A bar in a terminal, nothing but lines elsewhere."""

import io

from rich.console import Console

from export.training.progress import showing


def test_a_terminal_gets_a_bar_and_a_log_file_does_not() -> None:
    for terminal in (True, False):
        out = io.StringIO()
        track, say = showing(Console(file=out, force_terminal=terminal, width=80))
        assert list(track(range(3), 3, "counting")) == [0, 1, 2]
        say("three [counted]")
        assert ("counting" in out.getvalue()) == terminal
        assert "three [counted]" in out.getvalue()
