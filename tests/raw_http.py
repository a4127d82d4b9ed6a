"""Requests as bytes, for what no HTTP client sends."""

from __future__ import annotations

import asyncio
import urllib.parse


async def exchange(url: str, data: bytes) -> bytes:
    """Send bytes on a connection of their own; return what is received until its end."""
    parts = urllib.parse.urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(data)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer
