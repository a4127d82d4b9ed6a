"""The members and headers by which a request is paired: SGLang with prefill and decode apart.

Both engines of a pair receive the same request, with the address of the prefill engine's bootstrap
server and a number, the room, that both use for the transfer of the KV cache. A room that two
requests use at the same time can end both engines, so that only the sender of a pair may set one.
SGLang adds 1, 2, ... to the room for the further prompts of a batch. Room 0 is reserved, and a
tensor of 64-bit integers holds rooms.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Final

from dynamometer.engines.interface import PairingFields
from dynamometer.runtime.record import Json

_LEAST_ROOM: Final = 1 << 32
_ROOM_BITS: Final = 61

FIELDS: Final = PairingFields(
    members=frozenset(
        {
            "bootstrap_host",
            "bootstrap_port",
            "bootstrap_room",
            "bootstrap_pair_key",
            "disagg_prefill_dp_rank",
            "decode_tp_size",
        }
    ),
    rank_members=frozenset({"routed_dp_rank", "data_parallel_rank"}),
    # With SGLANG_ENABLE_REQUEST_HEADER_OVERRIDES, SGLang sets members from these.
    headers=frozenset(
        {
            b"x-override-rid",
            b"x-override-bootstrap-host",
            b"x-override-bootstrap-port",
            b"x-override-bootstrap-room",
            b"x-override-conversation-id",
            b"x-override-routed-dp-rank",
            b"x-override-disagg-prefill-dp-rank",
            b"x-override-priority",
        }
    ),
    rank_headers=frozenset({b"x-data-parallel-rank"}),
)


def pair_members(bootstrap: str) -> Mapping[str, Json]:
    """See `interface.Engine.pair_members`."""
    host, _, port = bootstrap.rpartition(":")
    return {
        "bootstrap_host": host.removeprefix("[").removesuffix("]"),
        "bootstrap_port": int(port),
        "bootstrap_room": _LEAST_ROOM + secrets.randbits(_ROOM_BITS),
    }
