"""The loaded models: which name and version answers, and how a new version takes over without a lost request.

A version is loaded, self-tested and only then swapped in; the one it replaces closes after its last request.
Nothing that goes wrong while one version is loaded ends the watcher, the start or another model. A version
whose files are bad waits for other files; one for which memory or the device failed is tried again, ever more
rarely. What a model does is said by `predictor`, where files lie by `repository`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import repository
from .batcher import Batcher, Counters
from .errors import (
    BadArtifact,
    CannotStart,
    DeviceLost,
    EngineFailure,
    NotReady,
    PacaError,
    UnknownModel,
    kind_name,
)
from .predictor import Predictor
from .repository import ModelFiles

log = logging.getLogger("paca.registry")
LAST_SECONDS = 1.0  # for requests that have got a version but not yet called it, when it is replaced
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 5.0, 300.0  # each pause is twice the one before
Load = Callable[[ModelFiles], Predictor]
Key = tuple[str, str]  # name, version


@dataclass(frozen=True)
class ModelStatus:
    """One model name: its loaded versions, oldest first, and the predictor that answers by default (the
    newest)."""

    name: str
    versions: tuple[str, ...]
    default_version: str
    predictor: Predictor


@dataclass(frozen=True)
class LoadFailure:
    """A version that could not be loaded. kind: what went wrong, e.g. bad-artifact or engine-failure.
    failing_seconds: since it first failed. retry_in_seconds: until it is tried again; None = once a file of
    it changes."""

    name: str
    version: str
    kind: str
    message: str
    failing_seconds: float
    retry_in_seconds: float | None

    @property
    def line(self) -> str:
        return f"model {self.name} version {self.version}: {self.message}"


@dataclass(frozen=True)
class ModelCounters:
    """What one model's queues counted since the start, over all its versions, those gone included."""

    pictures: Counters = field(default_factory=Counters)
    gradients: Counters = field(default_factory=Counters)

    def __add__(self, other: ModelCounters) -> ModelCounters:
        return ModelCounters(self.pictures + other.pictures, self.gradients + other.gradients)


@dataclass
class _Failed:
    """stamp: of the files that failed. since, due: monotonic seconds; due None = not before the files
    change. Without the error itself, whose traceback would hold what was half loaded."""

    files: ModelFiles
    stamp: object
    kind: str
    message: str
    since: float
    pause: float
    due: float | None


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
        self._folder, self._load, self._precision = folder, load, precision
        self._default, self._watch = default, watch
        self._loaded: dict[Key, tuple[Predictor, object]] = {}
        self._failed: dict[Key, _Failed] = {}
        self._pending: list[Key] = []
        self._retired: list[Predictor] = []  # closing: they may still count
        self._gone: dict[str, ModelCounters] = defaultdict(ModelCounters)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._reloading = asyncio.Lock()
        self._said: set[str] = (
            set()
        )  # what was logged of folders that cannot be read, so that it is said once
        self.reload_failures = 0
        self.draining = False
        self._lost = ""

    @property
    def lost(self) -> str:
        """Why nothing can be answered any more in this process: a device failed for good. Empty else."""
        return self._lost or next((p.lost for p, _ in self._loaded.values() if p.lost), "")

    @property
    def ready(self) -> tuple[bool, str]:
        """Whether the model that answers by default is loaded and its device well, and if not, why."""
        if self.lost:
            return False, self.lost
        if self.draining:
            return False, "draining: the server is shutting down"
        if self._default is None:
            return (True, "ready") if self._loaded else (False, "loading: no model is ready yet")
        if any(name == self._default for name, _ in self._loaded):
            return True, "ready"
        for failure in self.failures():
            if failure.name == self._default and not any(name == self._default for name, _ in self._pending):
                return False, f"the default model could not be loaded: {failure.line}"
        return False, f"loading: the default model {self._default} is not ready yet"

    @property
    def default_model(self) -> str | None:
        """The model that answers when none is named."""
        return self._default or min((name for name, _ in self._loaded), default=None)

    @property
    def loading(self) -> tuple[Key, ...]:
        """(name, version) of what is there but has not been tried yet."""
        return tuple(self._pending)

    def failures(self) -> tuple[LoadFailure, ...]:
        """What could not be loaded or has lost its device, by name and version."""
        now = time.monotonic()
        lost = tuple(
            LoadFailure(*key, kind_name(DeviceLost.__name__), predictor.lost, 0.0, None)
            for key, (predictor, _) in sorted(self._loaded.items())
            if predictor.lost
        )
        return lost + tuple(
            LoadFailure(
                *key,
                kind=failed.kind,
                message=failed.message,
                failing_seconds=now - failed.since,
                retry_in_seconds=None if failed.due is None else max(0.0, failed.due - now),
            )
            for key, failed in sorted(self._failed.items(), key=lambda item: (item[0][0], int(item[0][1])))
        )

    def counters(self) -> dict[str, ModelCounters]:
        """By model name, what its queues counted since the start. Nothing is lost when a version is replaced
        or dropped."""
        totals = defaultdict(ModelCounters, self._gone)
        for predictor in (*(loaded for loaded, _ in self._loaded.values()), *self._retired):
            totals[predictor.name] += _counters(predictor)
        return dict(totals)

    def models(self) -> list[ModelStatus]:
        """What is loaded and can answer, by name."""
        by_name: dict[str, list[str]] = {}
        for (name, version), (predictor, _) in self._loaded.items():
            if predictor.lost:
                continue
            by_name.setdefault(name, []).append(version)
        return [
            ModelStatus(
                name,
                tuple(sorted(versions, key=int)),
                newest := max(versions, key=int),
                self._loaded[name, newest][0],
            )
            for name, versions in sorted(by_name.items())
        ]

    def default_for(self, job: str | None) -> str | None:
        """The model that answers a job when none is named: the default model, or, where that is for another
        task, the first one that does it. NotReady while one may still come."""
        default = self.default_model
        jobs = {m.name: m.predictor.manifest.purpose.jobs for m in self.models()}
        if job is None or default not in jobs or job in jobs[default]:
            return default
        doing = next((name for name, does in jobs.items() if job in does), None)
        if doing is None and self._pending:
            raise NotReady(f"no model that can {job} is loaded yet; try again in a moment")
        return doing or default

    def get(self, name: str | None = None, version: str | None = None, job: str | None = None) -> Predictor:
        """The predictor that answers. job: chooses the model where none is named. UnknownModel lists what
        there is; NotReady while it may still come, DeviceLost where this process will answer nothing any
        more."""
        if self.lost:
            raise DeviceLost(self.lost)
        if not self._loaded:
            raise NotReady("no model is loaded yet; try again in a moment")
        chosen_name = name or self.default_for(job)
        versions = [v for n, v in self._loaded if n == chosen_name]
        chosen = version or max(versions, key=int, default=None)
        if chosen in versions:
            return self._loaded[str(chosen_name), str(chosen)][0]
        self._raise_if_coming(str(chosen_name), chosen)
        if not versions:
            raise UnknownModel(
                f"there is no model {chosen_name!r}; loaded are: "
                f"{', '.join(sorted({n for n, _ in self._loaded}))}"
            )
        raise UnknownModel(
            f"model {chosen_name!r} has no version {chosen!r}; loaded are: "
            f"{', '.join(sorted(versions, key=int))}"
        )

    def _raise_if_coming(self, name: str, version: str | None) -> None:
        """NotReady for a model that is still loaded, or will be tried again."""
        if any(n == name and version in (None, v) for n, v in self._pending):
            raise NotReady(f"model {name!r} is not loaded yet; try again in a moment")
        for failure in self.failures():
            meant = failure.name == name and version in (None, failure.version)
            if meant and failure.retry_in_seconds is not None:
                raise NotReady(
                    f"model {name!r} could not be loaded yet and will be tried again",
                    retry_after=failure.retry_in_seconds,
                )

    async def start(self) -> None:
        """Loads everything in the folder, what answers by default first: `ready` from then on. CannotStart
        where nothing can be loaded or the default model is not there."""
        names = repository.names(self._folder, self._precision)
        if self._default and self._default not in names:
            raise CannotStart(
                f"PACA_DEFAULT_MODEL is {self._default!r}, but the repository holds: "
                f"{', '.join(names) or 'no model'}"
            )
        failures = await self.reload()
        if not self._loaded:
            reason = (
                "; ".join(failures)
                or f"no <name>/<version>/{' or '.join(repository.file_names(self._precision))} in it"
            )
            raise CannotStart(f"no model could be loaded from the repository {self._folder}: {reason}")
        if self._watch:
            self._spawn(self._keep_watching())

    async def reload(self) -> list[str]:
        """Looks at the folder again: loads new and changed versions, drops vanished ones. Returns what
        failed, one line each; the old keep serving."""
        async with self._reloading:
            found = await asyncio.to_thread(repository.contents, self._folder, self._precision)
            self._say_unreadable(found.unreadable)
            there = {(files.name, files.version): files for files in found.versions}
            hidden = set(found.unreadable)
            self._failed = {key: failed for key, failed in self._failed.items() if key in there}
            # the default model first, and of each model the version that answers
            order = sorted(there, key=lambda key: (key[0] != self._default, key[0], -int(key[1])))
            self._pending = [key for key in order if key not in self._loaded and key not in self._failed]
            try:
                failures = [line for key in order if (line := await self._refresh(key, there[key]))]
            finally:
                self._pending = []
            for key in [key for key in self._loaded if key not in there]:
                if len(self._loaded) > 1 and not hidden & {key[0], "/".join(key)}:
                    self._retire(self._loaded.pop(key)[0])
                    log.info("dropped model %s version %s", *key)
            return failures

    def _say_unreadable(self, unreadable: dict[str, str]) -> None:
        for folder in sorted(set(unreadable) - self._said):
            log.error("skipped %s in the model repository: %s", folder, unreadable[folder])
        self._said = set(unreadable)

    async def _refresh(self, key: Key, files: ModelFiles) -> str | None:
        """Loads a version if it is new, changed or due; the line of what failed."""
        failed, stamp = self._failed.get(key), None
        try:
            stamp = files.stamp
            if key in self._loaded and self._loaded[key][1] == stamp:
                return None
            if failed and failed.stamp == stamp and (failed.due is None or failed.due > time.monotonic()):
                return None
            predictor = await asyncio.to_thread(self._load, files)
        except PacaError as error:
            if isinstance(error, DeviceLost):
                self._lost = error.message
            return self._fail(key, files, stamp, error)
        except OSError as error:  # of looking at the files: they vanish, or the disk fails
            return self._fail(key, files, stamp, EngineFailure(f"cannot look at its files: {error.strerror}"))
        except Exception as error:  # nobody foresaw it; it must not cost another model
            log.exception("model %s version %s", *key)
            return self._fail(key, files, stamp, EngineFailure(f"an unforeseen {type(error).__name__}"))
        finally:
            if key in self._pending:
                self._pending.remove(key)
        self._failed.pop(key, None)
        if key in self._loaded:
            self._retire(self._loaded[key][0])
        self._loaded[key] = (predictor, stamp)
        told = (predictor.provider, predictor.precision, predictor.precision_reason)
        log.info("loaded model %s version %s on %s, %s (%s)", *key, *told)
        return None

    def _fail(self, key: Key, files: ModelFiles, stamp: object, error: PacaError) -> str:
        """Remembers a version that could not be loaded, and when to try again."""
        self.reload_failures += 1
        now, before = time.monotonic(), self._failed.get(key)
        pause = min(2 * before.pause, LONGEST_RETRY_SECONDS) if before else FIRST_RETRY_SECONDS
        self._failed[key] = _Failed(
            files,
            stamp,
            kind_name(type(error).__name__),
            error.message,
            before.since if before else now,
            pause,
            None if isinstance(error, BadArtifact) else now + pause,
        )
        self._schedule_retry()
        line = f"model {key[0]} version {key[1]}: {error.message}"
        log.error("not loaded: %s", line)
        return line

    def _schedule_retry(self) -> None:
        if self._retry:
            self._retry.cancel()
        due = min((failed.due for failed in self._failed.values() if failed.due is not None), default=None)
        self._retry = None
        if due is not None and not self.draining:
            pause = max(0.0, due - time.monotonic())
            self._retry = asyncio.get_running_loop().call_later(pause, lambda: self._spawn(self._try_again()))

    async def _try_again(self) -> None:
        """Loads what memory or the device kept from loading; looks at nothing else in the folder."""
        async with self._reloading:
            now = time.monotonic()
            for key, failed in list(self._failed.items()):
                if failed.due is not None and failed.due <= now:
                    await self._refresh(key, failed.files)
            self._schedule_retry()

    def _retire(self, predictor: Predictor) -> None:
        async def close() -> None:
            await asyncio.sleep(LAST_SECONDS)
            await predictor.close()
            self._retired.remove(predictor)
            self._gone[predictor.name] += _counters(predictor)

        self._retired.append(predictor)
        task = asyncio.create_task(close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep_watching(self) -> None:
        said = ""
        while True:
            await asyncio.sleep(self._watch)
            try:
                await self.reload()
                said = ""
            except Exception as error:  # whatever it was, a later look may find a new model
                if str(error) != said:
                    log.error("cannot look at the model repository: %s", error)
                said = str(error)

    def drain(self) -> None:
        """From now on not ready; requests that are here are still answered."""
        self.draining = True

    async def close(self) -> None:
        """Answers what was accepted, then frees every model; on a lost device nothing can be freed."""
        self.drain()
        if self._retry:
            self._retry.cancel()
        for task in self._tasks:
            task.cancel()
        if self.lost:
            return
        await asyncio.gather(*(predictor.close() for predictor, _ in self._loaded.values()), *self._closing)
        self._loaded.clear()


def _counters(predictor: Predictor) -> ModelCounters:
    def of(batcher: Batcher[Any, Any] | None) -> Counters:
        return batcher.counters if batcher else Counters()

    return ModelCounters(of(predictor.batcher), of(predictor.gradient_batcher))
