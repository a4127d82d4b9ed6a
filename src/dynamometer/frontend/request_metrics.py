"""What the frontend counts of one request: gathered while it runs, written at its end.

Gauges move as it goes on, everything else at once when it is over; a chunk of its stream costs
one reading of the clock, in `forward`.
"""

from __future__ import annotations

import itertools
import time

from prometheus_client import Gauge

from dynamometer import names
from dynamometer.engines.answers import Answer
from dynamometer.engines.dialects import Tokens
from dynamometer.engines.streams import StreamReader
from dynamometer.frontend import failures
from dynamometer.frontend.failures import Failure
from dynamometer.frontend.service_metrics import FrontendMetrics
from dynamometer.names import error_type


class RequestMetrics:
    """One request, from the handler's entry to its end.

    It is in one stage at a time: its body is read (`preprocess`), an instance is chosen
    (`route`), it waits for the answer's first bytes (`dispatch`); after that in none.

    Attributes:
        waiting: whether it was sent, and no byte of its answer has come.
    """

    __slots__ = (
        "_begun",
        "_choosing_since",
        "_error",
        "_failure",
        "_kind",
        "_metrics",
        "_model",
        "_preprocessing",
        "_queued",
        "_roundtrip",
        "_route",
        "_routing",
        "_sent",
        "_stage",
        "_times",
        "_tokens",
        "_told",
        "_until_sent",
        "_whole",
        "_worker",
        "waiting",
    )

    def __init__(self, metrics: FrontendMetrics, route: str) -> None:
        """It has come.

        Args:
            metrics: where it is counted.
            route: the name of its route.
        """
        self._begun = time.perf_counter()
        self._metrics = metrics
        self._route = route
        self._model = metrics.model(names.UNKNOWN_MODEL)
        self._kind = metrics.kind(names.UNKNOWN_MODEL, route, stream=False)
        self._stage: Gauge | None = metrics.stages.preprocess
        self._stage.inc()
        self._queued = False
        self._error = error_type.NONE
        self._failure: Failure | None = None
        self._choosing_since = self._sent = 0.0
        self._preprocessing: float | None = None
        self._routing: float | None = None
        self._until_sent: float | None = None
        self._roundtrip: float | None = None
        self._worker: int | None = None
        self._whole = self._told = False
        self._times: list[float] = []
        self._tokens = Tokens()
        self.waiting = False

    def start(self, model: str | None, *, stream: bool) -> None:
        """What the body said; from here on the request is one of its model's.

        Args:
            model: a registered name; None for any other.
            stream: whether the answer is to come in a stream.
        """
        self._preprocessing = time.perf_counter() - self._begun
        self._belongs(model or names.UNKNOWN_MODEL, stream=stream)
        self._enter(None)

    def choosing(self) -> None:
        """An instance is being chosen."""
        self.waiting = False
        self._enter(self._metrics.stages.route)
        self._choosing_since = time.perf_counter()

    def sent(self, worker: int) -> None:
        """The instance of this id has been chosen, and the request is on its way there."""
        self._sent = time.perf_counter()
        self._worker = worker
        self._routing = (self._routing or 0.0) + self._sent - self._choosing_since
        self._enter(self._metrics.stages.dispatch)
        self.waiting = True
        if self._until_sent is None:
            self._until_sent = self._sent - self._begun
            self._metrics.plane.inflight.inc()

    def answered(self, now: float) -> None:
        """The first bytes of the answer are there.

        Args:
            now: since when, by `time.perf_counter`.
        """
        self.waiting = False
        self._roundtrip = now - self._sent
        self._enter(None)
        self._leave_queue()

    def failed(self, failure: Failure | None) -> None:
        """The client is told of an error; None: of one that says that it went away."""
        self._failure = failure
        self._error = failure.error if failure else error_type.CANCELLED

    def told(self, failure: Failure | None) -> None:
        """The client was sent an error in the place of its answer, or of the rest: see `failed`."""
        self._told = True
        self.failed(failure)

    def ended(self, error_code: int | None) -> None:
        """The client was sent the last event of its stream; an error of this code, or none."""
        if error_code is None:
            self._told = self._whole = True
        else:
            self._whole = False
            self.told(failures.of_answer(error_code))

    def has_all(self) -> None:
        """The client was sent the last byte of an answer whose length it knows."""
        self._told = True

    def vanished(self) -> None:
        """The client closed the connection.

        It went away, unless it was told that nothing more comes: OpenAI's own client closes at a
        stream's last event, before the HTTP answer has ended, and at an error; others read no more
        of an error than its status.
        """
        if self._told:
            return
        self.failed(None)
        self._metrics.disconnected.inc()

    def streamed(self, reader: StreamReader) -> None:
        """The stream has ended, or broken off, and this was read of it."""
        self._times = times = reader.content_times
        tokens = reader.tokens
        if times and (tokens.output is None or not (self._whole or reader.successful)):
            # It ended before its usage came: each event has brought at least one token.
            tokens = Tokens(tokens.input, max(tokens.output or 0, len(times)), tokens.cached)
        # An error in the place of an answer has a usage too: of 0 tokens, the prompt's included.
        self._tokens = tokens if times or reader.error_code is None else Tokens()

    def counted(self, answer: Answer) -> None:
        """Count what an answer in one piece says of itself."""
        self._tokens = answer.tokens
        if answer.error_code is not None and self._failure is None:
            self.failed(failures.of_answer(answer.error_code))

    def end(self) -> None:
        """The request is over, however it ended."""
        if self._preprocessing is None:
            self._belongs(names.UNKNOWN_MODEL, stream=False)
        self._enter(None)
        self._leave_queue()
        model = self._model
        model.active.dec()
        model.inflight.dec()
        if self._until_sent is not None:
            self._metrics.plane.inflight.dec()
        model.duration.observe(time.perf_counter() - self._begun)
        self._kind.ended(self._error).inc()
        if self._error == error_type.CANCELLED:
            self._kind.cancelled.inc()
        if self._failure is not None:
            self._metrics.failures[self._failure].inc()
            if self._failure in failures.REJECTIONS:
                self._kind.rejected.inc()
        self._write_stages()
        self._write_answer()

    def _belongs(self, model: str, *, stream: bool) -> None:
        self._model = self._metrics.model(model)
        self._kind = self._metrics.kind(model, self._route, stream=stream)
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
        times, tokens = self._times, self._tokens
        first_token = inter_token = None
        if times:
            first_token = times[0] - self._begun
            self._model.answers.first_token.observe(first_token)
            gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
            self._model.answers.inter_token.observe_all(gaps)
            inter_token = gaps[-1] if gaps else None
        if tokens.input is not None:
            self._model.answers.input_sequence.observe(tokens.input)
        if tokens.output is not None:
            self._model.answers.output_sequence.observe(tokens.output)
            self._model.answers.output_tokens.inc(tokens.output)
        if tokens.cached is not None:
            self._model.answers.cached.observe(tokens.cached)
        worker = None if self._worker is None else self._metrics.workers.last(self._worker)
        if worker is not None:
            worker.set(first_token, inter_token, tokens.input)
