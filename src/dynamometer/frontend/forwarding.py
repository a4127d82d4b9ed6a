"""The handler of inference requests: read, dispatch to a worker, and relay the response."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack

from dynamometer.engines.answers import Answer, read_answer
from dynamometer.engines.interface import Route
from dynamometer.engines.requests import TOO_DEEP, BadBodyError, RequestBody
from dynamometer.engines.streams import StreamReader
from dynamometer.frontend import failures
from dynamometer.frontend.body import BodyThreads, TooLargeError, read
from dynamometer.frontend.dispatch import Dispatcher
from dynamometer.frontend.failures import Failure
from dynamometer.frontend.outcomes import Accepted
from dynamometer.frontend.probes import ENDING
from dynamometer.frontend.request_metrics import RequestMetrics
from dynamometer.frontend.routing import Router
from dynamometer.frontend.service_metrics import FrontendMetrics
from dynamometer.http import openai_errors, relay
from dynamometer.http.client import Client
from dynamometer.http.exchange import Request, too_large
from dynamometer.http.messages import Refusal, Response
from dynamometer.http.reply import BrokenError
from dynamometer.process.signals import InFlight

logger = logging.getLogger(__name__)


class Forwarder:
    """The handler of every inference route.

    Attributes:
        in_flight: the requests that are being forwarded.
        closes_connections: True when the frontend is ending: a client that keeps its connection
            would send its next request here.
        draining: True when the frontend answers new requests with 503, after the drain delay.
    """

    def __init__(
        self,
        *,
        routes: Mapping[str, Route],
        router: Router,
        metrics: FrontendMetrics,
        client: Client,
        refresh: Callable[[], Awaitable[None]],
        max_body_size: int,
        processes: int = 1,
        forward_custom_labels: bool = False,
    ) -> None:
        """Store the arguments, and prepare the threads that read bodies.

        Args:
            routes: the inference routes, by path.
            router: chooses a worker for each request.
            metrics: the families that count requests.
            client: sends requests to the workers.
            refresh: updates the router's fleet from discovery.
            max_body_size: the largest accepted body, in bytes.
            processes: the number of processes of the frontend.
            forward_custom_labels: see `Dispatcher`.
        """
        self._max_body_size = max_body_size
        self._refresh = refresh
        self._routes = routes
        self._fleet = router.fleet
        self._metrics = metrics
        self._threads = BodyThreads(processes=processes)
        self._dispatcher = Dispatcher(
            router=router,
            client=client,
            threads=self._threads,
            metrics=metrics.retries,
            forward_custom_labels=forward_custom_labels,
        )
        self.in_flight = InFlight()
        self.closes_connections = False
        self.draining = False

    @property
    def active(self) -> int:
        """The number of requests in flight."""
        return self.in_flight.count

    def close(self) -> None:
        """Stop reading bodies."""
        self._threads.close()

    async def handle(self, request: Request) -> Response | None:
        """Answer one request, and count it once."""
        request.keep_alive = request.keep_alive and not self.closes_connections
        route = self._routes[request.path]
        metrics = RequestMetrics(self._metrics, route.name)
        try:
            with ExitStack() as held:
                accepted = await self._send(request, metrics, held)
                if isinstance(accepted, Response):
                    return accepted
                await self._relay(request, metrics, accepted)
                return None
        except asyncio.CancelledError:
            metrics.record_disconnect()
            raise
        except Refusal as refusal:
            metrics.record_failure(failures.of_answer(refusal.status))
            raise
        except BaseException:
            metrics.record_failure(failures.INTERNAL)
            raise
        finally:
            metrics.finish()

    async def _send(
        self, request: Request, metrics: RequestMetrics, held: ExitStack
    ) -> Response | Accepted:
        """Send a request to a worker; return the response to a request that none accepts.

        Args:
            request: the client's request.
            metrics: its metrics.
            held: is left when the request is over.
        """
        try:
            body = await self._read(request)
        except BadBodyError as error:
            return _refuse(metrics, failures.UNREADABLE, openai_errors.invalid(str(error)))
        model = await self._resolve(body.model)
        metrics.record_body(model, stream=body.stream)
        if body.refused is not None:
            message = f"{body.refused} must not be set: only the frontend pairs workers"
            return _refuse(metrics, failures.REFUSED, openai_errors.invalid(message, body.refused))
        served = self._fleet.models
        if self.draining:
            answer = _unavailable(metrics, ENDING)
            answer.close = True
            return answer
        if not served:
            return _unavailable(metrics, self._fleet.missing_reason(model))
        if body.model is None and model is None:
            choice = ", ".join(sorted(served)[:10])
            message = f"model is missing; served models: {choice}"
            return _refuse(metrics, failures.REFUSED, openai_errors.invalid(message, "model"))
        if model is None:
            answer = openai_errors.unknown_model(body.model or "", fault=self._fleet.fault())
            return _refuse(metrics, failures.NOT_FOUND, answer)
        if model not in served:
            return _unavailable(metrics, self._fleet.missing_reason(model))
        held.enter_context(self.in_flight)
        try:
            outcome = await self._dispatcher.send(request, metrics, body, model, held)
        except RecursionError:  # less of the stack was left than for `_read`
            return _refuse(metrics, failures.UNREADABLE, openai_errors.invalid(TOO_DEEP))
        if isinstance(outcome, Accepted):
            return outcome
        return _refuse(metrics, outcome.failure, outcome.answer())

    async def _resolve(self, requested: str | None) -> str | None:
        """Return the registered name of a requested model, or the only one if none is requested."""
        fleet = self._fleet
        if not fleet.models or (requested and fleet.resolve(requested) not in fleet.models):
            await self._refresh()  # a worker may have just registered the model
        if requested is not None:
            return fleet.resolve(requested)
        return next(iter(fleet.models)) if len(fleet.models) == 1 else None

    async def _read(self, request: Request) -> RequestBody:
        """Read and parse the body.

        Raises:
            BadBodyError: The body is not valid.
            Refusal: The body is larger than allowed, or was not received.
        """
        limit = self._max_body_size
        content = await request.read()
        encoding = request.headers.get(b"content-encoding").decode("latin-1").strip().lower()
        content_type = request.headers.get(b"content-type").decode("latin-1")
        size = limit if encoding else len(content)  # a short body may decompress to the limit
        try:
            return await self._threads.run(
                lambda: read(content, encoding=encoding, content_type=content_type, limit=limit),
                size=size,
            )
        except TooLargeError:
            raise too_large(limit) from None

    async def _relay(self, request: Request, metrics: RequestMetrics, accepted: Accepted) -> None:
        """Send the worker's response to the client, and count it."""
        reply = accepted.reply
        if reply.status >= 400:
            metrics.record_failure(failures.of_answer(reply.status))
        if reply.headers.media_type == b"text/event-stream" and not reply.headers.compressed:
            await self._relay_stream(request, metrics, accepted)
        else:
            await self._relay_whole(request, metrics, accepted)

    async def _relay_whole(
        self, request: Request, metrics: RequestMetrics, accepted: Accepted
    ) -> None:
        reply, sent = accepted.reply, 0
        stream = relay.begin(request, reply, length=reply.length)
        if reply.status >= 400:  # many clients close the connection without reading the body
            metrics.record_first_bytes(time.perf_counter())
            metrics.record_sent_error(failures.of_answer(reply.status))
        readable = reply.status < 400 and not reply.headers.compressed
        counts = accepted.route.counts_tokens and readable
        whole: list[bytes] = []

        def take(chunk: bytes) -> None:
            nonlocal sent
            if metrics.waiting:
                metrics.record_first_bytes(time.perf_counter())
            if counts:
                whole.append(chunk)
            stream.write(chunk)
            sent += len(chunk)
            if sent == reply.length:
                metrics.record_sent_response()

        try:
            await relay.pass_on(reply, stream, take)
            if metrics.waiting:  # the response has no body
                metrics.record_first_bytes(time.perf_counter())
        except BrokenError as error:
            _log_broken(accepted, error)
            metrics.record_failure(failures.BROKEN_OFF)
            return  # the response stays unfinished: the server closes the connection
        finally:
            if counts:  # an incomplete answer cannot be parsed, and has no tokens
                metrics.record_answer(await self._read_answer(b"".join(whole), accepted))
        stream.end()

    async def _read_answer(self, content: bytes, accepted: Accepted) -> Answer:
        usage, samples = accepted.route.usage, accepted.samples
        return await self._threads.run(
            lambda: read_answer(content, usage, samples=samples), size=len(content)
        )

    async def _relay_stream(
        self, request: Request, metrics: RequestMetrics, accepted: Accepted
    ) -> None:
        reply = accepted.reply
        reader = StreamReader(
            accepted.route.usage,
            hide_usage=accepted.hide_usage,
            samples=accepted.samples,
            on_content=metrics.record_content,
        )
        stream = relay.begin(request, reply, length=None)

        def take(chunk: bytes) -> None:
            now = time.perf_counter()
            if metrics.waiting:
                metrics.record_first_bytes(now)
            if passed := reader.feed(chunk, now):
                stream.write(passed)
                if reader.ended and not stream.closed:
                    metrics.record_stream_end(reader.error_code)

        try:
            try:
                await relay.pass_on(reply, stream, take)
                stream.write(reader.finish(time.perf_counter()))
                if reader.complete:
                    metrics.record_stream_end(reader.error_code)
                elif reply.status < 400:
                    logger.warning(
                        "a stream of %s ended before its last event (instance %016x)",
                        request.path,
                        accepted.instance.id,
                    )
                    metrics.record_sent_error(failures.BROKEN_OFF)
            except BrokenError as error:
                _log_broken(accepted, error)
                if not (reader.successful and reader.complete):
                    stream.write(openai_errors.event(openai_errors.ENGINE_DIED, "engine_error"))
                    metrics.record_sent_error(failures.BROKEN_OFF)
            stream.end()
        finally:
            metrics.record_stream(reader)


def _log_broken(accepted: Accepted, error: BrokenError) -> None:
    logger.warning(
        "the connection to instance %016x broke during its response: %s",
        accepted.instance.id,
        error,
    )


def _refuse(metrics: RequestMetrics, failure: Failure, answer: Response) -> Response:
    metrics.record_failure(failure)
    return answer


def _unavailable(metrics: RequestMetrics, reason: str) -> Response:
    return _refuse(metrics, failures.NO_WORKER, openai_errors.unavailable(reason))
