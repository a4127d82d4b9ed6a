"""An engine's files on the page, read by two threads."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from dynamometer.exporter import procfs
from dynamometer.exporter.files_source import FilesSource
from dynamometer.exporter.writers import Liveness


def write(directory: Path, process: str, value: float) -> None:
    file = MmapedDict(str(directory / f"gauge_livesum_{process}.db"))
    file.write_value(mmap_key("app_busy", "app_busy", [], [], "Busy."), value, 0.0)
    file.close()


def source(directory: Path, prefix: str = "app_") -> FilesSource:
    found = FilesSource("e", constant={}, prefixes=(prefix,), max_series=10_000, members=list)
    found.liveness = Liveness.ALIVE
    found.check([str(directory)], read=False)
    return found


def test_a_writer_that_could_not_be_checked_is_neither_dead_nor_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many open files here do not show a fault of the engine."""
    own = str(psutil.Process().pid)
    write(tmp_path, own, 1.0)
    found = source(tmp_path)

    def fail(_: psutil.Process) -> Mapping[procfs.FileId, str]:
        raise OSError(24, "Too many open files")

    found.liveness = Liveness.UNKNOWN  # with which an invisible writer is retired
    with monkeypatch.context() as context:
        context.setattr(procfs, "mapped_files", fail)
        write(tmp_path, f"{own}", 2.0)
        fresh = source(tmp_path)
        fresh.liveness = Liveness.UNKNOWN
        assert [family.name for family in fresh.families()] == ["app_busy"]
    assert fresh.families() == ()  # this process does not map the file: not its writer


def test_an_empty_selection_is_logged_once_with_the_families_that_exist(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "1", 1.0)
    found = source(tmp_path, "other_")
    assert found.families() == found.families() == ()
    (message,) = caplog.messages
    assert message == (
        "e: no family in the files begins with 'other_': select others with --prefix, such as "
        "app_busy"
    )


def test_omitted_series_are_logged_once_when_the_model_is_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = MmapedDict(str(tmp_path / "gauge_livesum_1.db"))
    for name in ("app_a", "app_b"):
        key = mmap_key(name, name, ["model_name"], ["m"], "Busy.")
        file.write_value(key, 1.0, 0.0)
    file.close()
    found = FilesSource("e", constant={}, prefixes=("app_",), max_series=1, members=list)
    found.liveness = Liveness.ALIVE
    found.check([str(tmp_path)], read=True)
    assert [family.name for family in found.families()] == ["app_a"]
    assert found.model == "m"
    assert found.errors["max_series"] == 3  # readings: with and without the label, and another
    assert caplog.text.count("of its series: more than 1 series") == 1


@pytest.mark.slow
def test_checks_and_scrapes_from_two_threads_share_no_unlocked_state(tmp_path: Path) -> None:
    found = source(tmp_path)
    stop = threading.Event()
    errors: list[BaseException] = []

    def scrape() -> None:
        try:
            while not stop.is_set():
                found.families()
                dict(found.errors)
        except BaseException as error:  # noqa: BLE001, RUF100  # shown by the assertion
            errors.append(error)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        for number in range(300):
            write(tmp_path, f"w{number}", 1.0)
            found.liveness = Liveness.ALIVE if number % 10 else Liveness.UNREACHABLE
            found.check([str(tmp_path)], read=True)
            sorted(found.names)
    finally:
        stop.set()
        thread.join()
    assert errors == []
