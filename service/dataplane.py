"""Everything a request needs between its bytes and its result, whatever door it came through; no HTTP here.

REST, the Open Inference Protocol over HTTP and gRPC, the command line and Ray parse, call one of these
methods and shape what comes back. This is the one place that picks the model, plans, admits and holds the
deadline. It runs pictures side by side, drops work whose caller left, and observes. What a model does with a
picture stands in `predictor`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from .admission import Admission, MemoryWatch
from .errors import (
    BadParameter,
    ClientGone,
    DeadlineExceeded,
    MalformedRequest,
    PacaError,
    TooLarge,
    Unavailable,
    UnknownModel,
)
from .options import ClassifyOptions, ExplainOptions, SegmentOptions
from .predictor import MAX_ROWS, Predictor, gather
from .registry import ModelStatus
from .results import Classification, ExplainResult, Result, SegmentResult, Timings

T = TypeVar("T")
R = TypeVar("R", bound=Result)
# Ends the second name of a model in the inference protocol: its input is encoded photos.
ENCODED = "-image"


@dataclass
class Call:
    """One request on its way. deadline: `time.monotonic()` seconds. gone: returns once the caller has left.

    The data plane notes what happened: model (name:version), pictures, and the timings of each picture.
    """

    deadline: float = math.inf
    gone: Callable[[], Coroutine[Any, Any, None]] | None = None
    model: str | None = None
    pictures: int = 0
    timings: list[Timings] = field(default_factory=list)


class Models(Protocol):
    """Where the data plane finds its models; `registry.Registry` is one."""

    @property
    def ready(self) -> tuple[bool, str]: ...

    def models(self) -> list[ModelStatus]: ...

    def get(
        self, name: str | None = None, version: str | None = None, job: str | None = None
    ) -> Predictor: ...


class OneModel:
    """A predictor as the only model: for the command line and for scripts."""

    ready = (True, "ready")

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def models(self) -> list[ModelStatus]:
        p = self._predictor
        return [ModelStatus(p.name, (p.version,), p.version, p)]

    def get(self, name: str | None = None, version: str | None = None, job: str | None = None) -> Predictor:
        """The predictor; UnknownModel where another one is named."""
        p = self._predictor
        if name not in (None, p.name) or version not in (None, p.version):
            raise UnknownModel(f"there is no model {name!r} here; there is: {p.name}")
        return p


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as the inference protocol describes it; -1 in shape = any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """A model as the inference protocol describes it."""

    name: str
    versions: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class OutputRequest:
    """One output of a request for tensors. best: instead of logits, the `best` classes of each picture."""

    name: str
    best: int | None = None


@dataclass(frozen=True)
class InferRequest:
    """A request for tensors. image: pixels as the graph takes them, or encoded photos. outputs: None =
    all."""

    model: str
    version: str | None
    image: np.ndarray | list[bytes]
    outputs: tuple[OutputRequest, ...] | None = None

    @property
    def pictures(self) -> int:
        """How many it holds; an array without sizes counts as one. Not by numpy: of a list it would make an
        array whose every element is as long as the longest."""
        image = self.image
        return len(image) if isinstance(image, list) or image.ndim else 1


@dataclass(frozen=True)
class InferResult:
    """model, version: which answered. outputs: by name, (B, ...) float32, or texts `value:index:label`,
    `best` for each picture in a row, where those were requested."""

    model: str
    version: str
    pictures: int
    outputs: dict[str, np.ndarray | list[bytes]]


class DataPlane:
    """The methods behind every door. All calls belong to one event loop."""

    def __init__(
        self,
        models: Models,
        *,
        max_images: int = 16,
        observe: Callable[[str, Result], None] = lambda model, result: None,
    ) -> None:
        """max_images: encoded pictures of one request. observe: is told each picture's model and result."""
        self._models, self.max_images, self._observe = models, max_images, observe
        self._admissions: WeakKeyDictionary[Predictor, Admission] = WeakKeyDictionary()
        self._memory = MemoryWatch()

    @property
    def ready(self) -> tuple[bool, str]:
        """Whether requests are answered, and if not, why."""
        return self._models.ready

    def models(self) -> list[ModelStatus]:
        """Every loaded model."""
        return self._models.models()

    def select(self, model: str | None, job: str | None = None) -> Predictor:
        """The model of NAME or NAME:VERSION, None = the one that answers a job by default. UnknownModel,
        NotReady; BadParameter where its task is another one; Overloaded where it has no room, so that a door
        can refuse before it reads a body."""
        name, _, version = (model or "").partition(":")
        predictor = self._models.get(name or None, version or None, job)
        if job:
            predictor.require(job)
        return self._with_room(predictor)

    async def classify(
        self, pictures: Sequence[bytes | PacaError], options: ClassifyOptions, call: Call
    ) -> list[Classification | PacaError]:
        """A result or an error for each picture, in order. pictures: encoded files, or what was wrong with
        one. Raises UnknownModel, Unavailable, DeadlineExceeded or ClientGone for the request as a whole."""
        predictor = self.select(options.model, "classify")
        return await self._each(
            predictor, pictures, lambda data: predictor.classify(data, options, call.deadline), call
        )

    async def explain(
        self, pictures: Sequence[bytes | PacaError], options: ExplainOptions, call: Call
    ) -> list[ExplainResult | PacaError]:
        """As `classify`, with explanations; BadParameter where the model cannot do what is requested."""
        predictor = self.select(options.model, "explain")
        plan = predictor.plan(options)
        return await self._each(
            predictor, pictures, lambda data: predictor.explain(data, plan, call.deadline), call
        )

    async def segment(
        self, pictures: Sequence[bytes | PacaError], options: SegmentOptions, call: Call
    ) -> list[SegmentResult | PacaError]:
        """As `classify`, with the class of every pixel; BadParameter for a class that the model does not
        know."""
        predictor = self.select(options.model, "segment")
        plan = predictor.plan_segments(options)
        return await self._each(
            predictor, pictures, lambda data: predictor.segment(data, plan, call.deadline), call
        )

    def find(self, name: str, version: str | None) -> tuple[Predictor, bool]:
        """(model, whether `name` is the one that takes encoded pictures). UnknownModel, NotReady."""
        encoded = name.endswith(ENCODED) and name not in {status.name for status in self.models()}
        try:
            return self._models.get(name.removesuffix(ENCODED) if encoded else name, version), encoded
        except UnknownModel:
            which = " of that version" if version else ""
            raise UnknownModel(
                f"there is no model {name[:80]!r}{which}; GET /v2/models lists what there is"
            ) from None

    def names(self) -> list[str]:
        """Both names of every model, of pixels and of encoded pictures."""
        return [name for status in self.models() for name in (status.name, status.name + ENCODED)]

    def metadata(self, name: str, version: str | None) -> ModelMetadata:
        """A model's versions, inputs and outputs."""
        predictor, encoded = self.find(name, version)
        manifest = predictor.manifest
        height, width = (-1, -1) if manifest.dynamic_size else manifest.preprocessing.size
        uint8 = manifest.input == "uint8"
        pixels = TensorSpec(
            "image", "UINT8" if uint8 else "FP32", (-1, height, width, 3) if uint8 else (-1, 3, height, width)
        )
        return ModelMetadata(
            name=name,
            versions=next(status.versions for status in self.models() if status.name == predictor.name),
            inputs=(TensorSpec("image", "BYTES", (-1,)) if encoded else pixels,),
            outputs=tuple(
                TensorSpec(output, "FP32", (-1, *(n if isinstance(n, int) else -1 for n in shape[1:])))
                for output, shape in predictor.outputs.items()
            ),
        )

    async def infer(self, request: InferRequest, call: Call) -> InferResult:
        """The graph as it is. Raises as `classify`, and MalformedRequest, TooLarge or BadParameter for
        tensors and outputs that do not fit."""
        predictor, encoded = self.find(request.model, request.version)
        pictures = self._count(request.image, predictor, encoded)
        requested = request.outputs
        if requested is None:
            requested = tuple(OutputRequest(name) for name in predictor.outputs)
        for output in requested:
            if output.best is not None and (output.name != "logits" or output.best < 1):
                raise MalformedRequest(
                    "`classification` is a parameter of the output logits: how many classes, from 1"
                )
            if output.best is not None:
                predictor.require("classify")

        async def run() -> dict[str, np.ndarray]:
            batch = request.image
            if isinstance(batch, list):
                batch = _stacked(await gather(predictor.prepare(data, call.deadline) for data in batch))
            return await predictor.infer(batch, tuple(output.name for output in requested), call.deadline)

        arrays = await self._admitted(predictor, pictures, run(), call)
        labels = predictor.manifest.labels
        values = {
            output.name: arrays[output.name]
            if output.best is None
            else _best_classes(arrays[output.name], output.best, labels)
            for output in requested
        }
        return InferResult(predictor.name, predictor.version, pictures, values)

    def _count(self, image: np.ndarray | list[bytes], predictor: Predictor, encoded: bool) -> int:
        """How many pictures a request for tensors holds; refused where they are none, or not of the kind."""
        if isinstance(image, list) != encoded:
            raise MalformedRequest(
                f"{predictor.name} takes pixels, {predictor.name + ENCODED} takes encoded pictures as BYTES"
            )
        if isinstance(image, np.ndarray) and image.ndim == 0:
            raise MalformedRequest("the input 'image' has no sizes; its shape begins with the pictures")
        if not len(image):
            raise MalformedRequest("the input 'image' holds no picture; send at least one")
        most = self.max_images if encoded else MAX_ROWS
        if len(image) > most:
            raise TooLarge(
                f"{len(image)} pictures in one request; at most {most} are taken", limit="batch", value=most
            )
        return len(image)

    def _with_room(self, predictor: Predictor) -> Predictor:
        self._memory.check()
        self.admission(predictor).check(predictor.retry_after)
        return predictor

    def check_room(self, predictor: Predictor) -> None:
        """Overloaded where the model has no room now."""
        self._with_room(predictor)

    def check_some_room(self) -> None:
        """Overloaded where no model has room now: for a door that learns the model's name with the body."""
        self._memory.check()
        loaded = [self._models.get(status.name, v) for status in self.models() for v in status.versions]
        bounds = [self.admission(predictor) for predictor in loaded]
        if bounds:
            min(bounds, key=lambda bound: bound.in_flight - bound.limit).check()

    def admission(self, predictor: Predictor) -> Admission:
        """The bound of one model."""
        found = self._admissions.get(predictor)
        if found is None:
            found = self._admissions[predictor] = Admission(predictor.capacity.admitted)
        return found

    async def _each(
        self,
        predictor: Predictor,
        pictures: Sequence[bytes | PacaError],
        run: Callable[[bytes], Awaitable[R]],
        call: Call,
    ) -> list[R | PacaError]:
        async def one(picture: bytes | PacaError) -> R | PacaError:
            if isinstance(picture, PacaError):
                return picture
            try:
                result = await run(picture)
            except PacaError as error:
                return error
            call.timings.append(result.timings)
            self._observe(predictor.name, result)
            return result

        async def all_of_them() -> list[R | PacaError]:
            if len(pictures) == 1:
                return [await one(pictures[0])]
            return await gather(map(one, pictures))

        results = await self._admitted(predictor, len(pictures), all_of_them(), call)
        first = results[0]
        if isinstance(first, PacaError) and all(isinstance(result, Unavailable) for result in results):
            raise first  # nothing was done: the request as a whole may be sent again
        return results

    async def _admitted(
        self, predictor: Predictor, pictures: int, work: Coroutine[Any, Any, T], call: Call
    ) -> T:
        call.model, call.pictures = f"{predictor.name}:{predictor.version}", pictures
        try:
            self._memory.check()
            with self.admission(predictor).admit(pictures, predictor.retry_after):
                return await run_until_deadline(work, call)
        finally:
            work.close()  # where it was refused before it began


def _stacked(pictures: list[np.ndarray]) -> np.ndarray:
    """One tensor of all; BadParameter where a model that keeps the aspect made them of several sizes."""
    sizes = sorted({picture.shape for picture in pictures})
    if len(sizes) > 1:
        raise BadParameter(
            f"these pictures have {len(sizes)} sizes as the model takes them, and a tensor has one; send "
            "pictures "
            "of one aspect together"
        )
    return np.stack(pictures)


def _best_classes(logits: np.ndarray, best: int, labels: Sequence[str]) -> list[bytes]:
    """The protocol's classification extension: each row's best as `value:index:label`."""
    return [
        f"{row[i]:.6f}:{i}:{labels[i]}".encode()
        for row in logits
        for i in np.argsort(-row, kind="stable")[:best]
    ]


async def run_until_deadline(work: Coroutine[Any, Any, T], call: Call) -> T:
    """The result of `work`, unless the call's deadline passes or its caller leaves first: then it is
    cancelled, and DeadlineExceeded or ClientGone is raised."""
    task: asyncio.Task[T] = asyncio.ensure_future(work)
    waiting: set[asyncio.Future[Any]] = {task}
    gone = asyncio.ensure_future(call.gone()) if call.gone else None
    if gone:
        waiting.add(gone)
    left = None if call.deadline == math.inf else max(0.0, call.deadline - time.monotonic())
    try:
        await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone and gone.done():
            raise ClientGone("the client went away before its answer was ready")
        raise DeadlineExceeded(
            "the deadline passed before the answer was ready; send fewer requests at once, or raise "
            "PACA_DEADLINE_MS"
        )
    finally:
        if gone:
            gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
