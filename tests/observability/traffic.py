"""Requests that change every family of a plain engine: answers, errors, queues and aborts."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from stack import http as ask

# A pool of KV cache that a few requests fill, so that the engine evicts, retracts and queues.
SMALL_POOL = (
    *("--max-total-tokens", "1024", "--max-running-requests", "4"),
    *("--schedule-conservativeness", "0.01"),
)
# The flags of an engine with its optional families too.
FLAGS = (*SMALL_POOL, "--enable-mfu-metrics")
LONG_TOKENS = 256
REQUESTS = 6


class Traffic:
    """Clients of one model at a frontend."""

    def __init__(self, frontend: str, model: str) -> None:
        self._frontend = frontend
        self._model = model

    def send_all(self) -> None:
        """Send each kind of request, and wait for all answers."""
        self.answers()
        self.errors()
        self.leave()
        self.fill()

    def answers(self) -> None:
        """Request answers in every form, twice, so that the second prompt is in the cache."""
        prompt = "The same prompt for every request. " * 8
        chat = {"messages": [{"role": "user", "content": prompt}]}
        for _ in range(2):
            for stream in (True, False):
                self._expect(200, "/v1/chat/completions", {**chat, "stream": stream})
                self._expect(200, "/v1/completions", {"prompt": prompt, "stream": stream})
        sampling = {"sampling_params": {"max_new_tokens": 8}}
        self._expect(200, "/generate", {"text": prompt, **sampling})

    def errors(self) -> None:
        self._expect(404, "/v1/completions", {"prompt": "hi", "model": "unknown"})
        self._expect(400, "/v1/completions", {"prompt": "hi", "temperature": -1})
        self._expect(400, "/v1/embeddings", {"input": "hi"})
        assert ask(f"{self._frontend}/v1/completions", b"{").status == 400

    def leave(self) -> None:
        """Close the connection in the middle of a stream."""
        address = urllib.parse.urlsplit(self._frontend)
        client = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
        body = self._body({"prompt": "on and on", "stream": True, "max_tokens": 900})
        headers = {"Content-Type": "application/json"}
        client.request("POST", "/v1/completions", json.dumps(body), headers)
        client.getresponse().read(300)
        client.close()

    def fill(self) -> None:
        """Send more long requests at the same time than the engine runs, or has room for.

        SGLang reserves room for the whole answer of a request that ignores the end of text.
        """

        def one(number: int) -> None:
            prompt = f"{number} is the number of this prompt. " * 4
            length = {"max_tokens": LONG_TOKENS, "min_tokens": LONG_TOKENS, "ignore_eos": False}
            body = {"prompt": prompt, "stream": number % 2 == 0, **length}
            self._expect(200, "/v1/completions", body)

        with ThreadPoolExecutor(REQUESTS) as pool:
            list(pool.map(one, range(REQUESTS)))

    def fail(self) -> int:
        """Send a request while no worker is ready, and return the status of the answer."""
        return ask(f"{self._frontend}/v1/completions", self._body({"prompt": "hi"})).status

    def _body(self, own: Mapping[str, object]) -> Mapping[str, object]:
        return {"model": self._model, "max_tokens": 8, "ignore_eos": True, **own}

    def _expect(self, status: int, path: str, own: Mapping[str, object]) -> None:
        answer = ask(f"{self._frontend}{path}", self._body(own))
        assert answer.status == status, (path, own, answer.status, answer.body)
