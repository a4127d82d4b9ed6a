"""The observations of one engine, and the state that they imply.

    starting ──▶ ready ◀──▶ failed    failed: the engine does not answer, or cannot be checked
    any of these ──▶ ended            ended: a process ended, the port closed, or no file changes
    ended ──▶ starting                restarted: a new process, an open port, or changes in files

`State.FAILED` stands for both failed and ended. This module does no I/O and reads no clock:
`observed_engine` runs the checks, and records each result here. The evidence that an engine lives
is, most trusted first: its processes, if they are visible; its URL; changes in its files.
"""

from __future__ import annotations

from typing import Final

from dynamometer.exporter.files_source import FilesStatus
from dynamometer.exporter.health import Health
from dynamometer.exporter.locations import FileLocations
from dynamometer.exporter.writers import Liveness
from dynamometer.runtime.record import State

# The engine counts as ended after this many failed port checks in a row: `_REFUSALS` if the
# connection is refused, `_FAILURES` for any other fault (the name or address of a container
# disappears with the container).
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
        searched: a search for the files of the present first process has finished.
        missing_reason: the reason why no value has been read from the files yet.
        faults: for each check that cannot be run now, the reason, by the name of the check.
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
        # After an end detected from the writers: those still alive at that moment.
        self._survivors: frozenset[str] = frozenset()
        self._port_check = _NOT_CHECKED
        self._port_failures = 0
        self._closed_since_end = False  # the port was closed at some time after the end
        self._health_check = _NOT_CHECKED
        self._health_disconnected = False

    @property
    def has_visible_process(self) -> bool:
        """True if processes of the engine are visible."""
        return self.has_process or (bool(self._files.alive) and "files" not in self.faults)

    @property
    def has_only_files(self) -> bool:
        """True if only changes in files can show that the engine lives."""
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
        """True if the next check of the health route must not wait for its interval."""
        return not self._health_check.healthy or self._health_disconnected

    @property
    def liveness(self) -> Liveness:
        """The evidence that decides whether invisible writers count as alive; see `Liveness`."""
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
        """Record that the engine was restarted: its first process is a new one."""
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
                "not change. If the engine is only idle, give its address with --engine-url"
            )

    def note_port(self, result: Health) -> None:
        """Record the result of a check of the port."""
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
        """Record the result of a check of the health route.

        If the last check was healthy and the connection now breaks, the first such failure is
        ignored: the process or port check usually finds the cause before the second one.
        """
        first = result.disconnected and not self._health_disconnected
        self._health_disconnected = result.disconnected
        if not (first and self._health_check.healthy):
            self._health_check = result

    def conclude(self) -> tuple[State, str]:
        """Return the engine's state, with the reason for it.

        A ready engine has the reason "", or the reason why one of its checks cannot be run.
        """
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
        """Treat the engine as ended; keep the first reason, which is the cause of the end."""
        if not self.end_reason:
            self.end_reason = reason
            self._closed_since_end = False

    def _revive(self) -> None:
        """Treat an engine that had ended as starting; do nothing for an engine that lives."""
        if self.end_reason:
            self.end_reason = ""
            self._ready_since_start = self._health_disconnected = False
            self._health_check = _NOT_CHECKED
