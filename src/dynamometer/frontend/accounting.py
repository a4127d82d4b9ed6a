"""What the frontend counts of each request: gathered while it runs, written at its end."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from dynamometer import names
from dynamometer.frontend.usage import StreamReader, Tokens
from dynamometer.metrics import buckets
from dynamometer.names import error_type, frontend_service, labels, name_prefix, status
from dynamometer.names import request_type as request_types

_ERROR_TYPES = (
    error_type.VALIDATION,
    error_type.NOT_FOUND,
    error_type.OVERLOAD,
    error_type.CANCELLED,
    error_type.INTERNAL,
)
# Routes whose series are there, at 0, from the moment that a model is.
_FIRST_ROUTES = ("chat_completions", "completions")


class FrontendMetrics:
    """The `dynamo_frontend_*` families."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def full(name: str) -> str:
            return f"{name_prefix.FRONTEND}_{name}"

        def histogram(name: str, text: str, bounds: tuple[float, ...]) -> Histogram:
            return Histogram(full(name), text, (labels.MODEL,), buckets=bounds, registry=registry)

        by_kind = (labels.MODEL, labels.ROUTE, labels.REQUEST_TYPE)
        family = frontend_service
        self.started = Counter(
            full(family.REQUESTS_STARTED_TOTAL),
            "Total number of LLM requests accepted by the frontend handler",
            by_kind,
            registry=registry,
        )
        self.finished = Counter(
            full(family.REQUESTS_TOTAL),
            "Total number of LLM requests processed",
            (*by_kind, labels.STATUS, labels.ERROR_TYPE),
            registry=registry,
        )
        self.cancelled = Counter(
            full(family.MODEL_CANCELLATION_TOTAL),
            "Total number of request cancellations",
            by_kind,
            registry=registry,
        )
        self.active = Gauge(
            full(family.ACTIVE_REQUESTS),
            "Number of requests currently being handled by the frontend, from HTTP handler entry "
            "to response completion",
            (labels.MODEL,),
            registry=registry,
        )
        self.inflight = Gauge(
            full(family.INFLIGHT_REQUESTS),
            "Number of inflight requests",
            (labels.MODEL,),
            registry=registry,
        )
        self.disconnected = Gauge(
            full(family.DISCONNECTED_CLIENTS), "Number of disconnected clients", registry=registry
        )
        self.output_tokens = Counter(
            full(family.OUTPUT_TOKENS_TOTAL),
            "Total number of output tokens generated",
            (labels.MODEL,),
            registry=registry,
        )
        self.duration = histogram(
            family.REQUEST_DURATION_SECONDS,
            "Duration of LLM requests",
            buckets.REQUEST_DURATION_BUCKETS,
        )
        self.first_token = histogram(
            family.TIME_TO_FIRST_TOKEN_SECONDS,
            "Time to first token in seconds",
            buckets.TIME_TO_FIRST_TOKEN_BUCKETS,
        )
        self.inter_token = histogram(
            family.INTER_TOKEN_LATENCY_SECONDS,
            "Inter-token latency in seconds",
            buckets.INTER_TOKEN_LATENCY_BUCKETS,
        )
        self.input_sequence = histogram(
            family.INPUT_SEQUENCE_TOKENS,
            "Input sequence length in tokens",
            buckets.INPUT_TOKENS_BUCKETS,
        )
        self.output_sequence = histogram(
            family.OUTPUT_SEQUENCE_TOKENS,
            "Output sequence length in tokens",
            buckets.OUTPUT_TOKENS_BUCKETS,
        )
        self.cached = histogram(
            family.CACHED_TOKENS,
            "Number of cached tokens (prefix cache hits) per request",
            buckets.INPUT_TOKENS_BUCKETS,
        )
        self._known: set[str] = set()
        self.expect([names.UNKNOWN_MODEL])

    def expect(self, models: Iterable[str]) -> None:
        """Show the series of `models` at 0, so that the first request is an increase."""
        for model in set(models) - self._known:
            self._known.add(model)
            self.output_tokens.labels(model)
            self.active.labels(model)
            self.inflight.labels(model)
            for family in (self.duration, self.first_token, self.inter_token):
                family.labels(model)
            for family in (self.input_sequence, self.output_sequence, self.cached):
                family.labels(model)
            for route in _FIRST_ROUTES:
                for kind in (request_types.STREAM, request_types.UNARY):
                    self.started.labels(model, route, kind)
                    self.cancelled.labels(model, route, kind)
                    self.finished.labels(model, route, kind, status.SUCCESS, error_type.NONE)
                    for error in _ERROR_TYPES:
                        self.finished.labels(model, route, kind, status.ERROR, error)


class RequestAccount:
    """One request, from the handler's entry to its end."""

    def __init__(self, metrics: FrontendMetrics, route: str) -> None:
        self._metrics = metrics
        self._route = route
        self._begun = time.perf_counter()
        self._model = names.UNKNOWN_MODEL
        self._kind = request_types.UNARY
        self._started = False
        self._sent = False
        self.error = error_type.NONE

    def start(self, model: str | None, *, stream: bool) -> None:
        """What the body said.

        Args:
            model: a registered name; None for any other.
            stream: whether the answer is to come in a stream.
        """
        self._model = model or names.UNKNOWN_MODEL
        self._kind = request_types.STREAM if stream else request_types.UNARY
        self._started = True
        self._metrics.started.labels(self._model, self._route, self._kind).inc()
        self._metrics.active.labels(self._model).inc()

    def sent(self) -> None:
        """An instance has been chosen, and the request is on its way there."""
        if not self._sent:
            self._sent = True
            self._metrics.inflight.labels(self._model).inc()

    def failed(self, http_status: int) -> None:
        """The answer is the error of `http_status`."""
        self.error = _error_type(http_status)

    def vanished(self) -> None:
        """The client went away."""
        self.error = error_type.CANCELLED
        self._metrics.disconnected.inc()
        self._metrics.cancelled.labels(self._model, self._route, self._kind).inc()

    def streamed(self, reader: StreamReader) -> None:
        """The stream has ended, or broken off."""
        times = reader.content_times
        if times:
            self._metrics.first_token.labels(self._model).observe(times[0] - self._begun)
            observe = self._metrics.inter_token.labels(self._model).observe
            for earlier, later in itertools.pairwise(times):
                observe(later - earlier)
        tokens = reader.tokens
        if tokens.output is None and times:
            # It ended before its usage came: each event has brought at least one token.
            tokens = Tokens(tokens.input, len(times), tokens.cached)
        self.counted(tokens)

    def counted(self, tokens: Tokens) -> None:
        """The answer's tokens."""
        metrics = self._metrics
        if tokens.input is not None:
            metrics.input_sequence.labels(self._model).observe(tokens.input)
        if tokens.output is not None:
            metrics.output_sequence.labels(self._model).observe(tokens.output)
            metrics.output_tokens.labels(self._model).inc(tokens.output)
        if tokens.cached is not None:
            metrics.cached.labels(self._model).observe(tokens.cached)

    def end(self) -> None:
        """The request is over, however it ended."""
        metrics = self._metrics
        if not self._started:
            self.start(None, stream=False)
        if self._sent:
            metrics.inflight.labels(self._model).dec()
        metrics.active.labels(self._model).dec()
        metrics.duration.labels(self._model).observe(time.perf_counter() - self._begun)
        outcome = status.ERROR if self.error else status.SUCCESS
        metrics.finished.labels(self._model, self._route, self._kind, outcome, self.error).inc()


def _error_type(http_status: int) -> str:
    if http_status == 404:
        return error_type.NOT_FOUND
    if http_status in (429, 503, 529):
        return error_type.OVERLOAD
    if http_status == 499:
        return error_type.CANCELLED
    return error_type.INTERNAL if http_status >= 500 else error_type.VALIDATION
