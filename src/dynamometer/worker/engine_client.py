"""Asking the engine: does the model answer, what does it serve, what is it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import aiohttp

from dynamometer.engines.interface import Engine, Launch, ModelCards
from dynamometer.runtime.record import Json

_CANARY_SECONDS: Final = 30.0
_ERRORS: Final = (aiohttp.ClientError, TimeoutError, OSError)


class EngineClient:
    """Questions of the worker's own to its engine."""

    def __init__(self, session: aiohttp.ClientSession, engine: Engine, launch: Launch) -> None:
        self._session = session
        self._engine = engine
        self._url = launch.url
        self._headers = {"Authorization": f"Bearer {launch.api_key}"} if launch.api_key else {}

    async def answers(self) -> bool:
        """Return whether a forward pass came back; takes a second when all is well."""
        try:
            async with asyncio.timeout(_CANARY_SECONDS):
                async with self._session.get(
                    self._url + self._engine.health_path, headers=self._headers
                ) as answer:
                    return answer.status == 200
        except _ERRORS:
            return False

    async def models(self) -> ModelCards:
        """Return the models that the engine serves, LoRA adapters included; none where it fails."""
        return self._engine.read_models(await self._ask(self._engine.models_path, _CANARY_SECONDS))

    async def info(
        self, models: ModelCards, *, within: float = _CANARY_SECONDS
    ) -> Mapping[str, Json]:
        """Return what the engine says of itself, as a record has it; nothing where it fails.

        Args:
            models: the models that it serves.
            within: how long it may take, seconds.
        """
        return self._engine.read_info(await self._ask(self._engine.info_path, within), models)

    async def _ask(self, path: str, seconds: float) -> Json:
        """Return the answer, parsed; None where there is none in time."""
        try:
            async with asyncio.timeout(seconds):
                async with self._session.get(self._url + path, headers=self._headers) as answer:
                    content: Json = await answer.json(content_type=None)
                    return content
        except (*_ERRORS, ValueError, RecursionError):
            return None
