"""deploy/dyno-exporter.service: systemd accepts it, and the rights that it leaves are enough."""

from __future__ import annotations

import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import PYTHON, Process, running
from recipes import UNIT, unit_settings, with_the_units_rights
from stack import eventually, http

ANOTHER_USER = 65534

WRITER = """
    import os, sys, time
    directory, user = sys.argv[1], int(sys.argv[2])
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    from prometheus_client import Counter
    os.chown(directory, user, user)
    os.setgid(user)
    os.setuid(user)
    Counter("sglang:num_requests_total", "Requests").inc(7)
    print("written", flush=True)
    time.sleep(300)
"""


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """Return the unit with an existing program, because systemd checks the path."""
    copy = tmp_path / UNIT.name
    program = unit_settings()["ExecStart"][0].split()[0]
    text = UNIT.read_text(encoding="utf-8")
    copy.write_text(text.replace(f"={program} ", f"={sys.executable} "), encoding="utf-8")
    return copy


def test_systemd_accepts_it(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_systemd_warns_of_a_setting_that_is_wrong(unit: Path) -> None:
    """The test above fails for such a warning."""
    unit.write_text(unit.read_text(encoding="utf-8") + "WantedBuy=x\n", encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True
    )
    assert "WantedBuy" in done.stderr


def test_systemd_calls_it_well_hardened(unit: Path) -> None:
    """systemd measures the exposure in tenths; a service that is not hardened has 96."""
    done = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=true",
            "--no-pager",
            "--threshold=30",
            str(unit),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_starts_an_exporter_and_its_file_of_variables_may_be_missing() -> None:
    _, *words = shlex.split(unit_settings()["ExecStart"][0])
    assert words == ["exporter", "$DYNO_EXPORTER_FLAGS"]
    (file,) = unit_settings()["EnvironmentFile"]
    assert file.startswith("-/")
    assert "DYN_SYSTEM_PORT=8081" in unit_settings()["Environment"]


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[tuple[Process, Path]]:
    """A process of another user, with a directory that only this user can read."""
    directory = tmp_path / "multiproc"
    directory.mkdir(mode=0o700)
    command = [PYTHON, "-c", textwrap.dedent(WRITER), str(directory), str(ANOTHER_USER)]
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    with running(command, tmp_path / "writer.log", {}) as process:
        process.wait_for("written", within=20)
        yield process, directory


def test_with_the_rights_that_it_leaves_another_users_files_are_found_and_read(
    writer: tuple[Process, Path], tmp_path: Path
) -> None:
    process, directory = writer
    variables = dict(text.split("=", 1) for text in unit_settings()["Environment"])
    variables["DYN_SYSTEM_PORT"] = "0"
    exporter = [PYTHON, "-m", "dynamometer", "exporter", "--pid", f"theirs={process.pid}"]
    with running(
        [*with_the_units_rights(), *exporter], tmp_path / "exporter.log", variables
    ) as found:
        url = found.wait_for(r"metrics and health: (\S+)/metrics", within=20)[1]
        shown = "sglang:num_requests_total{"
        eventually(lambda: shown in page(url), within=10, what=found.log)
        (line,) = [line for line in page(url).splitlines() if line.startswith(shown)]
        assert 'engine="theirs"' in line
        assert line.endswith(" 7.0")
        assert str(directory) in found.log


def page(url: str) -> str:
    return http(f"{url}/metrics").body.decode()
