"""The dispatch of a request: the choice of an instance, and at most one retry at another one.

Where prefill and decode are apart, `pairing` sends the request to an instance of each mode.

A request that an engine may have taken is never sent to another one, because a request that ends
engines must not end all of them. Only two outcomes prove that no engine has the request: no
connection to the worker was made, or the worker's response has the header `relay.RETRY_HEADER`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import ExitStack
from typing import Final, NamedTuple

from dynamometer.engines import kinds
from dynamometer.engines.interface import Engine, Pairing, Route
from dynamometer.engines.requests import RequestBody
from dynamometer.frontend import failures, outcomes
from dynamometer.frontend.body import BodyThreads
from dynamometer.frontend.outcomes import Accepted, Unanswered
from dynamometer.frontend.pairing import Pair, PairSender
from dynamometer.frontend.request_metrics import RequestMetrics
from dynamometer.frontend.retries import RetryBudget, RetryMetrics
from dynamometer.frontend.rewriting import Rewriter, request_name
from dynamometer.frontend.routing import Router
from dynamometer.http import openai_errors, relay
from dynamometer.http.client import Client
from dynamometer.http.exchange import Request
from dynamometer.names import retry_reason
from dynamometer.runtime.disaggregation import Pairs
from dynamometer.runtime.record import AGGREGATED, DECODE, PREFILL, Record

_ATTEMPTS: Final = 2


class _Choice(NamedTuple):
    """The instance of a request, with its engine and route, and the prefill worker of a pair."""

    instance: Record
    engine: Engine
    route: Route
    prefill: Record | None = None


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
        self._rewriter = Rewriter(threads, forward_custom_labels=forward_custom_labels)
        self._pairs = PairSender(router=router, client=client, rewriter=self._rewriter)
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
        mode = AGGREGATED
        refused: Unanswered | None = None
        if (pairs := self._fleet.pairs(model)) is not None:
            mode = DECODE
            if refused := await self._refuse(request.path, body, model, pairs):
                return refused
        registered = body.model == model  # else an adapter of the model, or no name
        tried: set[int] = set()
        for _ in range(_ATTEMPTS):
            metrics.start_routing()
            chosen = self._choose(model, mode, request.path, tried)
            if chosen is None or (refused and not self._may_retry(model, refused.retry_reason)):
                break
            metrics.start_dispatch(chosen.instance.id)
            name = request_name(chosen.instance, model) if registered else None
            outcome = await self._attempt(request, body, name, chosen, held)
            if isinstance(outcome, Accepted):
                return outcome
            for instance in outcome.refused_by:
                self._router.avoid(instance)
                tried.add(instance.id)
            if not outcome.retry_reason:
                return outcome
            refused = outcome
        if refused is not None:
            return refused
        if tried:  # no engine of the model has the route
            return Unanswered(
                failures.NOT_FOUND, lambda: openai_errors.no_route(request.path, model)
            )
        reason = self._fleet.missing_reason(model)
        return Unanswered(failures.NO_WORKER, lambda: openai_errors.unavailable(reason))

    async def _refuse(
        self, path: str, body: RequestBody, model: str, pairs: Pairs
    ) -> Unanswered | None:
        """Return the refusal of a request that pairs of workers do not support."""
        route, engine = kinds.ROUTES[path], kinds.find(pairs.decode[0].engine)
        if route.pairing is Pairing.NONE:
            return Unanswered(failures.NOT_FOUND, lambda: openai_errors.not_in_pairs(path, model))
        if route.pairing is Pairing.ALONE or engine is None:
            return None
        members = engine.pairing_fields.rank_members
        fault = await self._threads.run(lambda: body.unsupported(members), size=len(body.content))
        if fault is None:
            return None
        member, reason = fault
        message = f"{reason}: prefill and decode workers serve {model!r} together"
        return Unanswered(failures.REFUSED, lambda: openai_errors.invalid(message, member))

    def _choose(self, model: str, mode: str, path: str, tried: set[int]) -> _Choice | None:
        """Return an instance whose engine has the route; None without one.

        Args:
            model: the registered name of the request's model.
            mode: the mode of the instance.
            path: the path of the request.
            tried: the ids of instances that must not be chosen; receives those of instances whose
                engine does not have the route.
        """
        while (instance := self._router.choose(model, mode, without=tried)) is not None:
            engine = kinds.find(instance.engine)
            if engine is None or path not in engine.routes:
                tried.add(instance.id)
                continue
            route = engine.routes[path]
            if mode == AGGREGATED or route.pairing is not Pairing.PAIR:
                return _Choice(instance, engine, route)
            prefill = self._router.choose(model, PREFILL, without=tried, fitting=instance)
            return None if prefill is None else _Choice(instance, engine, route, prefill)
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
        chosen: _Choice,
        held: ExitStack,
    ) -> Accepted | Unanswered:
        """Send a request to one instance or to two, with `name` as the model if it differs.

        `held` keeps what an accepted request needs.
        """
        instance, route = chosen.instance, chosen.route
        if chosen.prefill is not None:
            pair = Pair(chosen.prefill, instance)
            return await self._pairs.send(request, body, name, pair, chosen.engine, route, held)
        add_usage = body.add_usage and route.takes_stream_options and not instance.stream_usage
        await self._rewriter.edit(body, name, add_usage=add_usage)
        url, target = instance.request_url or "", relay.target(request)
        headers = self._rewriter.headers(request, instance)
        with ExitStack() as carried:
            carried.enter_context(self._router.carrying(instance))
            sent = self._client.post(url, target, headers, body.content)
            reply = await outcomes.receive(instance, sent)
            if isinstance(reply, Unanswered):
                return reply
            carried.callback(reply.close)
            held.push(carried.pop_all())
        return Accepted(instance, reply, route, body.samples, add_usage)
