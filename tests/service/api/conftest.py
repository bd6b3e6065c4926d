"""The app with the real tiny model in two ways: in this process, and as `paca serve` in a process of its
own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from service.api.app import create_app
from service.registry import Registry
from service.settings import Settings
from tests.serving import Serving, served


@contextmanager
def opened(settings: Settings, registry: Registry | None = None) -> Iterator[TestClient]:
    """A client of an app that is ready."""
    with TestClient(create_app(settings, registry)) as client:
        until = time.monotonic() + 60
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < until, client.get("/readyz").text
            time.sleep(0.02)
        yield client


@pytest.fixture(scope="session")
def open_app(tiny_repository: Path) -> Callable[..., object]:
    """Opens an app with the tiny model and any settings: `with open_app(max_images=3) as client`."""
    return lambda **settings: opened(Settings(models=tiny_repository, **settings))


@pytest.fixture(scope="session")
def client(open_app) -> Iterator[TestClient]:
    """The app with default settings."""
    with open_app() as ready:
        yield ready


@pytest.fixture(scope="session")
def start(tiny_repository: Path) -> Callable[..., object]:
    """Starts a server with the tiny model and any settings: `with start(workers=2) as serving`."""
    return lambda **settings: served(tiny_repository, **settings)


@pytest.fixture(scope="session")
def start_in() -> Callable[..., object]:
    """Starts a server with the models of a folder: `with start_in(folder, workers=2) as serving`."""
    return served


@pytest.fixture(scope="session")
def serving(start) -> Iterator[Serving]:
    """A server shared by the tests of a run that leave it as it was."""
    with start() as running:
        yield running


@pytest.fixture
def http(serving: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=serving.url, timeout=30) as ready:
        yield ready
