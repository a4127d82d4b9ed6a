"""`GET /metrics` over HTTP."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from dynamometer.metrics.page import MetricsPage

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def add_route(app: web.Application, page: MetricsPage) -> None:
    """Serve `page` at `/metrics` of `app`."""

    async def handle(request: web.Request) -> web.Response:
        openmetrics = "application/openmetrics-text" in request.headers.get("Accept", "")
        names = request.query.getall("name[]", [])
        body = await asyncio.to_thread(page.render, names=names, openmetrics=openmetrics)
        response = web.Response(
            body=body, headers={"Content-Type": OPENMETRICS if openmetrics else TEXT}
        )
        response.enable_compression()
        return response

    app.router.add_get("/metrics", handle)
