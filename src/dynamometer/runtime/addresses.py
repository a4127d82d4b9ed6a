"""Listening: a socket for an address, or a word about what stands in the way."""

from __future__ import annotations

import errno
import socket

from dynamometer.errors import AddressError


def listen(host: str, port: int, *, setting: str) -> socket.socket:
    """A listening TCP socket on `host:port`; port 0 takes any free one.

    Args:
        host: a name or an address, IPv4 or IPv6.
        port: 0 to 65535.
        setting: what the user would change, for the message: a flag or a variable.

    Raises:
        AddressError: the address is taken, or is none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise AddressError(f"{host!r} is no address that can be listened on ({setting})") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            why = f"port {port} on {host} is taken: end what listens there, or choose another port"
        else:
            why = f"cannot listen on {host}:{port}: {error.strerror}"
        raise AddressError(f"{why} ({setting})") from None
    listener.setblocking(False)
    return listener


def url(listener: socket.socket) -> str:
    """The URL under which this machine reaches `listener`: a wildcard becomes loopback."""
    host, port = listener.getsockname()[:2]
    if host == "0.0.0.0":
        host = "127.0.0.1"
    elif host == "::":
        host = "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def free_port() -> int:
    """A loopback port that was free a moment ago, for a process that we start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number
