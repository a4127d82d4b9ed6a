"""Evidence that an engine makes progress, and the parts of it that do not answer.

Silence is a reason to ask, never to judge: a part of the engine is silent only after a question to
it had no answer for a long time. The parts, and the evidence for each of them:

    server      answers of any kind
    ranks       beats: numbers that the engine reports and that change while a rank works or idles;
                with a single rank, also the bytes of answers
    output      the path of an answer from a rank to the server: the bytes of answers, a canary

A question is not unanswered while its canary waits in a queue of its rank, or while the server
answers without its ranks, for example with an error. Time in which this process itself was late
does not count. Nothing here does I/O or reads a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dynamometer.engines.interface import RankBeat

TICK_SECONDS: Final = 1.0
# The event loop of this process was stopped or starved before a tick that is later than this.
_LATE_SECONDS: Final = 2 * TICK_SECONDS
# The ticks within which a rank that works or idles has changed its beat.
_LATE_BEATS: Final = 3
# A rank that was just asked needs some ticks to change its beat, and then a canary.
_LEAST_HANG_TICKS: Final = 4
# A quiet part is asked after this share of the time after which it is silent, or earlier.
_LARGEST_WAIT_SHARE: Final = 0.2


class _Part:
    """One part of an engine.

    Attributes:
        quiet: the seconds since the last evidence.
        asked: the part was asked, and has shown no progress since.
        unanswered: the seconds since it was asked.
    """

    __slots__ = ("asked", "quiet", "unanswered")

    def __init__(self, quiet: float) -> None:
        self.quiet = quiet
        self.asked = False
        self.unanswered = 0.0

    def prove(self) -> None:
        self.quiet = self.unanswered = 0.0
        self.asked = False


class _Rank(_Part):
    """A data-parallel rank.

    Attributes:
        beat: its last beat since it was asked; None before the first.
        waiting: True if requests waited in its queues when it was read last.
    """

    __slots__ = ("beat", "waiting")

    def __init__(self, quiet: float) -> None:
        super().__init__(quiet)
        self.beat: float | None = None
        self.waiting = False


class Progress:
    """The evidence for the parts of one engine process.

    Attributes:
        hang_seconds: a part that was asked and does not answer for this time is silent.
    """

    def __init__(self, *, wait_seconds: float, hang_seconds: float) -> None:
        """Start with parts that are asked at the first tick.

        Args:
            wait_seconds: a part that is quiet for this time is asked.
            hang_seconds: the requested `hang_seconds`; some ticks at least.
        """
        self.hang_seconds = max(hang_seconds, _LEAST_HANG_TICKS * TICK_SECONDS)
        self._wait = min(wait_seconds, self.hang_seconds * _LARGEST_WAIT_SHARE)
        self._server = _Part(self._wait)
        self._output = _Part(self._wait)
        self._ranks: dict[int, _Rank] = {}  # empty until the server reports them
        self._beats_missing = False  # in the server's last answer about its ranks
        self._canary_rank: int | None = None
        self._proven: set[int] = set()

    @property
    def asking(self) -> bool:
        """True while a part is asked and has not answered."""
        return any(part.asked for part in self._parts)

    @property
    def output_asked(self) -> bool:
        """True while a canary is needed."""
        return self._output.asked

    @property
    def rank_count(self) -> int:
        """The number of data-parallel ranks; 0 if the server has not reported them."""
        return len(self._ranks)

    @property
    def _parts(self) -> Sequence[_Part]:
        return (self._server, self._output, *self._ranks.values())

    def tick(self, seconds: float) -> None:
        """Let time pass, and ask the parts that were quiet for too long.

        Args:
            seconds: the time since the previous tick, which is due every `TICK_SECONDS`.
        """
        if seconds > _LATE_SECONDS:
            return
        counted = min(seconds, TICK_SECONDS)
        for part in self._parts:
            part.quiet += counted
            if part.asked:
                if not self._excused(part):
                    part.unanswered += counted
            elif part.quiet >= self._wait:
                part.asked = True
                if isinstance(part, _Rank):
                    part.beat = None

    def _excused(self, part: _Part) -> bool:
        """Return whether the silence of a part that was asked shows nothing now."""
        if part is self._output:
            return self._canary_waits
        return isinstance(part, _Rank) and self._beats_missing

    @property
    def _canary_waits(self) -> bool:
        rank = self._ranks.get(-1 if self._canary_rank is None else self._canary_rank)
        return rank is not None and rank.waiting

    def choose_canary_rank(self) -> int | None:
        """Return the rank for the next canary: each in turn, those that answer and idle first.

        None if the server has not reported its ranks.
        """
        last = -1 if self._canary_rank is None else self._canary_rank
        in_turn = sorted(self._ranks, key=lambda rank: (rank <= last, rank))
        self._canary_rank = min(
            in_turn,
            key=lambda rank: (self._silent(self._ranks[rank]), self._ranks[rank].waiting),
            default=None,
        )
        return self._canary_rank

    def note_answer(self) -> None:
        """Record bytes of an answer that a rank computed."""
        self.note_canary(None)

    def note_beats(self, beats: Sequence[RankBeat]) -> None:
        """Record the answer of the server about its ranks; empty if it knows none."""
        self._server.prove()
        self._beats_missing = not beats
        for one in beats:
            rank = self._ranks.get(one.rank)
            if rank is None:
                rank = self._ranks[one.rank] = _Rank(0.0)
            if rank.beat is not None and rank.beat != one.beat:
                self._prove_rank(one.rank)
            rank.beat = one.beat
            rank.waiting = one.waiting > 0

    def note_canary(self, rank: int | None) -> None:
        """Record the answer to a canary.

        Args:
            rank: the rank that computed it; None if it is unknown.
        """
        self._server.prove()
        self._output.prove()
        if rank is None and len(self._ranks) <= 1:
            rank = next(iter(self._ranks), 0)
        if rank is not None:
            self._prove_rank(rank)

    def note_refused_canary(self) -> None:
        """Record that the server refused a canary, which then shows nothing about the output."""
        self._server.prove()
        self._output.unanswered = 0.0

    def take_proven_ranks(self) -> Sequence[int]:
        """Return the ranks for which there was evidence since the last call."""
        proven = sorted(self._proven)
        self._proven.clear()
        return proven

    @property
    def silent_reason(self) -> str:
        """The parts that do not answer, one line for users; empty if all answer."""
        asked = f"(asked for {self.hang_seconds:g} s)"
        if not any(map(self._silent, self._parts)):
            return ""
        # The first part that does not answer is the cause: the others cannot answer without it.
        if self._server.unanswered >= TICK_SECONDS:
            return f"its server does not answer {asked}"
        late = _LATE_BEATS * TICK_SECONDS
        ranks = [str(number) for number, rank in self._ranks.items() if rank.unanswered >= late]
        if ranks and len(self._ranks) == 1:
            return f"its scheduler does not answer {asked}"
        if len(ranks) == 1:
            return f"data-parallel rank {ranks[0]} does not answer {asked}"
        if ranks:
            return f"data-parallel ranks {', '.join(ranks)} do not answer {asked}"
        return f"its ranks work, but no answer reaches its server {asked}"

    def _silent(self, part: _Part) -> bool:
        return part.unanswered >= self.hang_seconds

    def _prove_rank(self, number: int) -> None:
        if number in self._ranks:
            self._ranks[number].prove()
        self._proven.add(number)
