"""The predictor as a library: pictures in, answers out, on the real engine, without a server."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import onnxruntime
import pytest

from service.engine import Device, Engine
from service.errors import (
    BadImage,
    BadParameter,
    DeadlineExceeded,
    EngineFailure,
    Overloaded,
    ProviderUnavailable,
)
from service.options import ClassifyOptions, ExplainOptions
from service.predictor import Capacity, Predictor

T = TypeVar("T")


@pytest.fixture
def ask(tiny_repository: Path) -> Callable[[Callable[[Predictor], Awaitable[T]]], T]:
    """Runs one coroutine with a fresh predictor of the tiny model."""

    def run(question: Callable[[Predictor], Awaitable[T]], capacity: Capacity | None = None) -> T:
        async def main() -> T:
            predictor = Predictor.open(
                tiny_repository / "tiny" / "1" / "model.onnx",
                device=Device("cpu", threads=1),
                capacity=capacity,
            )
            try:
                return await question(predictor)
            finally:
                await predictor.close()

        return asyncio.run(main())

    return run


def test_classify_and_explain_agree_on_every_score(ask, jpeg: bytes) -> None:
    async def both(p: Predictor):
        return await p.classify(jpeg), await p.explain(jpeg)

    classified, explained = ask(both)
    assert classified.predictions == explained.predictions
    assert (classified.image.width, classified.image.height) == (451, 300)


@pytest.mark.parametrize("method", ["cam", "focus", "fine", "grouping"])
def test_contributions_and_bias_add_up_to_every_logit(ask, jpeg: bytes, method: str) -> None:
    answer = ask(lambda p: p.explain(jpeg, ExplainOptions(method=method, targets=(0, 1, 2, 3))))
    assert len(answer.explanations) == 4
    for explanation in answer.explanations:
        assert explanation.method.name == method
        assert explanation.method.class_specific is (method != "grouping")
        if method == "cam":
            assert abs(explanation.completeness.residual) < 1e-4
        else:
            assert explanation.completeness is None


def test_a_contrast_is_the_difference_of_two_classes_and_antisymmetric(ask, jpeg: bytes) -> None:
    async def both(p: Predictor):
        return [
            await p.explain(jpeg, ExplainOptions(method="cam", targets=(a,), contrast=b))
            for a, b in ((0, 1), (1, 0), (2, 2))
        ]

    forward, backward, same = (answer.explanations[0] for answer in ask(both))
    np.testing.assert_allclose(forward.heatmap.values, -backward.heatmap.values, atol=1e-6)
    assert np.abs(same.heatmap.values).max() == 0
    assert forward.completeness.logit == pytest.approx(
        forward.target.logit - forward.contrast.logit, abs=1e-5
    )


def test_cluster_shares_come_strongest_first(ask, jpeg: bytes) -> None:
    clusters = (
        ask(lambda p: p.explain(jpeg, ExplainOptions(method="cam", stage=1, top_clusters=5)))
        .explanations[0]
        .clusters
    )
    shares = [c.share for c in clusters]
    assert len(clusters) == 5
    assert shares == sorted(shares, reverse=True)
    assert all(c.stage == 1 for c in clusters)


def test_a_constant_picture_gives_finite_answers(ask, encode) -> None:
    grey = encode(np.full((40, 60, 3), 128, np.uint8), "PNG")
    for method in ("cam", "focus", "fine", "grouping"):
        explanation = ask(lambda p, m=method: p.explain(grey, ExplainOptions(method=m))).explanations[0]
        assert explanation.heatmap is None or np.isfinite(explanation.heatmap.values).all()
        assert all(np.isfinite(c.share) for c in explanation.clusters)


def different(encode) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [encode(rng.integers(0, 256, (40, 40, 3), np.uint8), "PNG") for _ in range(7)]


def test_pictures_in_one_batch_get_the_answers_they_get_alone(ask, encode) -> None:
    files = different(encode)

    async def together(p: Predictor):
        return await asyncio.gather(*(p.classify(f) for f in files))

    batched = ask(together, Capacity(max_batch=4))
    alone = [ask(lambda p, f=f: p.classify(f)) for f in files]
    assert max(answer.timings.batch_size for answer in batched) > 1
    for one, other in zip(batched, alone, strict=True):
        assert [p.label for p in one.predictions] == [p.label for p in other.predictions]
        np.testing.assert_allclose(
            [p.score for p in one.predictions], [p.score for p in other.predictions], atol=1e-4
        )


def test_explanations_are_equal_to_the_last_bit_whoever_else_asks(ask, encode) -> None:
    files = different(encode)

    async def together(p: Predictor):
        return await asyncio.gather(*(p.explain(f) for f in files))

    batched = ask(together, Capacity(max_batch=4))
    assert max(answer.timings.batch_size for answer in batched) > 1
    for one, file in zip(batched, files, strict=True):
        (explanation,), (alone,) = one.explanations, ask(lambda p, f=file: p.explain(f)).explanations
        assert explanation.heatmap.values.tobytes() == alone.heatmap.values.tobytes()
        assert explanation.images == alone.images
        assert [c.overlay for c in explanation.clusters] == [c.overlay for c in alone.clusters]


def test_a_closed_predictor_frees_its_sessions_at_once(
    tiny_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when the garbage collector comes by: a server exempts what it loaded from that."""
    opened = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, *args, **named):
            super().__init__(*args, **named)
            opened.append(weakref.ref(self))

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    gc.disable()
    try:
        predictor = Predictor.open(
            tiny_repository / "tiny" / "1" / "model.onnx", device=Device("cpu", threads=1)
        )
        assert [session() is None for session in opened] == [False, False]
        asyncio.run(predictor.close())
        assert [session() is None for session in opened] == [True, True]
    finally:
        gc.enable()


def test_a_bad_picture_fails_alone(ask, jpeg: bytes) -> None:
    async def mixed(p: Predictor):
        return await asyncio.gather(
            *(p.classify(d) for d in (jpeg, jpeg[:500], jpeg)), return_exceptions=True
        )

    first, bad, last = ask(mixed, Capacity(max_batch=4))
    assert isinstance(bad, BadImage)
    assert first.predictions == last.predictions


def test_a_passed_deadline_is_answered_without_work(ask, jpeg: bytes) -> None:
    with pytest.raises(DeadlineExceeded):
        ask(lambda p: p.classify(jpeg, deadline=time.monotonic() - 1))


def test_tensors_go_through_the_graph_as_it_is(ask) -> None:
    batch = np.zeros((3, 32, 32, 3), np.uint8)
    out = ask(lambda p: p.infer(batch))
    assert {name: array.shape for name, array in out.items()}["assignment_1"] == (3, 5, 16, 16)
    assert set(ask(lambda p: p.infer(batch, ("logits",)))) == {"logits"}


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((1, 32, 32, 3), np.float32),
        np.zeros((1, 31, 32, 3), np.uint8),
        np.zeros((0, 32, 32, 3), np.uint8),
    ],
)
def test_tensors_that_do_not_fit_are_refused_with_the_shape_that_would(ask, bad: np.ndarray) -> None:
    with pytest.raises(BadParameter, match=r"\(B, 32, 32, 3\)"):
        ask(lambda p: p.infer(bad))


@pytest.mark.parametrize("k", [0, 1001])
def test_top_k_has_bounds(ask, jpeg: bytes, k: int) -> None:
    with pytest.raises(BadParameter, match="top_k: input should be"):
        ask(lambda p: p.classify(jpeg, ClassifyOptions(top_k=k)))


class Flaky:
    """An engine that fails its first `failures` runs, then works."""

    def __init__(self, engine: Any, failures: int) -> None:
        self.engine, self.failures, self.reopened = engine, failures, 0

    def run(self, *args: object) -> object:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("the run failed")
        return self.engine.run(*args)

    def reopen(self) -> None:
        self.reopened += 1
        self.engine.reopen()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


def flaky(p: Predictor, failures: int) -> Flaky:
    """Puts a flaky engine in place of the predictor's own."""
    engine = Flaky(p._engine, failures)
    p._engine = cast(Engine, engine)
    return engine


def test_a_run_that_fails_once_costs_nobody_an_answer_and_opens_a_fresh_session(ask, jpeg: bytes) -> None:
    async def shaky(p: Predictor):
        engine = flaky(p, failures=1)
        return await p.classify(jpeg), engine.reopened

    answer, reopened = ask(shaky)
    assert answer.predictions
    assert reopened == 1


def test_an_engine_that_keeps_failing_is_answered_with_try_again_later(ask, jpeg: bytes) -> None:
    async def broken(p: Predictor):
        flaky(p, failures=2)
        with pytest.raises(EngineFailure):
            await p.classify(jpeg)
        return await p.classify(jpeg)

    assert ask(broken).predictions


def dynamic(p: Predictor) -> Flaky:
    """Makes a predictor take any size, as `paca export --dynamic-size` says; counts fresh sessions."""
    p.manifest = replace(p.manifest, dynamic_size=True)
    return flaky(p, failures=0)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((1, 32, 32, 5), np.uint8),
        np.zeros((1, 32, 32, 3), np.float32),
        np.zeros((1, 3, 32, 32), np.uint8),
        np.zeros((1, 32, 0, 3), np.uint8),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((1, 40, 24, 3), np.uint8),  # only the graph, which is fixed in truth, can tell
    ],
)
def test_what_a_model_of_any_size_cannot_take_is_refused_and_costs_no_session(ask, bad: np.ndarray) -> None:
    async def refused(p: Predictor) -> int:
        engine = dynamic(p)
        with pytest.raises(BadParameter, match=r"\(B, height, width, 3\)|cannot take pictures of 24 x 40"):
            await p.infer(bad, ("logits",))
        return engine.reopened

    assert ask(refused) == 0


def test_pictures_of_different_sizes_do_not_share_a_run(ask) -> None:
    async def mixed(p: Predictor):
        dynamic(p)
        small, large = np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, 40, 24, 3), np.uint8)
        return await asyncio.gather(
            *(p.infer(batch, ("logits",)) for batch in (small, large, small)), return_exceptions=True
        )

    first, refused, last = ask(mixed, Capacity(max_batch=4))
    assert isinstance(refused, BadParameter)
    np.testing.assert_array_equal(first["logits"], last["logits"])


def test_a_fresh_session_that_cannot_be_had_is_answered_with_try_again_later(
    ask, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(p: Predictor):
        engine = flaky(p, failures=2)
        monkeypatch.setattr(engine.engine._session, "reopen", refuse)
        with pytest.raises(EngineFailure):
            await p.classify(jpeg)
        return await p.classify(jpeg)

    def refuse() -> None:
        raise ProviderUnavailable("the GPU is gone")

    assert ask(broken).predictions


def test_where_one_row_is_refused_the_others_are_not_run(ask) -> None:
    async def many(p: Predictor):
        with pytest.raises(Overloaded):
            await p.infer(np.zeros((9, 32, 32, 3), np.uint8))
        await asyncio.sleep(0.5)
        return p.batcher.depth, p.batcher.items, p.batcher.dropped

    waiting, run, dropped = ask(many, Capacity(queue_size=4))
    assert (waiting, run + dropped) == (0, 1 + 4)
    assert dropped >= 3


def test_closing_lets_every_step_of_a_call_finish(tiny_repository: Path, jpeg: bytes) -> None:
    async def leaving() -> list[int]:
        p = Predictor.open(tiny_repository / "tiny" / "1" / "model.onnx", device=Device("cpu", threads=1))
        calls = [
            asyncio.create_task(p.explain(jpeg, ExplainOptions(method="fine", targets=(0, 1))))
            for _ in range(6)
        ]
        await asyncio.sleep(0.01)
        await p.close()
        assert all(call.done() for call in calls)
        return [len(call.result().explanations) for call in calls]

    assert asyncio.run(leaving()) == [2] * 6


def test_parts_account_for_the_whole_logit(ask, jpeg: bytes) -> None:
    [explanation] = ask(lambda p: p.explain(jpeg, ExplainOptions(method="cam", render="parts"))).explanations
    assert set(explanation.images) == {"parts"}
    assert sum(part.area for part in explanation.parts) == pytest.approx(1)
    shares = sum(part.share for part in explanation.parts)
    assert shares + explanation.target.bias == pytest.approx(explanation.target.logit, abs=1e-3)
    assert [part.share for part in explanation.parts] == sorted(
        (part.share for part in explanation.parts), reverse=True
    )
    assert all(
        part.overlay and max(part.overlay.width, part.overlay.height) <= 256 for part in explanation.parts
    )


def test_no_parts_unless_they_are_requested(ask, jpeg: bytes) -> None:
    [explanation] = ask(lambda p: p.explain(jpeg)).explanations
    assert not explanation.parts
    assert explanation.clusters


@pytest.mark.parametrize("method", ["cam", "occlusion"])
def test_a_check_says_what_hiding_places_did(ask, jpeg: bytes, method: str) -> None:
    result = ask(lambda p: p.explain(jpeg, ExplainOptions(method=method, check=True)))
    [explanation] = result.explanations
    assert explanation.check.score == pytest.approx(result.predictions[0].score)
    assert explanation.check.drop <= explanation.check.score
    told = any("not to be trusted" in warning for warning in result.warnings)
    assert told is not explanation.check.passed


def test_a_check_of_a_method_without_a_class_is_refused(ask, jpeg: bytes) -> None:
    with pytest.raises(BadParameter, match="nothing to check"):
        ask(lambda p: p.explain(jpeg, ExplainOptions(method="grouping", check=True)))


def test_an_overlay_fades_with_the_evidence_unless_asked_not_to(ask, jpeg: bytes) -> None:
    async def both(p: Predictor):
        last = (await p.classify(jpeg, ClassifyOptions(top_k=1000))).predictions[-1].class_id
        options = {"target": [last], "method": "cam", "format": "png"}
        return (
            await p.explain(jpeg, ExplainOptions(**options)),
            await p.explain(jpeg, ExplainOptions(**options, scale="relative")),
        )

    faded, relative = (result.explanations[0] for result in ask(both))
    assert faded.fading.strength < 1
    assert "speaks for this class" in faded.fading.reasons[0]
    assert relative.fading.strength == 1
    assert not relative.fading.reasons
    assert faded.images["overlay"].data != relative.images["overlay"].data
    np.testing.assert_array_equal(faded.heatmap.values, relative.heatmap.values)
