"""What a worker counts of the requests to its endpoint."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from dynamometer.metrics.buckets import COMPONENT_DURATION_BUCKETS
from dynamometer.names import component_error_type, labels, name_prefix, work_handler


class EndpointMetrics:
    """The `dynamo_component_*` families of one endpoint, each with one label set."""

    def __init__(self, registry: CollectorRegistry, constant: Mapping[str, str]) -> None:
        """Register the families.

        Args:
            registry: where they are collected.
            constant: the runtime's labels, on every series.
        """
        self._registry = registry
        self._constant = dict(constant)
        self.inflight = self._gauge(
            work_handler.INFLIGHT_REQUESTS,
            "Number of requests currently being processed by work handler",
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
        self._errors = self._counter(
            work_handler.ERRORS_TOTAL,
            "Total number of errors in work handler processing",
            {labels.ERROR_TYPE: component_error_type.GENERATE},
        )
        self._duration = Histogram(
            f"{name_prefix.COMPONENT}_{work_handler.REQUEST_DURATION_SECONDS}",
            "Time spent processing requests by work handler",
            tuple(self._constant),
            buckets=COMPONENT_DURATION_BUCKETS,
            registry=registry,
        ).labels(**self._constant)

    @contextmanager
    def request(self) -> Iterator[RequestCount]:
        """Count one request from here to the context's end."""
        count = RequestCount()
        begun = time.perf_counter()
        self.inflight.inc()
        try:
            yield count
        finally:
            self.inflight.dec()
            self._requests.inc()
            self._request_bytes.inc(count.bytes_in)
            self._response_bytes.inc(count.bytes_out)
            self._duration.observe(time.perf_counter() - begun)
            if count.cancelled:
                self._cancellations.inc()
            if count.failed:
                self._errors.inc()

    def _counter(self, name: str, text: str, more: Mapping[str, str] | None = None) -> Counter:
        values = self._constant | dict(more or {})
        full = f"{name_prefix.COMPONENT}_{name}"
        return Counter(full, text, tuple(values), registry=self._registry).labels(**values)

    def _gauge(self, name: str, text: str) -> Gauge:
        full = f"{name_prefix.COMPONENT}_{name}"
        gauge = Gauge(full, text, tuple(self._constant), registry=self._registry)
        return gauge.labels(**self._constant)


class RequestCount:
    """One request: bytes of its bodies, and how it ended."""

    __slots__ = ("bytes_in", "bytes_out", "cancelled", "failed")

    def __init__(self) -> None:
        self.bytes_in = 0
        self.bytes_out = 0
        self.cancelled = False
        self.failed = False
