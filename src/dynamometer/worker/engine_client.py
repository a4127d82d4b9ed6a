"""Requests of the worker to its engine: health, models, and facts about the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final

import aiohttp

from dynamometer.engines.interface import Launch, ModelCards, RankBeat, StartableEngine
from dynamometer.runtime.record import Json

_TIMEOUT_SECONDS: Final = 30.0
_UNKNOWN_ROUTE: Final = frozenset({404, 405, 501})
_ERRORS: Final = (aiohttp.ClientError, TimeoutError, OSError)


class CanaryResult(Enum):
    """The end of a canary.

    Attributes:
        ANSWERED: the engine computed the answer.
        REFUSED: the server answered with an error, such as a full queue.
        NOT_UNDERSTOOD: the server does not know such requests.
        LOST: the connection failed, or the answer did not arrive in time.
    """

    ANSWERED = "answered"
    REFUSED = "refused"
    NOT_UNDERSTOOD = "not understood"
    LOST = "lost"


class UnknownRouteError(Exception):
    """The engine has no such route: it is another version, or has another server."""


class EngineClient:
    """A client for the routes on which an engine reports its health, its models and facts."""

    def __init__(
        self, session: aiohttp.ClientSession, engine: StartableEngine, launch: Launch
    ) -> None:
        self._session = session
        self._engine = engine
        self.use(launch)

    def use(self, launch: Launch) -> None:
        """Send the next requests to the engine that `launch` starts."""
        self._url = launch.url
        self._mode = launch.mode
        self._headers = {"Authorization": f"Bearer {launch.api_key}"} if launch.api_key else {}

    @property
    def has_probes(self) -> bool:
        """True if the engine has routes for `fetch_beats` and `send_canary`."""
        return self._engine.probes is not None

    async def check_health(self, *, timeout: float = _TIMEOUT_SECONDS) -> bool:
        """Return whether the engine is healthy.

        The health route runs a forward pass; a healthy engine answers within a second.
        """
        try:
            async with asyncio.timeout(timeout):
                async with self._session.get(
                    self._url + self._engine.health_path, headers=self._headers
                ) as answer:
                    await answer.content.read(1)  # an engine may stop between head and body
                    return answer.status == 200
        except _ERRORS:
            return False

    async def fetch_models(self) -> ModelCards:
        """Return the models and LoRA adapters that the engine serves; empty after an error."""
        return self._engine.read_models(await self._get(self._engine.models_path, _TIMEOUT_SECONDS))

    async def fetch_info(
        self, models: ModelCards, *, timeout: float = _TIMEOUT_SECONDS
    ) -> Mapping[str, Json]:
        """Return facts about the engine for the worker's record; empty after an error.

        Args:
            models: the models that the engine serves.
            timeout: the longest time to wait, in seconds.
        """
        return self._engine.read_info(await self._get(self._engine.info_path, timeout), models)

    async def fetch_beats(self, *, timeout: float) -> Sequence[RankBeat] | None:
        """Return the state of each rank: none if the answer has none; None without an answer.

        Raises:
            UnknownRouteError: The engine has no route for the state of its ranks.
        """
        probes = self._engine.probes
        assert probes is not None
        try:
            async with asyncio.timeout(timeout):
                async with self._session.get(
                    self._url + probes.beats_path, headers=self._headers
                ) as answer:
                    if answer.status in _UNKNOWN_ROUTE:
                        raise UnknownRouteError
                    content = await answer.json(content_type=None)
                    return probes.read_beats(content) if answer.status == 200 else ()
        except _ERRORS:
            return None
        except (ValueError, RecursionError):
            return ()

    async def send_canary(self, rank: int, *, ranks: int, timeout: float) -> CanaryResult:
        """Send the smallest request to a data-parallel rank, and wait for its answer.

        Args:
            rank: the rank.
            ranks: the number of ranks.
            timeout: the longest time to wait, in seconds.
        """
        probes = self._engine.probes
        assert probes is not None
        body = probes.canary(rank, ranks=ranks, mode=self._mode)
        headers = self._headers | {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(timeout):
                async with self._session.put(
                    self._url + probes.canary_path, json=body, headers=headers
                ) as answer:
                    await answer.read()
        except _ERRORS:
            return CanaryResult.LOST
        if answer.status == 200:
            return CanaryResult.ANSWERED
        if answer.status in (400, 404, 405, 422):
            return CanaryResult.NOT_UNDERSTOOD
        return CanaryResult.REFUSED

    async def _get(self, path: str, timeout: float) -> Json:
        """Return the parsed JSON of a route; None after an error or a timeout."""
        try:
            async with asyncio.timeout(timeout):
                async with self._session.get(self._url + path, headers=self._headers) as answer:
                    content: Json = await answer.json(content_type=None)
                    return content
        except (*_ERRORS, ValueError, RecursionError):
            return None
