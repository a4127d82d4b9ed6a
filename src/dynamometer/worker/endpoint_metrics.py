"""The metrics of a worker's endpoint: its requests, their sizes and durations."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram

from dynamometer.engines.stream_end import StreamEnd
from dynamometer.metrics.buckets import COMPONENT_DURATION_BUCKETS, FIRST_RESPONSE_BUCKETS
from dynamometer.metrics.hierarchy import Metrics
from dynamometer.names import component_error_type, labels, name_prefix, work_handler


class EndpointMetrics:
    """The metric families of one endpoint; each family has one series."""

    def __init__(
        self, metrics: Metrics, registry: CollectorRegistry, constant_labels: Mapping[str, str]
    ) -> None:
        """Register the families.

        Args:
            metrics: creates the `dynamo_component_*` families, with the labels of the endpoint.
            registry: the registry of the other families.
            constant_labels: further constant labels of the `dynamo_component_*` families.
        """
        self._metrics = metrics
        self._constant_labels = constant_labels
        self.inflight = metrics.create_gauge(
            work_handler.INFLIGHT_REQUESTS,
            "Number of requests currently being processed by work handler",
            const_labels=constant_labels,
        )
        self._requests = self._counter(
            work_handler.REQUESTS_TOTAL, "Total number of requests processed by work handler"
        )
        self._request_bytes = self._counter(
            work_handler.REQUEST_BYTES_TOTAL,
            "Total number of bytes received in requests by work handler",
        )
        self._response_bytes = self._counter(
            work_handler.RESPONSE_BYTES_TOTAL,
            "Total number of bytes sent in responses by work handler",
        )
        self._cancellations = self._counter(
            work_handler.CANCELLATION_TOTAL, "Total number of requests cancelled by work handler"
        )
        errors = metrics.create_counter(
            work_handler.ERRORS_TOTAL,
            "Total number of errors in work handler processing",
            (labels.ERROR_TYPE,),
            const_labels=constant_labels,
        )
        self._errors = errors.labels(component_error_type.GENERATE)
        self._duration = metrics.create_histogram(
            work_handler.REQUEST_DURATION_SECONDS,
            "Time spent processing requests by work handler",
            buckets=COMPONENT_DURATION_BUCKETS,
            const_labels=constant_labels,
        )
        self._first_response = Histogram(
            f"{name_prefix.WORK_HANDLER}_{work_handler.TIME_TO_FIRST_RESPONSE_SECONDS}",
            "Seconds from a request's arrival at the worker until the first bytes of its response",
            buckets=FIRST_RESPONSE_BUCKETS,
            registry=registry,
        )

    @contextmanager
    def request(self) -> Iterator[RequestCount]:
        """Count one request; the context is open from its arrival to its end."""
        started = time.perf_counter()
        count = RequestCount()
        self.inflight.inc()
        try:
            yield count
        finally:
            self.inflight.dec()
            self._requests.inc()
            self._request_bytes.inc(count.bytes_in)
            self._response_bytes.inc(count.bytes_out)
            self._duration.observe(time.perf_counter() - started)
            if count.first_response is not None:
                self._first_response.observe(count.first_response - started)
            if count.cancelled:
                self._cancellations.inc()
            if count.failed:
                self._errors.inc()

    def _counter(self, name: str, text: str) -> Counter:
        return self._metrics.create_counter(name, text, const_labels=self._constant_labels)


class RequestCount:
    """The facts about one request that its metrics need.

    Attributes:
        bytes_in: the length of the request body.
        bytes_out: the length of the response body so far.
        cancelled: True if the client closed its connection before the end of the response.
        complete: True if the client received the whole response, or the status of an error.
        end: the end of the stream; `end.reached` is True if the client received the last event.
        failed: True if the engine failed, or answered with a status of 500 or more.
        first_response: the time of the first bytes of the response, by `time.perf_counter`.
    """

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "cancelled",
        "complete",
        "end",
        "failed",
        "first_response",
    )

    def __init__(self) -> None:
        self.bytes_in = 0
        self.bytes_out = 0
        self.cancelled = False
        self.complete = False
        self.end = StreamEnd()
        self.failed = False
        self.first_response: float | None = None

    def record_disconnect(self) -> None:
        """Count the request as cancelled, unless the client already has the whole response."""
        self.cancelled = not (self.complete or self.end.reached)

    def record_status(self, status: int) -> None:
        """Count the request as failed if the engine reports a fault of its own."""
        self.failed = status >= 500

    def add_chunk(self, chunk: bytes) -> None:
        """Record a chunk of the response body; an empty chunk if the response has no body."""
        if self.first_response is None:
            self.first_response = time.perf_counter()
        self.bytes_out += len(chunk)
