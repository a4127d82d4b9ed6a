"""The user, files and name of a process in /proc."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
from prometheus_client.mmap_dict import MmapedDict

from dynamometer.exporter import procfs

OWN = psutil.Process()


def test_a_user_with_a_number_alone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert procfs.own_user() == f"user {os.geteuid()}"


def test_mapped_and_open_files_are_the_multiprocess_files_of_a_process(tmp_path: Path) -> None:
    path = tmp_path / "a file of counters.db"
    file = MmapedDict(str(path))
    with (tmp_path / "log.txt").open("w"):
        expected = {procfs.file_id(str(path)): str(path)}
        assert expected.items() <= procfs.mapped_files(OWN).items()
        assert expected.items() <= procfs.open_files(OWN).items()
        found = {*procfs.mapped_files(OWN).values(), *procfs.open_files(OWN).values()}
        assert all(name.endswith(".db") for name in found)
    file.close()
    assert str(path) not in procfs.open_files(OWN).values()


def test_a_removed_file_is_not_among_the_files(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    file = MmapedDict(str(path))
    path.unlink()
    assert str(path) not in procfs.mapped_files(OWN).values()
    assert str(path) not in procfs.open_files(OWN).values()
    file.close()


def test_files_of_an_ended_process_are_an_error() -> None:
    child = psutil.Popen(["true"])
    child.wait()
    with pytest.raises(OSError, match="No such"):
        procfs.mapped_files(child)


@pytest.mark.parametrize(
    ("name", "shown"),
    [("sglang::scheduler", "sglang::scheduler"), ("a\nb", r"a\nb"), ("\udcff", r"\udcff")],
)
def test_a_name_with_line_ends_or_odd_bytes_is_escaped(name: str, shown: str) -> None:
    assert procfs.printable(name) == shown


def test_a_process_of_the_same_namespaces_has_the_same_paths_pid_and_network() -> None:
    assert procfs.root_prefix(OWN) == ""
    assert procfs.own_pid(OWN) == str(os.getpid())
    assert procfs.shares_network(OWN)
