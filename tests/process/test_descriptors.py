"""A child of `fork` closes the descriptors of its parent."""

from __future__ import annotations

import fcntl
import gc
import os
import socket
import weakref
from collections.abc import Callable
from pathlib import Path

from dynamometer.http import addresses
from dynamometer.process.descriptors import CLOSED, Descriptor


def opened(path: Path) -> Descriptor:
    return Descriptor(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC))


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def in_child(check: Callable[[], bool]) -> bool:
    """Return the result of `check` in a child of `fork`."""
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            status = 0 if check() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_child_closes_it_and_its_parent_goes_on(tmp_path: Path) -> None:
    one = opened(tmp_path / "one")
    number = one.number
    assert in_child(lambda: one.number == CLOSED and not is_open(number))
    assert is_open(one.number)
    one.close()


def test_a_number_that_the_child_uses_again_is_not_closed(tmp_path: Path) -> None:
    """The parent's object is deleted after the child has opened a file with the same number."""
    held = [opened(tmp_path / "one")]
    number = held[0].number

    def check() -> bool:
        os.dup2(os.open(tmp_path / "one", os.O_RDONLY), number)
        held.clear()
        gc.collect()
        return is_open(number)

    assert in_child(check)


def test_a_descriptor_goes_with_its_object(tmp_path: Path) -> None:
    one = opened(tmp_path / "one")
    number, gone = one.number, weakref.ref(one)
    del one
    assert gone() is None
    assert not is_open(number)


def test_closing_twice_closes_nothing_else(tmp_path: Path) -> None:
    one = opened(tmp_path / "one")
    number = one.number
    one.close()
    other = opened(tmp_path / "other")
    assert other.number == number
    one.close()
    assert is_open(other.number)


def test_the_parents_lock_does_not_outlive_it_in_a_child(tmp_path: Path) -> None:
    one = opened(tmp_path / "lock")
    fcntl.flock(one.number, fcntl.LOCK_EX)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        os.read(reading, 1)  # lives until the parent has checked
        os._exit(0)
    os.close(reading)
    try:
        os.write(writing, b"")
        # The child closes its copy right after the fork; the lock itself stays its parent's.
        one.close()
        other = opened(tmp_path / "lock")
        fcntl.flock(other.number, fcntl.LOCK_EX)  # waits at most until the child closes its copy
        other.close()
    finally:
        os.close(writing)
        os.waitpid(pid, 0)


def test_a_listening_socket_does_not_outlive_its_process_in_a_child() -> None:
    listener = addresses.listen("127.0.0.1", 0, setting="port")
    port = listener.getsockname()[1]
    assert in_child(lambda: listener.fileno() == CLOSED)
    with socket.create_connection(("127.0.0.1", port)):
        pass
    listener.close()
