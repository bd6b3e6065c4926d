"""What the handlers of one app share."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import FastAPI

from ..dataplane import DataPlane
from ..registry import Registry
from ..settings import Settings
from .answer_log import AnswerLog
from .keys import ApiKeys
from .metrics import Metrics
from .tracing import Tracing


@dataclass
class State:
    """keys: None where the server is open. answers: None where none are kept. failure: why the models could
    not be loaded, once that is certain; the server then exits with it."""

    settings: Settings
    registry: Registry
    metrics: Metrics
    keys: ApiKeys | None
    plane: DataPlane
    tracing: Tracing | None
    answers: AnswerLog | None = None
    failure: Exception | None = None

    @property
    def max_body(self) -> int:
        """Bytes."""
        return int(self.settings.max_body_mb * 2**20)


def state(app: FastAPI) -> State:
    """The app's state."""
    shared: State = app.state.paca
    return shared
