"""What a worker counts of the requests to its endpoint."""

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
    """The families of one endpoint, each with one label set."""

    def __init__(
        self, metrics: Metrics, registry: CollectorRegistry, constant: Mapping[str, str]
    ) -> None:
        """Register the families.

        Args:
            metrics: of the endpoint.
            registry: for those whose names are not `dynamo_component_*`.
            constant: labels on every series besides the level's.
        """
        self._metrics = metrics
        self._constant = constant
        self.inflight = metrics.create_gauge(
            work_handler.INFLIGHT_REQUESTS,
            "Number of requests currently being processed by work handler",
            const_labels=constant,
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
            const_labels=constant,
        )
        self._failed = errors.labels(component_error_type.GENERATE)
        self._duration = metrics.create_histogram(
            work_handler.REQUEST_DURATION_SECONDS,
            "Time spent processing requests by work handler",
            buckets=COMPONENT_DURATION_BUCKETS,
            const_labels=constant,
        )
        self._first_response = Histogram(
            f"{name_prefix.WORK_HANDLER}_{work_handler.TIME_TO_FIRST_RESPONSE_SECONDS}",
            "Seconds from a request's arrival at the worker until its answer's first bytes",
            buckets=FIRST_RESPONSE_BUCKETS,
            registry=registry,
        )

    @contextmanager
    def request(self) -> Iterator[RequestCount]:
        """Count one request from here to the context's end."""
        begun = time.perf_counter()
        count = RequestCount()
        self.inflight.inc()
        try:
            yield count
        finally:
            self.inflight.dec()
            self._requests.inc()
            self._request_bytes.inc(count.bytes_in)
            self._response_bytes.inc(count.bytes_out)
            self._duration.observe(time.perf_counter() - begun)
            if count.first_response is not None:
                self._first_response.observe(count.first_response - begun)
            if count.cancelled:
                self._cancellations.inc()
            if count.failed:
                self._failed.inc()

    def _counter(self, name: str, text: str) -> Counter:
        return self._metrics.create_counter(name, text, const_labels=self._constant)


class RequestCount:
    """One request: bytes of its bodies, when its answer began, and how it ended.

    Attributes:
        bytes_in: of the request's body.
        bytes_out: of the answer's body.
        cancelled: whether the client went away before its answer's end.
        end: the end of what it was sent.
        failed: whether the engine has failed it.
        first_response: when its first bytes were there, as `time.perf_counter` has it.
        has_all: whether the client has an answer of a known length, or the status of an error.
    """

    __slots__ = ("bytes_in", "bytes_out", "cancelled", "end", "failed", "first_response", "has_all")

    def __init__(self) -> None:
        self.bytes_in = 0
        self.bytes_out = 0
        self.cancelled = False
        self.end = StreamEnd()
        self.failed = self.has_all = False
        self.first_response: float | None = None

    def closed(self) -> None:
        """The client closed the connection: it went away, unless it has had the whole answer."""
        self.cancelled = not (self.has_all or self.end.reached)

    def answered(self, status: int) -> None:
        """The engine has said what its answer is; a fault of its own (5xx) is an error."""
        self.failed = status >= 500

    def came(self, chunk: bytes) -> None:
        """A piece of the answer's body is there."""
        if self.first_response is None:
            self.first_response = time.perf_counter()
        self.bytes_out += len(chunk)
