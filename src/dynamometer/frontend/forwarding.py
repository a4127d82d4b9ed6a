"""The handler of inference requests: read, choose a worker, forward, and stream the response."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Final

import aiohttp
from aiohttp import web

from dynamometer.engines import kinds
from dynamometer.engines.answers import Answer, read_answer
from dynamometer.engines.interface import Route
from dynamometer.engines.requests import BadBodyError, RequestBody
from dynamometer.engines.streams import StreamReader
from dynamometer.frontend import failures
from dynamometer.frontend.body import BodyThreads, TooLargeError, read
from dynamometer.frontend.failures import Failure
from dynamometer.frontend.request_metrics import RequestMetrics
from dynamometer.frontend.routing import Router
from dynamometer.frontend.service_metrics import FrontendMetrics
from dynamometer.http import openai_errors, relay
from dynamometer.process.signals import InFlight
from dynamometer.runtime.record import Record

logger = logging.getLogger(__name__)

# A request is sent to the chosen instance, and after a failure to one other.
_ATTEMPTS = 2


class Forwarder:
    """The handler of every inference route.

    Attributes:
        in_flight: the requests that are being forwarded.
        draining: True when the frontend is ending and answers new requests with 503.
    """

    def __init__(
        self,
        *,
        routes: Mapping[str, Route],
        router: Router,
        metrics: FrontendMetrics,
        session: aiohttp.ClientSession,
        refresh: Callable[[], Awaitable[None]],
        max_body_size: int,
    ) -> None:
        """Store the arguments, and prepare the threads that read bodies.

        Args:
            routes: the inference routes, by path.
            router: chooses a worker for each request.
            metrics: the families that count requests.
            session: the HTTP session for requests to workers.
            refresh: updates the router's fleet from discovery.
            max_body_size: the largest accepted body, in bytes.
        """
        self._max_body_size = max_body_size
        self._refresh = refresh
        self._routes = routes
        self._router = router
        self._fleet = router.fleet
        self._metrics = metrics
        self._session = session
        self._threads = BodyThreads()
        self.in_flight = InFlight()
        self.draining = False

    @property
    def active(self) -> int:
        """The number of requests in flight."""
        return self.in_flight.count

    def close(self) -> None:
        """Stop reading bodies."""
        self._threads.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request, and count it once."""
        route = self._routes[request.path]
        metrics = RequestMetrics(self._metrics, route.name)
        try:
            return await self._answer(request, metrics)
        except (asyncio.CancelledError, ConnectionError):
            metrics.record_disconnect()
            raise
        except web.HTTPException as error:
            metrics.record_failure(failures.of_answer(error.status))
            raise
        except BaseException:
            metrics.record_failure(failures.INTERNAL)
            raise
        finally:
            metrics.finish()

    async def _answer(self, request: web.Request, metrics: RequestMetrics) -> web.StreamResponse:
        try:
            body = await self._read(request)
        except BadBodyError as error:
            return _refuse(metrics, failures.UNREADABLE, openai_errors.invalid(str(error)))
        model = await self._resolve(body.model)
        metrics.record_body(model, stream=body.stream)
        served = self._fleet.models
        if self.draining:
            answer = _unavailable(metrics, "this frontend is ending")
            answer.force_close()
            return answer
        if not served:
            return _unavailable(metrics, self._fleet.missing_reason(model))
        if body.model is None and model is None:
            choice = ", ".join(sorted(served)[:10])
            message = f"model is missing; served models: {choice}"
            return _refuse(metrics, failures.REFUSED, openai_errors.invalid(message, "model"))
        if model is None:
            answer = openai_errors.unknown_model(body.model or "")
            return _refuse(metrics, failures.NOT_FOUND, answer)
        if model not in served:
            return _unavailable(metrics, self._fleet.missing_reason(model))
        with self.in_flight:
            return await self._forward(request, metrics, body, model)

    async def _resolve(self, requested: str | None) -> str | None:
        """Return the registered name of a requested model, or the only one if none is requested."""
        fleet = self._fleet
        if not fleet.models or (requested and fleet.resolve(requested) not in fleet.models):
            await self._refresh()  # a worker may have just registered the model
        if requested is not None:
            return fleet.resolve(requested)
        return next(iter(fleet.models)) if len(fleet.models) == 1 else None

    async def _read(self, request: web.Request) -> RequestBody:
        """Read and parse the body.

        Raises:
            BadBodyError: The body is not valid.
            web.HTTPRequestEntityTooLarge: The body is larger than allowed.
        """
        limit = self._max_body_size
        if (request.content_length or 0) > limit:
            raise web.HTTPRequestEntityTooLarge(limit, request.content_length or 0)
        content = await request.read()
        encoding = request.headers.get("Content-Encoding", "").strip().lower()
        content_type = request.headers.get("Content-Type", "")
        size = limit if encoding else len(content)  # a short body may decompress to the limit
        try:
            return await self._threads.run(
                lambda: read(content, encoding=encoding, content_type=content_type, limit=limit),
                size=size,
            )
        except TooLargeError:
            raise web.HTTPRequestEntityTooLarge(limit, limit + 1) from None

    async def _forward(
        self,
        request: web.Request,
        metrics: RequestMetrics,
        body: RequestBody,
        model: str,
    ) -> web.StreamResponse:
        """Send the request to an instance, and to one other if the first did not receive it."""
        headers = relay.request_headers(request.headers)
        headers.popall("Content-Encoding", None)  # the body was decompressed
        tried: set[int] = set()
        refusals: list[_Refusal] = []
        no_route = False
        while len(refusals) < _ATTEMPTS:
            metrics.start_routing()
            instance = self._router.choose(model, without=tried)
            if instance is None:
                break
            tried.add(instance.id)
            route = _route_of(instance, request.path)
            if route is None:
                no_route = True
                continue
            sent = replace(body, add_usage=body.add_usage and not instance.stream_usage)
            name = _request_name(instance, model) if body.model == model else body.model
            content = await self._content(sent, route, name)
            url = relay.target(instance.request_url or "", request)
            metrics.start_dispatch(instance.id)
            try:
                with self._router.carrying(instance):
                    async with relay.exchange(self._session, url, content, headers) as reply:
                        if relay.RETRY_HEADER not in reply.headers:
                            return await self._relay(request, route, metrics, reply, sent)
                        refusals.append(_NOT_TAKEN)
            except relay.NotReachedError as error:
                refusals.append(_NOT_REACHED)
                _log_failure(instance, error)
            except relay.BrokenError as error:
                refusals.append(_LOST)
                _log_failure(instance, error)
        if not refusals and no_route:
            answer = openai_errors.no_route(request.path, model)
            return _refuse(metrics, failures.NOT_FOUND, answer)
        if not refusals:
            return _unavailable(metrics, self._fleet.missing_reason(model))
        # A worker that may have received the request decides the answer.
        failure, answer_of = _LOST if _LOST in refusals else refusals[-1]
        return _refuse(metrics, failure, answer_of())

    async def _content(self, body: RequestBody, route: Route, name: str | None) -> bytes:
        """Return the body for a worker: with `name` as the model, and a request for usage."""

        def edit() -> bytes:
            named = body if name is None or name == body.model else body.for_model(name)
            return named.with_usage() if _adds_usage(body, route) else named.content

        return await self._threads.run(edit, size=len(body.content))

    async def _relay(
        self,
        request: web.Request,
        route: Route,
        metrics: RequestMetrics,
        answer: aiohttp.ClientResponse,
        body: RequestBody,
    ) -> web.StreamResponse:
        if answer.status >= 400:
            metrics.record_failure(failures.of_answer(answer.status))
        if answer.content_type == "text/event-stream":
            return await self._relay_stream(request, route, metrics, answer, body)
        length, sent = answer.content_length, 0
        response = await relay.begin(request, answer, length=length)
        if answer.status >= 400:  # many clients close the connection without reading the body
            metrics.record_first_bytes(time.perf_counter())
            metrics.record_sent_error(failures.of_answer(answer.status))
        counts = route.counts_tokens and answer.status < 400
        whole = []
        try:
            async for chunk in relay.chunks(answer):
                if metrics.waiting:
                    metrics.record_first_bytes(time.perf_counter())
                if counts:
                    whole.append(chunk)
                await response.write(chunk)
                sent += len(chunk)
                if sent == length:
                    metrics.record_sent_response()
            if metrics.waiting:  # the response has no body
                metrics.record_first_bytes(time.perf_counter())
        except relay.BrokenError:
            metrics.record_failure(failures.BROKEN_OFF)
            if request.transport is not None:
                request.transport.abort()  # the body is shorter than its Content-Length
            return response
        finally:
            if counts:  # an incomplete answer cannot be parsed, and has no tokens
                metrics.record_answer(await self._read_answer(b"".join(whole), route, body))
        await response.write_eof()
        return response

    async def _read_answer(self, content: bytes, route: Route, body: RequestBody) -> Answer:
        return await self._threads.run(
            lambda: read_answer(content, route.usage, samples=body.samples), size=len(content)
        )

    async def _relay_stream(
        self,
        request: web.Request,
        route: Route,
        metrics: RequestMetrics,
        answer: aiohttp.ClientResponse,
        body: RequestBody,
    ) -> web.StreamResponse:
        reader = StreamReader(
            route.usage, hide_usage=_adds_usage(body, route), samples=body.samples
        )
        try:
            response = await relay.begin(request, answer, length=None)
            try:
                async for chunk in relay.chunks(answer):
                    now = time.perf_counter()
                    if metrics.waiting:
                        metrics.record_first_bytes(now)
                    if passed := reader.feed(chunk, now):
                        await response.write(passed)
                        if reader.ended:
                            metrics.record_stream_end(reader.error_code)
                if rest := reader.finish(time.perf_counter()):
                    await response.write(rest)
                if reader.complete:
                    metrics.record_stream_end(reader.error_code)
                elif answer.status < 400:
                    logger.warning("a stream of %s ended before its last event", request.path)
                    metrics.record_sent_error(failures.BROKEN_OFF)
            except relay.BrokenError as error:
                logger.warning("the connection to a worker broke during a stream: %s", error)
                if not (reader.successful and reader.complete):
                    event = openai_errors.event(openai_errors.ENGINE_DIED, "engine_error")
                    await response.write(event)
                    metrics.record_sent_error(failures.BROKEN_OFF)
            await response.write_eof()
            return response
        finally:
            metrics.record_stream(reader)


def _route_of(instance: Record, path: str) -> Route | None:
    """Return the route of an instance's engine; None if the engine does not have the route."""
    engine = kinds.find(instance.engine)
    return engine.routes.get(path) if engine else None


def _request_name(instance: Record, model: str) -> str:
    """Return the name that an instance's engine expects for a model in its list."""
    engine = kinds.find(instance.engine)
    return engine.request_name(model, instance.model_info.get(model)) if engine else model


def _adds_usage(body: RequestBody, route: Route) -> bool:
    """Return whether to request usage for a stream whose client did not request usage."""
    return body.add_usage and route.takes_stream_options


def _refuse(metrics: RequestMetrics, failure: Failure, answer: web.Response) -> web.Response:
    metrics.record_failure(failure)
    return answer


def _unavailable(metrics: RequestMetrics, reason: str) -> web.Response:
    return _refuse(metrics, failures.NO_WORKER, openai_errors.unavailable(reason))


_Refusal = tuple[Failure, Callable[[], web.Response]]
# The failure and the answer of a request that no worker answered.
_NOT_TAKEN: Final[_Refusal] = (
    failures.NO_WORKER,
    lambda: openai_errors.unavailable("no worker can accept the request now"),
)
_NOT_REACHED: Final[_Refusal] = (
    failures.NOT_REACHED,
    lambda: openai_errors.unavailable("no worker accepts a connection"),
)
_LOST: Final[_Refusal] = (failures.WORKER_LOST, openai_errors.engine_died)


def _log_failure(instance: Record, error: Exception) -> None:
    logger.warning(
        "the connection to instance %016x at %s failed: %s",
        instance.id,
        instance.request_url,
        error,
    )
