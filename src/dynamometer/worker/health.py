"""Asking the engine: does the model answer, what does it serve, what is it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import aiohttp

from dynamometer.engines.interface import Launch, ModelCards
from dynamometer.engines.server_info import engine_info
from dynamometer.names import label_value
from dynamometer.runtime.record import Json

_CANARY_SECONDS: Final = 30.0
_ERRORS: Final = (aiohttp.ClientError, TimeoutError, OSError)


class EngineClient:
    """Questions of the worker's own to its engine."""

    def __init__(self, session: aiohttp.ClientSession, launch: Launch, health_path: str) -> None:
        self._session = session
        self._url = launch.url
        self._health_path = health_path
        self._headers = {"Authorization": f"Bearer {launch.api_key}"} if launch.api_key else {}

    async def answers(self) -> bool:
        """Whether a forward pass came back; takes a second with SGLang when all is well."""
        try:
            async with asyncio.timeout(_CANARY_SECONDS):
                async with self._session.get(
                    self._url + self._health_path, headers=self._headers
                ) as answer:
                    return answer.status == 200
        except _ERRORS:
            return False

    async def models(self) -> ModelCards:
        """The names that the engine serves, LoRA adapters included; empty where it fails."""
        try:
            async with asyncio.timeout(_CANARY_SECONDS):
                async with self._session.get(
                    self._url + "/v1/models", headers=self._headers
                ) as answer:
                    listed = await answer.json(content_type=None)
            cards = {str(card["id"]): card for card in listed["data"]}
            return ModelCards(
                cards={name: cards[name] for name in cards if label_value(name) == name}
            )
        except (*_ERRORS, ValueError, KeyError, TypeError, RecursionError):
            return ModelCards()

    async def info(
        self, models: ModelCards, *, within: float = _CANARY_SECONDS
    ) -> Mapping[str, Json]:
        """What the engine says of itself, as a record has it; empty where it fails.

        Args:
            models: what it serves.
            within: how long it may take, seconds.
        """
        try:
            async with asyncio.timeout(within):
                async with self._session.get(
                    self._url + "/server_info", headers=self._headers
                ) as answer:
                    return engine_info(await answer.json(content_type=None), models)
        except (*_ERRORS, ValueError, RecursionError):
            return {}
