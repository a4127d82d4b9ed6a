"""The families of the frontend's requests: `dynamo_frontend_*` and `dynamo_request_plane_*`.

Series are looked up once and kept in objects: one object per model, and one per model, route and
request type. The values of labels are registered names, never text from a request.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from dynamometer import names
from dynamometer.frontend import failures
from dynamometer.frontend.retries import RetryMetrics
from dynamometer.frontend.worker_metrics import WorkerMetrics
from dynamometer.metrics import buckets
from dynamometer.metrics.buckets import FrontendBuckets
from dynamometer.metrics.histogram import BatchHistogram
from dynamometer.names import (
    error_type,
    frontend_perf,
    frontend_processes,
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
# Routes whose series are shown at 0 as soon as a model is registered.
_INITIAL_ROUTES: Final = (
    "anthropic_messages",
    "chat_completions",
    "completions",
    "embeddings",
    "generate",
    "responses",
)
# The value of a gauge of several processes: the sum of those that run.
_SUM: Final = "livesum"
_DEFAULT_BUCKETS: Final = FrontendBuckets.of(DEFAULT_BUCKET_RANGES)


def restart_counter(registry: CollectorRegistry) -> Counter:
    """Register and return the counter of restarts of the frontend's processes."""
    name = frontend_processes.RESTARTS_TOTAL
    return Counter(name, "Number of restarts of the frontend's processes", registry=registry)


class FrontendMetrics:
    """All families of the frontend's requests, in one registry.

    Attributes:
        stages: the families of the stages of requests.
        plane: the families of the request plane: requests on their way to a worker and back.
        workers: the families that describe models and workers.
        retries: the family of retries.
        disconnected: the number of clients that closed the connection before the end of their
            response.
        failures: the counter of each failure.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        prefix: str = name_prefix.FRONTEND,
        bounds: FrontendBuckets = _DEFAULT_BUCKETS,
    ) -> None:
        """Register the families.

        Args:
            registry: the registry of the families.
            prefix: replaces `dynamo_frontend` in the names of families.
            bounds: the bucket bounds of histograms.

        Raises:
            ValueError: `prefix` makes two families have the same name.
        """
        self._model_families = _ModelFamilies(registry, prefix, bounds)
        self._route_families = _RouteFamilies(registry, prefix)
        self._model_series: dict[str, ModelSeries] = {}
        self._route_series: dict[tuple[str, str, bool], RouteSeries] = {}
        self.stages = StageFamilies(registry, prefix)
        self.plane = PlaneFamilies(registry)
        self.workers = WorkerMetrics(registry, prefix=prefix)
        self.retries = RetryMetrics(registry)
        self.disconnected = Gauge(
            f"{prefix}_{frontend_service.DISCONNECTED_CLIENTS}",
            "Number of clients that closed the connection before the end of their response: only "
            "rises",
            registry=registry,
            multiprocess_mode=_SUM,
        )
        failed = Counter(
            f"{prefix}_{frontend_service.FAILURES_TOTAL}",
            "Total number of requests that failed; cancelled requests are not counted",
            (labels.FAILURE_CLASS, labels.REASON),
            registry=registry,
        )
        self.failures = {
            failure: failed.labels(failure.kind, failure.reason) for failure in failures.ALL
        }
        self.show_zeros([names.UNKNOWN_MODEL])

    def follow(self, fleet: Fleet) -> None:
        """Update the families at each change of `fleet`."""

        def update(change: Change) -> None:
            self.show_zeros(change.models)
            self.workers.update(fleet, change)

        fleet.on_change(update)

    def show_zeros(self, models: Iterable[str]) -> None:
        """Show the series of `models` at 0, so that the first request is an increase."""
        for model in models:
            if model not in self._model_series:
                series = self.model(model)
                if model != names.UNKNOWN_MODEL:
                    series.show_answer_zeros()
                    self.retries.show_zeros(model)
                for route in _INITIAL_ROUTES:
                    for stream in (False, True):
                        self.route(model, route, stream=stream).show_zeros()

    def model(self, name: str) -> ModelSeries:
        """Return the series of a model, which is a registered name or `UNKNOWN_MODEL`."""
        series = self._model_series.get(name)
        if series is None:
            series = self._model_series[name] = ModelSeries(self._model_families, name)
        return series

    def route(self, model: str, route: str, *, stream: bool) -> RouteSeries:
        """Return the series of a model's requests to one route, streamed or not."""
        key = (model, route, stream)
        series = self._route_series.get(key)
        if series is None:
            request_type = request_types.STREAM if stream else request_types.UNARY
            label_values = (model, route, request_type)
            series = self._route_series[key] = RouteSeries(self._route_families, label_values)
        return series


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
        """The series of the model's answers; the first use creates these series."""
        if self._answers is None:
            self._answers = AnswerSeries(self._families, self._model)
        return self._answers

    def show_answer_zeros(self) -> None:
        """Show the series of answers at 0."""
        _ = self.answers  # the first use creates the series


class AnswerSeries:
    """The series of one model's answers.

    Only a registered model has these series. For `UNKNOWN_MODEL`, the series would stay at 0, and
    distort each mean over the models.
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


class RouteSeries:
    """The series of one model, route and request type."""

    __slots__ = ("_families", "_finished", "_values", "cancelled", "rejected", "started")

    def __init__(self, families: _RouteFamilies, values: tuple[str, str, str]) -> None:
        self._families = families
        self._values = values
        self._finished: dict[str, Counter] = {}
        self.started = families.started.labels(*values)
        self.cancelled = families.cancelled.labels(*values)
        model, route, _ = values
        self.rejected = families.rejected.labels(model, route)

    def finished(self, error: str) -> Counter:
        """Return the counter of requests that finished with `error`.

        Args:
            error: a value of `error_type`; empty for success.
        """
        counter = self._finished.get(error)
        if counter is None:
            outcome = status.ERROR if error else status.SUCCESS
            counter = self._families.finished.labels(*self._values, outcome, error)
            self._finished[error] = counter
        return counter

    def show_zeros(self) -> None:
        """Show the counters of finished requests at 0, one for each value of `error_type`."""
        for error in (error_type.NONE, *_ERROR_TYPES):
            self.finished(error)


class _ModelFamilies:
    """The families with the label `model`."""

    def __init__(self, registry: CollectorRegistry, prefix: str, bounds: FrontendBuckets) -> None:
        family = frontend_service

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(
                f"{prefix}_{name}",
                text,
                (labels.MODEL,),
                registry=registry,
                multiprocess_mode=_SUM,
            )

        def histogram(name: str, text: str, upper_bounds: tuple[float, ...]) -> Histogram:
            return Histogram(
                f"{prefix}_{name}", text, (labels.MODEL,), buckets=upper_bounds, registry=registry
            )

        self.queued = gauge(
            family.QUEUED_REQUESTS, "Number of requests that wait for their answer's first byte"
        )
        self.active = gauge(
            family.ACTIVE_REQUESTS,
            "Number of requests currently being handled by the frontend, from the reading of their "
            "body to response completion",
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
        # At the end of a request, all of its latencies are observed in one call.
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
    """The families with labels for model, route and request type."""

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
    """The families of the stages of requests: the number of requests, and the time in a stage."""

    def __init__(self, registry: CollectorRegistry, prefix: str) -> None:
        family = frontend_perf
        duration = Histogram(
            f"{prefix}_{family.STAGE_DURATION_SECONDS}",
            "Time that a request spends in a stage (seconds)",
            (labels.STAGE,),
            buckets=buckets.STAGE_DURATION_BUCKETS,
            registry=registry,
        )
        requests = Gauge(
            f"{prefix}_{family.STAGE_REQUESTS}",
            "Number of requests currently in a stage",
            (labels.STAGE, labels.PHASE),
            registry=registry,
            multiprocess_mode=_SUM,
        )
        self.preprocess_seconds = duration.labels(family.STAGE_PREPROCESS)
        self.route_seconds = duration.labels(family.STAGE_ROUTE)
        self.roundtrip_seconds = duration.labels(family.STAGE_TRANSPORT_ROUNDTRIP)
        self.preprocess = requests.labels(family.STAGE_PREPROCESS, phase.NONE)
        self.route = requests.labels(family.STAGE_ROUTE, phase.AGGREGATED)
        self.dispatch = requests.labels(family.STAGE_DISPATCH, phase.AGGREGATED)


class PlaneFamilies:
    """The families of the request plane: requests on their way to a worker and back."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, upper_bounds: tuple[float, ...]) -> Histogram:
            full_name = f"{name_prefix.REQUEST_PLANE}_{name}"
            return Histogram(full_name, text, buckets=upper_bounds, registry=registry)

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
            "Number of requests that were sent to a worker and have not finished",
            registry=registry,
            multiprocess_mode=_SUM,
        )
