"""The Grafana dashboard asks for metrics that the server really has."""

import json
import re
from pathlib import Path

from fastapi.testclient import TestClient

from service.api.app import create_app
from service.settings import Settings

DASHBOARD = json.loads(Path("docker/grafana/dashboards/paca.json").read_text(encoding="utf-8"))


def test_every_metric_of_the_dashboard_is_served(tiny_repository: Path) -> None:
    asked = {
        name
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\bpaca_\w+", target["expr"])
    }
    assert len(asked) > 8
    with TestClient(create_app(Settings(models=tiny_repository, provider="cpu"))) as client:
        text = client.get("/metrics").text
    declared = set(re.findall(r"^# TYPE (paca_\w+) ", text, re.M))
    served = declared | {f"{name}{suffix}" for name in declared for suffix in ("_bucket", "_sum", "_count")}
    assert asked - served == set()


def test_panels_do_not_overlap() -> None:
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
