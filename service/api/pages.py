"""What a browser asks for: the demo page's files at the root, and /docs. Both work without any other host."""

from __future__ import annotations

import json
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route

from ..colours import CLUSTERS, COLOUR_MAPS
from . import reference

STATIC = Path(__file__).with_name("static")
# Said here because a slim image has no table of them, and Python's own lacks webp.
TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src "
    "'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def install_demo(app: FastAPI) -> None:
    """One route a file, so that every other path keeps its honest 404 and 405; colours.js is made here."""

    def serve(file: Path) -> Route:
        async def answer(request: Request) -> Response:
            return FileResponse(
                file,
                media_type=TYPES[file.suffix],
                headers={"Cache-Control": "no-cache", "Content-Security-Policy": POLICY},
            )

        return Route(
            "/" if file.name == "index.html" else f"/{file.relative_to(STATIC).as_posix()}",
            answer,
            methods=["GET"],
        )

    async def colours(request: Request) -> Response:
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": POLICY}
        return Response(colour_module(), media_type=TYPES[".js"], headers=headers)

    app.router.routes.extend(serve(file) for file in sorted(STATIC.rglob("*")) if file.is_file())
    app.router.routes.append(Route("/colours.js", colours, methods=["GET"]))


def colour_module() -> str:
    """The page's colours as a JavaScript module, made from the tables that overlays are drawn with: rows of
    rrggbb one after the other, the default colour map first."""
    maps = [{"name": m.name, "note": m.note, "table": m.table.tobytes().hex()} for m in COLOUR_MAPS.values()]
    return (
        f"export const COLOUR_MAPS = {json.dumps(maps)};\n"
        f"export const CLUSTERS = {json.dumps(CLUSTERS.tobytes().hex())};\n"
    )


def install_docs(app: FastAPI) -> None:
    """The API reference, made of the app's own OpenAPI document."""

    async def answer(request: Request) -> Response:
        policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
        return HTMLResponse(reference.page(app.openapi()), headers={"Content-Security-Policy": policy})

    app.router.routes.append(Route("/docs", answer, methods=["GET"]))
