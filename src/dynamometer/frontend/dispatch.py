"""The dispatch of a request: the choice of an instance, and at most one retry at another one.

A request that an engine may have taken is never sent to another one, because a request that ends
engines must not end all of them. Only two outcomes prove that no engine has the request: no
connection to the worker was made, or the worker's response has the header `relay.RETRY_HEADER`.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from dynamometer.engines import kinds
from dynamometer.engines.interface import Route
from dynamometer.engines.requests import RequestBody
from dynamometer.frontend import failures
from dynamometer.frontend.body import BodyThreads
from dynamometer.frontend.failures import Failure
from dynamometer.frontend.request_metrics import RequestMetrics
from dynamometer.frontend.retries import RetryBudget, RetryMetrics
from dynamometer.frontend.routing import Router
from dynamometer.http import openai_errors, relay
from dynamometer.http.client import Client, NotReachedError
from dynamometer.http.exchange import Request
from dynamometer.http.messages import Response
from dynamometer.http.reply import BrokenError, Reply
from dynamometer.names import retry_reason
from dynamometer.runtime.record import Record

logger = logging.getLogger(__name__)

_ATTEMPTS: Final = 2


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
    """

    failure: Failure
    answer: Callable[[], Response]
    retry_reason: str = ""


_NOT_TAKEN: Final = Unanswered(
    failures.NO_WORKER,
    lambda: openai_errors.unavailable("no worker can accept the request now"),
    retry_reason.WORKER_NOT_READY,
)
_NOT_REACHED: Final = Unanswered(
    failures.NOT_REACHED,
    lambda: openai_errors.unavailable("no worker accepts a connection"),
    retry_reason.CANNOT_CONNECT,
)
_LOST: Final = Unanswered(failures.WORKER_LOST, openai_errors.engine_died)


class Dispatcher:
    """Sends requests to workers. All state belongs to the event loop."""

    def __init__(
        self,
        *,
        router: Router,
        client: Client,
        threads: BodyThreads,
        metrics: RetryMetrics,
        forward_custom_labels: bool = False,
    ) -> None:
        """Store the arguments.

        Args:
            router: chooses a worker for each request.
            client: sends requests to the workers.
            threads: edit large bodies.
            metrics: counts retries.
            forward_custom_labels: keep the header by which clients set labels of an engine's
                metrics.
        """
        self._router = router
        self._fleet = router.fleet
        self._client = client
        self._threads = threads
        self._metrics = metrics
        self._forward_custom_labels = forward_custom_labels
        self._budgets: defaultdict[str, RetryBudget] = defaultdict(
            lambda: RetryBudget(time.monotonic())
        )

    async def send(
        self,
        request: Request,
        metrics: RequestMetrics,
        body: RequestBody,
        model: str,
        held: ExitStack,
    ) -> Accepted | Unanswered:
        """Send a request to an instance, and to one other if no engine can have it.

        Args:
            request: the client's request.
            metrics: its metrics.
            body: its body.
            model: the registered name of its model.
            held: receives what must be released when an accepted request is over.
        """
        self._budgets[model].add_request(time.monotonic())
        registered = body.model == model  # else an adapter of the model, or no name
        tried: set[int] = set()
        refused: Unanswered | None = None
        for _ in range(_ATTEMPTS):
            metrics.start_routing()
            chosen = self._choose(model, request.path, tried)
            if chosen is None or (refused and not self._may_retry(model, refused.retry_reason)):
                break
            instance, route = chosen
            metrics.start_dispatch(instance.id)
            name = _request_name(instance, model) if registered else None
            outcome = await self._attempt(request, body, name, instance, route, held)
            if isinstance(outcome, Accepted) or not outcome.retry_reason:
                return outcome
            refused = outcome
            self._router.avoid(instance)
        if refused is not None:
            return refused
        if tried:  # no engine of the model has the route
            return Unanswered(
                failures.NOT_FOUND, lambda: openai_errors.no_route(request.path, model)
            )
        reason = self._fleet.missing_reason(model)
        return Unanswered(failures.NO_WORKER, lambda: openai_errors.unavailable(reason))

    def _choose(self, model: str, path: str, tried: set[int]) -> tuple[Record, Route] | None:
        """Return an instance whose engine has the route, and add it to `tried`; None without one.

        Args:
            model: the registered name of the request's model.
            path: the path of the request.
            tried: the ids of instances that must not be chosen; receives those that were examined.
        """
        while (instance := self._router.choose(model, without=tried)) is not None:
            tried.add(instance.id)
            engine = kinds.find(instance.engine)
            if engine is not None and path in engine.routes:
                return instance, engine.routes[path]
        return None

    def _may_retry(self, model: str, reason: str) -> bool:
        """Return whether the budget of a model allows a retry, and count it by its reason."""
        allowed = self._budgets[model].take(time.monotonic())
        self._metrics.count(model, reason if allowed else retry_reason.BUDGET_EXHAUSTED)
        return allowed

    async def _attempt(
        self,
        request: Request,
        body: RequestBody,
        name: str | None,
        instance: Record,
        route: Route,
        held: ExitStack,
    ) -> Accepted | Unanswered:
        """Send a request to one instance, with `name` as the model if the client's name differs.

        `held` keeps what an accepted request needs.
        """
        add_usage = body.add_usage and route.takes_stream_options and not instance.stream_usage
        await self._edit(body, name, add_usage=add_usage)
        url, target = instance.request_url or "", relay.target(request)
        without = frozenset() if self._forward_custom_labels else _label_headers(instance)
        headers = relay.request_headers(request.headers, read=True, without=without)
        with ExitStack() as carried:
            carried.enter_context(self._router.carrying(instance))
            try:
                reply = await self._client.post(url, target, headers, body.content)
            except NotReachedError as error:
                _log_failure(instance, error)
                return _NOT_REACHED
            except BrokenError as error:
                _log_failure(instance, error)
                return _LOST
            carried.callback(reply.close)
            if reply.headers.get(relay.RETRY_HEADER):
                return _NOT_TAKEN
            held.push(carried.pop_all())
        return Accepted(instance, reply, route, body.samples, add_usage)

    async def _edit(self, body: RequestBody, name: str | None, *, add_usage: bool) -> None:
        """Edit the body for a worker: `name` as the model, no labels, and a request for usage."""

        def edit() -> None:
            if body.custom_labels:
                body.remove_custom_labels()
            if name is not None:
                body.set_model(name)
            if add_usage:
                body.content = body.with_usage()

        await self._threads.run(edit, size=len(body.content))


def _request_name(instance: Record, model: str) -> str:
    """Return the name that an instance's engine expects for a model in its list."""
    engine = kinds.find(instance.engine)
    return engine.request_name(model, instance.model_info.get(model)) if engine else model


def _label_headers(instance: Record) -> frozenset[bytes]:
    """Return the headers by which clients could set labels of the metrics of an instance."""
    engine = kinds.find(instance.engine)
    names = {instance.labels_header, engine.labels_header if engine else ""}
    return frozenset(name.lower().encode() for name in names)


def _log_failure(instance: Record, error: Exception) -> None:
    logger.warning(
        "the connection to instance %016x at %s failed: %s",
        instance.id,
        instance.request_url,
        error,
    )
