"""The metrics of one request, collected while it runs and written at its end.

Gauges change while the request runs; counters and histograms change at its end. For each chunk of a
stream, `forwarding` reads the clock once.
"""

from __future__ import annotations

import time

from prometheus_client import Gauge

from dynamometer import names
from dynamometer.engines.answers import Answer
from dynamometer.engines.dialects import Tokens
from dynamometer.engines.streams import StreamReader
from dynamometer.frontend import failures
from dynamometer.frontend.failures import Failure
from dynamometer.frontend.service_metrics import FrontendMetrics
from dynamometer.metrics.histogram import Batch
from dynamometer.names import error_type


class RequestMetrics:
    """The metrics of one request, from the start of its handler to the end.

    A request is in one stage at a time. Its body is read (`preprocess`), then a worker is chosen
    (`route`), then the frontend waits for the first bytes of the response (`dispatch`). After
    these bytes, the request is not in a stage.

    Attributes:
        waiting: True from sending the request to a worker until the first bytes of the response.
    """

    __slots__ = (
        "_complete",
        "_contents",
        "_end_sent",
        "_error",
        "_failure",
        "_first_content",
        "_gaps",
        "_kind",
        "_last_content",
        "_last_gap",
        "_metrics",
        "_model",
        "_preprocessing",
        "_queued",
        "_roundtrip",
        "_route",
        "_routing",
        "_routing_started",
        "_sent",
        "_stage",
        "_started",
        "_tokens",
        "_until_sent",
        "_worker",
        "waiting",
    )

    def __init__(self, metrics: FrontendMetrics, route: str) -> None:
        """Start with the stage `preprocess`.

        Args:
            metrics: the families to write to.
            route: the name of the request's route.
        """
        self._started = time.perf_counter()
        self._metrics = metrics
        self._route = route
        self._model = metrics.model(names.UNKNOWN_MODEL)
        self._kind = metrics.route(names.UNKNOWN_MODEL, route, stream=False)
        self._stage: Gauge | None = metrics.stages.preprocess
        self._stage.inc()
        self._queued = False
        self._error = error_type.NONE
        self._failure: Failure | None = None
        self._routing_started = self._sent = 0.0
        self._preprocessing: float | None = None
        self._routing: float | None = None
        self._until_sent: float | None = None
        self._roundtrip: float | None = None
        self._worker: int | None = None
        # The client received the last event, all bytes, or an error; it may close the connection.
        self._end_sent = False
        # The client received the whole stream without an error.
        self._complete = False
        self._contents = 0
        self._first_content = self._last_content = 0.0
        self._gaps: Batch | None = None
        self._last_gap: float | None = None
        self._tokens = Tokens()
        self.waiting = False

    def record_body(self, model: str | None, *, stream: bool) -> None:
        """Record that the body was read; from now on, count the request under its model.

        Args:
            model: the registered name in the body; None if the name is not registered.
            stream: True if the client requested a stream.
        """
        self._preprocessing = time.perf_counter() - self._started
        self._count_start(model or names.UNKNOWN_MODEL, stream=stream)
        self._enter(None)

    def start_routing(self) -> None:
        """Enter the stage `route`."""
        self.waiting = False
        self._enter(self._metrics.stages.route)
        self._routing_started = time.perf_counter()

    def start_dispatch(self, worker: int) -> None:
        """Enter the stage `dispatch`: the request is sent to the worker with this instance id."""
        self._sent = time.perf_counter()
        self._worker = worker
        self._routing = (self._routing or 0.0) + self._sent - self._routing_started
        self._enter(self._metrics.stages.dispatch)
        self.waiting = True
        if self._until_sent is None:
            self._until_sent = self._sent - self._started
            self._metrics.plane.inflight.inc()

    def record_first_bytes(self, now: float) -> None:
        """Record the arrival of the first bytes of the response.

        Args:
            now: the time of the arrival, by `time.perf_counter`.
        """
        self.waiting = False
        self._roundtrip = now - self._sent
        self._enter(None)
        self._leave_queue()

    def record_failure(self, failure: Failure | None) -> None:
        """Record the failure of the request; None if the request was cancelled."""
        self._failure = failure
        self._error = failure.error if failure else error_type.CANCELLED

    def record_sent_error(self, failure: Failure | None) -> None:
        """Record an error that the client received; see `record_failure`."""
        self._end_sent = True
        self.record_failure(failure)

    def record_stream_end(self, error_code: int | None) -> None:
        """Record that the client received the last event of its stream.

        Args:
            error_code: the status of an error in the stream; None for a stream without errors.
        """
        if error_code is None:
            self._end_sent = self._complete = True
        else:
            self._complete = False
            self.record_sent_error(failures.of_answer(error_code))

    def record_sent_response(self) -> None:
        """Record that the client received all bytes of a response of known length."""
        self._end_sent = True

    def record_disconnect(self) -> None:
        """Record that the client closed the connection; an unfinished request is cancelled.

        Many clients close the connection as soon as they receive the last event of a stream or the
        status of an error, before the HTTP response ends. Such a request is not cancelled.
        """
        if self._end_sent:
            return
        self.record_failure(None)
        self._metrics.disconnected.inc()

    def record_content(self, now: float) -> None:
        """Count an event with content; the memory of a request does not grow with its stream.

        Args:
            now: the arrival time of the event, by `time.perf_counter`.
        """
        if self._gaps is None:
            self._first_content = now
            self._gaps = self._model.answers.inter_token.batch()
        else:
            self._last_gap = now - self._last_content
            self._gaps.add(self._last_gap)
        self._last_content = now
        self._contents += 1

    def record_stream(self, reader: StreamReader) -> None:
        """Record the tokens of a stream that has ended or broken."""
        tokens, contents = reader.tokens, self._contents
        if contents and (tokens.output is None or not (self._complete or reader.successful)):
            # The stream ended before its usage: each event contained at least one token.
            tokens = Tokens(tokens.input, max(tokens.output or 0, contents), tokens.cached)
        # After an error, the engine reports 0 tokens, also for the prompt: do not observe them.
        self._tokens = tokens if contents or reader.error_code is None else Tokens()

    def record_answer(self, answer: Answer) -> None:
        """Record the tokens and the error of an answer that is not a stream."""
        self._tokens = answer.tokens
        if answer.error_code is not None and self._failure is None:
            self.record_failure(failures.of_answer(answer.error_code))

    def finish(self) -> None:
        """Write the metrics of the request."""
        if self._preprocessing is None:
            self._count_start(names.UNKNOWN_MODEL, stream=False)
        self._enter(None)
        self._leave_queue()
        model = self._model
        model.active.dec()
        model.inflight.dec()
        if self._until_sent is not None:
            self._metrics.plane.inflight.dec()
        model.duration.observe(time.perf_counter() - self._started)
        self._kind.finished(self._error).inc()
        if self._error == error_type.CANCELLED:
            self._kind.cancelled.inc()
        if self._failure is not None:
            self._metrics.failures[self._failure].inc()
            if self._failure in failures.REJECTIONS:
                self._kind.rejected.inc()
        self._write_stages()
        self._write_answer()

    def _count_start(self, model: str, *, stream: bool) -> None:
        self._model = self._metrics.model(model)
        self._kind = self._metrics.route(model, self._route, stream=stream)
        self._kind.started.inc()
        self._model.active.inc()
        self._model.inflight.inc()
        self._model.queued.inc()
        self._queued = True

    def _enter(self, stage: Gauge | None) -> None:
        if self._stage is not None:
            self._stage.dec()
        if stage is not None:
            stage.inc()
        self._stage = stage

    def _leave_queue(self) -> None:
        if self._queued:
            self._queued = False
            self._model.queued.dec()

    def _write_stages(self) -> None:
        stages, plane = self._metrics.stages, self._metrics.plane
        if self._preprocessing is not None:
            stages.preprocess_seconds.observe(self._preprocessing)
        if self._routing is not None:
            stages.route_seconds.observe(self._routing)
        if self._until_sent is not None:
            plane.queue.observe(self._until_sent)
        if self._roundtrip is not None:
            stages.roundtrip_seconds.observe(self._roundtrip)
            plane.first_byte.observe(self._roundtrip)

    def _write_answer(self) -> None:
        tokens, first_token = self._tokens, None
        if self._gaps is not None:
            first_token = self._first_content - self._started
            self._model.answers.first_token.observe(first_token)
            self._model.answers.inter_token.observe_batch(self._gaps)
        if tokens.input is not None:
            self._model.answers.input_sequence.observe(tokens.input)
        if tokens.output is not None:
            self._model.answers.output_sequence.observe(tokens.output)
            self._model.answers.output_tokens.inc(tokens.output)
        if tokens.cached is not None:
            self._model.answers.cached.observe(tokens.cached)
        worker = None if self._worker is None else self._metrics.workers.last_values(self._worker)
        if worker is not None:
            worker.set(first_token, self._last_gap, tokens.input)
