"""The loaded models: which name and version answers, and how a new version takes over without a lost request.

A version is loaded, self-tested and only then swapped in; the one it replaces closes after its last request.
A bad one is reported and the old keeps serving. What a model does is `predictor`'s, where files lie is
`repository`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import repository
from .errors import CannotStart, NotReady, PacaError, UnknownModel
from .predictor import Predictor
from .repository import ModelFiles

log = logging.getLogger("paca.registry")
LAST_SECONDS = 1.0  # for requests that have got a version but not yet called it, when it is replaced
Load = Callable[[ModelFiles], Predictor]


@dataclass(frozen=True)
class ModelStatus:
    """One model name: its loaded versions, oldest first, and the predictor that answers by default (the
    newest)."""

    name: str
    versions: tuple[str, ...]
    default_version: str
    predictor: Predictor


class Registry:
    """Every model of a repository folder, loaded. All methods belong to one event loop."""

    def __init__(
        self,
        folder: Path,
        load: Load,
        *,
        precision: str = "fp32",
        default: str | None = None,
        watch: float = 0.0,
    ) -> None:
        """load: makes a self-tested Predictor of files (blocking; run in a thread). watch: seconds between
        looks at the folder, 0 = never."""
        self._folder, self._load, self._precision, self._default, self._watch = (
            folder,
            load,
            precision,
            default,
            watch,
        )
        self._loaded: dict[tuple[str, str], tuple[Predictor, object]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._reloading = asyncio.Lock()
        self._rejected: dict[tuple[str, str], object] = {}
        self.reload_failures = 0
        self.draining = False

    @property
    def ready(self) -> tuple[bool, str]:
        """Whether every request can be answered, and if not, why."""
        if self.draining:
            return False, "draining: the server is shutting down"
        if not self._loaded:
            return False, "loading: no model is ready yet"
        return True, "ready"

    @property
    def default_model(self) -> str | None:
        """The model that answers when none is named."""
        return self._default or min((name for name, _ in self._loaded), default=None)

    def models(self) -> list[ModelStatus]:
        """What is loaded, by name."""
        by_name: dict[str, list[str]] = {}
        for name, version in self._loaded:
            by_name.setdefault(name, []).append(version)
        return [
            ModelStatus(
                name,
                tuple(sorted(found, key=int)),
                newest := max(found, key=int),
                self._loaded[name, newest][0],
            )
            for name, found in sorted(by_name.items())
        ]

    def get(self, name: str | None = None, version: str | None = None) -> Predictor:
        """The predictor that answers; UnknownModel lists what there is, NotReady while nothing is loaded."""
        if not self._loaded:
            raise NotReady("no model is loaded yet; try again in a moment")
        wanted = name or self.default_model
        versions = [v for n, v in self._loaded if n == wanted]
        if not versions:
            raise UnknownModel(
                f"there is no model {wanted!r}; loaded are: {', '.join(sorted({n for n, _ in self._loaded}))}"
            )
        chosen = version or max(versions, key=int)
        if chosen not in versions:
            raise UnknownModel(
                f"model {wanted!r} has no version {chosen!r}; loaded are: "
                f"{', '.join(sorted(versions, key=int))}"
            )
        return self._loaded[str(wanted), chosen][0]

    async def start(self) -> None:
        """Loads everything in the folder; CannotStart where nothing loads or the default model is not
        there."""
        names = repository.names(self._folder, self._precision)
        if self._default and self._default not in names:
            raise CannotStart(
                f"PACA_DEFAULT_MODEL is {self._default!r}, but the repository holds: "
                f"{', '.join(names) or 'no model'}"
            )
        failures = await self.reload()
        if not self._loaded:
            reason = "; ".join(failures) or f"no <name>/<version>/{repository.FILES[self._precision]} in it"
            raise CannotStart(f"no model could be loaded from the repository {self._folder}: {reason}")
        if self._watch:
            self._watcher = asyncio.create_task(self._keep_watching())

    async def reload(self) -> list[str]:
        """Looks at the folder again: loads new and changed versions, drops vanished ones. Returns what
        failed, one line each; the old keep serving."""
        async with self._reloading:
            found = {
                (files.name, files.version): files
                for name in repository.names(self._folder, self._precision)
                for files in repository.versions(self._folder, name, self._precision)
            }
            failures = []
            for key, files in found.items():
                if failure := await self._refresh(key, files):
                    failures.append(failure)
            for key in [key for key in self._loaded if key not in found]:
                if len(self._loaded) > 1:
                    self._retire(self._loaded.pop(key)[0])
                    log.info("dropped model %s version %s", *key)
            return failures

    async def _refresh(self, key: tuple[str, str], files: ModelFiles) -> str | None:
        stamp: object = None
        try:
            stamp = files.stamp
            if (key in self._loaded and self._loaded[key][1] == stamp) or self._rejected.get(key) == stamp:
                return None
            predictor = await asyncio.to_thread(self._load, files)
        except (PacaError, OSError) as error:
            self.reload_failures += 1
            self._rejected[key] = stamp
            failure = f"model {key[0]} version {key[1]}: {error}"
            log.error("not loaded: %s", failure)
            return failure
        self._rejected.pop(key, None)
        if key in self._loaded:
            self._retire(self._loaded[key][0])
        self._loaded[key] = (predictor, stamp)
        log.info("loaded model %s version %s on %s", *key, predictor.provider)
        return None

    def _retire(self, predictor: Predictor) -> None:
        async def close() -> None:
            await asyncio.sleep(LAST_SECONDS)
            await predictor.close()

        task = asyncio.create_task(close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _keep_watching(self) -> None:
        while True:
            await asyncio.sleep(self._watch)
            try:
                await self.reload()
            except (PacaError, OSError) as error:
                log.error("cannot look at the model repository: %s", error)

    def drain(self) -> None:
        """From now on not ready; requests that are here are still answered."""
        self.draining = True

    async def close(self) -> None:
        """Answers what was accepted, then frees every model."""
        self.drain()
        if self._watcher:
            self._watcher.cancel()
        await asyncio.gather(*(predictor.close() for predictor, _ in self._loaded.values()), *self._closing)
        self._loaded.clear()
