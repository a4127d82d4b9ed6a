"""The evidence for an engine's progress: what is asked, and what is concluded."""

from __future__ import annotations

import pytest

from dynamometer.engines.interface import RankBeat
from dynamometer.worker.progress import Progress

WAIT, HANG = 2.0, 15.0
# One event in each second, by its letter. Each of them comes after the tick of its second.
#   .  nothing                          a  bytes of an answer
#   b  the ranks report new beats       q  they do, and a request waits in each queue
#   0  rank 0 reports a new beat        1  rank 1 does
#   s  the server reports old beats     w  it does, and a request waits in each queue
#   c  the canary is answered           r  the canary is refused
#   e  the server answers without its ranks, for example with an error
#   L  this process is stopped for a minute
SERVER = "its server does not answer (asked for 15 s)"
SCHEDULER = "its scheduler does not answer (asked for 15 s)"
OUTPUT = "its ranks work, but no answer reaches its server (asked for 15 s)"
RANK_0 = "data-parallel rank 0 does not answer (asked for 15 s)"
RANK_1 = "data-parallel rank 1 does not answer (asked for 15 s)"
BOTH = "data-parallel ranks 0, 1 do not answer (asked for 15 s)"


class Engine:
    """A simulated engine of some ranks, which is quiet until it is asked."""

    def __init__(self, ranks: int) -> None:
        self.progress = Progress(wait_seconds=WAIT, hang_seconds=HANG)
        self._beats = dict.fromkeys(range(ranks), 1.0)
        self._report(waiting=0)
        self.progress.note_canary(0)
        self._report(waiting=0, moved=self._beats)
        self._canary_on_its_way = False

    def second(self, event: str) -> None:
        progress = self.progress
        progress.tick(60.0 if event == "L" else 1.0)
        if progress.output_asked and not self._canary_on_its_way:
            progress.choose_canary_rank()
            self._canary_on_its_way = True
        match event:
            case "a":
                progress.note_answer()
            case "b" | "q":
                self._report(waiting=event == "q", moved=self._beats)
            case "0" | "1":
                self._report(waiting=0, moved={int(event): 0.0})
            case "s" | "w":
                self._report(waiting=event == "w")
            case "e":
                progress.note_beats(())
            case "c":
                progress.note_canary(0)
            case "r":
                progress.note_refused_canary()
        self._canary_on_its_way = self._canary_on_its_way and event not in "cr"

    def _report(self, *, waiting: int, moved: dict[int, float] | None = None) -> None:
        for rank in moved or ():
            self._beats[rank] += 1.0
        self.progress.note_beats(
            [RankBeat(rank=rank, beat=beat, waiting=waiting) for rank, beat in self._beats.items()]
        )


@pytest.mark.parametrize(
    ("ranks", "events", "reason"),
    [
        # Requests are answered: nothing is asked, whatever the time.
        (1, "a" * 99, ""),
        (1, "a.a." * 30, ""),
        # An idle engine is asked, and answers.
        (1, "..sbc" * 20, ""),
        (2, "..sbc" * 20, ""),
        # Everything hangs.
        (1, "." * 16, ""),
        (1, "." * 17, SERVER),
        (2, "." * 17, SERVER),
        (1, "a" * 50 + "." * 17, SERVER),
        # The scheduler hangs, the server does not.
        (1, ".." + "s" * 14, ""),
        (1, ".." + "s" * 15, SCHEDULER),
        (1, "a" * 50 + ".." + "s" * 15, SCHEDULER),
        (2, ".." + "s" * 15, BOTH),
        # One of two ranks hangs, idle, and while the other one answers requests.
        (2, ".." + "0" * 16, RANK_1),
        (2, ".." + "01" * 16 + "1" * 16, RANK_0),
        (2, ".." + "a0" * 16, RANK_1),
        # The detokenizer hangs: the ranks work, and neither a canary nor a request is answered.
        (1, ".." + "b" * 15, OUTPUT),
        (2, ".." + "b" * 15, OUTPUT),
        # A canary that waits in a queue, and one that is refused, show nothing.
        (1, ".." + "q" * 99, ""),
        (1, ".." + "q" * 99 + "b" * 14, ""),
        (1, ".." + "q" * 99 + "b" * 15, OUTPUT),
        (1, ".." + "rb" * 40, ""),
        # A queue does not excuse a scheduler.
        (1, ".." + "w" * 15, SCHEDULER),
        # Prefill and decode are apart, and the other side is dead for 300 s. Requests wait in the
        # queue of the bootstrap, the preallocation or the transfer, and so may the canary.
        (1, "a" * 50 + ".." + "q" * 300, ""),
        (2, "a" * 50 + ".." + "q" * 300, ""),
        (1, ".." + "q" * 300 + "w" * 16, ""),
        (1, ".." + "q" * 300 + "w" * 17, SCHEDULER),
        (2, ".." + "q" * 300 + "w" * 17, BOTH),
        (1, ".." + "q" * 300 + "." * 17, SERVER),
        # They wait where the engine does not count them, after their prefill: the canary passes.
        (1, "a" * 50 + "..bc" * 75, ""),
        # The other side is there again.
        (1, ".." + "q" * 300 + "bcaa", ""),
        # A server that answers requests, and does not report its ranks any longer.
        (2, "ae" * 50, ""),
        (1, ".." + "e" * 15, OUTPUT),
        (2, ".." + "0" * 16 + "e", RANK_1),
        # A long step of the scheduler, such as the prefill of a long prompt.
        (1, (".." + "s" * 13 + "bc") * 5, ""),
        # A client that does not read its stream: the engine answers the canary.
        (1, "a" * 9 + "..bc" * 30, ""),
        # Time in which this process was stopped does not count.
        (1, "L" * 60, ""),
        (1, "." * 16 + "LLL", ""),
        (1, "." * 16 + "LLL.", SERVER),
        # The engine answers again: the first beats after the hang, and the canary of before.
        (1, "." * 30 + "s", SCHEDULER),
        (1, "." * 30 + "sb", OUTPUT),
        (1, "." * 30 + "sbc", ""),
        (1, "." * 30 + "a", ""),
        (2, ".." + "0" * 30 + "1", OUTPUT),
        (2, ".." + "0" * 30 + "1c", ""),
    ],
)
def test_silence_is_concluded_only_after_a_question(ranks: int, events: str, reason: str) -> None:
    engine = Engine(ranks)
    for event in events:
        engine.second(event)
    assert engine.progress.silent_reason == reason


def test_an_engine_that_answers_requests_is_not_asked() -> None:
    engine = Engine(1)
    for _ in range(99):
        engine.second("a")
        assert not engine.progress.asking


def test_an_engine_is_asked_after_the_time_of_the_setting() -> None:
    progress = Progress(wait_seconds=10, hang_seconds=60)

    def asking_after(seconds: int) -> list[bool]:
        asking = []
        for _ in range(seconds):
            progress.tick(1.0)
            asking.append(progress.asking)
        return asking

    assert asking_after(1) == [True]  # whether it answers is not known yet
    progress.note_canary(None)
    assert asking_after(10) == [False] * 9 + [True]


def test_an_engine_is_asked_long_before_it_would_be_silent() -> None:
    progress = Progress(wait_seconds=60, hang_seconds=15)
    progress.note_canary(None)
    for _ in range(3):
        progress.tick(1.0)
    assert progress.asking


def test_canaries_take_turns_and_avoid_ranks_that_do_not_answer() -> None:
    engine = Engine(3)
    assert [engine.progress.choose_canary_rank() for _ in range(4)] == [0, 1, 2, 0]
    for _ in range(20):
        engine.second("0")
    assert {engine.progress.choose_canary_rank() for _ in range(4)} == {0}


def test_each_rank_has_its_own_evidence() -> None:
    engine = Engine(2)
    assert engine.progress.take_proven_ranks() == [0, 1]
    assert engine.progress.take_proven_ranks() == []
    for event in "..s1":
        engine.second(event)
    assert engine.progress.take_proven_ranks() == [1]
    engine.second("a")  # which rank has computed it is not known
    assert engine.progress.take_proven_ranks() == []


def test_an_engine_without_beats_shows_progress_by_answers() -> None:
    progress = Progress(wait_seconds=WAIT, hang_seconds=HANG)
    progress.note_beats([])
    assert progress.choose_canary_rank() is None
    progress.note_answer()
    assert progress.take_proven_ranks() == [0]
    for _ in range(17):
        progress.tick(1.0)
    assert progress.silent_reason == SERVER
