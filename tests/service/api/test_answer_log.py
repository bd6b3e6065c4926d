"""What was answered, and what users said of it, is kept if the operator wants it. No request waits."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from service.api import answer_log
from service.api.answer_log import AnswerLog
from service.errors import CannotStart
from service.results import Classification, ImageInfo, Novelty, Prediction, Timings

RESULT = Classification(
    model="tiny",
    model_version="1",
    image=ImageInfo(4, 3, "JPEG"),
    predictions=(Prediction("church", 1, 0.75, 2.0), Prediction("dog", 0, 0.25, 1.0)),
    timings=Timings(1, 2, 3, 6),
    novelty=Novelty(0.5, 0.95),
)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_an_answer_is_a_line_with_the_pictures_hash_and_never_the_picture(tmp_path: Path) -> None:
    answers = AnswerLog(tmp_path / "made" / "answers.jsonl")
    answers.answered("id-1", b"picture", RESULT)
    answers.feedback("id-1", "tiny", "dog")
    answers.close()
    first, second = lines(tmp_path / "made" / "answers.jsonl")
    assert first.pop("time") <= second.pop("time")
    assert first == {
        "event": "answer",
        "id": "id-1",
        "model": "tiny",
        "version": "1",
        "predictions": [{"label": "church", "score": 0.75}, {"label": "dog", "score": 0.25}],
        "novelty": 0.5,
        "sha256": hashlib.sha256(b"picture").hexdigest(),
    }
    assert second == {"event": "feedback", "id": "id-1", "model": "tiny", "label": "dog"}


def test_a_full_file_is_renamed_and_only_a_few_are_kept(tmp_path: Path) -> None:
    answers = AnswerLog(tmp_path / "answers.jsonl", max_file_bytes=300)
    for i in range(40):
        answers.feedback(f"id-{i}", "tiny", "dog")
    answers.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["answers.jsonl", *(f"answers.jsonl.{n}" for n in range(1, answer_log.KEPT_FILES + 1))]
    assert all(path.stat().st_size <= 300 for path in tmp_path.iterdir())
    assert lines(tmp_path / "answers.jsonl")[-1]["id"] == "id-39"


def test_several_workers_share_the_file_and_its_renaming(tmp_path: Path) -> None:
    workers = [AnswerLog(tmp_path / "answers.jsonl", max_file_bytes=100_000) for _ in range(3)]
    for i in range(300):
        workers[i % 3].feedback(f"id-{i}", "tiny", "dog")
    for worker in workers:
        worker.close()
    found = [entry["id"] for path in tmp_path.iterdir() for entry in lines(path)]
    assert sorted(found) == sorted(f"id-{i}" for i in range(300))


def test_what_does_not_fit_is_counted_as_lost_and_nobody_waits(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(answer_log, "MAX_WAITING_BYTES", 10)
    answers = AnswerLog(tmp_path / "answers.jsonl")
    answers.answered("id-1", bytes(11), RESULT)
    assert answers.lost == 1
    answers.close()


def test_a_disk_that_fails_later_stops_nothing(tmp_path: Path, monkeypatch) -> None:
    answers = AnswerLog(tmp_path / "answers.jsonl")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("service.api.answer_log.os.write", full)
    answers.feedback("id-1", "tiny", "dog")
    answers.close()
    assert answers.lost == 1


def test_a_file_that_cannot_be_written_is_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="PACA_ANSWER_LOG"):
        AnswerLog(tmp_path)


def test_the_server_keeps_answers_and_takes_feedback(open_app, jpeg, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with open_app(answer_log=path) as client:
        label = client.get("/models/tiny").json()["labels"][2]
        first = client.post("/classify?top_k=1", content=jpeg).json()
        several = [("file", ("a.jpg", jpeg)), ("file", ("b.jpg", b"torn"))]
        client.post("/explain?method=cam", files=several, headers={"X-Request-ID": "two"})
        assert client.post("/feedback", json={"id": first["id"], "label": label.upper()}).status_code == 204
        assert client.post("/feedback", json={"id": "x", "label": "zebra"}).status_code == 422
        assert client.post("/feedback", json={"label": label}).status_code == 400
    entries = lines(path)
    assert [(e["event"], e["id"]) for e in entries] == [
        ("answer", first["id"]),
        ("answer", "two-0"),
        ("feedback", first["id"]),
    ]
    assert entries[0]["sha256"] == hashlib.sha256(jpeg).hexdigest()
    assert entries[2]["label"] == label


def test_without_a_log_there_is_no_feedback(client) -> None:
    response = client.post("/feedback", json={"id": "x", "label": "y"})
    assert response.status_code == 404
    assert "PACA_ANSWER_LOG" in response.json()["detail"]
