"""Requests that test SGLang while it serves.

Each data-parallel rank writes a snapshot of its load to shared memory, after batches and, when it
idles, at least once a second; `/v1/loads` reads the snapshots without asking the ranks. These
members of its answer are used:

    loads[].dp_rank                 the number of the rank
    loads[].timestamp               the time of its snapshot
    loads[].num_waiting_reqs        requests in any of its queues; not those in the grammar queue

A canary is a request for one token, as SGLang's own `/health_generate` sends it. `/health_generate`
is not used, because a busy scheduler answers it without the detokenizer. A canary uses the method
PUT, which no client can use through a worker, so that `sglang:http_requests_total` counts it apart.
SGLang's other counters of requests omit a request whose `log_metrics` is false, and its exporter
omits one whose id contains `HEALTH_CHECK`; if the id started with it, a busy scheduler would drop
the request.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Final

from dynamometer.engines.interface import Probes, RankBeat
from dynamometer.names import labels
from dynamometer.runtime.record import AGGREGATED, Json

# A query that SGLang ignores, by which its access log shows these requests.
_MARK: Final = "dynamometer"
# With this host SGLang transfers no KV cache to another engine.
_FAKE_BOOTSTRAP_HOST: Final = "2.2.2.2"


def read_beats(answer: Json) -> Sequence[RankBeat]:
    """See `interface.Probes.read_beats`."""
    loads = answer.get("loads") if isinstance(answer, dict) else None
    beats = []
    for load in loads if isinstance(loads, list) else ():
        if not isinstance(load, dict):
            continue
        rank, time = load.get(labels.DP_RANK), load.get("timestamp")
        waiting = load.get("num_waiting_reqs")
        if isinstance(rank, int) and isinstance(time, int | float) and isinstance(waiting, int):
            beats.append(RankBeat(rank=rank, beat=time, waiting=waiting))
    return beats


def canary(rank: int, *, ranks: int, mode: str) -> Json:
    """See `interface.Probes.canary`."""
    body: dict[str, Json] = {
        "rid": f"{_MARK}_HEALTH_CHECK_{uuid.uuid4().hex}",
        "input_ids": [0],
        "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
        "log_metrics": False,
    }
    if ranks > 1:
        body["routed_dp_rank"] = rank
    if mode != AGGREGATED:
        body |= {"bootstrap_host": _FAKE_BOOTSTRAP_HOST, "bootstrap_room": rank}
    return body


PROBES: Final = Probes(
    beats_path=f"/v1/loads?include=core&{_MARK}",
    read_beats=read_beats,
    canary_path="/generate",
    canary=canary,
    log_line=re.compile(
        rf"GET /v1/loads\?include=core&{_MARK} |PUT /generate |{_MARK}_HEALTH_CHECK_"
        r"|Prefill batch, #new-seq: 1, #new-token: 1, #cached-token: 0,"
    ),
)
