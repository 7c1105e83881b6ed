"""A web page on one's own machine: drop an image of any size, see what the model makes of it.

Starlette and uvicorn serve it. Nothing is kept: an image lives in memory for its request.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from msun_fastai.errors import ImageError
from msun_fastai.explain import LARGEST, Explainer
from msun_fastai.models.saving import SavedModel

TEMPLATE = "webapp.html"
MOST_BYTES = 20 * 2**20  # of an upload
LOCAL = ("127.0.0.1", "localhost", "[::1]")
# the page loads nothing from elsewhere, and no other site may show it or read it
SAFE = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class TooLarge(Exception):
    """An upload of more than `MOST_BYTES`."""


def make_app(saved: SavedModel, name: str, host: str = LOCAL[0]) -> Starlette:
    """The page for the model `saved`, called `name`, to be served on `host`.

    `GET /` is the page. `POST /explain` takes the bytes of an image, with `?size=N` rescaled so
    that its shorter side is N, and answers with `Explanation.as_dict`, or with `error` and a status
    of 400 (no image that can be read), 413 (too large) or 422 (no size).
    """
    explainer = Explainer(saved)
    page = _page(saved, name)
    one_at_a_time = asyncio.Lock()  # each takes all the machine has

    async def show(request: Request) -> Response:
        return HTMLResponse(page, headers=SAFE)

    async def explain(request: Request) -> Response:
        size = request.query_params.get("size")
        if size is not None and not (size.isdecimal() and 1 <= int(size) <= LARGEST):
            return refused(422, f"size: {size[:20]}: a whole number of pixels from 1 to {LARGEST}")
        try:
            data = await _body(request)
        except TooLarge:
            return refused(413, f"larger than {MOST_BYTES // 2**20} MiB; take a smaller file")
        except ClientDisconnect:
            return refused(400, "the upload was broken off")
        try:
            async with one_at_a_time:
                found = await run_in_threadpool(
                    explainer.explain, data, None if size is None else int(size)
                )
        except ImageError as error:
            return refused(400, str(error))
        return JSONResponse(found.as_dict(), headers=SAFE)

    hosts = list(LOCAL) if host in (*LOCAL, "::1") else ["*"]
    return Starlette(
        routes=[Route("/", show), Route("/explain", explain, methods=["POST"])],
        # another site's page could else reach this one under a name of its own (DNS rebinding)
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
    )


def refused(status: int, why: str) -> Response:
    """An error as the page shows it."""
    return JSONResponse({"error": why}, status_code=status, headers=SAFE)


async def _body(request: Request) -> bytes:
    """The request's body, read no further than allowed."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            raise TooLarge
        parts.append(part)
    return b"".join(parts)


def _page(saved: SavedModel, name: str) -> str:
    text = Path(__file__).with_name(TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    config: Any = saved.model.config
    return environment.from_string(text).render(
        name=name,
        arch=config.arch,
        method=config.method,
        scales=list(saved.model.entry_scales),
        classes=len(saved.classes),
        smallest=max(4, saved.model.entry_scales[0] // 2),
        largest=min(LARGEST, 2 * saved.model.entry_scales[-1]),
        megabytes=MOST_BYTES // 2**20,
    )


def serve(saved: SavedModel, name: str, host: str, port: int) -> None:
    """Serve the page until the program is stopped."""
    import uvicorn

    uvicorn.run(make_app(saved, name, host), host=host, port=port, log_level="warning")
