"""Requests of the worker to its engine: health, models, and facts about the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import aiohttp

from dynamometer.engines.interface import Engine, Launch, ModelCards
from dynamometer.runtime.record import Json

_TIMEOUT_SECONDS: Final = 30.0
_ERRORS: Final = (aiohttp.ClientError, TimeoutError, OSError)


class EngineClient:
    """A client for the routes on which an engine reports its health, its models and facts."""

    def __init__(self, session: aiohttp.ClientSession, engine: Engine, launch: Launch) -> None:
        self._session = session
        self._engine = engine
        self._url = launch.url
        self._headers = {"Authorization": f"Bearer {launch.api_key}"} if launch.api_key else {}

    async def check_health(self) -> bool:
        """Return whether the engine is healthy.

        The health route runs a forward pass; a healthy engine answers within a second.
        """
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                async with self._session.get(
                    self._url + self._engine.health_path, headers=self._headers
                ) as answer:
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

    async def _get(self, path: str, timeout: float) -> Json:
        """Return the parsed JSON of a route; None after an error or a timeout."""
        try:
            async with asyncio.timeout(timeout):
                async with self._session.get(self._url + path, headers=self._headers) as answer:
                    content: Json = await answer.json(content_type=None)
                    return content
        except (*_ERRORS, ValueError, RecursionError):
            return None
