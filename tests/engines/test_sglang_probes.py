"""The requests that test SGLang while it serves."""

from __future__ import annotations

import pytest

from dynamometer.engines.interface import RankBeat
from dynamometer.engines.sglang import SGLang
from dynamometer.engines.sglang_probes import PROBES
from dynamometer.runtime.record import Json

# An answer of SGLang 0.5.23 with `--dp-size 2`, without the members that are not read.
LOADS: Json = {
    "timestamp": "2026-11-27T12:39:05.799546+00:00",
    "version": "0.5.23",
    "loads": [
        {
            "timestamp": 1795783144.815189,
            "dp_rank": 0,
            "num_running_reqs": 8,
            "num_waiting_reqs": 4,
        },
        {
            "timestamp": 1795783145.3563333,
            "dp_rank": 1,
            "num_running_reqs": 0,
            "num_waiting_reqs": 0,
        },
    ],
}


def test_each_rank_has_a_beat() -> None:
    assert PROBES.read_beats(LOADS) == [
        RankBeat(rank=0, beat=1795783144.815189, waiting=4),
        RankBeat(rank=1, beat=1795783145.3563333, waiting=0),
    ]


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {"detail": "Not Found"},
        {"loads": None},
        {"loads": [None, {"dp_rank": 0}]},
        {"loads": [{"dp_rank": "0", "timestamp": 1.0, "num_waiting_reqs": 0}]},
    ],
)
def test_an_answer_of_another_form_has_no_beats(answer: Json) -> None:
    assert PROBES.read_beats(answer) == []


def test_a_canary_is_one_token_that_is_not_counted() -> None:
    canary = PROBES.canary(0, ranks=1, mode="aggregated")
    assert isinstance(canary, dict)
    rid = canary.pop("rid")
    # With this beginning, a busy scheduler would drop the canary.
    assert isinstance(rid, str)
    assert "HEALTH_CHECK" in rid
    assert not rid.startswith("HEALTH_CHECK")
    assert canary == {
        "input_ids": [0],
        "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
        "log_metrics": False,
    }


def test_a_canary_is_for_one_rank() -> None:
    canary = PROBES.canary(1, ranks=2, mode="aggregated")
    assert isinstance(canary, dict)
    assert canary["routed_dp_rank"] == 1


@pytest.mark.parametrize("mode", ["prefill", "decode"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_canary_transfers_no_kv_cache(mode: str, rank: int) -> None:
    """A prefill engine sends it to the rank with the number of the room, modulo the ranks."""
    canary = PROBES.canary(rank, ranks=2, mode=mode)
    assert isinstance(canary, dict)
    assert (canary["bootstrap_host"], canary["bootstrap_room"]) == ("2.2.2.2", rank)


PREFILL = (
    "[2026-11-27 12:25:14 DP1] Prefill batch, #new-seq: {}, #new-token: {}, #cached-token: 0, "
)
ACCESS = '[2026-11-27 12:25:14] INFO:     127.0.0.1:39722 - "{} HTTP/1.1" 200 OK'


@pytest.mark.parametrize(
    ("line", "hidden"),
    [
        (ACCESS.format("PUT /generate"), True),
        (ACCESS.format("GET /v1/loads?include=core&dynamometer"), True),
        (ACCESS.format("POST /generate"), False),
        (ACCESS.format("GET /v1/loads?include=core"), False),
        (PREFILL.format(1, 1), True),
        (PREFILL.format(1, 12), False),
        (PREFILL.format(2, 1), False),
    ],
)
def test_lines_about_canaries_are_not_logged(line: str, hidden: bool) -> None:
    assert bool(PROBES.log_line.search(line)) is hidden


def test_the_routes_of_probes_are_not_counted_as_requests_of_clients() -> None:
    assert SGLang().probes is PROBES
    assert PROBES.beats_path.partition("?")[0] not in SGLang().routes
