"""Send requests to a frontend for `make bench-dynamo`, and print the requests per second.

Requests alternate between streamed chats and completions without streaming. The temperature is
0, so that the same requests generate the same tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

import aiohttp

TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="the URL of a frontend")
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--clients", type=int, default=4)
    options = parser.parse_args()
    start = time.perf_counter()
    try:
        asyncio.run(serve(options.url, options.model, options.requests, options.clients))
    except (RuntimeError, OSError, aiohttp.ClientError) as error:
        sys.exit(str(error))
    print(options.requests / (time.perf_counter() - start))


async def serve(url: str, model: str, requests: int, clients: int) -> None:
    numbers = iter(range(requests))
    common = {"model": model, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    chat = {"messages": [{"role": "user", "content": "Once upon a time"}], "stream": True}

    async def client(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            streamed = number % 2 == 0
            path = "/v1/chat/completions" if streamed else "/v1/completions"
            body = common | (chat if streamed else {"prompt": f"There were {number} of them"})
            async with session.post(url + path, json=body) as answer:
                text = await answer.text()
                if answer.status != 200:
                    raise RuntimeError(f"{path} answered {answer.status}: {text[:500]}")

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))


if __name__ == "__main__":
    main()
