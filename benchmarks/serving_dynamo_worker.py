"""A simulated engine as a worker of NVIDIA Dynamo, for `make bench-serving` with DYNAMO=1.

    serving_dynamo_worker.py MODEL TOKENS_PER_SECOND FIRST_TOKEN_SECONDS

The worker has the same rate and the same tokens as `dyno mocker`. NVIDIA Dynamo's engines run in
the worker's process, so the processor time of this process includes the engine's.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping

import uvloop
from dynamo.llm import ModelInput, ModelType, WorkerType, register_model
from dynamo.runtime import DistributedRuntime


async def serve(model: str, rate: float, first_token_seconds: float) -> None:
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp", event_plane="zmq")
    endpoint = runtime.endpoint("dynamo.mock.generate")

    async def generate(
        request: Mapping[str, object], _: object = None
    ) -> AsyncIterator[Mapping[str, object]]:
        count = int(str(request.get("max_tokens") or request.get("max_completion_tokens") or 16))
        common = {
            "id": uuid.uuid4().hex,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        start = time.perf_counter() + first_token_seconds
        for number in range(count):
            delay = start + number / rate - time.perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            reason = "length" if number == count - 1 else None
            delta = {"role": "assistant", "content": f" mock{number}"}
            yield {**common, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    await register_model(
        ModelInput.Text, ModelType.Chat, endpoint, model, model,
        worker_type=WorkerType.Aggregated, skip_model_assets=True,
    )  # fmt: skip
    print("serving", flush=True)
    await endpoint.serve_endpoint(generate)


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
