"""A client for the PaCa server in one file: copy it, `pip install httpx`, done.

    with Paca("http://127.0.0.1:8000") as paca:
        answer = paca.classify("photo.jpg", top_k=3)
        print(answer["predictions"][0]["label"])
        Path("overlay.png").write_bytes(paca.overlay("photo.jpg", format="png"))

Asking twice for the same picture is harmless, so what may succeed later is asked again: connections that
fail, and 503, after as long as the server's Retry-After says. Anything else the server refuses is raised as
`Refused`, with its problem document.

As a program: python paca_client.py photo.jpg [more.jpg ...]  (PACA_URL and PACA_API_KEY from the environment)
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

Picture = str | Path | bytes


class Refused(Exception):
    """The server's refusal. status: of HTTP; problem: the RFC 9457 document (type, title, detail, request_id,
    …)."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(problem.get("detail") or f"HTTP {status}")
        self.status, self.problem = status, problem


class Paca:
    """One server. patience: seconds that a request may take in all, waiting and asking again included."""

    def __init__(self, url: str, *, key: str | None = None, patience: float = 30.0) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url.rstrip("/") + "/", headers=headers, timeout=patience)
        self._patience = patience

    def classify(self, picture: Picture, **parameters: Any) -> dict[str, Any]:
        """The most probable classes of one picture (path or bytes). Parameters: model, top_k."""
        return self._post("classify", parameters, content=_bytes(picture)).json()

    def classify_all(self, pictures: list[Picture], **parameters: Any) -> list[dict[str, Any]]:
        """One answer or problem (it has `status`) for each picture, in order."""
        files = [("file", _bytes(picture)) for picture in pictures]
        answer = self._post("classify", parameters, files=files).json()
        return answer.get("results", [answer])

    def explain(self, picture: Picture, **parameters: Any) -> dict[str, Any]:
        """Predictions and why. Parameters: target, contrast, method, top_clusters, render, format, size, … as
        the API names them."""
        return self._post("explain", parameters, content=_bytes(picture)).json()

    def overlay(self, picture: Picture, **parameters: Any) -> bytes:
        """The heatmap on the picture, as an image file."""
        return self._post("explain", parameters, accept="image/*", content=_bytes(picture)).content

    def _post(
        self, path: str, parameters: dict[str, Any], accept: str = "application/json", **body: Any
    ) -> httpx.Response:
        until = time.monotonic() + self._patience
        for attempt in range(1_000_000):
            pause = random.uniform(0.5, 1.0) * min(5.0, 0.1 * 2**attempt)
            try:
                response = self._http.post(path, params=parameters, headers={"Accept": accept}, **body)
            except httpx.TransportError:
                if time.monotonic() + pause > until:
                    raise
            else:
                if response.is_success:
                    return response
                pause = max(pause, float(response.headers.get("Retry-After", 0)))
                if response.status_code != 503 or time.monotonic() + pause > until:
                    raise Refused(response.status_code, _problem(response))
            time.sleep(pause)
        raise AssertionError("unreachable")

    def __enter__(self) -> Paca:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()


def _bytes(picture: Picture) -> bytes:
    return picture if isinstance(picture, bytes) else Path(picture).read_bytes()


def _problem(response: httpx.Response) -> dict[str, Any]:
    try:
        return response.json()
    except ValueError:
        return {"title": response.reason_phrase}


def main() -> None:
    with Paca(
        os.environ.get("PACA_URL", "http://127.0.0.1:8000"), key=os.environ.get("PACA_API_KEY")
    ) as paca:
        for name in sys.argv[1:]:
            best = paca.classify(name, top_k=1)["predictions"][0]
            print(f"{name}: {best['label']} ({best['score']:.0%})")


if __name__ == "__main__":
    main()
