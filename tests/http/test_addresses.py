"""The addresses to listen on, and the messages for addresses that cannot be used."""

from __future__ import annotations

import errno
import socket

import pytest

from dynamometer.errors import AddressError, SettingsError
from dynamometer.http import addresses


@pytest.mark.parametrize(
    "host",
    [
        "300.1.1.1",
        "nope.invalid",
        "",
        "a b",
        "a\0b",
        "x" * 300,
        "192.0.2.1",
        "2001:db8::1",
        "fe80::1",
    ],
)
def test_a_host_of_another_machine_is_a_wrong_value(host: str) -> None:
    with pytest.raises(SettingsError) as raised:
        addresses.listen(host, 0, setting="--port", host_setting="--host")
    assert str(raised.value) == f"--host: {host!r} must be an address or a name of this machine"


def test_a_port_in_use_is_not_a_wrong_value() -> None:
    with addresses.listen("localhost", 0, setting="--port") as used:
        port = used.getsockname()[1]
        message = rf"port {port} on localhost is already in use: .* \(--port\)"
        with pytest.raises(AddressError, match=message):
            addresses.listen("localhost", port, setting="--port")


def test_a_missing_descriptor_is_not_reported_as_a_wrong_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", fail)
    with pytest.raises(AddressError, match=r"cannot listen on 127.0.0.1:0: Too many open files"):
        addresses.listen("127.0.0.1", 0, setting="--port")
