"""One model file in ONNX Runtime: arrays in, arrays out. The only module that imports onnxruntime.

Honest about where it runs: `provider` is what the session really uses. A provider that was demanded but is
absent is an error, and a session never moves to another one. Where loading fails, the error says whose fault
it is: BadArtifact the file's, EngineFailure memory's or the device's, DeviceLost where only a new process
helps. What the arrays mean is said in `engine`. The file is read once into memory, so that the hash, the
manifest and the session belong to the same bytes. A model that points to external data is refused by ONNX
Runtime itself.

On a device a new batch size is dear: cuDNN plans each convolution anew. `Buckets` therefore holds a session
for each of a few batch sizes, and a batch is padded to the next one. A CUDA graph belongs to the thread that
captured it, so every call into a device's sessions is made by one thread.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from . import onnx_file
from .errors import BadArtifact, CannotStart, DeviceLost, EngineFailure, PacaError, ProviderUnavailable
from .faults import Fault, fault_of
from .providers import AUTO, PROVIDERS, FixedBatches, Provider, candidates

log = logging.getLogger("paca.session")
SPIN_MICROSECONDS = 100
DISABLED_OPTIMIZERS = ["SkipLayerNormFusion"]  # slower on CPU than what it fuses: 1.5-3 % (docs/decisions.md)
MAX_FAILED_REOPENS = 2  # in a row, before a device counts as lost
RUNS_TO_WARM = 2  # the first captures, the second replays
TYPES = {"float": "float32", "double": "float64"}  # others are called alike by ONNX and numpy
# What lies on a lost device. ONNX Runtime ends the process where it is freed, so it is kept until the end.
_abandoned: list[object] = []
SAID = re.compile(r"(CUDA|CUDNN|CUBLAS)\w* failure \d+: [^;]+|Failed to allocate [^\n]+")
T = TypeVar("T")
Feed = Mapping[str, np.ndarray]


class Gate:
    """Runs on devices pass side by side; a capture waits for them and has the devices of this process to
    itself: CUDA breaks it off when another thread copies or allocates meanwhile."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._passing, self._capturing = 0, False

    @contextmanager
    def run(self) -> Iterator[None]:
        """For one run; waits for a capture that is under way."""
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing)
            self._passing += 1
        try:
            yield
        finally:
            with self._changed:
                self._passing -= 1
                self._changed.notify_all()

    @contextmanager
    def capture(self) -> Iterator[None]:
        """For one capture; waits for what runs, and keeps what comes waiting."""
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing)
            self._capturing = True
            self._changed.wait_for(lambda: not self._passing)
        try:
            yield
        finally:
            with self._changed:
                self._capturing = False
                self._changed.notify_all()


_gate = Gate()  # of this process, as CUDA's rule is


@dataclass(frozen=True)
class Device:
    """Where and how a session runs. provider: auto, or the name of a row of `PROVIDERS`. threads: of one run,
    0 = ONNX Runtime's choice (one a core)."""

    provider: str = AUTO
    device_id: int = 0
    threads: int = 0


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise CannotStart(
            "ONNX Runtime is not installed: in the clone, run `make setup`, or `pip install '.[cpu]'` or "
            "`pip install '.[gpu]'`, never both"
        ) from None
    if not hasattr(onnxruntime, "InferenceSession"):
        raise CannotStart(
            "the installed ONNX Runtime is broken (onnxruntime and onnxruntime-gpu overwrite each other); "
            "reinstall exactly one of them"
        )
    return onnxruntime


@contextmanager
def loading(name: str) -> Iterator[None]:
    """What goes wrong while file `name` is loaded: DeviceLost or EngineFailure where the device or memory
    failed, else BadArtifact."""
    try:
        yield
    except PacaError:
        raise
    except Exception as error:  # what ONNX Runtime and numpy raise is no contract
        fault, reason = fault_of(error), _reason(error)
        if fault is Fault.OTHER:
            raise BadArtifact(f"{name} is not a model this server can load: {reason}") from error
        kind = EngineFailure
        if fault is Fault.LOST:
            kind = DeviceLost
            _abandoned.append(error)  # its traceback holds what was opened
        raise kind(f"memory or the device failed while {name} was loaded: {reason}") from error


@dataclass(frozen=True)
class Opened:
    """What a file is open as: one session for any batch, or buckets; neither while a device recovers."""

    plain: Any = None
    buckets: Buckets | None = None


def _reason(error: BaseException) -> str:
    """What an error says, without the names of ONNX Runtime's functions before it."""
    text = str(error)
    if said := SAID.search(text):
        text = said[0]
    return (text.splitlines() or [type(error).__name__])[0][:200]


class Session:
    """A model file on the provider that was chosen. Thread-safe: `run` may be called from several threads at
    once."""

    def __init__(self, path: Path, device: Device) -> None:
        """Raises BadArtifact for a file ONNX Runtime refuses, ProviderUnavailable for a provider that is not
        here, EngineFailure where memory or the device failed."""
        self._path, self._device = path, device
        data = self._read()
        self.sha256 = hashlib.sha256(data).hexdigest()
        opened, self._row = open_session(data, path.name, device)
        self._opened = Opened(plain=opened)
        self._thread = ThreadPoolExecutor(1, f"{path.stem}-device") if self._row.fixed_batches else None
        self._sizes: tuple[int, ...] = ()
        self._failed_reopens = 0
        self.lost = ""
        with loading(path.name):
            self.metadata: dict[str, str] = dict(opened.get_modelmeta().custom_metadata_map)
            self.inputs = {i.name: (i.type, i.shape) for i in opened.get_inputs()}
            self.outputs = {o.name: (o.type, o.shape) for o in opened.get_outputs()}
        self.output_names = tuple(self.outputs)

    @property
    def provider(self) -> str:
        """Where it runs now."""
        return self._row.name

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes that are prepared, ascending; empty where every batch runs as it comes."""
        return self._sizes

    def prepare(self, max_batch: int) -> None:
        """Makes every batch up to `max_batch` ready, on a provider that runs fixed batches: sessions, buffers
        and graphs, warm. On others, and for inputs of changing size, there is nothing to do."""
        fixed = self._row.fixed_batches
        shapes = [shape for _, shape in (*self.inputs.values(), *self.outputs.values())]
        if fixed and all(isinstance(size, int) for shape in shapes for size in shape[1:]):
            only = shapes[0][0]  # a graph of one batch size
            several = (*(size for size in fixed.sizes if size < max_batch), max_batch)
            self._sizes = (only,) if isinstance(only, int) else several
            with loading(self._path.name):
                self._in_thread(self._open_again)

    def run(self, names: tuple[str, ...], feed: Feed) -> dict[str, np.ndarray]:
        """The named outputs in float32. Raises DeviceLost where only a new process helps, else whatever ONNX
        Runtime raises; `reopen` then gives fresh sessions."""
        self._check()
        try:
            values = self._in_thread(self._run, names, feed)
        except Exception as error:
            if fault_of(error) is Fault.LOST:
                self._lose(error)
            raise
        self._failed_reopens = 0
        return {
            name: np.asarray(value).astype(np.float32, copy=False)
            for name, value in zip(names, values, strict=True)
        }

    def _run(self, names: tuple[str, ...], feed: Feed) -> Sequence[np.ndarray]:
        if self._opened == Opened():  # closed for a fresh session that could not be had
            try:
                self._reopen()
            except (BadArtifact, ProviderUnavailable) as error:
                raise EngineFailure(
                    f"{self._path.name} could not be opened again; try again later"
                ) from error
        opened = self._opened
        if not self._row.fixed_batches:
            return opened.plain.run(names, dict(feed))
        with _gate.run():
            return (opened.buckets or opened.plain).run(names, dict(feed))

    def reopen(self) -> None:
        """Replaces the sessions by fresh ones of the same bytes on the same provider, e.g. after a run that
        failed. BadArtifact where the file is another one by now, DeviceLost where the device does not come
        back."""
        self._check()
        self._in_thread(self._reopen)

    def _reopen(self) -> None:
        try:
            self._open_again()
        except (EngineFailure, ProviderUnavailable) as error:
            self._failed_reopens += 1
            lost = isinstance(error, DeviceLost) or self._failed_reopens >= MAX_FAILED_REOPENS
            if self._row.fixed_batches and lost:
                self._lose(error)
            raise

    def _open_again(self) -> None:
        data = self._read()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise BadArtifact(f"{self._path.name} was replaced since it was loaded")
        device = replace(self._device, provider=self._row.name)
        fixed = self._row.fixed_batches
        if fixed:
            self._probe(fixed)
            self._free()  # the device may not hold the old and the new at once
        if fixed and self._sizes:
            self._opened = Opened(buckets=open_buckets(data, self._path.name, device, fixed, self._sizes))
        else:
            self._opened = Opened(plain=open_session(data, self._path.name, device)[0])

    def _probe(self, fixed: FixedBatches) -> None:
        """A small copy to the device and back. Other libraries' errors hide a broken context, which shows
        here; where it does, DeviceLost."""
        try:
            value = _onnxruntime().OrtValue
            with _gate.run():
                one = np.zeros(1, np.float32)
                value.ortvalue_from_numpy(one, fixed.memory, self._device.device_id).numpy()
        except Exception as error:  # what ONNX Runtime raises is no contract
            if fault_of(error) is not Fault.MEMORY:
                self._lose(error)

    def _in_thread(self, call: Callable[..., T], *args: object) -> T:
        """On a device in its one thread, else at once."""
        return self._thread.submit(call, *args).result() if self._thread else call(*args)

    def _check(self) -> None:
        if self.lost:
            raise DeviceLost(self.lost)

    def _lose(self, error: BaseException) -> None:
        """From now on every run raises DeviceLost."""
        if not self.lost:
            _abandoned.extend((error, self._opened))
            log.error("%s lost its device for good: %s", self._path.name, _reason(error))
        self.lost = f"the {self._row.name} device failed for good; this server ends, try again in a moment"
        raise DeviceLost(self.lost) from error

    def _read(self) -> bytes:
        onnx_file.metadata(self._path)  # refuses what is no whole ONNX file
        with onnx_file.reading(self._path.name):
            return self._path.read_bytes()

    def close(self) -> None:
        """Frees the sessions; `run` must not be called afterwards. What lies on a lost device stays."""
        if self._thread:
            self._thread.submit(self._free)
            self._thread.shutdown(wait=False)
        else:
            self._free()

    def _free(self) -> None:
        with _gate.run():
            self._opened = Opened()


def session_options(threads: int) -> Any:
    """ONNX Runtime's options for `threads` threads a run. A thread that waits for the others of its run
    spins, but for a moment only: spinning as long as ONNX Runtime does by default burns the very cores that
    decode the next picture, not spinning at all pays for waking it (docs/decisions.md)."""
    options = _onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    return options


def usable(choice: str) -> tuple[str, ...]:
    """The providers that a choice allows and this ONNX Runtime has, in the order of trying;
    ProviderUnavailable where there is none."""
    available = _onnxruntime().get_available_providers()
    rows = candidates(choice)
    built_in = tuple(row.name for row in rows if row.ort_name in available)
    if not built_in:
        raise ProviderUnavailable(
            f"{rows[0].name} was demanded, but this ONNX Runtime has no {rows[0].ort_name}; {rows[0].remedy}"
        )
    return built_in


def open_session(data: bytes, name: str, device: Device) -> tuple[Any, Provider]:
    """A session on the first provider that the device's choice allows and this machine has."""
    built_in = [PROVIDERS[provider] for provider in usable(device.provider)]
    for row in built_in[:-1]:
        try:
            return open_on(row, data, name, device), row
        except ProviderUnavailable as error:
            log.warning("%s; trying the next provider", error)
    return open_on(built_in[-1], data, name, device), built_in[-1]


def open_on(
    row: Provider, data: bytes, name: str, device: Device, further: Mapping[str, str] | None = None
) -> Any:
    """ProviderUnavailable where the device is not usable at all; EngineFailure where its memory is short.
    further: options of the provider beside those of its row."""
    ort = _onnxruntime()
    cpu = PROVIDERS["cpu"].ort_name  # runs the nodes that a provider does not know
    chosen = [(row.ort_name, {**row.options(device.device_id), **(further or {})})]
    if row.ort_name != cpu and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    try:
        with loading(name), _gate.run():
            session = ort.InferenceSession(
                data,
                session_options(device.threads),
                providers=chosen if row.ort_name == cpu else [*chosen, (cpu, {})],
                disabled_optimizers=DISABLED_OPTIMIZERS,
                enable_fallback=0,
            )
    except DeviceLost:
        raise
    except EngineFailure as error:
        if row.ort_name == cpu or fault_of(error.__cause__ or error) is Fault.MEMORY:
            raise
        raise ProviderUnavailable(f"{row.name} cannot be used: {error}; {row.remedy}") from error
    used = session.get_providers()[0]
    if used != row.ort_name:
        raise ProviderUnavailable(
            f"{row.name} was demanded, but ONNX Runtime runs this model on {used}; {row.remedy}"
        )
    return session


def open_buckets(
    data: bytes, name: str, device: Device, fixed: FixedBatches, sizes: Sequence[int]
) -> Buckets:
    """A session of its own for each size, captured and warm. To be called in the thread that runs them."""
    row = PROVIDERS[device.provider]

    def open_one() -> Any:
        try:
            return open_on(row, data, name, device, fixed.options)
        except BadArtifact as error:  # ONNX Runtime refuses to capture graphs with some nodes
            log.warning("%s runs on %s without captured graphs: %s", name, row.name, error)
            return open_on(row, data, name, device)

    return Buckets([Bucket(open_one(), size, fixed.memory, device.device_id) for size in sizes])


class Bucket:
    """One batch size: a session that runs nothing else, with inputs and outputs at fixed addresses, which a
    captured graph needs. Every output is computed; those that are requested come back to the host."""

    def __init__(self, session: Any, size: int, memory: str, device_id: int) -> None:
        """Warm when made. memory: ONNX Runtime's name for where buffers lie, e.g. cuda."""
        self.size = size
        self._session = session
        self._binding = session.io_binding()
        self._staged: dict[str, np.ndarray] = {}  # a batch in the host's memory, padded
        self._inputs: dict[str, Any] = {}
        self._outputs: dict[str, Any] = {}
        with _gate.run():
            self._allocate(memory, device_id)
        for _ in range(RUNS_TO_WARM):
            with _gate.capture():
                session.run_with_iobinding(self._binding)

    def _allocate(self, memory: str, device_id: int) -> None:
        value = _onnxruntime().OrtValue
        for given in self._session.get_inputs():
            staged = np.zeros((self.size, *given.shape[1:]), _numpy_type(given.type))
            self._staged[given.name] = staged
            self._inputs[given.name] = value.ortvalue_from_numpy(staged, memory, device_id)
            self._binding.bind_ortvalue_input(given.name, self._inputs[given.name])
        for output in self._session.get_outputs():
            shape, kind = [self.size, *output.shape[1:]], _numpy_type(output.type)
            self._outputs[output.name] = value.ortvalue_from_shape_and_type(shape, kind, memory, device_id)
            self._binding.bind_ortvalue_output(output.name, self._outputs[output.name])

    def run(self, names: Sequence[str], feed: Feed) -> list[np.ndarray]:
        """The named outputs of up to `size` rows. ValueError for rows of another shape."""
        rows = len(next(iter(feed.values())))
        for name, staged in self._staged.items():
            if feed[name].shape[1:] != staged.shape[1:]:
                raise ValueError(f"{name} must be of shape {staged.shape[1:]}, not {feed[name].shape[1:]}")
            staged[:rows] = feed[name]
            self._inputs[name].update_inplace(staged)
        self._session.run_with_iobinding(self._binding)
        # copies: what lies in the host's memory would be a view of the buffer, which the next run overwrites
        return [self._outputs[name].numpy()[:rows].copy() for name in names]


def _numpy_type(kind: str) -> np.dtype[Any]:
    """tensor(float) → float32."""
    inner = kind.removeprefix("tensor(").removesuffix(")")
    return np.dtype(TYPES.get(inner, inner))


class Buckets:
    """A file as a few batch sizes; a batch takes the smallest that holds it."""

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        self._buckets = sorted(buckets, key=lambda bucket: bucket.size)

    def run(self, names: Sequence[str], feed: Feed) -> list[np.ndarray]:
        """The named outputs, row for row. More rows than the largest bucket holds take several runs."""
        largest = self._buckets[-1].size
        rows = len(next(iter(feed.values())))
        parts = []
        for start in range(0, rows, largest):
            part = {name: array[start : start + largest] for name, array in feed.items()}
            count = min(largest, rows - start)
            bucket = next(bucket for bucket in self._buckets if bucket.size >= count)
            parts.append(bucket.run(names, part))
        return (
            parts[0] if len(parts) == 1 else [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        )
