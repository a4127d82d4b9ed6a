"""Files of invisible writers: in a container beside the engine, or of another user."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from dynamometer.http.addresses import free_port
from exporting import Exporter, Page, Writer, exporter, gauges, total
from stack import eventually

pytestmark = pytest.mark.slow

SIDECAR = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
# A pid of another namespace; a number that is the exporter's own in its namespace; a name.
IDENTIFIERS = ("", "1", "worker-a")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    path = tmp_path / "files"
    path.mkdir(mode=0o755)
    for directory in (path, *path.parents[:3]):
        directory.chmod(0o755)
    return path


class Engine:
    """The URL of an engine that can be stopped and restarted."""

    def __init__(self) -> None:
        self.port = free_port()
        self._page: Page | None = None
        self.begin()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def begin(self) -> None:
        self._page = Page(self.port, "", paths=("/health",))

    def end(self) -> None:
        if self._page is not None:
            self._page.end()
            self._page = None


@pytest.fixture
def engine() -> Iterator[Engine]:
    found = Engine()
    yield found
    found.end()


def busy(found: Exporter) -> list[float]:
    return [
        sample.value
        for family in parse(found.page())
        for sample in family.samples
        if sample.name == "app_busy"
    ]


def flags(files: Path, engine: Engine) -> tuple[str, ...]:
    return ("--multiproc-dir", str(files), "--engine-url", engine.url, "--prefix", "app_")


@pytest.mark.parametrize("identifier", IDENTIFIERS)
def test_gauges_of_an_idle_writer_stand_while_its_url_answers(
    identifier: str, files: Path, engine: Engine, tmp_path: Path
) -> None:
    with (
        Writer(files, 3.0, identifier=identifier) as writer,
        exporter(tmp_path, *flags(files, engine), before=SIDECAR) as found,
    ):
        found.wait_until_ready("engine")
        assert busy(found) == [3.0]
        assert total(found.page(), "app_requests_total") == 3.0
        engine.end()
        eventually(lambda: not found.ready("engine"), within=5, what=f"ended\n{found.log}")
        eventually(lambda: busy(found) == [], within=5, what=f"gauges gone\n{found.page()}")
        assert total(found.page(), "app_requests_total") == 3.0
        engine.begin()
        found.wait_until_ready("engine")
        eventually(lambda: busy(found) == [3.0], within=5, what=f"gauges back\n{found.page()}")
        assert total(found.page(), "app_requests_total") == 3.0
        writer.count()
        assert total(found.page(), "app_requests_total") == 4.0
        assert busy(found) == [3.0]


def test_gauges_of_the_engine_before_do_not_come_back_with_the_next_one(
    files: Path, engine: Engine, tmp_path: Path
) -> None:
    with exporter(tmp_path, *flags(files, engine), before=SIDECAR) as found:
        with Writer(files, 3.0):
            found.wait_until_ready("engine")
            assert busy(found) == [3.0]
        engine.end()
        eventually(lambda: busy(found) == [], within=8, what=f"gauges gone\n{found.log}")
        with Writer(files, 2.0):
            engine.begin()
            found.wait_until_ready("engine")
            eventually(lambda: busy(found) == [2.0], within=5, what=f"{busy(found)}\n{found.log}")
            assert total(found.page(), "app_requests_total") == 5.0


def test_an_engine_whose_url_answers_before_it_writes_is_another_one_too(
    files: Path, engine: Engine, tmp_path: Path
) -> None:
    with exporter(tmp_path, *flags(files, engine), before=SIDECAR) as found:
        with Writer(files, 3.0):
            found.wait_until_ready("engine")
            assert busy(found) == [3.0]
        engine.end()
        eventually(lambda: busy(found) == [], within=8, what=f"gauges gone\n{found.log}")
        engine.begin()
        found.wait_until_ready("engine")
        with Writer(files, 2.0):
            eventually(lambda: busy(found) == [2.0], within=5, what=f"{busy(found)}\n{found.log}")


def test_gauges_of_another_users_idle_writer_stand_while_its_url_answers(
    files: Path, engine: Engine, tmp_path: Path
) -> None:
    with Writer(files, 3.0) as writer:
        for path in files.iterdir():
            path.chmod(0o644)
            os.utime(path, (1.0, 1.0))  # older than any process
        discovery = f"/tmp/dyno-test-{os.getpid()}"
        command = flags(files, engine)
        with exporter(tmp_path, *command, before=NOBODY, DYN_FILE_KV=discovery) as found:
            found.wait_until_ready("engine")
            # The engine is ready by its URL even if the check of the files is late.
            eventually(lambda: busy(found) == [3.0], within=5, what=f"gauges\n{found.log}")
            writer.kill()
            engine.end()
            eventually(lambda: busy(found) == [], within=8, what=f"gauges gone\n{found.log}")
            assert total(found.page(), "app_requests_total") == 3.0


def test_a_dead_writer_beside_one_that_is_seen_has_no_gauges(
    files: Path, engine: Engine, tmp_path: Path
) -> None:
    """A visible writer shows that pids in file names are pids here: a missing pid has ended."""
    with Writer(files, 5.0):
        pass
    with Writer(files, 3.0), exporter(tmp_path, *flags(files, engine)) as found:
        found.wait_until_ready("engine")
        eventually(lambda: busy(found) == [3.0], within=5, what=f"{busy(found)}\n{found.log}")
        assert total(found.page(), "app_requests_total") == 8.0


def test_without_a_url_the_gauges_come_when_a_counter_moves_and_health_says_why(
    files: Path, tmp_path: Path
) -> None:
    given = ("--multiproc-dir", str(files), "--prefix", "app_")
    with Writer(files, 3.0) as writer, exporter(tmp_path, *given, before=SIDECAR) as found:
        eventually(lambda: "engine" in found.health()[1]["reasons"], within=5, what="a reason")
        eventually(
            lambda: (
                "If the engine is only idle, give its address with --engine-url"
                in found.health()[1]["reasons"]["engine"]
            ),
            within=5,
            what=f"{found.health()}",
        )
        assert gauges(found.page(), "app_") == set()
        writer.count()
        eventually(lambda: busy(found) == [3.0], within=8, what=f"{busy(found)}\n{found.log}")
        found.wait_until_ready("engine")
        assert total(found.page(), "app_requests_total") == 4.0
