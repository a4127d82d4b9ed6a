"""The outcomes of an attempt to send a request: accepted by a worker, or not answered."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from dynamometer.engines.interface import Route
from dynamometer.frontend import failures
from dynamometer.frontend.failures import Failure
from dynamometer.http import openai_errors, relay
from dynamometer.http.client import NotReachedError
from dynamometer.http.messages import Response
from dynamometer.http.reply import BrokenError, Reply
from dynamometer.names import retry_reason
from dynamometer.runtime.record import Record

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that a worker has accepted.

    Attributes:
        instance: the worker.
        reply: the worker's response.
        route: the route of its engine.
        samples: the number of answers to each prompt, by SGLang's own route.
        hide_usage: whether the stream has a usage chunk that the client did not request.
    """

    instance: Record
    reply: Reply
    route: Route
    samples: int
    hide_usage: bool


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A request that no worker has answered.

    Attributes:
        failure: the failure to count.
        answer: returns the response to the client.
        retry_reason: the reason to try another instance, a value of `retry_reason`; empty if an
            engine may have the request.
        refused_by: the instances that have not taken the request.
    """

    failure: Failure
    answer: Callable[[], Response]
    retry_reason: str = ""
    refused_by: tuple[Record, ...] = ()

    def final(self) -> Unanswered:
        """Return the outcome if another instance may have the request: it is not sent again."""
        return replace(self, retry_reason="")


async def receive(instance: Record, sent: Awaitable[Reply]) -> Reply | Unanswered:
    """Return the reply of a worker, or the outcome if the worker has not answered.

    Args:
        instance: the worker.
        sent: sends the request; raises the errors of `Connection.send`.
    """
    try:
        reply = await sent
    except NotReachedError as error:
        log_failure(instance, error)
        return not_reached(instance)
    except BrokenError as error:
        log_failure(instance, error)
        return lost()
    if reply.headers.get(relay.RETRY_HEADER):
        reply.close()
        return not_taken(instance)
    return reply


def not_taken(instance: Record) -> Unanswered:
    """Return the outcome if a worker answers that its engine did not receive the request."""
    return Unanswered(
        failures.NO_WORKER,
        lambda: openai_errors.unavailable("no worker can accept the request now"),
        retry_reason.WORKER_NOT_READY,
        (instance,),
    )


def not_reached(instance: Record) -> Unanswered:
    """Return the outcome if a worker accepts no connection."""
    return Unanswered(
        failures.NOT_REACHED,
        lambda: openai_errors.unavailable("no worker accepts a connection"),
        retry_reason.CANNOT_CONNECT,
        (instance,),
    )


def lost() -> Unanswered:
    """Return the outcome if a worker that may have the request does not answer."""
    return Unanswered(failures.WORKER_LOST, openai_errors.engine_died)


def log_failure(instance: Record, error: BaseException) -> None:
    """Log that the connection to a worker failed."""
    logger.warning(
        "the connection to instance %016x at %s failed: %s",
        instance.id,
        instance.request_url,
        error,
    )
