"""The sockets of one port."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamometer.errors import AddressError
from dynamometer.frontend.shared_port import SharedPort, listen
from dynamometer.process import private_directories


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SharedPort]:
    monkeypatch.setattr(
        private_directories, "create_memory", lambda: private_directories.create(tmp_path / "m")
    )
    port = SharedPort("127.0.0.1", 0)
    yield port
    port.close()


def number(listener: socket.socket) -> int:
    found: int = listener.getsockname()[1]
    return found


def test_each_process_has_a_socket_of_the_port(port: SharedPort) -> None:
    sockets = [port.open() for _ in range(3)]
    assert len({one.fileno() for one in sockets}) == 3
    assert {f"http://127.0.0.1:{number(one)}" for one in sockets} == {port.url}


def test_no_other_frontend_gets_the_port(port: SharedPort) -> None:
    taken = number(port.open())
    with pytest.raises(AddressError, match="already in use"):
        SharedPort("127.0.0.1", taken)
    with pytest.raises(AddressError, match="already in use"):
        listen("127.0.0.1", taken)


def test_the_last_socket_stays_open_for_the_next_process(port: SharedPort) -> None:
    first, second = port.open(), port.open()
    taken = number(first)
    port.release(first)
    port.release(second)
    assert first.fileno() == -1
    with pytest.raises(AddressError, match="already in use"):
        listen("127.0.0.1", taken)
    with socket.create_connection(("127.0.0.1", taken)):
        assert port.open() is second
        second.accept()[0].close()
    assert number(port.open()) == taken


def test_a_closed_port_is_free(port: SharedPort) -> None:
    taken = number(port.open())
    port.close()
    listen("127.0.0.1", taken).close()
