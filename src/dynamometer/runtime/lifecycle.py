"""The life of an engine: events in, its state out, with the reason and the time of the last change.

    starting ───▶ ready ◀───▶ unresponsive    unresponsive: asked, and does not answer
        │           ▲ │             │
        │           │ ▼             │ exit
        │       restarting ◀────────┘         restarting: ended, and will be started again
        ▼           ▼
      failed ◀──────┘                         failed: ended, and given up
        └──▶ starting                         another program started the engine again
    any but failed ◀──▶ draining              taken out of traffic; hides the engine's own state

A worker and an exporter use the same machine. An exporter never restarts an engine: its limit of
restarts is 0. The machine does no I/O. Each event has its Unix time, in seconds, which is shown;
durations are measured with a clock that is never set, because the Unix time may jump.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from dynamometer.runtime.record import Json, State

_ATTEMPTS_KEPT: Final = 10
_MOST_DOUBLINGS: Final = 32  # 2.0**1024 overflows


class ExitCause(StrEnum):
    """Causes for which an engine ended; values of the label `reason`."""

    EXIT = "exit"
    SIGNAL = "signal"
    OUT_OF_MEMORY = "out_of_memory"
    # The worker ended an unresponsive engine.
    HANG = "hang"
    # The worker ended its part of an engine that has lost another of its nodes.
    NODE_LOST = "node_lost"


@dataclass(frozen=True, kw_only=True)
class EngineExit:
    """The end of an engine.

    Attributes:
        code: the exit code of the process; -N if signal N killed it, None if it is unknown.
        cause: the cause of the end.
        description: the reason for users, one line.
        process: the process that ended first, such as "sglang::scheduler"; empty if unknown.
    """

    code: int | None
    cause: ExitCause
    description: str
    process: str = ""


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """The limits of restarts.

    Attributes:
        limit: the number of restarts between which the engine was never ready for `stable_seconds`.
        stable_seconds: an engine that is ready for this time has its restarts forgotten.
        first_pause: seconds between the first exit and the restart; doubled for each further exit.
        longest_pause: the longest pause, in seconds.
    """

    limit: int = 5
    stable_seconds: float = 600.0
    first_pause: float = 1.0
    longest_pause: float = 60.0


DEFAULT_POLICY: Final = RestartPolicy()


class Lifecycle:
    """The state machine of one engine; one event loop owns it, other threads only read.

    Attributes:
        engine_state: the state without regard to draining.
        since: the time of the last change of `state`.
        started_at: the time when the engine's process started; None before that, or if unknown.
        past_states: the states that the engine has had, the present one included.
        ever_ready: the engine was ready at some time.
        last_exit: the last end of the engine; None before the first.
        last_exit_at: the time of `last_exit`; None before the first.
    """

    def __init__(
        self,
        now: float,
        policy: RestartPolicy = DEFAULT_POLICY,
        *,
        steady_clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with an engine that was not started yet.

        Args:
            now: the Unix time.
            policy: the limits of restarts.
            steady_clock: returns the seconds of a clock that is never set.
        """
        self._policy = policy
        self._steady_clock = steady_clock
        self.engine_state = State.STARTING
        self.since = now
        self.past_states: frozenset[State] = frozenset({State.STARTING})
        self.started_at: float | None = None
        self.ever_ready = False
        self.last_exit: EngineExit | None = None
        self.last_exit_at: float | None = None
        self._engine_reason = "the engine is not started yet"
        self._drain_reason: str | None = None  # None: the engine is not drained
        self._start_due = False  # the engine ended, and was not started since
        # Moments of the steady clock.
        self._entered_at = steady_clock()
        self._ready_at = self._entered_at  # valid while the engine is ready
        self._exits_in_row = 0  # between them, it was never ready for `stable_seconds`
        self._restarts: Counter[ExitCause] = Counter()
        self._attempts: deque[str] = deque(maxlen=_ATTEMPTS_KEPT)

    @property
    def state(self) -> State:
        """The state to report; a failed engine is `failed` even while it is drained."""
        drained = self._drain_reason is not None and self.engine_state is not State.FAILED
        return State.DRAINING if drained else self.engine_state

    @property
    def reason(self) -> str:
        """The reason of `state`, for users; may be empty."""
        if self._drain_reason is not None and self.state is State.DRAINING:
            return self._drain_reason
        return self._engine_reason

    @property
    def state_seconds(self) -> float:
        """The seconds since the last change of `state`, whatever was done to the clock."""
        return self._steady_clock() - self._entered_at

    @property
    def restarts(self) -> Mapping[ExitCause, int]:
        """The number of restarts by the cause of the exit before them, for every cause."""
        return MappingProxyType({cause: self._restarts[cause] for cause in ExitCause})

    @property
    def attempts(self) -> tuple[str, ...]:
        """The last actions since the engine was ready, each with its time, the oldest first."""
        return tuple(self._attempts)

    def report(self, clean: Callable[[str], str] = str) -> dict[str, Json]:
        """Return the state for `/health`; docs/reliability.md describes the members.

        Args:
            clean: returns a text, such as a reason, in the form that may be shown.
        """
        ended = self.last_exit
        return {
            "state": self.state,
            "since": self.since,
            "reason": clean(self.reason),
            "last_exit": None
            if ended is None
            else {
                "code": ended.code,
                "cause": ended.cause,
                "process": clean(ended.process),
                "reason": clean(ended.description),
                "time": self.last_exit_at,
            },
            "attempts": [clean(attempt) for attempt in self.attempts],
        }

    def note_started(self, now: float) -> None:
        """Record the start of an engine process, which does not answer yet."""
        self.started_at = now
        if self._start_due and self.last_exit is not None:
            self._restarts[self.last_exit.cause] += 1
            self.note_attempt(now, "the engine was started again")
        self._start_due = False
        if self.engine_state is not State.RESTARTING:
            self._enter(now, State.STARTING, "the engine has not answered yet")

    def note_ready(self, now: float, reason: str = "") -> None:
        """Record an answer of the engine; ignored if the engine has ended.

        Args:
            now: the time.
            reason: the reason why a part of the checks cannot be run, if the engine is ready
                nevertheless.
        """
        if self._start_due or self.engine_state is State.FAILED:
            return
        if self.engine_state is not State.READY:
            self._ready_at = self._steady_clock()
        self.ever_ready = True
        self._enter(now, State.READY, reason)

    def note_silent(self, now: float, reason: str) -> None:
        """Record that the engine, or one of its ranks, did not answer a question.

        An engine that is starting or restarting is not `unresponsive`: it has not answered yet.
        """
        if self.engine_state in (State.READY, State.UNRESPONSIVE):
            self._leave_ready()
            self._enter(now, State.UNRESPONSIVE, reason)
        elif self.engine_state is State.STARTING:
            self._enter(now, State.STARTING, reason)

    def note_exit(self, now: float, exit_: EngineExit) -> float | None:
        """Record the end of the engine.

        Returns:
            The seconds to wait before the next start; None if the engine is given up.
        """
        if self.engine_state is State.FAILED:
            return None
        self.last_exit, self.last_exit_at = exit_, now
        self._start_due = True
        self._leave_ready()
        self._exits_in_row += 1
        policy = self._policy
        # Only the fault of another node may pass without a change of this node's flags.
        failed_at_start = not self.ever_ready and exit_.cause is not ExitCause.NODE_LOST
        if failed_at_start or self._exits_in_row > policy.limit:
            self._enter(now, State.FAILED, exit_.description)
            return None
        self._enter(now, State.RESTARTING, exit_.description)
        doublings = min(self._exits_in_row - 1, _MOST_DOUBLINGS)
        return min(policy.first_pause * 2.0**doublings, policy.longest_pause)

    def note_attempt(self, now: float, action: str) -> None:
        """Keep one action against the present trouble for `attempts`."""
        moment = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
        self._attempts.append(f"{moment} {action}")

    def drain(self, now: float, reason: str) -> None:
        """Take the engine out of traffic: the state is `draining` until `undrain`."""
        before = self.state
        self._drain_reason = reason
        self._note_change(now, before)

    def undrain(self, now: float) -> None:
        """Show the engine's own state again."""
        before = self.state
        self._drain_reason = None
        self._note_change(now, before)

    def _leave_ready(self) -> None:
        """Forget earlier exits and attempts if the engine is ready, and was ready long enough."""
        if self.engine_state is State.READY:
            self._attempts.clear()
            if self._steady_clock() - self._ready_at >= self._policy.stable_seconds:
                self._exits_in_row = 0

    def _enter(self, now: float, state: State, reason: str) -> None:
        before = self.state
        self.engine_state, self._engine_reason = state, reason
        self._note_change(now, before)

    def _note_change(self, now: float, before: State) -> None:
        if self.state is not before:
            self.since = now
            self._entered_at = self._steady_clock()
            self.past_states |= {self.state}
