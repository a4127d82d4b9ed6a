"""The requests that a worker accepts, and the end of its traffic.

A worker accepts requests while its engine is ready. A signal that ends the worker, or `dyno drain`,
takes the worker out of traffic: its state is `draining` at once, and new requests are still
accepted for the drain delay, until all clients and load balancers have noticed.
"""

from __future__ import annotations

import time

from dynamometer.process.signals import InFlight
from dynamometer.runtime.lifecycle import Lifecycle
from dynamometer.runtime.record import State


class Traffic:
    """The decision whether a worker accepts a new request. The event loop owns all state.

    Attributes:
        in_flight: the requests that the worker is answering.
        ending: True if the worker is ending, and cannot be put back into traffic.
    """

    def __init__(self, lifecycle: Lifecycle, in_flight: InFlight, *, delay: float) -> None:
        """Accept requests while the engine is ready.

        Args:
            lifecycle: the state of the engine.
            in_flight: the requests that the worker is answering.
            delay: seconds for which new requests are still accepted after a drain has started.
        """
        self._lifecycle = lifecycle
        self._delay = delay
        self._closes_at: float | None = None  # on the monotonic clock; None: not drained
        self.in_flight = in_flight
        self.ending = False

    @property
    def drained(self) -> bool:
        """True if the worker is out of traffic."""
        return self._closes_at is not None

    @property
    def accepts(self) -> bool:
        """True if the worker accepts a new request."""
        ready = self._lifecycle.engine_state is State.READY
        return ready and (self._closes_at is None or time.monotonic() < self._closes_at)

    @property
    def delay_left(self) -> float:
        """Seconds for which a drained worker still accepts new requests."""
        if self._closes_at is None or self._lifecycle.engine_state is not State.READY:
            return 0.0
        return max(0.0, self._closes_at - time.monotonic())

    def drain(self, reason: str) -> None:
        """Take the worker out of traffic; a worker that is drained already only gets the reason."""
        if self._closes_at is None:
            self._closes_at = time.monotonic() + self._delay
        self._lifecycle.drain(time.time(), reason)

    def end(self, reason: str) -> None:
        """Take the worker out of traffic until it has ended."""
        self.ending = True
        self.drain(reason)

    def restore(self) -> None:
        """Put the worker back into traffic, unless it is ending."""
        if not self.ending:
            self._closes_at = None
            self._lifecycle.undrain(time.time())

    @property
    def state(self) -> State:
        """The state of the worker."""
        return self._lifecycle.state

    @property
    def reason(self) -> str:
        """The reason of the state; may be empty."""
        return self._lifecycle.reason
