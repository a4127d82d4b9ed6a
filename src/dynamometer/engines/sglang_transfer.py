"""The transfer of KV caches from SGLang's prefill engines to its decode engines.

A decode engine asks the bootstrap server of a prefill engine for its ranks, and receives the KV
cache from them by Mooncake. All of this uses one address of each engine, its transfer address.
"""

from __future__ import annotations

import argparse
import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Final

from dynamometer.engines import sglang_flags
from dynamometer.errors import SettingsError
from dynamometer.http import addresses
from dynamometer.runtime.record import AGGREGATED, DECODE, PREFILL

_HOST_SETTING: Final = "--transfer-host, DYN_TRANSFER_HOST"
_BOOTSTRAP_FLAG: Final = "--disaggregation-bootstrap-port"
_ADDRESS_VARIABLE: Final = "SGLANG_HOST_IP"
_BROADCAST: Final = ipaddress.ip_address("255.255.255.255")
_MOONCAKE: Final = (None, "mooncake", "mooncake_tcp")
# Mooncake without an RDMA device. The early transfer of a cached prefix needs CUDA's events.
_CPU_VARIABLES: Final = {
    "MOONCAKE_PROTOCOL": "tcp",
    "MC_FORCE_TCP": "1",
    "SGLANG_DISAGG_PREFILL_EARLY_SEND_CACHED_PREFIX": "0",
}
_MOONCAKE_PACKAGE: Final = "mooncake-transfer-engine"
_PACKAGES: Final = {
    "libcurl.so.4": "libcurl4",
    "libibverbs.so.1": "libibverbs1",
    "librdmacm.so.1": "librdmacm1",
    "libnuma.so.1": "libnuma1",
}
_NO_LIBRARY: Final = re.compile(r"\bImportError: (?P<name>lib\S+): cannot open shared object file")
_NO_MOONCAKE: Final = re.compile(r"\bModuleNotFoundError: No module named 'mooncake")


def address(host: str) -> str:
    """Return the IP address of the transfer host.

    Raises:
        SettingsError: `host` is not an address of this machine, or not a single one.
    """
    with addresses.listen(host, 0, setting=_HOST_SETTING, host_setting=_HOST_SETTING) as listener:
        found: str = listener.getsockname()[0]
    parsed = ipaddress.ip_address(found)
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    if parsed.is_unspecified or parsed.is_multicast or parsed == _BROADCAST:
        raise SettingsError(
            f"{_HOST_SETTING}: {host!r} is not a single address: give the one at which the "
            "engines of the other side reach this engine"
        )
    return found


def set_address(environment: dict[str, str], transfer_address: str) -> None:
    """Let the engine transfer at an address, unless its environment has another one."""
    if not environment.get(_ADDRESS_VARIABLE):
        environment[_ADDRESS_VARIABLE] = transfer_address


def bracketed(transfer_address: str) -> str:
    """Return an IP address as the host of a URL."""
    return f"[{transfer_address}]" if ":" in transfer_address else transfer_address


def exposure(flags: argparse.Namespace, mode: str, transfer_address: str) -> Sequence[str]:
    """Return notes for the user about the ports that other machines reach."""
    notes = []
    if flags.transfer_backend in _MOONCAKE:
        notes.append(
            "Mooncake transfers KV caches without a key, and listens at all addresses of this "
            f"machine, not only at {transfer_address}: let only engines reach its ports"
        )
    if mode == PREFILL and not ipaddress.ip_address(transfer_address).is_loopback:
        advice = "" if flags.api_key else ": give --api-key, so that requests need a key"
        notes.append(f"the engine also listens for requests at {transfer_address}{advice}")
    return notes


def bootstrap(
    flags: argparse.Namespace,
    node: sglang_flags.Node,
    transfer_address: str,
    ports: dict[str, int],
    *,
    rust: bool,
) -> str | None:
    """Return `Launch.bootstrap` of a prefill engine; None on all nodes except the first one.

    Args:
        flags: the engine's flags.
        node: its node.
        transfer_address: the address of the bootstrap server.
        ports: the ports of the engine, by their flags; receives a free one for the server.
        rust: True if SGLang's Rust server, which is also the bootstrap server, has the API.

    Raises:
        SettingsError: The address or the port cannot work.
        AddressError: The port is in use.
    """
    if node.rank > 0:
        return None
    if node.count > 1:
        _require_leader_address(flags, transfer_address)
    if rust:
        port = ports["--port"]
    elif flags.bootstrap_port is None:
        port = ports[_BOOTSTRAP_FLAG] = addresses.free_port()
    else:
        port = flags.bootstrap_port
        _require_free_port(port, transfer_address)
    return f"{bracketed(transfer_address)}:{port}"


def _require_leader_address(flags: argparse.Namespace, transfer_address: str) -> None:
    """Raise an error if the bootstrap server would listen where the ranks do not register.

    All ranks of several nodes register at the host of `--dist-init-addr`.

    Raises:
        SettingsError: The addresses differ.
    """
    expected = _resolve(sglang_flags.rendezvous(flags)[0].strip("[]"))
    if expected != transfer_address:
        raise SettingsError(
            f"{_HOST_SETTING}: {transfer_address} must be {expected}, the host of "
            "--dist-init-addr: all nodes of a prefill engine use the bootstrap server there"
        )


def _resolve(host: str) -> str:
    """Return the address of the host of `--dist-init-addr`, as SGLang resolves the host.

    Raises:
        SettingsError: The host has no address.
    """
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return str(socket.getaddrinfo(host, None, flags=socket.AI_ADDRCONFIG)[0][4][0])
    except (OSError, ValueError):
        raise SettingsError(f"--dist-init-addr: the host {host!r} has no address") from None


def _require_free_port(port: int, transfer_address: str) -> None:
    """Raise an error if the bootstrap server cannot listen on the user's port.

    SGLang would serve without the server, and register its ranks at the engine that has the port.

    Raises:
        SettingsError: The value is not a port.
        AddressError: The port is in use.
    """
    if not 1 <= port <= sglang_flags.LARGEST_PORT:
        raise SettingsError(
            f"{_BOOTSTRAP_FLAG} {port}: must be a port from 1 to {sglang_flags.LARGEST_PORT}"
        )
    addresses.listen(
        transfer_address, port, setting=_BOOTSTRAP_FLAG, host_setting=_HOST_SETTING
    ).close()


def cpu_flags(mode: str) -> Mapping[str, str | None]:
    """Return the flags that an engine of this mode needs on a CPU."""
    if mode == AGGREGATED:
        return {}
    flags: dict[str, str | None] = {"--disaggregation-transfer-backend": "mooncake"}
    if mode == DECODE:
        flags["--disaggregation-decode-retraction-backup"] = "cpu_tensor"
    return flags


def cpu_variables(flags: argparse.Namespace, mode: str) -> Mapping[str, str]:
    """Return the variables that an engine of this mode needs on a CPU."""
    transfers = mode != AGGREGATED and flags.transfer_backend in _MOONCAKE
    return _CPU_VARIABLES if transfers else {}


def missing_prerequisite(log: Sequence[str]) -> str:
    """Return a hint about a library that Mooncake does not find; empty if there is none.

    SGLang only asks to install Mooncake. The exception before has the reason.
    """
    for line in reversed(log):
        if library := _NO_LIBRARY.search(line):
            name = library["name"]
            package = _PACKAGES.get(name)
            advice = f": install Debian's package {package}" if package else ""
            return f"; the shared library {name} is missing{advice}"
        if _NO_MOONCAKE.search(line):
            return f"; install {_MOONCAKE_PACKAGE}, without a GPU {_MOONCAKE_PACKAGE}-non-cuda"
    return ""
