"""Connections to the next hop that fail, with plain reasons."""

from __future__ import annotations

import asyncio

import pytest
from multidict import CIMultiDict
from yarl import URL

from dynamometer.http import relay
from processes import refusing_port


async def exchange(port: int) -> None:
    async with relay.client(keepalive_seconds=1) as session:
        url = URL(f"http://127.0.0.1:{port}/v1/completions")
        async with relay.exchange(session, url, b"{}", CIMultiDict()):
            pass


async def test_a_refused_connection_has_a_plain_reason() -> None:
    with pytest.raises(relay.NotReachedError, match=r"^Connection refused$"):
        await exchange(refusing_port())


async def test_a_connection_that_breaks_before_the_answer_has_a_plain_reason() -> None:
    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    try:
        with pytest.raises(relay.BrokenError, match=r"^(Server disconnected|Connection reset)"):
            await exchange(server.sockets[0].getsockname()[1])
    finally:
        server.close()
