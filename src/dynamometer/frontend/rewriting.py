"""The changes to a request for a worker: the model's name, usage, members and headers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from dynamometer.engines import kinds
from dynamometer.engines.requests import RequestBody
from dynamometer.frontend.body import BodyThreads
from dynamometer.http import relay
from dynamometer.http.exchange import Request
from dynamometer.http.messages import Headers
from dynamometer.runtime.record import AGGREGATED, Json, Record


class Rewriter:
    """Edits the bodies and headers of requests, large bodies in threads."""

    def __init__(self, threads: BodyThreads, *, forward_custom_labels: bool = False) -> None:
        """Store the arguments.

        Args:
            threads: edit large bodies.
            forward_custom_labels: keep the header by which clients set labels of an engine's
                metrics.
        """
        self._threads = threads
        self._forward_custom_labels = forward_custom_labels

    def headers(self, request: Request, instance: Record) -> Headers:
        """Return the headers of a client's request for an instance."""
        removed = _removed_headers(
            instance.engine,
            None if self._forward_custom_labels else instance.labels_header,
            paired=instance.mode != AGGREGATED,
        )
        return relay.request_headers(request.headers, read=True, without=removed)

    async def edit(self, body: RequestBody, name: str | None, *, add_usage: bool) -> None:
        """Edit a body for a worker.

        Args:
            body: the body; labels of the engine's metrics are removed from it.
            name: the name by which the worker's engine knows the model; None to keep the client's.
            add_usage: request the usage at the end of a stream.
        """

        def edit() -> None:
            _set_name(body, name)
            if add_usage:
                body.content = body.with_usage()

        await self._threads.run(edit, size=len(body.content))

    async def edit_pair(
        self,
        body: RequestBody,
        name: str | None,
        members: Mapping[str, Json],
        *,
        stream_options: bool,
        add_usage: bool,
    ) -> bytes:
        """Edit a body for a decode worker, and return the body for a prefill worker.

        The answer of the prefill worker is not a stream, so that each of its errors has a status.

        Args:
            body: see `edit`.
            name: see `edit`.
            members: the members by which the two engines find each other.
            stream_options: whether the route has `stream_options`, which are only for streams.
            add_usage: see `edit`.
        """

        def edit() -> bytes:
            _set_name(body, name)
            body.set_members(members)
            prefill = body.without_stream(options=stream_options)
            if add_usage:
                body.content = body.with_usage()
            return prefill

        return await self._threads.run(edit, size=len(body.content))


def _set_name(body: RequestBody, name: str | None) -> None:
    if body.custom_labels:
        body.remove_custom_labels()
    if name is not None:
        body.set_model(name)


def request_name(instance: Record, model: str) -> str:
    """Return the name that an instance's engine expects for a model in its list."""
    engine = kinds.find(instance.engine)
    return engine.request_name(model, instance.model_info.get(model)) if engine else model


@lru_cache(maxsize=256)
def _removed_headers(kind: str, labels_header: str | None, *, paired: bool) -> frozenset[bytes]:
    """Return the headers that clients must not send to an engine.

    Args:
        kind: the kind of the engine.
        labels_header: see `Record.labels_header`; None to keep the headers that set labels.
        paired: True if the engine has one of the two phases.
    """
    engine = kinds.find(kind)
    removed: set[bytes] = set()
    if labels_header is not None:
        names = {labels_header, engine.labels_header if engine else ""}
        removed |= {name.lower().encode() for name in names}
    if engine is not None:
        removed |= engine.pairing_fields.headers
        if paired:
            removed |= engine.pairing_fields.rank_headers
    return frozenset(removed)
