"""Listening: a socket for an address, or a word about what stands in the way."""

from __future__ import annotations

import errno
import socket
from typing import Final

from dynamometer.errors import AddressError, SettingsError
from dynamometer.process.descriptors import close_in_child

# Of a host that is an address, but none of this machine's: another one's, a link's without its
# interface, or IPv6 where that is switched off.
_NOT_OURS: Final = (errno.EADDRNOTAVAIL, errno.EINVAL, errno.EAFNOSUPPORT)


def listen(host: str, port: int, *, setting: str, host_setting: str = "host") -> socket.socket:
    """A listening TCP socket on `host:port`; port 0 takes any free one.

    Args:
        host: a name or an address, IPv4 or IPv6.
        port: 0 to 65535.
        setting: what the user would change for another port, for the message: flag, variable.
        host_setting: likewise, for another host.

    Raises:
        SettingsError: the host is no address or name, or none of this machine's.
        AddressError: the port is taken, or may not be listened on.
    """
    try:
        listener = _listening(host, port)
    except (socket.gaierror, ValueError):
        raise _wrong(host, host_setting) from None
    except OSError as error:
        if error.errno in _NOT_OURS:
            raise _wrong(host, host_setting) from None
        if error.errno == errno.EADDRINUSE:
            why = f"port {port} on {host} is taken: end what listens there, or choose another port"
        else:
            why = f"cannot listen on {host}:{port}: {error.strerror}"
        raise AddressError(f"{why} ({setting})") from None
    listener.setblocking(False)
    return listener


def _listening(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = close_in_child(socket.socket(family, kind, protocol))
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener


def _wrong(host: str, setting: str) -> SettingsError:
    return SettingsError(f"{setting}: {host!r} must be an address or a name of this machine")


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
