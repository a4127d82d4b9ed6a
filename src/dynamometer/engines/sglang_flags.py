"""Recognise a command line that starts SGLang (`launch_arguments`), and read some of its flags.

SGLang itself receives and checks all flags. A worker and an exporter read only the few flags that
they need: the model, the address, the nodes and ranks, and what the engine reports.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final, NoReturn

from dynamometer import settings
from dynamometer.errors import SettingsError
from dynamometer.runtime.record import AGGREGATED, DECODE, PREFILL

MODULE_NAME: Final = "sglang.launch_server"
DEFAULT_PORT: Final = 30000
LABELS_HEADER: Final = "x-custom-labels"
# SGLang's default of --disaggregation-mode.
_NO_PHASE: Final = "null"
_SERVE: Final = ("sglang", "serve")
_SIZES: Final = (
    ("--tp-size", "--tensor-parallel-size"),
    ("--pp-size", "--pipeline-parallel-size"),
    ("--dp-size", "--data-parallel-size"),
    ("--attn-dp-size", "--attention-data-parallel-size"),
)
# RFC 9110, 5.6.2. No request has a header of another name.
_HEADER_NAME: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,256}")
_LARGEST_FILE_BYTES: Final = 1 << 20
_HOST_PORT: Final = re.compile(
    r"(?P<host>[a-z0-9._-]+|\[[a-z0-9:.%]*:[a-z0-9:.%]*\]):(?P<port>[0-9]{1,5})", re.IGNORECASE
)
LARGEST_PORT: Final = 65535


@dataclass(frozen=True, kw_only=True)
class Node:
    """One of the nodes of an engine, as `interface.Launch` describes it."""

    count: int = 1
    rank: int = 0
    group: str = ""


class _Parser(argparse.ArgumentParser):
    """A parser that accepts unique beginnings of flags, as SGLang's does, and raises its errors."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)


def launch_arguments(command: Sequence[str]) -> Sequence[str] | None:
    """Return the flags of a command line that starts SGLang; None for any other command line.

    A command that only contains such a command line (a shell's `-c`, an editor, sudo) does not
    start SGLang itself.
    """
    program = PurePath(command[0]).name if command else ""
    if (program, *command[1:2]) == _SERVE:
        return command[2:]
    if not program.startswith("python"):
        return None
    index = 1
    while index < len(command) and command[index].startswith("-") and command[index] != "-m":
        index += 2 if command[index] in ("-X", "-W") else 1
    first, second = (*command[index : index + 2], "", "")[:2]
    if "-c" in command[1:index]:
        return None
    if (first, second) == ("-m", MODULE_NAME) or (PurePath(first).name, second) == _SERVE:
        return command[index + 2 :]
    return command[index + 1 :] if first.endswith("/sglang/launch_server.py") else None


def with_config_file(arguments: Sequence[str], directory: Path | None = None) -> list[str]:
    """Return the flags of the YAML file that `--config` names, followed by `arguments`.

    SGLang reads both in this order, so that the command line overrides the file. A file that
    cannot be read adds nothing: SGLang reports the fault.

    Args:
        arguments: the flags.
        directory: the working directory of SGLang; None for the current one.
    """
    words = list(arguments)
    if "--config" not in words[:-1]:
        return words
    import yaml  # needs a megabyte, and is rarely used

    path = (directory or Path()) / words[words.index("--config") + 1]
    try:
        # Reading a pipe would block.
        if not path.is_file() or path.stat().st_size > _LARGEST_FILE_BYTES:
            return words
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return words
    if not isinstance(content, dict):
        return words
    return [word for key, value in content.items() for word in _flag(str(key), value)] + words


def _flag(key: str, value: object) -> list[str]:
    flag = f"--{key.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag] if value else []
    if isinstance(value, list):
        return [flag, *(str(item) for item in value)] if value else []
    return [flag, str(value)]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the flags of SGLang that are used here, and ignore all others.

    A flag of SGLang that is not read here must not be the beginning of one that is.

    Raises:
        SettingsError: The value of a flag is missing or not a number, or a flag is ambiguous.
    """
    parser = _Parser(add_help=False)
    parser.add_argument("--model", "--model-path", dest="model")
    parser.add_argument("--served-model-name")
    parser.add_argument("--device")
    parser.add_argument("--host")
    parser.add_argument("--port")
    parser.add_argument("--nccl-port")
    for flag, *other in _SIZES:
        parser.add_argument(flag, *other, type=int, default=1)
    parser.add_argument("--enable-dp-attention", action="store_true")
    parser.add_argument("--nnodes", type=int, default=1)
    parser.add_argument("--node-rank", type=int, default=0)
    parser.add_argument("--dist-init-addr", "--nccl-init-addr", dest="dist_init_addr")
    parser.add_argument("--api-key")
    parser.add_argument("--disaggregation-mode", default=_NO_PHASE)
    parser.add_argument("--disaggregation-transfer-backend", dest="transfer_backend")
    parser.add_argument("--disaggregation-bootstrap-port", dest="bootstrap_port", type=int)
    parser.add_argument("--enable-metrics", action="store_true")
    parser.add_argument(
        "--enable-metrics-for-all-schedulers", dest="metrics_of_all_ranks", action="store_true"
    )
    parser.add_argument(
        "--stream-response-default-include-usage", dest="stream_usage", action="store_true"
    )
    parser.add_argument(
        "--tokenizer-metrics-allowed-custom-labels", dest="custom_labels", nargs="+", default=[]
    )
    parser.add_argument(
        "--tokenizer-metrics-custom-labels-header", dest="labels_header", default=""
    )
    return parser.parse_known_args(list(arguments))[0]


def mode(flags: argparse.Namespace) -> str:
    """Return the `Record.mode` of `--disaggregation-mode`.

    Raises:
        SettingsError: The value is not one of SGLang's.
    """
    phase: str = flags.disaggregation_mode
    if phase not in (PREFILL, DECODE, _NO_PHASE):
        raise SettingsError(
            f"--disaggregation-mode {phase}: must be {PREFILL}, {DECODE} or {_NO_PHASE}"
        )
    return AGGREGATED if phase == _NO_PHASE else phase


def node(flags: argparse.Namespace) -> Node:
    """Return the node that the flags start.

    Raises:
        SettingsError: The flags contradict each other. With most of these faults, SGLang waits for
            other nodes until a timeout.
    """
    count: int = flags.nnodes
    rank: int = flags.node_rank
    if count < 1:
        raise SettingsError(f"--nnodes {count}: must be 1 or more")
    if not 0 <= rank < count:
        allowed = f"from 0 to {count - 1}" if count > 1 else "0"
        raise SettingsError(f"--node-rank {rank}: must be {allowed}, because --nnodes is {count}")
    if count == 1:
        return Node()
    if flags.dist_init_addr is None:
        raise SettingsError(
            f"--dist-init-addr is missing: with --nnodes {count}, give all nodes the same "
            "HOST:PORT, a free port of node 0"
        )
    host, address_port = rendezvous(flags)
    return Node(count=count, rank=rank, group=f"{host}:{address_port}")


def rendezvous(flags: argparse.Namespace) -> tuple[str, int]:
    """Return the host and the port of `--dist-init-addr`.

    Raises:
        SettingsError: The address is not valid.
    """
    address: str = flags.dist_init_addr
    match = _HOST_PORT.fullmatch(address)
    if match is None or not 1 <= int(match["port"]) <= LARGEST_PORT:
        raise SettingsError(
            f"--dist-init-addr {address!r}: must be HOST:PORT, with brackets around an IPv6 address"
        )
    return match["host"].lower(), int(match["port"])


def data_parallel_ranks(flags: argparse.Namespace) -> int:
    """Return the number of ranks that serve different requests."""
    ranks: int = flags.dp_size * flags.attn_dp_size
    return ranks


def ranks(flags: argparse.Namespace) -> int:
    """Return the number of scheduler processes on all nodes.

    Data-parallel attention divides the tensor-parallel ranks. `--enable-dp-attention` gives the
    number of its ranks by `--dp-size`, unless `--attn-dp-size` does.
    """
    attention = flags.enable_dp_attention and flags.attn_dp_size == 1
    replicas: int = 1 if attention else flags.dp_size
    processes: int = replicas * flags.tp_size * flags.pp_size
    return processes


def labels_header(flags: argparse.Namespace) -> str:
    """Return `Record.labels_header`: the header of the flag; empty without a valid name."""
    name: str = flags.labels_header.lower()
    return name if _HEADER_NAME.fullmatch(name) else ""


def port(flags: argparse.Namespace) -> int:
    """Return the port of `--port`; the default where the flag is missing or not a port."""
    try:
        return settings.port(flags.port or "") or DEFAULT_PORT
    except ValueError:
        return DEFAULT_PORT


def missing(flags: Mapping[str, str | None], arguments: Sequence[str]) -> list[str]:
    """Return the part of `flags` that `arguments` does not contain, as command line words.

    SGLang accepts a unique beginning of a flag as the flag.
    """
    words = {word.split("=", 1)[0].replace("_", "-") for word in arguments}
    given = tuple(word for word in words if word.startswith("--") and word != "--")
    added = (
        (flag, value)
        for flag, value in flags.items()
        if not any(flag.startswith(word) for word in given)
    )
    return [word for pair in added for word in pair if word is not None]
