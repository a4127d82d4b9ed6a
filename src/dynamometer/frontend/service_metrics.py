"""The families of the frontend's requests: `dynamo_frontend_*` and `dynamo_request_plane_*`.

A child (the series of one label set) is looked up once and kept: by model, and by model, route
and request type. Both come from what is registered, never from a request.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from dynamometer import names
from dynamometer.frontend import failures
from dynamometer.frontend.worker_metrics import WorkerMetrics
from dynamometer.metrics import buckets
from dynamometer.metrics.buckets import FrontendBuckets
from dynamometer.metrics.histogram import BatchHistogram
from dynamometer.names import (
    error_type,
    frontend_perf,
    frontend_service,
    labels,
    name_prefix,
    phase,
    request_plane,
    status,
)
from dynamometer.names import request_type as request_types
from dynamometer.runtime.fleet import Change, Fleet
from dynamometer.settings import DEFAULT_BUCKET_RANGES

_ERROR_TYPES: Final = (
    error_type.VALIDATION,
    error_type.NOT_FOUND,
    error_type.OVERLOAD,
    error_type.UNAVAILABLE,
    error_type.CANCELLED,
    error_type.INTERNAL,
    error_type.NOT_IMPLEMENTED,
)
# Routes whose series are there, at 0, from the moment that a model is.
_FIRST_ROUTES: Final = (
    "anthropic_messages",
    "chat_completions",
    "completions",
    "embeddings",
    "generate",
    "responses",
)
_USUAL_BUCKETS: Final = FrontendBuckets.of(DEFAULT_BUCKET_RANGES)


class FrontendMetrics:
    """All of them, in one registry."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        prefix: str = name_prefix.FRONTEND,
        bounds: FrontendBuckets = _USUAL_BUCKETS,
    ) -> None:
        """Register the families.

        Args:
            registry: where they are collected.
            prefix: what the names of `dynamo_frontend_*` begin with instead.
            bounds: the buckets of its histograms.

        Raises:
            ValueError: the prefix makes a name that is another family's.
        """
        self._families = _ModelFamilies(registry, prefix, bounds)
        self._routes = _RouteFamilies(registry, prefix)
        self._models: dict[str, ModelSeries] = {}
        self._kinds: dict[tuple[str, str, bool], KindSeries] = {}
        self.stages = StageFamilies(registry, prefix)
        self.plane = PlaneFamilies(registry)
        self.workers = WorkerMetrics(registry, prefix=prefix)
        self.disconnected = Gauge(
            f"{prefix}_{frontend_service.DISCONNECTED_CLIENTS}",
            "Number of clients that went away before their answer's end; only rises",
            registry=registry,
        )
        failed = Counter(
            f"{prefix}_{frontend_service.FAILURES_TOTAL}",
            "Total number of requests that failed, those not counted that were cancelled",
            (labels.FAILURE_CLASS, labels.REASON),
            registry=registry,
        )
        self.failures = {
            failure: failed.labels(failure.kind, failure.reason) for failure in failures.ALL
        }
        self.expect([names.UNKNOWN_MODEL])

    def follow(self, fleet: Fleet) -> None:
        """Show the models and the workers of `fleet`, from its next change on."""

        def changed(change: Change) -> None:
            self.expect(change.models)
            self.workers.update(fleet, change)

        fleet.on_change(changed)

    def expect(self, models: Iterable[str]) -> None:
        """Show the series of `models` at 0, so that the first request is an increase."""
        for model in models:
            if model not in self._models:
                series = self.model(model)
                if model != names.UNKNOWN_MODEL:
                    series.expect_answers()
                for route in _FIRST_ROUTES:
                    for stream in (False, True):
                        self.kind(model, route, stream=stream).expect()

    def model(self, name: str) -> ModelSeries:
        """The series of a model: one that is registered, or `UNKNOWN_MODEL`."""
        found = self._models.get(name)
        if found is None:
            found = self._models[name] = ModelSeries(self._families, name)
        return found

    def kind(self, model: str, route: str, *, stream: bool) -> KindSeries:
        """The series of a model's requests to one route, streamed or not."""
        key = (model, route, stream)
        found = self._kinds.get(key)
        if found is None:
            kind = request_types.STREAM if stream else request_types.UNARY
            found = self._kinds[key] = KindSeries(self._routes, (model, route, kind))
        return found


class ModelSeries:
    """The series of one model."""

    __slots__ = ("_answers", "_families", "_model", "active", "duration", "inflight", "queued")

    def __init__(self, families: _ModelFamilies, model: str) -> None:
        self._families = families
        self._model = model
        self._answers: AnswerSeries | None = None
        self.queued = families.queued.labels(model)
        self.active = families.active.labels(model)
        self.inflight = families.inflight.labels(model)
        self.duration = families.duration.labels(model)

    @property
    def answers(self) -> AnswerSeries:
        """What the model's answers are counted in; shown from the first look on."""
        if self._answers is None:
            self._answers = AnswerSeries(self._families, self._model)
        return self._answers

    def expect_answers(self) -> None:
        """Show those series at 0: the model is one that can answer."""
        _ = self.answers


class AnswerSeries:
    """The series of one model's answers: those that a name nobody has registered never moves.

    Shown at 0 for such a name, they would be in every mean over the models.
    """

    __slots__ = (
        "cached",
        "first_token",
        "input_sequence",
        "inter_token",
        "output_sequence",
        "output_tokens",
    )

    def __init__(self, families: _ModelFamilies, model: str) -> None:
        self.output_tokens = families.output_tokens.labels(model)
        self.first_token = families.first_token.labels(model)
        self.inter_token = families.inter_token.labels(model)
        self.input_sequence = families.input_sequence.labels(model)
        self.output_sequence = families.output_sequence.labels(model)
        self.cached = families.cached.labels(model)


class KindSeries:
    """The series of one model, route and request type."""

    __slots__ = ("_ended", "_families", "_values", "cancelled", "rejected", "started")

    def __init__(self, families: _RouteFamilies, values: tuple[str, str, str]) -> None:
        self._families = families
        self._values = values
        self._ended: dict[str, Counter] = {}
        self.started = families.started.labels(*values)
        self.cancelled = families.cancelled.labels(*values)
        model, route, _ = values
        self.rejected = families.rejected.labels(model, route)

    def ended(self, error: str) -> Counter:
        """Those that ended with `error`, a value of `error_type`; empty: well."""
        found = self._ended.get(error)
        if found is None:
            outcome = status.ERROR if error else status.SUCCESS
            found = self._families.finished.labels(*self._values, outcome, error)
            self._ended[error] = found
        return found

    def expect(self) -> None:
        """Show every way to end, at 0."""
        for error in (error_type.NONE, *_ERROR_TYPES):
            self.ended(error)


class _ModelFamilies:
    """Families by model."""

    def __init__(self, registry: CollectorRegistry, prefix: str, bounds: FrontendBuckets) -> None:
        family = frontend_service

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"{prefix}_{name}", text, (labels.MODEL,), registry=registry)

        def histogram(name: str, text: str, over: tuple[float, ...]) -> Histogram:
            return Histogram(
                f"{prefix}_{name}", text, (labels.MODEL,), buckets=over, registry=registry
            )

        self.queued = gauge(
            family.QUEUED_REQUESTS, "Number of requests that wait for their answer's first byte"
        )
        self.active = gauge(
            family.ACTIVE_REQUESTS,
            "Number of requests currently being handled by the frontend, from when their body was "
            "read to response completion",
        )
        self.inflight = gauge(
            family.INFLIGHT_REQUESTS, "Number of inflight requests: the same as active_requests"
        )
        self.output_tokens = Counter(
            f"{prefix}_{family.OUTPUT_TOKENS_TOTAL}",
            "Total number of output tokens generated, counted at each request's end",
            (labels.MODEL,),
            registry=registry,
        )
        self.duration = histogram(
            family.REQUEST_DURATION_SECONDS, "Duration of LLM requests", bounds.request_duration
        )
        self.first_token = histogram(
            family.TIME_TO_FIRST_TOKEN_SECONDS,
            "Time to first token of streamed requests in seconds",
            bounds.time_to_first_token,
        )
        # Many a request, all given at its end.
        self.inter_token = BatchHistogram(
            f"{prefix}_{family.INTER_TOKEN_LATENCY_SECONDS}",
            "Time between two events with content of a stream in seconds",
            (labels.MODEL,),
            buckets=bounds.inter_token_latency,
            registry=registry,
        )
        self.input_sequence = histogram(
            family.INPUT_SEQUENCE_TOKENS, "Input sequence length in tokens", bounds.input_sequence
        )
        self.output_sequence = histogram(
            family.OUTPUT_SEQUENCE_TOKENS,
            "Output sequence length in tokens",
            bounds.output_sequence,
        )
        self.cached = histogram(
            family.CACHED_TOKENS,
            "Number of cached tokens (prefix cache hits) per request",
            bounds.input_sequence,
        )


class _RouteFamilies:
    """Families by model, route and request type."""

    def __init__(self, registry: CollectorRegistry, prefix: str) -> None:
        family = frontend_service
        by_kind = (labels.MODEL, labels.ROUTE, labels.REQUEST_TYPE)
        self.started = Counter(
            f"{prefix}_{family.REQUESTS_STARTED_TOTAL}",
            "Total number of LLM requests accepted by the frontend handler",
            by_kind,
            registry=registry,
        )
        self.finished = Counter(
            f"{prefix}_{family.REQUESTS_TOTAL}",
            "Total number of LLM requests processed",
            (*by_kind, labels.STATUS, labels.ERROR_TYPE),
            registry=registry,
        )
        self.cancelled = Counter(
            f"{prefix}_{family.MODEL_CANCELLATION_TOTAL}",
            "Total number of request cancellations",
            by_kind,
            registry=registry,
        )
        self.rejected = Counter(
            f"{prefix}_{family.MODEL_REJECTION_TOTAL}",
            "Total number of requests rejected due to resource exhaustion",
            (labels.MODEL, labels.ROUTE),
            registry=registry,
        )


class StageFamilies:
    """How many requests are in a stage, and how long they were."""

    def __init__(self, registry: CollectorRegistry, prefix: str) -> None:
        family = frontend_perf
        duration = Histogram(
            f"{prefix}_{family.STAGE_DURATION_SECONDS}",
            "Time that a request spends in a stage (seconds)",
            (labels.STAGE,),
            buckets=buckets.STAGE_DURATION_BUCKETS,
            registry=registry,
        )
        inside = Gauge(
            f"{prefix}_{family.STAGE_REQUESTS}",
            "Number of requests currently in a stage",
            (labels.STAGE, labels.PHASE),
            registry=registry,
        )
        self.preprocess_seconds = duration.labels(family.STAGE_PREPROCESS)
        self.route_seconds = duration.labels(family.STAGE_ROUTE)
        self.roundtrip_seconds = duration.labels(family.STAGE_TRANSPORT_ROUNDTRIP)
        self.preprocess = inside.labels(family.STAGE_PREPROCESS, phase.NONE)
        self.route = inside.labels(family.STAGE_ROUTE, phase.AGGREGATED)
        self.dispatch = inside.labels(family.STAGE_DISPATCH, phase.AGGREGATED)


class PlaneFamilies:
    """The hop to the workers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, over: tuple[float, ...]) -> Histogram:
            full = f"{name_prefix.REQUEST_PLANE}_{name}"
            return Histogram(full, text, buckets=over, registry=registry)

        self.queue = histogram(
            request_plane.QUEUE_SECONDS,
            "Time from the handler's entry until a request is sent to a worker (seconds)",
            buckets.REQUEST_PLANE_QUEUE_BUCKETS,
        )
        self.first_byte = histogram(
            request_plane.ROUNDTRIP_TTFT_SECONDS,
            "Time from sending a request to a worker until its answer's first bytes (seconds)",
            buckets.ROUNDTRIP_BUCKETS,
        )
        self.inflight = Gauge(
            f"{name_prefix.REQUEST_PLANE}_{request_plane.INFLIGHT_REQUESTS}",
            "Number of requests that were sent to a worker and are not over",
            registry=registry,
        )
