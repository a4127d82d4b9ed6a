"""One request's way: read, choose, forward, stream back, count."""

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

# The chosen instance, and one other.
_ATTEMPTS = 2


class Forwarder:
    """The handler of every inference route."""

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
        """Forward to the workers that `router` chooses.

        Args:
            routes: the inference routes, by path.
            router: chooses a worker for each request.
            metrics: where requests are counted.
            session: to the workers.
            refresh: brings the router's fleet up to date.
            max_body_size: the most bytes that a body may have.
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
        """Read no more bodies."""
        self._threads.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request; whatever happens, it is counted once."""
        route = self._routes[request.path]
        account = RequestMetrics(self._metrics, route.name)
        try:
            return await self._answer(request, account)
        except (asyncio.CancelledError, ConnectionError):
            account.vanished()
            raise
        except web.HTTPException as error:
            account.failed(failures.of_answer(error.status))
            raise
        except BaseException:
            account.failed(failures.INTERNAL)
            raise
        finally:
            account.end()

    async def _answer(self, request: web.Request, account: RequestMetrics) -> web.StreamResponse:
        try:
            body = await self._read(request)
        except BadBodyError as error:
            return _refuse(account, failures.UNREADABLE, openai_errors.invalid(str(error)))
        model = await self._registered(body.model)
        account.start(model, stream=body.stream)
        served = self._fleet.models
        if self.draining:
            answer = _unavailable(account, "this frontend is ending")
            answer.force_close()
            return answer
        if not served:
            return _unavailable(account, self._fleet.missing_reason(model))
        if body.model is None and model is None:
            choice = ", ".join(sorted(served)[:10])
            message = f"model is missing; served are: {choice}"
            return _refuse(account, failures.REFUSED, openai_errors.invalid(message, "model"))
        if model is None:
            answer = openai_errors.unknown_model(body.model or "")
            return _refuse(account, failures.NOT_FOUND, answer)
        if model not in served:
            return _unavailable(account, self._fleet.missing_reason(model))
        with self.in_flight:
            return await self._forward(request, account, body, model)

    async def _registered(self, asked: str | None) -> str | None:
        """Return the registered name that a request means; the only one where it names none."""
        fleet = self._fleet
        if not fleet.models or (asked and fleet.resolve(asked) not in fleet.models):
            await self._refresh()  # a worker may have registered it since the last reading
        if asked is not None:
            return fleet.resolve(asked)
        return next(iter(fleet.models)) if len(fleet.models) == 1 else None

    async def _read(self, request: web.Request) -> RequestBody:
        """The body, and what is known of it.

        Raises:
            BadBodyError: it cannot be understood.
            web.HTTPRequestEntityTooLarge: it is larger than allowed.
        """
        limit = self._max_body_size
        if (request.content_length or 0) > limit:
            raise web.HTTPRequestEntityTooLarge(limit, request.content_length or 0)
        content = await request.read()
        encoding = request.headers.get("Content-Encoding", "").strip().lower()
        content_type = request.headers.get("Content-Type", "")
        size = limit if encoding else len(content)  # a short one may unpack to the limit
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
        account: RequestMetrics,
        body: RequestBody,
        model: str,
    ) -> web.StreamResponse:
        """Ask an instance, and one other where the first has not taken the request."""
        headers = relay.request_headers(request.headers)
        headers.popall("Content-Encoding", None)  # it was read
        tried: set[int] = set()
        refusals: list[_Refusal] = []
        no_route = False
        while len(refusals) < _ATTEMPTS:
            account.choosing()
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
            account.sent(instance.id)
            try:
                with self._router.carrying(instance):
                    async with relay.exchange(self._session, url, content, headers) as reply:
                        if relay.RETRY_HEADER not in reply.headers:
                            return await self._relay(request, route, account, reply, sent)
                        refusals.append(_NOT_TAKEN)
            except relay.NotReachedError as error:
                refusals.append(_NOT_REACHED)
                _log_lost(instance, error)
            except relay.BrokenError as error:
                refusals.append(_LOST)
                _log_lost(instance, error)
        if not refusals and no_route:
            answer = openai_errors.no_route(request.path, model)
            return _refuse(account, failures.NOT_FOUND, answer)
        if not refusals:
            return _unavailable(account, self._fleet.missing_reason(model))
        # A worker that may have taken the request outweighs those that did not.
        failure, answer_of = _LOST if _LOST in refusals else refusals[-1]
        return _refuse(account, failure, answer_of())

    async def _content(self, body: RequestBody, route: Route, name: str | None) -> bytes:
        """Return the body as it goes to a worker, which asks its engine for `name`."""

        def edited() -> bytes:
            named = body if name is None or name == body.model else body.for_model(name)
            return named.with_usage() if _adds_usage(body, route) else named.content

        return await self._threads.run(edited, size=len(body.content))

    async def _relay(
        self,
        request: web.Request,
        route: Route,
        account: RequestMetrics,
        answer: aiohttp.ClientResponse,
        body: RequestBody,
    ) -> web.StreamResponse:
        if answer.status >= 400:
            account.failed(failures.of_answer(answer.status))
        if answer.content_type == "text/event-stream":
            return await self._relay_stream(request, route, account, answer, body)
        length, sent = answer.content_length, 0
        response = await relay.begin(request, answer, length=length)
        if answer.status >= 400:  # many clients close at that, and read no more
            account.answered(time.perf_counter())
            account.told(failures.of_answer(answer.status))
        counts = route.counts_tokens and answer.status < 400
        whole = []
        try:
            async for chunk in relay.chunks(answer):
                if account.waiting:
                    account.answered(time.perf_counter())
                if counts:
                    whole.append(chunk)
                await response.write(chunk)
                sent += len(chunk)
                if sent == length:
                    account.has_all()
            if account.waiting:  # it has no body
                account.answered(time.perf_counter())
        except relay.BrokenError:
            account.failed(failures.BROKEN_OFF)
            if request.transport is not None:
                request.transport.abort()  # the length that was promised cannot be kept
            return response
        finally:
            if counts:  # a part of an answer says nothing
                account.counted(await self._read_answer(b"".join(whole), route, body))
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
        account: RequestMetrics,
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
                    if account.waiting:
                        account.answered(now)
                    if passed := reader.feed(chunk, now):
                        await response.write(passed)
                        if reader.ended:
                            account.ended(reader.error_code)
                if rest := reader.finish(time.perf_counter()):
                    await response.write(rest)
                if reader.complete:
                    account.ended(reader.error_code)
                elif answer.status < 400:
                    logger.warning("a stream of %s ended before its last event", request.path)
                    account.told(failures.BROKEN_OFF)
            except relay.BrokenError as error:
                logger.warning("a stream broke off: %s", error)
                if not (reader.successful and reader.complete):
                    event = openai_errors.event(openai_errors.ENGINE_DIED, "engine_error")
                    await response.write(event)
                    account.told(failures.BROKEN_OFF)
            await response.write_eof()
            return response
        finally:
            account.streamed(reader)


def _route_of(instance: Record, path: str) -> Route | None:
    """Return the route of an instance's engine; None where that engine has no such route."""
    engine = kinds.find(instance.engine)
    return engine.routes.get(path) if engine else None


def _request_name(instance: Record, model: str) -> str:
    """Return the name by which an instance's engine is asked for a model that it lists."""
    engine = kinds.find(instance.engine)
    return engine.request_name(model, instance.model_info.get(model)) if engine else model


def _adds_usage(body: RequestBody, route: Route) -> bool:
    """Whether a stream is asked for the usage that its client has not asked for."""
    return body.add_usage and route.takes_stream_options


def _refuse(account: RequestMetrics, failure: Failure, answer: web.Response) -> web.Response:
    account.failed(failure)
    return answer


def _unavailable(account: RequestMetrics, why: str) -> web.Response:
    return _refuse(account, failures.NO_WORKER, openai_errors.unavailable(why))


_Refusal = tuple[Failure, Callable[[], web.Response]]
# What a request gets that no worker answers, by what happened at the last one.
_NOT_TAKEN: Final[_Refusal] = (
    failures.NO_WORKER,
    lambda: openai_errors.unavailable("the workers cannot take it now"),
)
_NOT_REACHED: Final[_Refusal] = (
    failures.NOT_REACHED,
    lambda: openai_errors.unavailable("no worker accepts a connection"),
)
_LOST: Final[_Refusal] = (failures.WORKER_LOST, openai_errors.engine_died)


def _log_lost(instance: Record, error: Exception) -> None:
    logger.warning("instance %016x at %s is lost: %s", instance.id, instance.request_url, error)
