"""Listening sockets, and the URLs at which they are reached."""

from __future__ import annotations

import errno
import logging
import socket
from typing import Final

from dynamometer.errors import AddressError, SettingsError
from dynamometer.process.descriptors import close_in_child

logger = logging.getLogger(__name__)

# Errors for an address that this machine does not have: an address of another machine, a link-local
# address without its interface, or an IPv6 address where IPv6 is off.
_FOREIGN_ADDRESS: Final = (errno.EADDRNOTAVAIL, errno.EINVAL, errno.EAFNOSUPPORT)


def listen(
    host: str, port: int, *, setting: str, host_setting: str = "host", shared: bool = False
) -> socket.socket:
    """Return a TCP socket that listens on `host:port`.

    Args:
        host: a name or an address, IPv4 or IPv6.
        port: 0 to 65535; 0 selects any free port.
        setting: the flags and variables that set the port, for messages.
        host_setting: the flags and variables that set the host, for messages.
        shared: let other shared sockets of this user listen on the same port (SO_REUSEPORT); the
            kernel distributes the connections among all of them.

    Raises:
        SettingsError: The host is not a valid name or address, or not an address of this machine.
        AddressError: The port is in use, or this process must not listen on it.
    """
    try:
        listener = _bind(host, port, shared=shared)
    except (socket.gaierror, ValueError):
        raise _host_error(host, host_setting) from None
    except OSError as error:
        if error.errno in _FOREIGN_ADDRESS:
            raise _host_error(host, host_setting) from None
        if error.errno == errno.EADDRINUSE:
            raise AddressError(
                f"port {port} on {host} is already in use: end the process that listens there, or "
                f"choose another port ({setting})"
            ) from None
        raise AddressError(
            f"cannot listen on {host}:{port}: {error.strerror} ({setting})"
        ) from None
    listener.setblocking(False)
    return listener


def listen_optionally(
    host: str, port: int | None, *, default: int, settings: tuple[str, str], served: str = ""
) -> socket.socket | None:
    """Return the listening socket of a server that users can switch off; None if it is off.

    Args:
        host: see `listen`.
        port: the port; 0 selects any free port, -1 switches the server off. None (the user set no
            port) selects `default`, or any free port if `default` is in use.
        default: the documented port.
        settings: the flags and variables that set the host and the port, for messages.
        served: the routes of the server, for a message about another port than the documented
            one; if empty, the caller calls `warn_of_another_port` later.

    Raises:
        SettingsError: The host is not an address of this machine.
        AddressError: The port is not available.
    """
    if port == -1:
        return None
    host_setting, port_setting = settings
    if port is not None:
        return listen(host, port, setting=port_setting, host_setting=host_setting)
    try:
        listener = listen(host, default, setting=port_setting, host_setting=host_setting)
    except AddressError:
        listener = listen(host, 0, setting=port_setting, host_setting=host_setting)
    if served:
        warn_of_another_port(listener, port, default=default, served=served, setting=port_setting)
    return listener


def warn_of_another_port(
    listener: socket.socket, port: int | None, *, default: int, served: str, setting: str
) -> None:
    """Log a warning if `listen_optionally` selected another port than the documented one.

    Args:
        listener: the listening socket.
        port: the port that the user set, or None.
        default: the documented port.
        served: the routes of the server.
        setting: the flags and variables that set the port.
    """
    if port is None and listener.getsockname()[1] != default:
        logger.warning(
            "port %d is already in use: %s of this process are at %s; choose a port with %s",
            default,
            served,
            url(listener),
            setting,
        )


def _bind(host: str, port: int, *, shared: bool) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = close_in_child(socket.socket(family, kind, protocol))
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener


def _host_error(host: str, setting: str) -> SettingsError:
    return SettingsError(f"{setting}: {host!r} must be an address or a name of this machine")


def url(listener: socket.socket) -> str:
    """Return the URL at which this machine reaches `listener`: loopback for a wildcard address."""
    host, port = listener.getsockname()[:2]
    if host == "0.0.0.0":
        host = "127.0.0.1"
    elif host == "::":
        host = "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def free_port() -> int:
    """Return a loopback port that is free now, for a process that is about to start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number
