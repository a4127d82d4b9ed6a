"""The expected increase of every counter and `_count` for a request: each rule once.

A request with an answer adds exact numbers. If the client closes the connection, tokens and bytes
are at least those that the client received; the number of requests is still exact.
"""

from __future__ import annotations

from counting import Got, Range, Request, at_least, exactly, key

SPLICE = b',"stream_options":{"include_usage":true}'


def of_answered(request: Request, got: Got, usage: Got | None) -> dict[str, Range]:
    """Return the increases for a request that was answered.

    Args:
        request: the request.
        got: the answer.
        usage: the event that the frontend requested and removed from the stream, if any.
    """
    adds = of_frontend(request) | of_worker(request)
    if request.sent:
        hidden = len(usage.body) if usage else 0
        adds[WORKER + "response_bytes_total"] = exactly(len(got.body) + hidden)
        adds |= of_first_bytes()
    if request.error or not request.choices:
        return adds
    tokens = (usage or got).tokens()
    adds |= of_tokens(tokens)
    content = got.content_events() if request.stream else 0
    if content:
        adds[FRONTEND + "time_to_first_token_seconds_count"] = exactly(1)
        adds[FRONTEND + "inter_token_latency_seconds_count"] = exactly(content - 1)
    return adds | of_engine(request, tokens)


def of_vanished(request: Request, got: Got) -> dict[str, Range]:
    """Return the increases for a request whose client closed the connection after reading `got`."""
    adds = of_frontend(request) | of_worker(request)
    adds[FRONTEND + "disconnected_clients"] = exactly(1)
    adds[FRONTEND + f"model_cancellation_total{kind(request)}"] = exactly(1)
    if not request.sent:
        return adds
    adds[WORKER + "cancellation_total"] = exactly(1)
    adds[WORKER + "response_bytes_total"] = at_least(len(got.body))
    # The engine counts an abort that it received once, in every phase.
    adds["sglang:num_aborted_requests_total"] = exactly(1)
    seen = got.content_events()
    if seen:
        # At least one token for each event; some streams report the tokens so far.
        said = got.tokens()
        before = {name: said[name] for name in said if name != "output"}
        adds |= of_first_bytes() | of_tokens(before)
        adds |= of_tokens({"output": max(seen, said.get("output", 0))}, least=True)
        adds[FRONTEND + "time_to_first_token_seconds_count"] = exactly(1)
        adds[FRONTEND + "inter_token_latency_seconds_count"] = at_least(seen - 1)
    return adds


def of_aborted_run(*, certain: bool = True, stream: bool = True) -> dict[str, Range]:
    """Return what SGLang adds for a request that was aborted while it ran.

    Measured: `num_requests_total` includes the request, with its tokens; a request that was still
    queued is not included. SGLang observes the first token of a unary answer after 50 tokens.

    Args:
        certain: True if the request ran; False if it may have been queued.
        stream: True if the answer is streamed.
    """
    once = exactly(1) if certain else Range(0, 1)
    return {
        "sglang:num_requests_total": once,
        "sglang:e2e_request_latency_seconds_count": once,
        "sglang:time_to_first_token_seconds_count": once if stream else Range(0, 1),
        "sglang:inter_token_latency_seconds_count": at_least(0),
        "sglang:prompt_tokens_total": at_least(0),
        "sglang:generation_tokens_total": at_least(0),
        "dynamometer_engine_prompt_tokens_total": at_least(0),
        "dynamometer_engine_cached_prompt_tokens_total": at_least(0),
        "dynamometer_engine_generation_tokens_total": at_least(0),
    }


FRONTEND, WORKER, PLANE = "dynamo_frontend_", "dynamo_component_", "dynamo_request_plane_"


def kind(request: Request, **labels: str) -> str:
    labels |= {} if request.known else {"model": "unknown_model"}
    labels |= {"request_type": "stream" if request.stream and request.read else "unary"}
    return key("", endpoint=request.route, **labels)


def of_frontend(request: Request) -> dict[str, Range]:
    status = "error" if request.error else "success"
    ended = kind(request, status=status, error_type=request.error)
    model = {} if request.known else {"model": "unknown_model"}
    adds = [
        f"requests_started_total{kind(request)}",
        f"requests_total{ended}",
        key("request_duration_seconds_count", **model),
    ]
    if request.read:
        adds.append(key("stage_duration_seconds_count", stage="preprocess"))
    if request.failure:
        failed, reason = request.failure
        adds.append(key("failures_total", reason=reason, **{"class": failed}))
        if failed == "CapacityExhausted":
            adds.append(key("model_rejection_total", endpoint=request.route, **model))
    if request.sent:
        adds.append(key("stage_duration_seconds_count", stage="route"))
    found = {FRONTEND + name: exactly(1) for name in adds}
    if request.sent:
        found[PLANE + "queue_seconds_count"] = exactly(1)
    return found


def of_worker(request: Request) -> dict[str, Range]:
    if not request.sent:
        return {}
    spliced = len(SPLICE) if request.hides_usage else 0
    return {
        WORKER + "requests_total": exactly(1),
        WORKER + "request_duration_seconds_count": exactly(1),
        WORKER + "request_bytes_total": exactly(len(request.content) + spliced),
        "sglang:http_requests_total": exactly(1),
    }


def of_first_bytes() -> dict[str, Range]:
    return {
        FRONTEND + "stage_duration_seconds_count stage=transport_roundtrip": exactly(1),
        PLANE + "roundtrip_ttft_seconds_count": exactly(1),
        "dynamo_work_handler_time_to_first_response_seconds_count": exactly(1),
    }


def of_tokens(tokens: dict[str, int], *, least: bool = False) -> dict[str, Range]:
    amount = at_least if least else exactly
    adds = {}
    for name, family in (
        ("input", "input_sequence_tokens"),
        ("output", "output_sequence_tokens"),
        ("cached", "cached_tokens"),
    ):
        if name in tokens:
            adds[f"{FRONTEND}{family}_count"] = exactly(1)
            adds[f"{FRONTEND}{family}_sum"] = amount(tokens[name])
    if "output" in tokens:
        adds[FRONTEND + "output_tokens_total"] = amount(tokens["output"])
    return adds


def of_engine(request: Request, tokens: dict[str, int]) -> dict[str, Range]:
    """Return what SGLang adds for a request that it has answered.

    Measured: for n answers to a prompt, SGLang first runs the prompt once without an answer, and
    counts a request with the tokens of the prompt. SGLang observes latencies between tokens of
    streams, and every 50 tokens of a unary answer, which is longer than any answer here.
    """
    runs = request.choices + (request.choices // request.n if request.n > 1 else 0)
    prompts = request.n + 1 if request.n > 1 else 1
    between = max(0, tokens["output"] - request.choices) if request.stream else 0
    return {
        "sglang:num_requests_total": exactly(runs),
        "sglang:e2e_request_latency_seconds_count": exactly(runs),
        "sglang:time_to_first_token_seconds_count": exactly(runs),
        "sglang:inter_token_latency_seconds_count": exactly(between),
        "sglang:prompt_tokens_total": exactly(tokens["input"] * prompts),
        "sglang:generation_tokens_total": exactly(tokens["output"]),
        "dynamometer_engine_prompt_tokens_total": exactly(tokens["input"] * prompts),
        # The number depends on the prefix cache.
        "dynamometer_engine_cached_prompt_tokens_total": Range(0, tokens["input"] * prompts),
        "dynamometer_engine_generation_tokens_total": exactly(tokens["output"]),
    }
