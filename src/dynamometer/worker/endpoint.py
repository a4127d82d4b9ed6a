"""The worker's endpoint: the handler that relays a request to the engine and counts it."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Mapping

import aiohttp
from aiohttp import web

from dynamometer.engines.interface import ModelCards, Route
from dynamometer.http import openai_errors, relay
from dynamometer.process.signals import InFlight
from dynamometer.runtime.record import State
from dynamometer.worker.endpoint_metrics import EndpointMetrics, RequestCount

logger = logging.getLogger(__name__)


def engine_session() -> aiohttp.ClientSession:
    """Return a session for requests to the engine, with a new connection for each request.

    After a fault of its own, SGLang's HTTP server announces that it keeps the connection, and
    closes it nevertheless. The next request on that connection would fail.
    """
    return relay.client(keepalive_seconds=None)


class Endpoint:
    """The HTTP routes of a worker: inference, `/v1/models` and `/health`."""

    def __init__(
        self,
        *,
        engine_url: str,
        routes: Mapping[str, Route],
        metrics: EndpointMetrics,
        session: aiohttp.ClientSession,
        state: Callable[[], State],
        models: Callable[[], ModelCards],
        max_body_size: int,
        api_key: str | None,
    ) -> None:
        self._api_key = api_key
        self._engine_url = engine_url
        self._routes = routes
        self._metrics = metrics
        self._session = session
        self._state = state
        self._models = models
        self._max_body_size = max_body_size
        self.in_flight = InFlight()

    def application(self) -> web.Application:
        """Return the application; every other route is answered with 404."""
        app = web.Application(
            # A frontend with the same limit adds a few bytes to a body.
            client_max_size=self._max_body_size + 1024,
            middlewares=[openai_errors.middleware],
        )
        for path in self._routes:
            app.router.add_post(path, self._forward)
        app.router.add_get("/v1/models", self._list)
        app.router.add_get("/v1/models/{model:.+}", self._one)
        app.router.add_get("/health", self._health)
        return app

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        with self._metrics.request() as count:
            try:
                return await self._answer(request, count)
            except asyncio.CancelledError:
                count.record_disconnect()
                raise

    async def _answer(self, request: web.Request, count: RequestCount) -> web.StreamResponse:
        body = await request.read()
        count.bytes_in = len(body)
        if self._state() is not State.READY:
            return openai_errors.unavailable(f"this worker is {self._state()}", retry=True)
        with self.in_flight:
            return await self._relay(request, body, count)

    async def _relay(
        self, request: web.Request, body: bytes, count: RequestCount
    ) -> web.StreamResponse:
        url = relay.target(self._engine_url, request)
        headers = relay.request_headers(request.headers)
        response: web.StreamResponse | None = None
        try:
            async with relay.exchange(self._session, url, body, headers) as answer:
                count.record_status(answer.status)
                response = await relay.begin(request, answer, length=answer.content_length)
                # Many clients close the connection at an error without reading the body.
                count.complete = answer.status >= 400
                streamed = answer.content_type == "text/event-stream"
                async for chunk in relay.chunks(answer):
                    count.add_chunk(chunk)
                    await response.write(chunk)
                    if streamed:
                        count.end.add_chunk(chunk)
                    elif count.bytes_out == answer.content_length:
                        count.complete = True
                count.add_chunk(b"")
                await response.write_eof()
                return response
        except relay.NotReachedError:
            count.failed = True
            return openai_errors.unavailable("the engine accepts no connection", retry=True)
        except relay.BrokenError as error:
            count.failed = True
            logger.warning("the engine's answer to %s broke off: %s", request.path, error)
            if response is None:
                return openai_errors.engine_died()
            # The frontend sees the closed connection, and ends its client's stream with an error.
            if request.transport is not None:
                request.transport.abort()
            return response
        except ConnectionError:
            count.record_disconnect()
            raise

    async def _list(self, request: web.Request) -> web.Response:
        if not self._allowed(request):
            return openai_errors.unauthorized()
        cards = list(self._models().cards.values())
        return web.json_response({"object": "list", "data": cards})

    async def _one(self, request: web.Request) -> web.Response:
        if not self._allowed(request):
            return openai_errors.unauthorized()
        card = self._models().cards.get(request.match_info["model"])
        if card is None:
            return openai_errors.unknown_model(request.match_info["model"])
        return web.json_response(card)

    def _allowed(self, request: web.Request) -> bool:
        """Return whether the client sent the engine's key; inference requests the engine checks."""
        if self._api_key is None:
            return True
        given = request.headers.get("Authorization", "")
        return hmac.compare_digest(_octets(given), _octets(f"Bearer {self._api_key}"))

    async def _health(self, _: web.Request) -> web.Response:
        ready = self._state() is State.READY
        return web.json_response({"status": str(self._state())}, status=200 if ready else 503)


def _octets(text: str) -> bytes:
    """Encode text in which bytes that are not UTF-8 are surrogates."""
    return text.encode("utf-8", "surrogatepass")
