"""One model, ready to answer: decode → preprocess → batch → run → explain. The only file that knows the whole
order.

Usable from Python without a server:

    predictor = Predictor.open()                    # the embedded model, or open(path_to_model_onnx)
    answer = await predictor.classify(Path("photo.jpg").read_bytes())
    answer = await predictor.explain(photo, ExplainOptions(method="cam"))
    await predictor.close()

Every step that takes time runs in threads; deadlines are absolute `time.monotonic()` seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import numpy as np

from . import assemble, images, onnx_file, repository, segment
from .artifact import Manifest
from .assemble import Photo, Scene
from .batcher import Answer, Batcher, Bounds, Share
from .check import check
from .engine import Device, Engine, GradientEngine, Outputs
from .errors import BadParameter, DeadlineExceeded, DeviceLost, PacaError, UnknownModel
from .explain import class_weights, stage_maps
from .faults import Fault, fault_of
from .methods import Evidence, Method
from .novelty import THRESHOLD, Statistics
from .options import MAX_SIDE, MAX_TARGETS, ClassifyOptions, ExplainOptions, SegmentOptions
from .plan import Plan, make_plan, offers
from .precision import load_best
from .providers import PROVIDERS
from .repository import ModelFiles
from .results import (
    Classification,
    ExplainResult,
    Explanation,
    Heatmap,
    ImageInfo,
    Novelty,
    SegmentResult,
    Timings,
)
from .session import usable

log = logging.getLogger("paca.predictor")
NOVELTY = "novelty"  # an output that is not the graph's: (B,), computed from logits and tokens
T = TypeVar("T")
P = ParamSpec("P")
MAX_ROWS = 128  # of one request for tensors


@dataclass(frozen=True)
class Capacity:
    """How much runs at once. instances: parallel runs; max_batch: pictures a run; max_wait: seconds a batch
    waits for batch-mates; queue_size: pictures that may wait; admitted: pictures at work beyond which a
    server takes no further request; decoders: pictures decoded at the same time; runs, gradient_runs: the
    parts of the machine that runs of all models share."""

    instances: int = 1
    max_batch: int = 1
    max_wait: float = 0.0
    queue_size: int = 128
    admitted: int = 128
    decoders: int = 2
    runs: Share | None = None
    gradient_runs: Share | None = None


@dataclass(frozen=True)
class Policy:
    """What is accepted, what is called novel, how large answers get. novelty_threshold: of a score, 0 to 1.
    max_map_pixels: of a label map."""

    limits: images.Limits = field(default_factory=images.Limits)
    novelty_threshold: float = THRESHOLD
    max_map_pixels: int = 25_000_000


@dataclass(frozen=True)
class Picture:
    """One picture on its way to the engine. names: graph outputs requested beside the logits."""

    tensor: np.ndarray
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class GradientInput:
    """One row for explain.onnx: features (N, C) of a picture and weights (K,) over its logits."""

    features: np.ndarray
    weights: np.ndarray


def _counted(
    step: Callable[Concatenate[Predictor, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Predictor, P], Coroutine[Any, Any, T]]:
    """Counts a call while it is under way, so that `close` does not take threads away between two of its
    steps."""

    @wraps(step)
    async def call(self: Predictor, /, *args: P.args, **named: P.kwargs) -> T:
        self._calls += 1
        self._idle.clear()
        try:
            return await step(self, *args, **named)
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    return call


class Predictor:
    """Answers for one model version. All coroutines belong to one event loop."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        version: str,
        *,
        capacity: Capacity | None = None,
        policy: Policy | None = None,
        gradients: GradientEngine | None = None,
    ) -> None:
        """Self-tests and warms up first: BadArtifact where the engine does not give what its exporter
        measured, EngineFailure where memory or the device failed."""
        c = capacity or Capacity()
        self.capacity = c = replace(c, max_batch=min(c.max_batch, engine.max_batch or c.max_batch))
        engine.prepare(c.max_batch)
        engine.self_test()
        engine.warm_up(c.max_batch)
        self.name, self.version = name, version
        self.precision_reason = ""  # why this file runs, as who chose it says
        self.manifest: Manifest = engine.manifest
        self.sha256 = engine.sha256
        self.policy = policy or Policy()
        self._engine, self._gradients = engine, gradients if engine.manifest.explain else None
        if self._gradients:
            self._gradients.prepare(c.max_batch)
            self._gradients.self_test(engine)
        self._calls, self._idle = 0, asyncio.Event()
        self._idle.set()
        self._workers = ThreadPoolExecutor(self.capacity.decoders, thread_name_prefix=f"{name}-pixels")
        self._decoding = images.DecodePool(self._workers)
        self.batcher: Batcher[Picture, Outputs] = Batcher(
            self._run,
            Bounds(c.max_batch, c.max_wait, c.queue_size, c.instances),
            key=lambda picture: picture.tensor.shape,
            share=c.runs,
        )
        # Gradients have a queue and a thread of their own, so that a flood of /explain cannot starve
        # /classify.
        self.gradient_batcher: Batcher[GradientInput, dict[str, np.ndarray]] | None = None
        if self._gradients:
            run = partial(_run_gradients, self._gradients)
            # Where batching gains nothing, maps are computed alone: equal requests get equal maps, bit for
            # bit.
            most = c.max_batch if PROVIDERS[self.provider].batching_pays else 1
            bounds = Bounds(max_batch=most, queue_size=c.queue_size * MAX_TARGETS)
            self.gradient_batcher = Batcher(run, bounds, share=c.gradient_runs)

    @classmethod
    def open(
        cls,
        path: Path | None = None,
        *,
        device: Device | None = None,
        capacity: Capacity | None = None,
        job: str = "classify",
    ) -> Predictor:
        """A predictor of a model file (with explain.onnx beside it, if there), or of the embedded model that
        does `job`, whose file is chosen as a server chooses it."""
        device = device or Device()

        def load(files: ModelFiles, provider: str) -> Predictor:
            on = replace(device, provider=provider)
            gradients = GradientEngine(files.explain, on) if files.explain else None
            engine = Engine(files.model, on)
            return cls(engine, files.name, files.version, capacity=capacity, gradients=gradients)

        if path is None:
            files = embedded(job)
            predictor, choice = load_best(files, repository.AUTO, usable(device.provider), load)
            predictor.precision_reason = choice.reason
            return predictor
        name, version = path.parent.parent.name or path.stem, path.parent.name or "1"
        beside = path.with_name(repository.EXPLAIN)
        return load(ModelFiles(name, version, path, beside if beside.is_file() else None), device.provider)

    @property
    def provider(self) -> str:
        """The execution provider that runs it now."""
        return self._engine.provider

    @property
    def lost(self) -> str:
        """Why its device answers no more in this process; empty while it does."""
        return self._engine.lost or (self._gradients.lost if self._gradients else "")

    @property
    def retry_after(self) -> float:
        """Seconds until what waits for the engine now will have been run, as measured."""
        return self.batcher.retry_after

    @property
    def precision(self) -> str:
        return self.manifest.precision

    def require(self, job: str) -> None:
        """BadParameter where the model's task is another one: it names the right path."""
        purpose = self.manifest.purpose
        if job not in purpose.jobs:
            raise BadParameter(
                f"the model {self.name} is for {purpose.name}, which /{job} is not; send it to "
                f"/{' or /'.join(purpose.jobs)}, or name another model with ?model="
            )

    @_counted
    async def classify(
        self, data: bytes, options: ClassifyOptions | None = None, deadline: float | None = None
    ) -> Classification:
        """The most probable classes of one picture, given as a file's bytes. Raises InvalidInput, Unavailable
        or DeadlineExceeded."""
        self.require("classify")
        options = options or ClassifyOptions()
        began = time.monotonic()
        decoded = await self._decode(data, max(self.manifest.preprocessing.size), deadline)
        outputs = ("tokens",) if self._engine.novelty else ()
        run = await self.batcher.submit(Picture(decoded.tensor, outputs), deadline)
        novelty = self._novelty(run.result)
        return Classification(
            model=self.name,
            model_version=self.version,
            image=decoded.info,
            predictions=assemble.predictions(run.result.logits, self.manifest, options.top_k),
            timings=_timings(began, decoded, run),
            warnings=self._warnings(decoded, novelty),
            novelty=novelty,
        )

    def plan(self, options: ExplainOptions) -> Plan:
        """Checks a request against this model, once for all its pictures; BadParameter says what is valid."""
        self.require("explain")
        return make_plan(options, self.manifest, self._gradients is not None)

    @property
    def offers(self) -> frozenset[str]:
        """What this model has of what methods of explaining need; see `methods`."""
        return offers(self.manifest, self._gradients is not None)

    @_counted
    async def explain(
        self, data: bytes, request: ExplainOptions | Plan | None = None, deadline: float | None = None
    ) -> ExplainResult:
        """Predictions and explanations of one picture from one forward pass, plus what the method needs: one
        short gradient pass a target, or further runs. request: what is requested, or `plan` of it. Raises as
        `classify` does."""
        plan = request if isinstance(request, Plan) else self.plan(request or ExplainOptions())
        began = time.monotonic()
        side = max(self.manifest.preprocessing.size)
        drawn = max(side, assemble.longest_side(plan.options.size, side))
        decoded = await self._decode(data, drawn, deadline)
        run = await self.batcher.submit(Picture(decoded.tensor, plan.outputs), deadline)
        outputs = {"logits": run.result.logits, **run.result.arrays}
        novelty = self._novelty(run.result)
        started = time.monotonic()
        pairs = plan.pairs(run.result.logits)
        gradients = await self._gradient_maps(plan, outputs, pairs, deadline)
        probed = [await self._probe(plan.method, decoded.tensor, outputs, pair, deadline) for pair in pairs]
        scene = await self._in_thread(
            deadline, Scene, plan, self.manifest, self._engine.head, decoded.photo, outputs, novelty
        )
        found = list(zip(pairs, gradients, probed, strict=True))
        targets = await self._in_thread(deadline, self._targets, scene, decoded.tensor, found)
        if plan.options.check:
            targets = [await self._checked(scene, target, decoded.tensor, deadline) for target in targets]
        explained = time.monotonic()
        explanations = await self._in_thread(
            deadline, lambda: [assemble.explanation(scene, target) for target in targets]
        )
        return ExplainResult(
            model=self.name,
            model_version=self.version,
            image=decoded.info,
            predictions=assemble.predictions(run.result.logits, self.manifest, plan.options.top_k),
            timings=_timings(
                began, decoded, run, explain=explained - started, render=time.monotonic() - explained
            ),
            warnings=(*self._warnings(decoded, novelty), *plan.remarks, *_failed_checks(explanations)),
            novelty=novelty,
            explanations=tuple(explanations),
        )

    def plan_segments(self, options: SegmentOptions) -> segment.Plan:
        """As `plan`, of a segmentation."""
        self.require("segment")
        return segment.make_plan(options, self.manifest)

    @_counted
    async def segment(
        self, data: bytes, request: SegmentOptions | segment.Plan | None = None, deadline: float | None = None
    ) -> SegmentResult:
        """The class of every pixel of one picture, and what was requested of each class. request: what is
        requested, or `plan_segments` of it. Raises as `classify` does."""
        plan = (
            request if isinstance(request, segment.Plan) else self.plan_segments(request or SegmentOptions())
        )
        began = time.monotonic()
        side = max(self.manifest.preprocessing.size)
        decoded = await self._decode(data, max(side, MAX_SIDE) if plan.draws else side, deadline)
        run = await self.batcher.submit(Picture(decoded.tensor, plan.outputs), deadline)
        outputs = {"logits": run.result.logits, **run.result.arrays}
        started = time.monotonic()
        found = await self._in_thread(
            deadline,
            segment.segmented,
            plan,
            self.manifest,
            decoded.photo,
            outputs,
            self.policy.max_map_pixels,
        )
        return SegmentResult(
            model=self.name,
            model_version=self.version,
            image=decoded.info,
            segments=found.segments,
            map=found.map,
            images=found.images,
            timings=_timings(began, decoded, run, render=time.monotonic() - started),
            warnings=(*decoded.warnings, *found.warnings),
        )

    @_counted
    async def prepare(self, data: bytes, deadline: float | None = None) -> np.ndarray:
        """One encoded picture as the graph takes it: a row for `infer`."""
        return (await self._decode(data, max(self.manifest.preprocessing.size), deadline)).tensor

    @_counted
    async def infer(
        self, batch: np.ndarray, outputs: tuple[str, ...] | None = None, deadline: float | None = None
    ) -> dict[str, np.ndarray]:
        """The graph as it is: tensors as the manifest's `input` says → the named outputs (all by default),
        each (B, ...). BadParameter for a wrong shape."""
        known = tuple(self.outputs)
        names = known if outputs is None else outputs
        if unknown := [name for name in names if name not in known]:
            raise BadParameter(f"there is no output {unknown[0][:60]!r}; the model has: {', '.join(known)}")
        self._check_tensor(batch)
        graph = dict.fromkeys("tokens" if name == NOVELTY else name for name in names)
        arrays = tuple(name for name in graph if name != "logits")
        runs = await gather(self.batcher.submit(Picture(row, arrays), deadline) for row in batch)
        rows: list[dict[str, np.ndarray]] = []
        for run in runs:
            novelty = self._novelty(run.result) if NOVELTY in names else None
            score = {} if novelty is None else {NOVELTY: np.array(novelty.score, np.float32)}
            rows.append({"logits": run.result.logits, **run.result.arrays, **score})
        return {name: np.stack([row[name] for row in rows]) for name in names}

    @property
    def outputs(self) -> dict[str, list[int | str | None]]:
        """Every output with its shape: the graph's, and `novelty` where there are statistics for it."""
        novelty: dict[str, list[int | str | None]] = {NOVELTY: [None]} if self._engine.novelty else {}
        return {**self._engine.outputs, **novelty}

    @property
    def novelty(self) -> Statistics | None:
        """The statistics of the model, None where it has none."""
        return self._engine.novelty

    async def close(self) -> None:
        """Lets the calls that are under way finish, all their steps, then frees threads and sessions. Nobody
        may call from here on."""
        await self._idle.wait()
        await self.batcher.close()
        if self.gradient_batcher:
            await self.gradient_batcher.close()
        self._workers.shutdown(wait=False)
        self._engine.close()
        if self._gradients:
            self._gradients.close()

    def _check_tensor(self, batch: np.ndarray) -> None:
        fixed = self.manifest.preprocessing.size
        height, width = ("height", "width") if self.manifest.dynamic_size else fixed
        kind, shape = (
            (np.uint8, (height, width, 3))
            if self.manifest.input == "uint8"
            else (np.float32, (3, height, width))
        )
        fits = batch.ndim == 4 and all(
            given and (given == size or isinstance(size, str))
            for given, size in zip(batch.shape[1:], shape, strict=True)
        )
        if fits and (longest := self.manifest.preprocessing.longest):
            sides = batch.shape[1:3] if kind is np.uint8 else batch.shape[2:4]
            if max(sides) > longest or min(sides) > max(fixed):
                raise BadParameter(
                    f"image may be {max(fixed)} pixels on its shorter side and {longest} on its longer one, "
                    "not "
                    f"{sides[1]} x {sides[0]}"
                )
        if batch.dtype != kind or not fits or not len(batch):
            raise BadParameter(
                f"image must be {np.dtype(kind)} of shape (B, {', '.join(map(str, shape))}), not "
                f"{batch.dtype} {batch.shape}"
            )

    async def _in_thread(self, deadline: float | None, function: Callable[..., T], *args: object) -> T:
        if deadline is not None and time.monotonic() >= deadline:
            raise DeadlineExceeded(
                "the deadline passed before the picture was processed; send fewer requests at once, or raise "
                "PACA_DEADLINE_MS"
            )
        return await asyncio.get_running_loop().run_in_executor(self._workers, partial(function, *args))

    async def _decode(self, data: bytes, reduce_to: int, deadline: float | None) -> _Decoded:
        return await self._decoding.run(
            data, self.policy.limits, partial(self._prepare, reduce_to=reduce_to), deadline
        )

    def _prepare(self, source: images.Source, reduce_to: int) -> _Decoded:
        began = time.monotonic()
        seen = images.prepare(source, self.manifest.preprocessing)
        tensor, decoded = seen.pixels, seen.decoded
        needed = images.needed_side(self.manifest.preprocessing)
        if reduce_to > needed and decoded.rgb.shape[1] < decoded.width:
            # To draw on, more is needed; the network's input stays that of every request.
            decoded = images.decode_source(source, reduce_to)
        if self.manifest.input == "float32":
            tensor = self.manifest.preprocessing.to_float(tensor[None])[0]
        info = ImageInfo(decoded.width, decoded.height, decoded.format)
        photo = Photo(decoded.rgb, seen.placement.box, info)
        return _Decoded(photo, tensor, decoded.warnings, time.monotonic() - began)

    def _run(self, pictures: list[Picture]) -> list[Outputs]:
        names = tuple(dict.fromkeys(name for picture in pictures for name in picture.names))
        batch = (
            pictures[0].tensor[None]
            if len(pictures) == 1
            else np.stack([picture.tensor for picture in pictures])
        )
        out = _recovering(self._engine, lambda: self._engine.run(batch, names))
        return [out.row(i) for i in range(len(pictures))]

    def _novelty(self, outputs: Outputs) -> Novelty | None:
        """Of one picture's outputs, the tokens among them."""
        if self._engine.novelty is None:
            return None
        pooled = outputs.arrays["tokens"].mean(0)
        score = self._engine.novelty.score(outputs.logits[None], pooled[None])[0]
        return Novelty(float(score), self.policy.novelty_threshold)

    def _warnings(self, decoded: _Decoded, novelty: Novelty | None) -> tuple[str, ...]:
        if novelty is None or not novelty.is_novel:
            return decoded.warnings
        return (
            *decoded.warnings,
            f"this picture is less like the training pictures than {100 * novelty.score:.1f} % of known "
            "ones: "
            f"it may show none of the model's {len(self.manifest.labels)} classes",
        )

    async def _gradient_maps(
        self,
        plan: Plan,
        outputs: Mapping[str, np.ndarray],
        pairs: Sequence[tuple[int, int | None]],
        deadline: float | None,
    ) -> list[dict[str, np.ndarray]]:
        """The outputs of explain.onnx for each (target, contrast); empty where the plan needs none."""
        if not (plan.gradients and self.gradient_batcher):
            return [{} for _ in pairs]
        classes = len(outputs["logits"])
        inputs = [GradientInput(outputs["features"], class_weights(classes, *pair)) for pair in pairs]
        runs = await gather(self.gradient_batcher.submit(row, deadline) for row in inputs)
        return [run.result for run in runs]

    async def _probe(
        self,
        method: Method,
        tensor: np.ndarray,
        outputs: Mapping[str, np.ndarray],
        pair: tuple[int, int | None],
        deadline: float | None,
    ) -> Heatmap | None:
        """The map of a method that needs further runs, None for any other."""
        if method.probe is None:
            return None
        logits = outputs["logits"]
        weights = class_weights(len(logits), *pair)
        return await self._run_probe(
            method.probe(Evidence(weights=weights, logits=logits, tensor=tensor)), deadline
        )

    async def _checked(
        self, scene: Scene, target: assemble.Target, tensor: np.ndarray, deadline: float | None
    ) -> assemble.Target:
        """The target with what hiding the map's places did to the score of its class."""
        if target.heatmap is None:
            return target
        scores = partial(scene.score, target.class_id)
        base = float(scores(scene.logits[None])[0])
        steps = check(tensor, target.heatmap.values, base, scores)
        return replace(target, check=await self._run_probe(steps, deadline))

    async def _run_probe(self, probe: Generator[np.ndarray, np.ndarray, T], deadline: float | None) -> T:
        """What a generator of pictures to run returns. It never fills the queue: as many pictures as can run
        at once are submitted, then the next."""
        at_once = self.capacity.instances * self.capacity.max_batch
        answers: np.ndarray | None = None
        while True:
            step = await self._in_thread(deadline, _next_step, probe, answers)
            if isinstance(step, _Returned):
                return step.value
            rows: list[np.ndarray] = []
            for start in range(0, len(step), at_once):
                few = step[start : start + at_once]
                runs = await gather(self.batcher.submit(Picture(row), deadline) for row in few)
                rows += [run.result.logits for run in runs]
            answers = np.stack(rows)

    def _targets(self, scene: Scene, tensor: np.ndarray, found: Sequence[_Found]) -> list[assemble.Target]:
        """Every explained quantity of a picture, with its map."""
        method, targets = scene.plan.method, []
        for (class_id, contrast), gradients, heatmap in found:
            weights = class_weights(len(scene.logits), class_id, contrast)
            cam = scene.contributions(weights, gradients)
            if method.heatmap:
                maps, exact = stage_maps(gradients), not scene.plan.first_order
                heatmap = method.heatmap(Evidence(cam, maps, weights, scene.logits, tensor, exact))
            targets.append(assemble.Target(class_id, contrast, cam, gradients, heatmap))
        return targets


def embedded(job: str) -> ModelFiles:
    """The first embedded model that does `job`; UnknownModel where none does."""
    root = repository.embedded()
    for name in repository.names(root):
        files = repository.find(root, name)
        if job in Manifest.from_metadata(onnx_file.metadata(files.model)).purpose.jobs:
            return files
    raise UnknownModel(f"no embedded model can {job}; name one with --model")


async def gather(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results, in order. Where one fails, the others are cancelled and its error is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


_Found = tuple[tuple[int, int | None], dict[str, np.ndarray], Heatmap | None]  # pair, gradients, probed map


@dataclass(frozen=True)
class _Decoded:
    """A decoded and preprocessed picture. seconds: what it took."""

    photo: Photo
    tensor: np.ndarray
    warnings: tuple[str, ...]
    seconds: float

    @property
    def info(self) -> ImageInfo:
        return self.photo.info


def _recovering(engine: Engine | GradientEngine, run: Callable[[], T]) -> T:
    """What `run` gives. Where it fails, the engine gets a fresh session and the error is raised: the batcher
    runs each row once more, alone. Short memory leaves the session as it is, which is smaller than two."""
    try:
        return run()
    except PacaError:
        raise  # the input's fault, or the device's: a fresh session would not take it either
    except Exception as error:  # what ONNX Runtime raises is no contract
        if fault_of(error) is Fault.MEMORY:
            log.error("a run found too little memory on %s: %s", engine.provider, error)
            raise
        log.exception("a run failed on %s; opening a fresh session", engine.provider)
        try:
            engine.reopen()
        except DeviceLost:
            raise
        except PacaError as reason:  # e.g. replaced meanwhile: the old session goes on
            log.error("no fresh session: %s", reason)
        raise


@dataclass(frozen=True)
class _Returned(Generic[T]):
    value: T


def _next_step(
    probe: Generator[np.ndarray, np.ndarray, T], logits: np.ndarray | None
) -> np.ndarray | _Returned[T]:
    """The next pictures that a generator wants run, or what it returned."""
    try:
        return next(probe) if logits is None else probe.send(logits)
    except StopIteration as done:
        return _Returned(done.value)


def _failed_checks(explanations: Iterable[Explanation]) -> list[str]:
    """A sentence for each map that did no better than chance."""
    return [
        f"the map for {e.target.label} is not to be trusted here: hiding what it shows changes the score no "
        "more than hiding random places"
        for e in explanations
        if e.check and e.target and not e.check.passed
    ]


def _run_gradients(engine: GradientEngine, inputs: list[GradientInput]) -> list[dict[str, np.ndarray]]:
    features, weights = np.stack([row.features for row in inputs]), np.stack([row.weights for row in inputs])
    out = _recovering(engine, lambda: engine.run(features, weights))
    return [{name: values[i] for name, values in out.items()} for i in range(len(inputs))]


def _timings(
    began: float, decoded: _Decoded, run: Answer[Outputs], explain: float = 0.0, render: float = 0.0
) -> Timings:
    return Timings(
        decode=1000 * decoded.seconds,
        queue=run.queue_ms,
        inference=run.inference_ms,
        total=1000 * (time.monotonic() - began),
        explain=1000 * explain,
        render=1000 * render,
        batch_size=run.batch_size,
    )
