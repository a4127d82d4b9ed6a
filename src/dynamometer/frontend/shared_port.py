"""One port on which several processes listen, each with its own socket (SO_REUSEPORT).

The kernel distributes new connections among the listening sockets. SO_REUSEPORT also lets another
frontend of this user share the port without an error, so the port is first bound without sharing.
"""

from __future__ import annotations

import socket

from dynamometer.http import addresses
from dynamometer.process import private_directories
from dynamometer.process.locked_directories import locked

_PORT_SETTING = "--http-port, DYN_HTTP_PORT"
_HOST_SETTING = "--http-host, DYN_HTTP_HOST"


def listen(host: str, port: int) -> socket.socket:
    """Return the listening socket of a frontend of one process; see `addresses.listen`."""
    return addresses.listen(host, port, setting=_PORT_SETTING, host_setting=_HOST_SETTING)


class SharedPort:
    """The port, and the sockets of the processes that listen on it.

    At least one socket listens from the start to `close`, so that no other program can take the
    port while all processes restart.

    Attributes:
        url: the URL of the port.
    """

    def __init__(self, host: str, port: int) -> None:
        """Open the port; see `addresses.listen`.

        Args:
            host: a name or an address.
            port: the port; 0 selects any free port.

        Raises:
            SettingsError: The host is not a valid name or address of this machine.
            AddressError: The port is in use.
        """
        self._host = host
        # While the lock is held, no other frontend of this user opens a port; another user's
        # processes cannot share the port.
        with locked(private_directories.create_memory(), wait=True):
            if port:
                listen(host, port).close()
            self._spare: socket.socket | None = self._listen(port)
        self._number: int = self._spare.getsockname()[1]
        self._used = {self._spare}
        self.url = addresses.url(self._spare)

    def open(self) -> socket.socket:
        """Return a listening socket for another process; `release` closes the socket.

        Raises:
            AddressError: The socket cannot be created.
        """
        listener, self._spare = self._spare or self._listen(self._number), None
        self._used.add(listener)
        return listener

    def release(self, listener: socket.socket) -> None:
        """Close the socket of an ended process; the kernel resets connections in its queue.

        The last socket stays open: the next process uses the socket and accepts the connections.
        """
        if len(self._used) == 1:
            self._spare = listener
        else:
            self._used.discard(listener)
            listener.close()

    def close(self) -> None:
        """Stop accepting connections; the processes close their own copies of the sockets."""
        self._spare = None
        while self._used:
            self._used.pop().close()

    def _listen(self, port: int) -> socket.socket:
        return addresses.listen(
            self._host, port, setting=_PORT_SETTING, host_setting=_HOST_SETTING, shared=True
        )
