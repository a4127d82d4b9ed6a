"""The wait for an accelerator's memory; the test machine has no accelerator."""

from __future__ import annotations

import threading

import pytest

from dynamometer.engines import accelerators
from dynamometer.worker import accelerator_memory
from dynamometer.worker.accelerator_memory import AcceleratorMemory

GIB = 1 << 30


class Devices:
    """Reports the memory in use of two devices, one value of each list at a time."""

    def __init__(self, *readings: tuple[int, int]) -> None:
        self.readings = list(readings)

    def read(self) -> dict[str, int]:
        first, second = self.readings.pop(0) if self.readings[1:] else self.readings[0]
        return {"GPU-1": first, "GPU-2": second}


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator_memory, "_POLL_SECONDS", 0)


async def wait(monkeypatch: pytest.MonkeyPatch, *readings: tuple[int, int]) -> tuple[bool, int]:
    """Return the result of the wait, and the number of readings that were not needed."""
    devices = Devices(*readings)
    monkeypatch.setattr(accelerators, "memory_in_use", devices.read)
    memory = AcceleratorMemory()
    await memory.measure()
    return await memory.wait_until_free(), len(devices.readings)


async def test_a_restart_waits_until_no_device_has_more_memory_in_use_than_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    used = [(GIB, 0), (70 * GIB, 70 * GIB), (GIB, 70 * GIB), (GIB, 1 << 20), (9 * GIB, 0)]
    assert await wait(monkeypatch, *used) == (True, 1)
    (line,) = caplog.messages
    assert "waits up to 30 s until 142336 MiB of the accelerators' memory" in line


async def test_a_device_whose_memory_stays_in_use_is_waited_for_no_longer_than_the_limit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(accelerator_memory, "WAIT_SECONDS", 0)
    assert await wait(monkeypatch, (0, 0), (2 * GIB, 0)) == (True, 1)
    assert "2048 MiB of the accelerators' memory are still in use" in caplog.text


async def test_a_driver_that_hangs_is_logged_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answered = threading.Event()

    def hang() -> dict[str, int]:
        answered.wait()
        return {}

    monkeypatch.setattr(accelerators, "QUERY_SECONDS", -0.9)
    monkeypatch.setattr(accelerators, "memory_in_use", hang)
    try:
        await AcceleratorMemory().measure()
    finally:
        answered.set()
    assert "a restart does not wait until the memory is free" in caplog.text


async def test_a_machine_without_accelerators_waits_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accelerators, "memory_in_use", dict)
    memory = AcceleratorMemory()
    await memory.measure()
    assert not await memory.wait_until_free()
