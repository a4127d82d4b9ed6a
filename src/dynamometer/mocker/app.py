"""The HTTP routes of the simulated engine: chats and completions, health, models, metrics."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from dynamometer.runtime.record import AGGREGATED, PREFILL

if TYPE_CHECKING:  # the module is imported when its variable is set
    from dynamometer.mocker.simulated_metrics import SimulatedMetrics


@dataclass(frozen=True, kw_only=True)
class Options:
    """The model and the speed of the simulated engine.

    Attributes:
        model: the served name.
        tokens_per_second: the rate of each stream.
        first_token_seconds: the time before the first token of an answer.
        stream_usage: end every stream with its usage, requested or not.
        context_length: the largest number of tokens in an answer.
        max_running_requests: the limit that `/server_info` reports; not enforced.
        kv_tokens: the capacity of the simulated KV cache, tokens.
        page_size: the tokens in one block of the cache.
        mode: all of the work, or only its prefill or decode phase; see `Record.mode`.
        node_rank: the number of the node; a node other than 0 answers no requests.
    """

    model: str
    tokens_per_second: float
    first_token_seconds: float
    stream_usage: bool = False
    context_length: int = 32768
    max_running_requests: int = 256
    kv_tokens: int = 8 * 32768
    page_size: int = 1
    mode: str = AGGREGATED
    node_rank: int = 0


class SimulatedEngine:
    """The handlers of the simulated engine's routes."""

    def __init__(self, options: Options, metrics: SimulatedMetrics) -> None:
        self._options = options
        self._metrics = metrics

    def application(self) -> web.Application:
        """Return the application with all routes."""
        app = web.Application(client_max_size=2**30)
        for path in ("/health", "/health_generate", "/ready"):
            app.router.add_get(path, self._health)
        app.router.add_get("/metrics", self._page)
        if self._options.node_rank > 0:
            return app
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_get("/v1/models", self._models)
        for path in ("/server_info", "/get_server_info"):
            app.router.add_get(path, self._server_info)
        for path in ("/get_model_info", "/model_info"):
            app.router.add_get(path, self._model_info)
        return app

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=True)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=False)

    async def _answer(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        try:
            body = json.loads(await request.read())
            requested = body.get("max_completion_tokens", body.get("max_tokens"))
            count = 16 if requested is None else int(requested)
            usage = (body.get("stream_options") or {}).get("include_usage") is True
            usage = usage or self._options.stream_usage
            if not 1 <= count <= self._options.context_length:
                raise ValueError("max_tokens is out of range")
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            return _bad_request("invalid request")
        if self._options.mode != AGGREGATED and not isinstance(body.get("bootstrap_room"), int):
            return _bad_request("Disaggregated request received without bootstrap room id")
        if self._options.mode == PREFILL:
            count = 1
        prompt = len(json.dumps(body.get("messages") or body.get("prompt") or "").split())
        answer = _Answer(self._options.model, chat=chat, prompt=prompt)
        start = time.perf_counter()
        aborted = True
        self._metrics.begin()
        try:
            if body.get("stream"):
                response = await self._stream(request, answer, count, usage)
            else:
                async for _ in self._tokens(count, answer):
                    pass
                response = web.json_response(answer.body())
            aborted = False
            return response
        finally:
            self._metrics.end(
                prompt=prompt,
                generated=answer.generated,
                seconds=time.perf_counter() - start,
                aborted=aborted,
            )

    async def _tokens(self, count: int, answer: _Answer) -> AsyncIterator[int]:
        """Yield the index of each token at the time when the token is due."""
        start = time.perf_counter()
        for number in range(count):
            due = start + self._options.first_token_seconds
            due += number / self._options.tokens_per_second
            delay = due - time.perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            if number == 0:
                self._metrics.first_token(time.perf_counter() - start)
            answer.generated += 1
            yield number

    async def _stream(
        self, request: web.Request, answer: _Answer, count: int, usage: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        async for number in self._tokens(count, answer):
            await response.write(answer.event(number, last=number == count - 1))
        if usage:
            await response.write(answer.usage_event())
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _models(self, _: web.Request) -> web.Response:
        card = {
            "id": self._options.model,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "mocker",
            "root": self._options.model,
            "parent": None,
            "max_model_len": self._options.context_length,
        }
        return web.json_response({"object": "list", "data": [card]})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _server_info(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "version": "mocker",
                "model_path": self._options.model,
                "context_length": self._options.context_length,
                "page_size": self._options.page_size,
                "max_total_num_tokens": self._options.kv_tokens,
                "max_running_requests": self._options.max_running_requests,
                "max_prefill_tokens": 16384,
            }
        )

    async def _model_info(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "model_path": self._options.model,
                "served_model_name": self._options.model,
                "is_generation": True,
            }
        )

    async def _page(self, _: web.Request) -> web.Response:
        page = await asyncio.to_thread(self._metrics.page)
        return web.Response(body=page, headers={"Content-Type": "text/plain; version=0.0.4"})


class _Answer:
    """One answer in OpenAI's format."""

    def __init__(self, model: str, *, chat: bool, prompt: int) -> None:
        self._chat = chat
        self._prompt = prompt
        self.generated = 0
        self._common: Mapping[str, object] = {
            "id": uuid.uuid4().hex,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": "mocker",
        }

    @property
    def _usage(self) -> Mapping[str, int]:
        total = self._prompt + self.generated
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": self.generated,
            "total_tokens": total,
        }

    def body(self) -> Mapping[str, object]:
        text = "".join(map(_word, range(self.generated)))
        message = {"role": "assistant", "content": text}
        content = {"message": message} if self._chat else {"text": text}
        kind = "chat.completion" if self._chat else "text_completion"
        choice = {"index": 0, **content, "finish_reason": "length"}
        return {**self._common, "object": kind, "choices": [choice], "usage": self._usage}

    def event(self, number: int, *, last: bool) -> bytes:
        content = {"delta": {"content": _word(number)}} if self._chat else {"text": _word(number)}
        choice = {"index": 0, **content, "finish_reason": "length" if last else None}
        return self._chunk({"choices": [choice]})

    def usage_event(self) -> bytes:
        return self._chunk({"choices": [], "usage": self._usage})

    def _chunk(self, content: Mapping[str, object]) -> bytes:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return (
            b"data: " + json.dumps({**self._common, "object": kind, **content}).encode() + b"\n\n"
        )


def _bad_request(reason: str) -> web.Response:
    message = {"object": "error", "message": reason, "code": 400}
    return web.json_response(message, status=400)


def _word(number: int) -> str:
    """Return the text of a token: its number, so that a client can check the order."""
    return f" mock{number}"
