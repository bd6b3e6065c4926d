"""The answer log: what was answered, and what users said of it later, as JSON lines in one file. Opt-in.

A picture is never written, only its sha256. Requests wait for nothing: entries go through a bounded queue to
a thread, and what does not fit is counted as lost. Several workers share the file: a line is one write, and
the file is renamed under a lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import CannotStart
from ..results import Classification

log = logging.getLogger("paca.answers")
MAX_FILE_BYTES = 64 << 20  # then the file is renamed to .1, .1 to .2, …
KEPT_FILES = 4  # renamed ones
MAX_WAITING = 10_000  # entries
MAX_WAITING_BYTES = 64 << 20  # of pictures whose hash is not made yet
MAX_CLOSE_SECONDS = 5.0

Entry = tuple[dict[str, Any], bytes | None]  # what is written, and the picture whose sha256 joins it


class AnswerLog:
    """Appends to `path` from a thread of its own. lost: entries that were not written."""

    def __init__(self, path: Path, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        """CannotStart where the file cannot be written."""
        self._path, self._max_file_bytes = path, max_file_bytes
        self.lost = 0
        self._waiting: deque[Entry] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._closed = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
        except OSError as error:
            raise CannotStart(
                f"the answer log {path} cannot be written: {error.strerror}; PACA_ANSWER_LOG names a file"
            ) from None
        self._thread = threading.Thread(target=self._write_all, name="answer-log", daemon=True)
        self._thread.start()

    def answered(self, request_id: str, picture: bytes, result: Classification) -> None:
        """Notes one picture's result. Never blocks."""
        best = [{"label": p.label, "score": round(p.score, 6)} for p in result.predictions]
        entry = {
            "event": "answer",
            "time": _now(),
            "id": request_id,
            "model": result.model,
            "version": result.model_version,
            "predictions": best,
            **({"novelty": round(result.novelty.score, 6)} if result.novelty else {}),
        }
        self._add((entry, picture))

    def feedback(self, request_id: str, model: str, label: str) -> None:
        """Notes what a user says that a picture shows. Never blocks."""
        self._add(
            ({"event": "feedback", "time": _now(), "id": request_id, "model": model, "label": label}, None)
        )

    def close(self) -> None:
        """Writes what waits, for a few seconds at most."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(MAX_CLOSE_SECONDS)

    def _add(self, entry: Entry) -> None:
        size = len(entry[1] or b"")
        with self._changed:
            if len(self._waiting) >= MAX_WAITING or self._bytes + size > MAX_WAITING_BYTES or self._closed:
                self.lost += 1
                return
            self._waiting.append(entry)
            self._bytes += size
            self._changed.notify()

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    os.close(self._file)
                    return
                entry, picture = self._waiting.popleft()
                self._bytes -= len(picture or b"")
            if picture is not None:
                entry["sha256"] = hashlib.sha256(picture).hexdigest()
            try:
                self._write(entry)
            except OSError as error:  # disk full, folder gone: serving goes on
                if not self.lost:
                    log.error("the answer log cannot be written: %s", error.strerror)
                self.lost += 1

    def _write(self, entry: Mapping[str, Any]) -> None:
        line = json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        fcntl.flock(self._file, fcntl.LOCK_EX)
        if not self._is_current():  # another worker renamed it
            os.close(self._file)
            self._file = self._open()
            fcntl.flock(self._file, fcntl.LOCK_EX)
        if os.fstat(self._file).st_size + len(line) > self._max_file_bytes:
            self._rename()
            os.close(self._file)
            self._file = self._open()
            fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            os.write(self._file, line)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _rename(self) -> None:
        for number in range(KEPT_FILES, 0, -1):
            older = self._path if number == 1 else self._path.with_name(f"{self._path.name}.{number - 1}")
            with suppress(FileNotFoundError):
                older.replace(self._path.with_name(f"{self._path.name}.{number}"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
