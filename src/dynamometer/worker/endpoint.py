"""The worker's endpoint: the handler that relays a request to the engine and counts it."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Mapping
from typing import Final

from dynamometer.engines.interface import ModelCards, Route
from dynamometer.http import openai_errors, relay
from dynamometer.http.client import Client, NotReachedError
from dynamometer.http.exchange import Request
from dynamometer.http.handlers import Handlers
from dynamometer.http.messages import Response
from dynamometer.http.origins import Origins
from dynamometer.http.reply import BrokenError, Reply
from dynamometer.process.signals import InFlight
from dynamometer.runtime.record import State
from dynamometer.worker.endpoint_metrics import EndpointMetrics, RequestCount

logger = logging.getLogger(__name__)

# Shorter than the 5 s after which an engine's server (uvicorn) closes an idle connection.
_ENGINE_IDLE_SECONDS: Final = 2.0


def engine_client() -> Client:
    """Return a client for inference requests to the engine."""
    return Client(idle_seconds=_ENGINE_IDLE_SECONDS)


class Endpoint:
    """The HTTP routes of a worker: inference, `/v1/models` and `/health`.

    Attributes:
        engine_url: the base URL of the engine, which a restart changes.
    """

    def __init__(
        self,
        *,
        engine_url: str,
        routes: Mapping[str, Route],
        metrics: EndpointMetrics,
        client: Client,
        state: Callable[[], State],
        models: Callable[[], ModelCards],
        api_key: str | None,
        accepts: Callable[[], bool] | None = None,
    ) -> None:
        """Store the arguments.

        Args:
            engine_url: the URL of the engine.
            routes: the engine's inference routes, by path.
            metrics: the metrics of the requests.
            client: sends requests to the engine.
            state: returns the state of the worker.
            models: returns the models that the engine serves.
            api_key: the engine's key; None if it has none.
            accepts: returns whether a new request is accepted; by default, in the state `ready`.
        """
        self._accepts = accepts or (lambda: state() is State.READY)
        self._api_key = api_key
        self.engine_url = engine_url
        self._routes = routes
        self._metrics = metrics
        self._client = client
        self._state = state
        self._models = models
        self.in_flight = InFlight()
        self._progressed = False

    def handlers(self, origins: Origins | None = None) -> Handlers:
        """Return the handlers; every other route is answered with 404.

        Args:
            origins: whose web pages may read the responses; by default none.
        """
        handlers = Handlers(origins)
        for path in self._routes:
            handlers.post(path, self._forward)
        handlers.get("/v1/models", self._list)
        handlers.get("/v1/models/", self._one)
        handlers.get("/health", self._health)
        return handlers

    async def _forward(self, request: Request) -> Response | None:
        with self._metrics.request() as count:
            try:
                return await self._answer(request, count)
            except asyncio.CancelledError:
                count.record_disconnect()
                raise

    async def _answer(self, request: Request, count: RequestCount) -> Response | None:
        body = await request.read()
        count.bytes_in = len(body)
        if not self._accepts():
            return openai_errors.unavailable(f"this worker is {self._state()}", retry=True)
        with self.in_flight:
            headers = relay.request_headers(request.headers)
            target = relay.target(request)
            try:
                reply = await self._client.post(self.engine_url, target, headers, body)
            except NotReachedError:
                count.failed = True
                return openai_errors.unavailable("the engine accepts no connection", retry=True)
            except BrokenError as error:
                count.failed = True
                _log_broken(request, error)
                return openai_errors.engine_died()
            del body  # a response may last long
            try:
                await self._relay(request, reply, count)
            except BrokenError as error:
                # The response stays unfinished, and the server closes the connection: the
                # frontend ends its client's stream with an error.
                count.failed = True
                _log_broken(request, error)
            finally:
                reply.close()
            return None

    async def _relay(self, request: Request, reply: Reply, count: RequestCount) -> None:
        count.record_status(reply.status)
        stream = relay.begin(request, reply, length=reply.length)
        # Many clients close the connection at an error without reading the body.
        count.complete = reply.status >= 400
        streamed = reply.headers.media_type == b"text/event-stream"
        # The engine's server alone answers the other routes, and errors.
        computed = reply.status == 200 and self._routes[request.path].counts_tokens

        def take(chunk: bytes) -> None:
            count.add_chunk(chunk)
            stream.write(chunk)
            if computed:
                self._progressed = True
            if streamed:
                count.end.add_chunk(chunk)
            elif count.bytes_out == reply.length:
                count.complete = True

        await relay.pass_on(reply, stream, take)
        count.add_chunk(b"")
        stream.end()

    def take_progress(self) -> bool:
        """Return whether bytes of an answer that the engine computed came since the last call."""
        progressed, self._progressed = self._progressed, False
        return progressed

    async def _list(self, request: Request) -> Response:
        if not self._allowed(request):
            return openai_errors.unauthorized()
        cards = list(self._models().cards.values())
        return Response.of_json({"object": "list", "data": cards})

    async def _one(self, request: Request) -> Response:
        if not self._allowed(request):
            return openai_errors.unauthorized()
        model = request.path.removeprefix("/v1/models/")
        card = self._models().cards.get(model)
        if card is None:
            return openai_errors.unknown_model(model)
        return Response.of_json(card)

    def _allowed(self, request: Request) -> bool:
        """Return whether the client sent the engine's key; inference requests the engine checks."""
        if self._api_key is None:
            return True
        # Bytes of the command line that are not UTF-8 are surrogates.
        expected = f"Bearer {self._api_key}".encode("utf-8", "surrogateescape")
        return hmac.compare_digest(request.headers.get(b"authorization"), expected)

    async def _health(self, _: Request) -> Response:
        ready = self._state() is State.READY
        return Response.of_json({"status": str(self._state())}, 200 if ready else 503)


def _log_broken(request: Request, error: BrokenError) -> None:
    logger.warning("the engine's answer to %s broke off: %s", request.path, error)
