"""The observations of one engine, and the state that they imply.

    starting ──▶ ready ◀──▶ failed: the engine has ended, or does not answer

Without I/O and without a clock: `observed_engine` runs the checks, and records each result here. In
the order of trust, the evidence for life is: the engine's processes, if they are visible; its URL;
without both, changes in its files.
"""

from __future__ import annotations

from typing import Final

from dynamometer.exporter.files_source import FilesStatus
from dynamometer.exporter.health import Health
from dynamometer.exporter.locations import FileLocations
from dynamometer.exporter.writers import Liveness
from dynamometer.runtime.record import State

# Failed checks of the port in a row after which the engine has ended: while no process listens, and
# with any other fault (the name or address of a container disappears with the container).
_REFUSALS: Final = 2
_FAILURES: Final = 5
_NOT_CHECKED: Final = Health(False, "not checked yet")


class Evidence:
    """The evidence about one engine; the event loop alone uses it.

    Attributes:
        has_process: the engine's first process is known.
        has_url: the engine's URL is known.
        first_ended: the known first process has ended.
        end_reason: the reason why the engine counts as ended; empty for an engine that lives.
        searched: the files of the present first process were searched for.
        missing_reason: the reason why the files have not shown a value.
        faults: the faults of checks without a result, by the name of the check.
        page_fault: the fault of the engine's own page, if the values depend on the page.
        ever_ready: the engine was ready at some time.
    """

    def __init__(self, *, has_process: bool, has_url: bool) -> None:
        self.has_process = has_process
        self.has_url = has_url
        self.first_ended = False
        self.end_reason = ""
        self.searched = False
        self.missing_reason = FileLocations().missing_reason
        self.faults: dict[str, str] = {}
        self.page_fault = ""
        self.ever_ready = False
        self._ready_since_start = False
        self._files = FilesStatus()
        # After an end that writers showed: the writers that were alive then.
        self._survivors: frozenset[str] = frozenset()
        self._port_check = _NOT_CHECKED
        self._port_failures = 0
        self._closed_since_end = False  # the port was closed at some time since the end
        self._health_check = _NOT_CHECKED
        self._health_disconnected = False

    @property
    def has_visible_process(self) -> bool:
        """True if processes of the engine are visible."""
        return self.has_process or (bool(self._files.alive) and "files" not in self.faults)

    @property
    def has_only_files(self) -> bool:
        """True if nothing but changes in files can show that the engine lives."""
        return not self.has_url and not self.has_visible_process

    @property
    def is_answering(self) -> bool:
        """True if the engine lives and answered the last check of its port or its health."""
        return not self.end_reason and (self._port_check.healthy or self._health_check.healthy)

    @property
    def has_values(self) -> bool:
        """True if a value was read from the files."""
        return bool(self._files.changed_at)

    @property
    def needs_health_check(self) -> bool:
        """True if the health route must be checked before its interval has passed."""
        return not self._health_check.healthy or self._health_disconnected

    @property
    def liveness(self) -> Liveness:
        """The liveness of the engine's invisible writers."""
        if self.has_process:
            return Liveness.ENDED if self.end_reason else Liveness.ALIVE
        if not self.has_url:
            return Liveness.UNKNOWN
        return Liveness.UNREACHABLE if self.end_reason else Liveness.ALIVE

    def note_first_ended(self, description: str) -> None:
        """Record that the first process has ended."""
        self.first_ended = True
        self._mark_ended(f"process {description} has ended")

    def note_restart(self, *, has_url: bool) -> None:
        """Record that the engine was found again, with another first process."""
        self.has_url = has_url
        self.first_ended = self.searched = False
        self._revive()

    def note_files(self, status: FilesStatus, directories: str) -> None:
        """Record the state of the files in `directories`, and of their writers."""
        self._files = status
        if status.ended and (status.writers_are_essential or not status.alive):
            verb = "process {} has" if len(status.ended) == 1 else "processes {} have"
            self._mark_ended(f"{verb.format(', '.join(status.ended))} ended")
            self._survivors = status.alive
        if self.has_process:
            return
        if self.end_reason and status.alive - self._survivors:
            self._revive()
        self._survivors &= status.alive
        if self.has_only_files and status.still_writing:
            self._revive()
        elif self.has_only_files and status.changed_at:
            self._mark_ended(
                f"{directories}: no process that writes these files is visible, and the files do "
                "not change: with --engine-url, an idle engine counts as ready"
            )

    def note_port(self, result: Health) -> None:
        """Record a check of the port."""
        self._port_check = result
        self._port_failures = 0 if result.healthy else self._port_failures + 1
        self._closed_since_end = self._closed_since_end or not result.healthy
        if self.has_visible_process:
            return
        if result.healthy and self.end_reason and self._closed_since_end:
            self._revive()
        elif self._port_failures >= (_REFUSALS if result.refused else _FAILURES):
            self._mark_ended(result.reason)
            self._closed_since_end = True

    def note_health(self, result: Health) -> None:
        """Record a check of the health route.

        A connection of a healthy engine that fails counts from the second check: meanwhile the
        check of processes or of the port finds the reason, which is then logged once.
        """
        first = result.disconnected and not self._health_disconnected
        self._health_disconnected = result.disconnected
        if not (first and self._health_check.healthy):
            self._health_check = result

    def conclude(self) -> tuple[State, str]:
        """Return the engine's state and its reason; a ready engine may have a failed check."""
        state, reason = self._implied_state()
        if state is State.READY:
            self._ready_since_start = self.ever_ready = True
        return state, reason

    def _implied_state(self) -> tuple[State, str]:
        if self.end_reason:
            return State.FAILED, self.end_reason
        not_ready = State.FAILED if self._ready_since_start else State.STARTING
        unchecked = self.faults.get("processes") or self.faults.get("files") or ""
        if not self.searched and not (unchecked and self.has_url):
            return not_ready, unchecked or self.missing_reason
        if self.has_url:
            result = (
                self._health_check
                if self.has_visible_process or self._port_check.healthy
                else self._port_check
            )
            fault = result.reason if not result.healthy else self.page_fault
            return (not_ready, fault) if fault else (State.READY, unchecked)
        if unchecked:
            return not_ready, unchecked
        if not self._files.changed_at:
            return State.STARTING, self.missing_reason
        return State.READY, ""

    def _mark_ended(self, reason: str) -> None:
        """Count the engine as ended; the first reason of an end is its cause."""
        if not self.end_reason:
            self.end_reason = reason
            self._closed_since_end = False

    def _revive(self) -> None:
        if self.end_reason:
            self.end_reason = ""
            self._ready_since_start = self._health_disconnected = False
            self._health_check = _NOT_CHECKED
