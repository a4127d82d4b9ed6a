"""A request to two workers: a prefill worker computes the prompt, and a decode worker answers.

Both receive the request at the same time, because the prefill worker answers only after the decode
worker has taken the KV cache. The client receives the response of the decode worker as soon as it
has content, or the prefill worker has answered: each earlier error of one of the two has an HTTP
status. The prefill worker may answer later than the decode worker, and its answer is dropped.

If one of the two fails before that, the connection to the other one is closed at once, because its
engine would wait for minutes. For the same reason, the request then ends when discovery shows that
one of the two is not ready. A worker that drains finishes the request.

Only two outcomes prove that neither engine has the request: one of the workers accepts no
connection before anything was sent, or both answer with the header `relay.RETRY_HEADER`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from dynamometer.engines.interface import Engine, Route
from dynamometer.engines.requests import RequestBody
from dynamometer.frontend import failures, outcomes
from dynamometer.frontend.outcomes import Accepted, Unanswered
from dynamometer.frontend.rewriting import Rewriter
from dynamometer.frontend.routing import Router
from dynamometer.http import openai_errors, relay
from dynamometer.http.client import Client, Connection, NotReachedError
from dynamometer.http.exchange import Request
from dynamometer.http.reply import BrokenError, Reply
from dynamometer.runtime.discovery.interface import RESTORE_SECONDS
from dynamometer.runtime.fleet import Change
from dynamometer.runtime.identity import hexadecimal
from dynamometer.runtime.record import Record, State

logger = logging.getLogger(__name__)

# A worker refuses a request within milliseconds: after this time, the other one has taken it.
_REFUSAL_SECONDS: Final = 0.5

# A prefill worker that has sent the KV cache answers when its current batch is computed. After an
# error event of the decode worker, it would wait for minutes.
_LATE_SECONDS: Final = 5.0

_Side = asyncio.Task[Reply | Unanswered]


@dataclass(frozen=True, slots=True)
class Pair:
    """The two workers of a request."""

    prefill: Record
    decode: Record


class PairSender:
    """Sends requests to pairs of workers. All state belongs to the event loop."""

    def __init__(self, *, router: Router, client: Client, rewriter: Rewriter) -> None:
        """Store the arguments, and follow the states of workers.

        Args:
            router: counts the requests in flight to each worker.
            client: sends requests to the workers.
            rewriter: edits requests.
        """
        self._router = router
        self._fleet = router.fleet
        self._client = client
        self._rewriter = rewriter
        # The requests that end when a worker is lost, by the id of the worker.
        self._watched: dict[int, set[asyncio.Future[Unanswered]]] = {}
        # The replies of prefill workers that are later than those of the decode workers. `_limit`
        # ends them.
        self._late: set[_Side] = set()
        router.fleet.on_change(self._changed)

    def _changed(self, change: Change) -> None:
        for record in change.left:
            if record.id in self._watched:
                # A live process whose record was removed writes it again within this time.
                loop = asyncio.get_running_loop()
                loop.call_later(RESTORE_SECONDS, self._end_if_lost, record)
        for record in change.changed:
            self._end_if_lost(record)

    def _end_if_lost(self, record: Record) -> None:
        """End the requests that wait for a worker, unless it finishes them.

        Args:
            record: its record, which may be an earlier one.
        """
        now = self._fleet.records.get(record.id)
        if _finishes_requests(now):
            return
        worker = f"{record.mode} worker {hexadecimal(record.id)}"
        if now is None:
            event, failure = f"The {record.mode} worker ended", failures.WORKER_LOST
            logged = f"{worker} has left discovery"
        else:
            event = f"The state of the {record.mode} worker became {now.state}"
            failure = failures.ENGINE_DIED  # the worker lives, and reports its engine's state
            logged = f"{worker} is {now.state}"
        watched = [lost for lost in self._watched.get(record.id, ()) if not lost.done()]
        if watched:
            requests = "1 request" if len(watched) == 1 else f"{len(watched)} requests"
            logger.warning("%s: %s to this worker and another one failed", logged, requests)
        answer = partial(openai_errors.engine_died, f"{event} during this request")
        for lost in watched:
            lost.set_result(Unanswered(failure, answer))

    @contextmanager
    def _watching(self, pair: Pair) -> Iterator[asyncio.Future[Unanswered]]:
        """Return the outcome of a request whose worker is lost, while the context is open."""
        lost: asyncio.Future[Unanswered] = asyncio.get_running_loop().create_future()
        ids = (pair.prefill.id, pair.decode.id)
        for id_ in ids:
            self._watched.setdefault(id_, set()).add(lost)
        try:
            yield lost
        finally:
            for id_ in ids:
                self._watched[id_].discard(lost)
                if not self._watched[id_]:
                    del self._watched[id_]

    async def send(
        self,
        request: Request,
        body: RequestBody,
        name: str | None,
        pair: Pair,
        engine: Engine,
        route: Route,
        held: ExitStack,
    ) -> Accepted | Unanswered:
        """Send a request to two workers.

        Args:
            request: the client's request.
            body: its body.
            name: the model's name at the engines; None to keep the client's.
            pair: the workers.
            engine: the kind of their engines.
            route: the route of their engines.
            held: receives what must be released when an accepted request is over.
        """
        prefill, decode = pair.prefill, pair.decode
        options = route.takes_stream_options
        add_usage = body.add_usage and options and not decode.stream_usage
        members = engine.pair_members(prefill.bootstrap or "")
        prompt = await self._rewriter.edit_pair(
            body, name, members, stream_options=options, add_usage=add_usage
        )
        target = relay.target(request)
        with ExitStack() as prefilling, ExitStack() as decoding:
            prefilling.enter_context(self._router.carrying(prefill))
            decoding.enter_context(self._router.carrying(decode))
            opened = await self._open(pair)
            if isinstance(opened, Unanswered):
                return opened
            first, second = opened
            sent = first.send(target, self._rewriter.headers(request, prefill), prompt)
            computing = asyncio.create_task(_compute(prefill, sent, prefilling.pop_all()))
            sent = second.send(target, self._rewriter.headers(request, decode), body.content)
            answering = asyncio.create_task(outcomes.receive(decode, sent))
            outcome: Reply | Unanswered | None = None
            try:
                with self._watching(pair) as lost:
                    outcome = await _outcome(decode, computing, answering, lost)
                if isinstance(outcome, Reply):
                    held.callback(outcome.close)
            finally:
                await self._end(computing, answering, outcome, held)
            if isinstance(outcome, Unanswered):
                return outcome
            if outcome is not _result(answering):
                return Accepted(prefill, outcome, route, body.samples, hide_usage=False)
            held.push(decoding.pop_all())
        return Accepted(decode, outcome, route, body.samples, add_usage)

    async def _open(self, pair: Pair) -> tuple[Connection, Connection] | Unanswered:
        """Return connections to both workers, or the outcome if one of them is not available."""
        with ExitStack() as unused:
            connections = []
            for instance in (pair.prefill, pair.decode):
                try:
                    connection = await self._client.open(instance.request_url or "")
                except NotReachedError as error:
                    outcomes.log_failure(instance, error)
                    return outcomes.not_reached(instance)
                unused.callback(connection.release)
                connections.append(connection)
            for instance in (pair.prefill, pair.decode):
                if not _finishes_requests(self._fleet.records.get(instance.id)):
                    return outcomes.not_taken(instance)
            unused.pop_all()
        return connections[0], connections[1]

    async def _end(
        self,
        computing: _Side,
        answering: _Side,
        outcome: Reply | Unanswered | None,
        held: ExitStack,
    ) -> None:
        """Close the connections to both workers, except those that the client's answer needs.

        Args:
            computing: the reply of the prefill worker.
            answering: the reply of the decode worker.
            outcome: see `_outcome`; None if the client has disconnected.
            held: receives what must be released when the request is over.
        """
        if isinstance(outcome, Reply) and outcome is _accepted(answering):
            if computing.done():
                self._drop(computing)
            else:
                self._late.add(computing)
                computing.add_done_callback(self._drop)
                held.callback(_limit, computing, outcome)
            return
        for side in (computing, answering):
            reply = _result(side)
            if not side.done():
                side.cancel()  # closes the connection
            elif isinstance(reply, Reply) and reply is not outcome:
                reply.close()
        await asyncio.gather(computing, answering, return_exceptions=True)

    def _drop(self, computing: _Side) -> None:
        """Drop the late answer of a prefill worker."""
        self._late.discard(computing)
        if isinstance(reply := _result(computing), Reply):
            reply.close()


def _limit(computing: _Side, answer: Reply) -> None:
    """End the reply of a prefill worker at the end of a request: soon after a complete answer."""
    seconds = _LATE_SECONDS if answer.complete else 0
    asyncio.get_running_loop().call_later(seconds, computing.cancel)


def _finishes_requests(record: Record | None) -> bool:
    """Return whether a worker answers the requests that it has, by its record in discovery."""
    return record is not None and record.state in (State.READY, State.DRAINING)


async def _compute(
    instance: Record, sent: Awaitable[Reply], carried: ExitStack
) -> Reply | Unanswered:
    """Return the reply of a prefill worker after its end; an error at once, for the client.

    Args:
        instance: the worker.
        sent: see `outcomes.receive`.
        carried: is left when the worker has answered.
    """
    with carried:
        reply = await outcomes.receive(instance, sent)
        if isinstance(reply, Unanswered) or reply.status >= 400:
            return reply
        try:
            await reply.read_into(lambda _: None)
        except BrokenError as error:
            outcomes.log_failure(instance, error)
            return outcomes.lost()
        finally:
            reply.close()
        return reply


async def _outcome(
    decode: Record, computing: _Side, answering: _Side, lost: asyncio.Future[Unanswered]
) -> Reply | Unanswered:
    """Return the reply for the client, or the outcome without a reply, as soon as it is known.

    Args:
        decode: the decode worker.
        computing: the reply of the prefill worker; see `_compute`.
        answering: the reply of the decode worker.
        lost: the outcome when one of the workers is lost.
    """
    timeout: float | None = None
    while True:
        ended = await _wait(computing, answering, lost, timeout=timeout)
        # With content of the decode worker, no event at the prefill worker matters.
        reply = _accepted(answering)
        if reply is not None and reply.started().done():
            if reply.error is None:
                return reply
            outcomes.log_failure(decode, reply.error)
            return outcomes.lost()
        # An error of one worker, or its end, decides. A refusal waits for that of the other worker.
        refusals = []
        results = [side.result() for side in (computing, answering) if side.done()]
        for result in results:
            if isinstance(result, Reply):
                if result.status >= 400:
                    return result
            elif result.retry_reason:
                refusals.append(result)
            else:
                return result
        if lost.done() and not computing.done():
            return lost.result()
        if len(refusals) == 2:
            instances = (*refusals[0].refused_by, *refusals[1].refused_by)
            return replace(refusals[0], refused_by=instances)
        # One worker has refused and the other one has the request, or both have answered.
        if len(results) == 2 or (refusals and not ended):
            return refusals[0].final() if refusals else answering.result()
        timeout = _REFUSAL_SECONDS if refusals else None


async def _wait(
    computing: _Side,
    answering: _Side,
    lost: asyncio.Future[Unanswered],
    *,
    timeout: float | None,
) -> bool:
    """Wait for an event that may decide the outcome; return False at the timeout."""
    waiting: set[asyncio.Future[Any]] = set()
    if not computing.done():
        waiting |= {computing, lost}
    if not answering.done():
        waiting.add(answering)
    elif reply := _accepted(answering):
        waiting.add(reply.started())
    done, _ = await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    return bool(done)


def _result(side: _Side) -> Reply | Unanswered | None:
    """Return the result of a task; None if the task is running, was cancelled, or has failed."""
    failed = not side.done() or side.cancelled() or side.exception() is not None
    return None if failed else side.result()


def _accepted(side: _Side) -> Reply | None:
    """Return the reply of a worker if it is there and not an error."""
    reply = _result(side)
    return reply if isinstance(reply, Reply) and reply.status < 400 else None
