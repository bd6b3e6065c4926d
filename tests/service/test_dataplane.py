"""What every door relies on: the model, its room, the deadline, work that nobody waits for."""

import asyncio
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from service.dataplane import Call, DataPlane, InferRequest, OneModel, OutputRequest, run_until_deadline
from service.engine import Device
from service.errors import (
    BadImage,
    BadParameter,
    ClientGone,
    DeadlineExceeded,
    Draining,
    MalformedRequest,
    Overloaded,
    TooLarge,
    UnknownModel,
)
from service.options import ClassifyOptions, ExplainOptions
from service.predictor import Capacity, Predictor
from service.registry import Registry
from service.settings import Settings
from service.wiring import build_registry


@pytest.fixture
def on_plane(tiny_repository: Path):
    """Runs a coroutine of a data plane with the tiny model and returns its result; seen: what it observed."""

    def run(scenario, **options):
        async def whole():
            path = tiny_repository / "tiny" / "1" / "model.onnx"
            predictor = Predictor.open(path, device=Device("cpu", threads=1), capacity=Capacity(admitted=32))
            try:
                return await scenario(DataPlane(OneModel(predictor), **options))
            finally:
                await predictor.close()

        return asyncio.run(whole())

    return run


def test_every_picture_gets_its_own_result_or_error_in_order(on_plane, jpeg):
    call, seen = Call(), []
    results = on_plane(
        lambda plane: plane.classify([jpeg, b"no picture", BadImage("torn"), jpeg], ClassifyOptions(), call),
        observe=lambda model, result: seen.append((model, result.timings)),
    )
    assert [type(result).__name__ for result in results] == [
        "Classification",
        "NotAnImage",
        "BadImage",
        "Classification",
    ]
    assert (call.model, call.pictures) == ("tiny:1", 4)
    assert call.timings == [timings for _, timings in seen]
    assert len(seen) == 2


def test_one_plan_serves_all_pictures_of_a_request(on_plane, jpeg, monkeypatch):
    plans = []
    original = Predictor.plan

    def counted(self, options):
        plans.append(options)
        return original(self, options)

    monkeypatch.setattr(Predictor, "plan", counted)
    on_plane(lambda plane: plane.explain([jpeg] * 3, ExplainOptions(method="cam"), Call()))
    assert len(plans) == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (ClassifyOptions(model="other"), UnknownModel),
        (ClassifyOptions(model="tiny:7"), UnknownModel),
        (ExplainOptions(targets=("zebra",)), BadParameter),
    ],
)
def test_what_concerns_the_whole_request_is_raised(on_plane, jpeg, options, error):
    job = "explain" if isinstance(options, ExplainOptions) else "classify"
    with pytest.raises(error):
        on_plane(lambda plane: getattr(plane, job)([jpeg], options, Call()))


def test_where_nothing_was_done_the_request_as_a_whole_may_be_sent_again(on_plane, jpeg):
    with pytest.raises(Draining):
        on_plane(lambda plane: plane.classify([Draining("x"), Draining("x")], ClassifyOptions(), Call()))


def test_a_deadline_that_has_passed_is_said_before_anything_runs(on_plane, jpeg):
    with pytest.raises(DeadlineExceeded):
        on_plane(lambda plane: plane.classify([jpeg], ClassifyOptions(), Call(deadline=time.monotonic() - 1)))


def test_a_method_of_several_runs_answers_through_the_same_door(on_plane, jpeg):
    [result] = on_plane(lambda plane: plane.explain([jpeg], ExplainOptions(method="occlusion"), Call()))
    [explanation] = result.explanations
    assert (explanation.method.name, explanation.method.complete) == ("occlusion", False)
    assert explanation.heatmap.grid == (8, 8)
    assert np.abs(explanation.heatmap.values).max() == 1


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (np.zeros((), np.uint8), MalformedRequest),
        (np.zeros((0, 32, 32, 3), np.uint8), MalformedRequest),
        (np.zeros((129, 32, 32, 3), np.uint8), TooLarge),
        (np.zeros((1, 32, 32), np.uint8), BadParameter),
        ([b"x"], MalformedRequest),
    ],
)
def test_tensors_that_do_not_fit_are_refused(on_plane, image, error):
    with pytest.raises(error):
        on_plane(lambda plane: plane.infer(InferRequest("tiny", None, image), Call()))


def test_encoded_pictures_go_by_the_second_name(on_plane, jpeg):
    async def scenario(plane):
        [result] = await plane.classify([jpeg], ClassifyOptions(top_k=1), Call())
        request = InferRequest("tiny-image", None, [jpeg], (OutputRequest("logits", best=1),))
        return result.predictions[0], await plane.infer(request, Call())

    best, inferred = on_plane(scenario)
    [text] = inferred.outputs["logits"]
    assert text.decode().split(":")[1:] == [str(best.class_id), best.label]


def test_outputs_that_are_not_named_are_all(on_plane):
    image = np.zeros((2, 32, 32, 3), np.uint8)
    inferred = on_plane(lambda plane: plane.infer(InferRequest("tiny", None, image), Call()))
    assert {"logits", "tokens", "assignment_1"} <= set(inferred.outputs)


@pytest.mark.parametrize("output", [OutputRequest("tokens", best=1), OutputRequest("logits", best=0)])
def test_classes_are_of_logits_and_at_least_one(on_plane, output):
    image = np.zeros((1, 32, 32, 3), np.uint8)
    with pytest.raises(MalformedRequest, match="classification"):
        on_plane(lambda plane: plane.infer(InferRequest("tiny", None, image, (output,)), Call()))


def test_a_model_under_load_leaves_an_idle_one_its_room(tiny_repository, tmp_path, jpeg):
    for name in ("busy", "idle"):
        shutil.copytree(tiny_repository / "tiny", tmp_path / name)

    async def scenario():
        registry: Registry = build_registry(Settings(models=tmp_path, provider="cpu", instances=1, threads=1))
        await registry.start()
        plane = DataPlane(registry)
        try:
            while len(plane.models()) < 2:
                await asyncio.sleep(0.01)
            busy = plane.admission(plane.select("busy"))
            with busy.admit(busy.limit):
                with pytest.raises(Overloaded):
                    await plane.classify([jpeg], ClassifyOptions(model="busy"), Call())
                [result] = await plane.classify([jpeg], ClassifyOptions(model="idle"), Call())
            return result
        finally:
            await registry.close()

    assert asyncio.run(scenario()).model == "idle"


def caller(leaves_after: float = 60.0):
    async def gone():
        await asyncio.sleep(leaves_after)

    return gone


def outcome(work, gone, seconds=60.0):
    """(what it returns, whether the work was cancelled)."""
    cancelled = []

    async def watched():
        try:
            return await work
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def scenario():
        try:
            return await run_until_deadline(watched(), Call(deadline=time.monotonic() + seconds, gone=gone))
        except Exception as error:
            return type(error)

    return asyncio.run(scenario()), bool(cancelled)


def test_work_that_is_done_is_answered():
    assert outcome(asyncio.sleep(0, "done"), caller()) == ("done", False)


def test_an_error_of_the_work_is_the_answer():
    async def fail():
        raise BadImage("x")

    assert outcome(fail(), caller()) == (BadImage, False)


def test_work_is_cancelled_when_its_caller_leaves():
    assert outcome(asyncio.sleep(60), caller(0.01)) == (ClientGone, True)


def test_work_is_cancelled_when_its_deadline_passes():
    assert outcome(asyncio.sleep(60), caller(), 0.01) == (DeadlineExceeded, True)


def test_cancelling_the_handler_cancels_the_work():
    async def scenario():
        work = asyncio.Event()

        async def wait():
            try:
                await asyncio.sleep(60)
            finally:
                work.set()

        handler = asyncio.create_task(
            run_until_deadline(wait(), Call(deadline=time.monotonic() + 60, gone=caller()))
        )
        await asyncio.sleep(0.01)
        handler.cancel()
        await asyncio.wait((handler,))
        assert handler.cancelled()
        assert work.is_set()

    asyncio.run(scenario())
