"""The observations of one engine, and the events of its life that they imply.

- An engine lives or has ended: its processes, if they are visible, show that; else its URL (its
  port is closed); else changes in its files.
- An engine that lives is ready, or does not answer, or cannot be checked.
- An engine that had ended was restarted: a new process, an open port, or changes in files.

`runtime/lifecycle` has the states. This module does no I/O and reads no clock: `observed_engine`
runs the checks, and records each result here.
"""

from __future__ import annotations

from typing import Final

from dynamometer.exporter.files_source import FilesStatus
from dynamometer.exporter.health import Health
from dynamometer.exporter.locations import FileLocations
from dynamometer.exporter.writers import Liveness
from dynamometer.runtime.lifecycle import EngineExit, ExitCause, Lifecycle, RestartPolicy

# The engine counts as ended after this many failed port checks in a row: `_REFUSALS` if the
# connection is refused, `_FAILURES` for any other fault (the name or address of a container
# disappears with the container).
_REFUSALS: Final = 2
_FAILURES: Final = 5
_NOT_CHECKED: Final = Health(False, "not checked yet")
_NO_RESTARTS: Final = RestartPolicy(limit=0)  # an exporter never starts an engine


class Evidence:
    """The evidence about one engine; the event loop alone uses it.

    Attributes:
        lifecycle: the state of the engine, which `conclude` updates.
        has_process: the engine's first process is known.
        has_url: the engine's URL is known.
        first_ended: the known first process has ended.
        end_reason: the reason why the engine counts as ended; empty for an engine that lives.
        searched: a search for the files of the present first process has finished.
        missing_reason: the reason why no value has been read from the files yet.
        faults: for each check that cannot be run now, the reason, by the name of the check.
        page_fault: the fault of the engine's own page, if the values depend on the page.
    """

    def __init__(
        self, now: float, *, has_process: bool, has_url: bool, started_at: float | None = None
    ) -> None:
        """Begin without evidence.

        Args:
            now: the Unix time in seconds.
            has_process: the engine's first process is known.
            has_url: the engine's URL is known.
            started_at: the time when the first process started, if known.
        """
        self.lifecycle = Lifecycle(now, _NO_RESTARTS)
        self.lifecycle.started_at = self._started_at = started_at
        self.has_process = has_process
        self.has_url = has_url
        self.first_ended = False
        self.end_reason = ""
        self.searched = False
        self.missing_reason = FileLocations().missing_reason
        self.faults: dict[str, str] = {}
        self.page_fault = ""
        self._ended_processes = ""
        self._restarted = False  # since the last conclusion
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
        self._mark_ended(f"process {description} has ended", description)

    def note_restart(self, *, has_url: bool, started_at: float | None = None) -> None:
        """Record that the engine was restarted: its first process is a new one; see `__init__`."""
        self.has_url = has_url
        self._started_at = started_at
        self.first_ended = self.searched = False
        self._revive()

    def note_files(self, status: FilesStatus, directories: str) -> None:
        """Record the state of the files in `directories`, and of their writers."""
        self._files = status
        if status.ended and (status.writers_are_essential or not status.alive):
            processes = ", ".join(status.ended)
            verb = "process {} has" if len(status.ended) == 1 else "processes {} have"
            self._mark_ended(f"{verb.format(processes)} ended", processes)
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

    def conclude(self, now: float) -> None:
        """Report to the lifecycle, at a Unix time in seconds, what the evidence implies."""
        life = self.lifecycle
        if self._restarted:
            self._restarted = False
            life.note_started(now)
            life.started_at = self._started_at
        if self.end_reason:
            # The exit code and the cause are visible to the parent process only.
            life.note_exit(
                now,
                EngineExit(
                    code=None,
                    cause=ExitCause.EXIT,
                    description=self.end_reason,
                    process=self._ended_processes,
                ),
            )
            return
        fault, unchecked = self._faults()
        if fault:
            life.note_silent(now, fault)
        else:
            life.note_ready(now, unchecked)

    def _faults(self) -> tuple[str, str]:
        """Return why a living engine is not ready, and why a check cannot be run; "" if neither."""
        unchecked = self.faults.get("processes") or self.faults.get("files") or ""
        if not self.searched and not (unchecked and self.has_url):
            return unchecked or self.missing_reason, unchecked
        if self.has_url:
            result = (
                self._health_check
                if self.has_visible_process or self._port_check.healthy
                else self._port_check
            )
            return self.page_fault if result.healthy else result.reason, unchecked
        if not unchecked and not self.has_values:
            return self.missing_reason, ""
        return unchecked, unchecked

    def _mark_ended(self, reason: str, processes: str = "") -> None:
        """Treat the engine as ended; keep the first reason, which is the cause of the end."""
        if not self.end_reason:
            self.end_reason = reason
            self._ended_processes = processes
            self._closed_since_end = False

    def _revive(self) -> None:
        """Treat an engine that had ended as starting; do nothing for an engine that lives."""
        if self.end_reason:
            self.end_reason = ""
            self._restarted = True
            self._health_disconnected = False
            self._health_check = _NOT_CHECKED
