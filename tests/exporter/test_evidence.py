"""The state of an engine, as events imply it: a table, without processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from dynamometer.exporter.evidence import Evidence
from dynamometer.exporter.files_source import FilesStatus
from dynamometer.exporter.health import Health
from dynamometer.exporter.writers import Liveness
from dynamometer.runtime.lifecycle import ExitCause, Lifecycle
from dynamometer.runtime.record import State

Event = Callable[[Evidence], None]

STARTING, READY = State.STARTING, State.READY
UNRESPONSIVE, FAILED = State.UNRESPONSIVE, State.FAILED


def process_ends(evidence: Evidence) -> None:
    evidence.note_first_ended("7 (SGLang)")


def restarts(evidence: Evidence) -> None:
    evidence.note_restart(has_url=True)
    evidence.searched = True


def page_fails(evidence: Evidence) -> None:
    evidence.page_fault = "the page answers 401"


def files_hang(evidence: Evidence) -> None:
    evidence.faults["files"] = "files: no answer within 5 s"


def files_answer(evidence: Evidence) -> None:
    evidence.faults.clear()


def port(result: Health) -> Event:
    return lambda evidence: evidence.note_port(result)


def health(result: Health) -> Event:
    return lambda evidence: evidence.note_health(result)


def files(
    alive: str = "",
    ended: Sequence[str] = (),
    *,
    still_writing: bool = False,
    essential: bool = False,
    changed: float = 1.0,
) -> Event:
    status = FilesStatus(
        changed_at=changed,
        alive=frozenset(alive),
        ended=tuple(ended),
        still_writing=still_writing,
        writers_are_essential=essential,
    )
    return lambda evidence: evidence.note_files(status, "/files")


OPEN = port(Health(True))
REFUSED = port(Health(False, "no process listens there", refused=True, disconnected=True))
UNREACHABLE = port(Health(False, "no route to host", disconnected=True))
HEALTHY = health(Health(True))
BUSY = health(Health(False, "answers 503"))
SLOW = health(Health(False, "no answer within 10 s"))
DISCONNECTED = health(Health(False, "connection reset", disconnected=True))


@dataclass(frozen=True)
class Case:
    """Events, then the state, a part of the reason, and the liveness of invisible writers."""

    events: Sequence[Event]
    state: State
    reason: str
    liveness: Liveness = Liveness.ALIVE


# An engine whose processes are known, as the search finds it.
PROCESS = {
    "starts": Case([], STARTING, "not checked yet"),
    "is ready when its health route answers": Case([HEALTHY], READY, ""),
    "loads while the route answers 503": Case([OPEN, BUSY], STARTING, "answers 503"),
    "needs no open port to be ready": Case([REFUSED, REFUSED, HEALTHY], READY, ""),
    "is unresponsive when the route is slow": Case([HEALTHY, SLOW], UNRESPONSIVE, "no answer"),
    "stays ready over one broken connection": Case([HEALTHY, DISCONNECTED], READY, ""),
    "is unresponsive on the second broken connection": Case(
        [HEALTHY, DISCONNECTED, DISCONNECTED], UNRESPONSIVE, "connection reset"
    ),
    "a broken connection of long ago does not count": Case(
        [HEALTHY, DISCONNECTED, HEALTHY, DISCONNECTED], READY, ""
    ),
    "ends with its first process": Case(
        [HEALTHY, process_ends], FAILED, "process 7 (SGLang) has ended", Liveness.ENDED
    ),
    "ends with one of its processes": Case(
        [HEALTHY, files("b", ["8 (scheduler)"], essential=True)],
        FAILED,
        "process 8 (scheduler) has ended",
        Liveness.ENDED,
    ),
    "the first reason of an end is its cause": Case(
        [HEALTHY, files("b", ["8 (scheduler)"], essential=True), process_ends],
        FAILED,
        "process 8 (scheduler) has ended",
        Liveness.ENDED,
    ),
    "lives while a service replaces one of its workers": Case(
        [HEALTHY, files("b", ["8"])], READY, ""
    ),
    "an open port does not end an end": Case(
        [HEALTHY, process_ends, REFUSED, OPEN], FAILED, "has ended", Liveness.ENDED
    ),
    "starts again with another first process": Case(
        [HEALTHY, process_ends, restarts], STARTING, "not checked yet"
    ),
    "is ready again": Case([HEALTHY, process_ends, restarts, HEALTHY], READY, ""),
    "starts until it answers, however often it does not": Case(
        [HEALTHY, process_ends, restarts, BUSY, BUSY], STARTING, "answers 503"
    ),
    "is ready again when the slow route answers": Case([HEALTHY, SLOW, HEALTHY], READY, ""),
    "is ready with files that hang, which are reported": Case(
        [HEALTHY, files_hang], READY, "no answer within 5 s"
    ),
}
# An engine of which only the URL is known, perhaps with files whose writers are invisible.
URL = {
    "starts": Case([], STARTING, "not checked yet"),
    "starts while no process listens": Case([REFUSED], STARTING, "no process listens"),
    "needs port and health to be ready": Case([HEALTHY], STARTING, "not checked yet"),
    "is ready when both answer": Case([OPEN, HEALTHY], READY, ""),
    "is unresponsive on the first refusal": Case(
        [OPEN, HEALTHY, REFUSED], UNRESPONSIVE, "no process listens"
    ),
    "ends on the second refusal in a row": Case(
        [OPEN, HEALTHY, REFUSED, REFUSED], FAILED, "no process listens", Liveness.UNREACHABLE
    ),
    "refusals that are not in a row do not end it": Case(
        [OPEN, HEALTHY, REFUSED, OPEN, REFUSED], UNRESPONSIVE, "no process listens"
    ),
    "lives over four failures of another kind": Case(
        [OPEN, HEALTHY, *[UNREACHABLE] * 4], UNRESPONSIVE, "no route"
    ),
    "ends on the fifth": Case(
        [OPEN, HEALTHY, *[UNREACHABLE] * 5], FAILED, "no route", Liveness.UNREACHABLE
    ),
    "starts again when the port is open again": Case(
        [OPEN, HEALTHY, REFUSED, REFUSED, OPEN], STARTING, "not checked yet"
    ),
    "is ready again with a new answer": Case(
        [OPEN, HEALTHY, REFUSED, REFUSED, OPEN, HEALTHY], READY, ""
    ),
    "is unresponsive with its page": Case([OPEN, HEALTHY, page_fails], UNRESPONSIVE, "answers 401"),
    "is ready by a visible writer, whatever the port": Case(
        [REFUSED, files("a"), HEALTHY], READY, ""
    ),
    "ends with its last visible writer": Case(
        [files("a"), HEALTHY, files("", ["8"])],
        FAILED,
        "process 8 has ended",
        Liveness.UNREACHABLE,
    ),
    "an open port that was never closed does not return it": Case(
        [OPEN, files("a"), HEALTHY, files("", ["8"]), OPEN],
        FAILED,
        "process 8 has ended",
        Liveness.UNREACHABLE,
    ),
    "does not count writers as visible whose files hang": Case(
        [files("a"), HEALTHY, files_hang, REFUSED, REFUSED],
        FAILED,
        "no process listens",
        Liveness.UNREACHABLE,
    ),
}
# An engine of which only a directory is known.
DIRECTORY = {
    "starts without values": Case(
        [files(changed=0.0)], STARTING, "has not finished", Liveness.UNKNOWN
    ),
    "is ready with a visible writer": Case([files("a")], READY, "", Liveness.UNKNOWN),
    "is ready while files of invisible writers change": Case(
        [files(still_writing=True)], READY, "", Liveness.UNKNOWN
    ),
    "fails when such files do not change": Case(
        [files()], FAILED, "--engine-url", Liveness.UNKNOWN
    ),
    "returns when they change again": Case(
        [files(), files(still_writing=True)], READY, "", Liveness.UNKNOWN
    ),
    "ends with its last visible writer": Case(
        [files("ab"), files("", ["8", "9"])],
        FAILED,
        "processes 8, 9 have ended",
        Liveness.UNKNOWN,
    ),
    "survivors of an end do not return it": Case(
        [files("ab"), files("b", ["8"], essential=True), files("b", essential=True)],
        FAILED,
        "process 8 has ended",
        Liveness.UNKNOWN,
    ),
    "returns with a new visible writer": Case(
        [files("ab"), files("b", ["8"], essential=True), files("bc")],
        READY,
        "",
        Liveness.UNKNOWN,
    ),
    "is unresponsive while its files hang": Case(
        [files("a"), files_hang], UNRESPONSIVE, "no answer within 5 s", Liveness.UNKNOWN
    ),
    "is ready when the files answer again": Case(
        [files("a"), files_hang, files_answer], READY, "", Liveness.UNKNOWN
    ),
}
KINDS = {
    "process": (True, True, PROCESS),
    "url": (False, True, URL),
    "directory": (False, False, DIRECTORY),
}


@pytest.mark.parametrize(
    ("kind", "case"), [(kind, case) for kind, (*_, cases) in KINDS.items() for case in cases]
)
def test_an_engine(kind: str, case: str) -> None:
    has_process, has_url, cases = KINDS[kind]
    expected = cases[case]
    evidence = Evidence(0.0, has_process=has_process, has_url=has_url)
    evidence.searched = True
    evidence.conclude(0.0)
    for now, event in enumerate(expected.events, start=1):
        event(evidence)
        evidence.conclude(now)
    life = evidence.lifecycle
    assert life.state is expected.state
    assert expected.reason in life.reason
    assert bool(expected.reason) == bool(life.reason)
    assert evidence.liveness is expected.liveness


def test_an_engine_whose_files_were_not_searched_yet_is_not_ready() -> None:
    evidence = Evidence(0.0, has_process=True, has_url=True)
    HEALTHY(evidence)
    evidence.conclude(1.0)
    life = evidence.lifecycle
    assert (life.state, life.reason) == (STARTING, "the search for its files has not finished yet")


def test_after_a_broken_connection_health_is_checked_before_its_interval() -> None:
    evidence = Evidence(0.0, has_process=True, has_url=True)
    needed = []
    for event in (HEALTHY, DISCONNECTED, HEALTHY):
        event(evidence)
        needed.append(evidence.needs_health_check)
    assert needed == [False, True, False]


def life_of(*events: Event, has_process: bool = True, started_at: float | None = None) -> Lifecycle:
    """Return the life of an engine with these events, one in each second from 1 on."""
    evidence = Evidence(0.0, has_process=has_process, has_url=True, started_at=started_at)
    evidence.searched = True
    for now, event in enumerate(events, start=1):
        event(evidence)
        evidence.conclude(now)
    return evidence.lifecycle


def test_an_end_names_the_process_and_has_no_exit_code() -> None:
    life = life_of(HEALTHY, files("b", ["8 (scheduler)"], essential=True))
    assert life.last_exit is not None
    assert (life.last_exit.process, life.last_exit.code) == ("8 (scheduler)", None)
    assert life.last_exit_at == 2.0


def test_a_restart_by_another_program_is_counted_when_it_is_found() -> None:
    assert sum(life_of(HEALTHY, process_ends).restarts.values()) == 0
    assert life_of(HEALTHY, process_ends, restarts).restarts[ExitCause.EXIT] == 1
    reopened = life_of(OPEN, HEALTHY, REFUSED, REFUSED, OPEN, has_process=False)
    assert reopened.restarts[ExitCause.EXIT] == 1


def test_an_engine_started_when_its_process_did() -> None:
    def restarts_at_3(evidence: Evidence) -> None:
        evidence.note_restart(has_url=True, started_at=2.5)

    assert life_of(HEALTHY, started_at=0.5).started_at == 0.5
    assert life_of(HEALTHY, process_ends, restarts_at_3, started_at=0.5).started_at == 2.5
    assert life_of(OPEN, HEALTHY, has_process=False).started_at is None
