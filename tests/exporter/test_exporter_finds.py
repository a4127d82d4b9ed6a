"""An exporter beside a real SGLang that was started by its own command line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from exporting import (
    RUNTIME_LABELS,
    Exporter,
    Sglang,
    assert_same_samples,
    exporter,
    gauges,
    sglang,
)
from stack import eventually, http

pytestmark = pytest.mark.engine
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that other users can read."""
    path = tmp_path_factory.mktemp("exporter")
    for directory in (path, *path.parents[:2]):
        directory.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def engine(tiny_model: Path, place: Path) -> Iterator[Sglang]:
    with sglang(tiny_model, place / "engine.log") as found:
        found.complete(3)
        found.page()  # the first look makes a series of its own
        yield found


@pytest.fixture(scope="module")
def found(engine: Sglang, place: Path) -> Iterator[Exporter]:
    with exporter(place) as running:
        yield running.wait_until_ready(engine.name)


def files_of(engine: Sglang) -> Path:
    """Return the directory, with a random name, that SGLang created for its files."""
    for mapped in Path(f"/proc/{engine.process.pid}/maps").read_text().splitlines():
        if mapped.endswith(".db"):
            return Path(mapped.split(maxsplit=5)[5]).parent
    raise AssertionError("the engine maps no file")


def own_series(found: Exporter, engine: Sglang) -> str:
    """Return the series of this engine; others may run on this machine."""
    wanted = re.search(rf'_up{{engine="{engine.name}",worker_id="(\w+)"', found.page())
    assert wanted
    lines = found.page().splitlines()
    return "\n".join(line for line in lines if line.startswith("#") or wanted[1] in line) + "\n"


def test_without_an_option_it_finds_the_engine_its_port_and_its_files(
    found: Exporter, engine: Sglang
) -> None:
    directory = files_of(engine)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert f"{engine.name}: process {engine.process.pid} (SGLang) of " in found.log
    assert engine.url in found.log
    assert f"{engine.name}: reading its files in {directory}" in found.log


def test_its_samples_are_the_engines_own(found: Exporter, engine: Sglang) -> None:
    assert_same_samples(own_series(found, engine), engine.page())


def test_every_series_has_the_labels_that_are_known(found: Exporter, engine: Sglang) -> None:
    for family in parse(own_series(found, engine)):
        for sample in family.samples:
            if sample.name.startswith("sglang:"):
                assert sample.labels.keys() >= RUNTIME_LABELS
                assert sample.labels["model"] == "tiny"


def test_its_own_families_are_there_too(found: Exporter, engine: Sglang) -> None:
    families = {family.name for family in parse(found.page())}
    assert families >= {
        "dynamometer_engine_up",
        "dynamometer_engine_scrape_errors",
        "dynamo_component_uptime_seconds",
        "process_resident_memory_bytes",
    }
    assert http(f"{found.url}/live").status == 200
    assert f'dynamometer_engine_up{{engine="{engine.name}"' in found.page()


def test_it_is_small(found: Exporter) -> None:
    for _ in range(20):
        found.page()
    rss = psutil.Process(found.process.pid).memory_info().rss
    assert rss < 60 * 2**20, rss


def test_a_process_of_the_engine_is_enough(engine: Sglang, place: Path) -> None:
    scheduler = next(
        p for p in engine.process.descendants() if "sglang::scheduler" in p.cmdline()[0]
    )
    with exporter(place, "--pid", f"mine={scheduler.pid}") as running:
        running.wait_until_ready("mine")
        page = running.page()
        assert_same_samples(page.replace('engine="mine",', ""), engine.page())
        assert 'engine="mine"' in page


def test_the_engines_page_alone_gives_the_same(engine: Sglang, place: Path) -> None:
    with exporter(place, "--engine-url", engine.url) as running:
        running.wait_until_ready("engine")
        eventually(lambda: gauges(running.page()), within=10, what="the page fetched")
        assert_same_samples(running.page(), engine.page())
        assert 'model="tiny"' in running.page()


def test_another_user_without_rights_is_told_whose_they_are_and_has_the_page_meanwhile(
    engine: Sglang, place: Path
) -> None:
    directory = files_of(engine)
    with exporter(
        *(place, "--multiproc-dir", str(directory), "--engine-url", engine.url),
        before=NOBODY,
        DYN_FILE_KV=str(Path("/tmp") / f"dyno-test-{os.getpid()}"),
    ) as running:
        running.wait_until_ready("engine")
        assert f"no permission to read {directory}: run the exporter as root" in running.log
        eventually(lambda: gauges(running.page()), within=10, what="the page fetched")
        assert_same_samples(running.page(), engine.page())


def test_with_rights_to_read_alone_nothing_is_changed(engine: Sglang, place: Path) -> None:
    directory = files_of(engine)
    directory.chmod(0o755)
    before = state(directory)
    with exporter(
        *(place, "--multiproc-dir", str(directory), "--engine-url", engine.url),
        before=NOBODY,
        DYN_FILE_KV=str(Path("/tmp") / f"dyno-test-{os.getpid()}"),
    ) as running:
        running.wait_until_ready("engine")
        for _ in range(5):
            running.page()
        assert_same_samples(running.page(), engine.page())
        assert psutil.Process(running.process.pid).uids().effective == 65534
        assert opened_to_write(running.process.pid, directory) == []
    assert state(directory) == before
    directory.chmod(0o700)


def state(directory: Path) -> dict[str, tuple[int, ...]]:
    """Return what only a writer changes: names, owners, modes, sizes and times of the files."""
    found: dict[str, tuple[int, ...]] = {}
    for path in (directory, *directory.iterdir()):
        status = path.stat()
        found[path.name] = (
            *(status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_nlink),
            *(status.st_size, status.st_mtime_ns, status.st_ctime_ns),
        )
    return found


def opened_to_write(pid: int, directory: Path) -> list[str]:
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(descriptor).startswith(str(directory)):
            info = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text()
            flags = re.search(r"^flags:\s+(\d+)", info, re.MULTILINE)
            assert flags
            if int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY:
                found.append(os.readlink(descriptor))
    return found
