"""`keep_totals` protects totals from one odd reading: no total rises or falls by it.

Each case is a state of the files that lasts for a reading, and what is there afterwards.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bytes_of_files import content, entry, key
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pages import values

from dynamometer.multiprocess import MultiprocessDirectory

SIZE = 4096
Glitch = Callable[[Path], Iterator[None]]


def counted(c: float, *, used: int | None = None) -> bytes:
    """Return the bytes of a counter file with three series, of which the last is zero."""
    first = entry(key("c", "c_total", {}), c)
    more = entry(key("d", "d_total", {"k": "1"}), c / 2), entry(key("d", "d_total", {"k": "2"}), 0)
    return content(first, *more, used=used, size=SIZE)


def histogram(count: float) -> bytes:
    buckets = [
        entry(key("h", "h_bucket", {"le": bound}), count / 2) for bound in ("1.0", "5.0", "+Inf")
    ]
    return content(*buckets, entry(key("h", "h_sum", {}), count * 2), size=SIZE)


def in_place(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        file.truncate(len(data))
        file.write(data)


def replace(path: Path, data: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(data)
    fresh.replace(path)


def failing(name: str, code: int) -> Glitch:
    """Make a function of `os` fail for paths in the directory, and for descriptors of them."""

    @contextmanager
    def glitch(directory: Path) -> Iterator[None]:
        real = getattr(os, name)

        def fail(subject: str | int, *arguments: object, **more: object) -> object:
            path = os.readlink(f"/proc/self/fd/{subject}") if isinstance(subject, int) else subject
            if str(path).startswith(str(directory)):
                raise OSError(code, os.strerror(code))
            return real(subject, *arguments, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, name, fail)
            yield

    return glitch  # type: ignore[return-value]


def bytes_once(
    change: Callable[[bytes], bytes], write: Callable[[Path, bytes], None] = in_place
) -> Glitch:
    """Write other bytes into the files, and then the former bytes again."""

    @contextmanager
    def glitch(directory: Path) -> Iterator[None]:
        before = {path: path.read_bytes() for path in directory.iterdir()}
        for path, data in before.items():
            write(path, change(data))
        yield
        for path, data in before.items():
            write(path, data)

    return glitch  # type: ignore[return-value]


@contextmanager
def moved_file(directory: Path) -> Iterator[None]:
    paths = list(directory.iterdir())
    for path in paths:
        path.rename(path.with_suffix(".away"))
    yield
    for path in paths:
        path.with_suffix(".away").rename(path)


@contextmanager
def moved_directory(directory: Path) -> Iterator[None]:
    directory.rename(directory.with_name("away"))
    yield
    directory.with_name("away").rename(directory)


@contextmanager
def copied_directory(directory: Path) -> Iterator[None]:
    shutil.copytree(directory, directory.with_name("copy"))
    shutil.rmtree(directory)
    yield
    directory.with_name("copy").rename(directory)


def zero_values(data: bytes) -> bytes:
    return counted(0) if b'"c_total"' in data else histogram(0)


def a_little_less(data: bytes) -> bytes:
    return counted(98) if b'"c_total"' in data else histogram(98)


def far_less(data: bytes) -> bytes:
    return counted(2) if b'"c_total"' in data else histogram(2)


def one_series_less(data: bytes) -> bytes:
    if b'"c_total"' not in data:
        return data
    return content(entry(key("c", "c_total", {}), 100.0), size=SIZE)


GLITCHES: dict[str, Glitch] = {
    "the files are missing": moved_file,  # type: ignore[dict-item]
    "the directory is missing": moved_directory,  # type: ignore[dict-item]
    "the directory is missing, and is another with the same files": copied_directory,  # type: ignore[dict-item]
    "the directory may not be listed": failing("scandir", errno.EACCES),
    "the directory may not be looked at": failing("stat", errno.EACCES),
    "a stale network directory": failing("stat", errno.ESTALE),
    "the files may not be opened": failing("open", errno.EACCES),
    "no descriptor is free": failing("open", errno.EMFILE),
    "an error of the disk": failing("preadv", errno.EIO),
    "read as zeros": bytes_once(lambda data: bytes(len(data))),
    "the header reads as zeros": bytes_once(lambda data: bytes(8) + data[8:]),
    "the values read as zeros": bytes_once(zero_values),
    "empty": bytes_once(lambda _: b""),
    "cut off in the header": bytes_once(lambda data: data[:4]),
    "cut off in an entry": bytes_once(lambda data: data[:40]),
    "a length that lies": bytes_once(lambda data: b"\xff" * 8 + data[8:]),
    "replaced by an empty file": bytes_once(lambda _: b"", replace),
    "replaced by zeros": bytes_once(lambda data: bytes(len(data)), replace),
    "replaced by the same": bytes_once(lambda data: data, replace),
    "replaced by one with a little less": bytes_once(a_little_less, replace),
    "a little less in place": bytes_once(a_little_less),
    "far less in place": bytes_once(far_less),
    "replaced by one with a series less": bytes_once(one_series_less, replace),
    "a series less in place": bytes_once(one_series_less),
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    made.mkdir()
    (made / "counter_7.db").write_bytes(counted(100))
    (made / "histogram_7.db").write_bytes(histogram(100))
    return made


@pytest.fixture(params=["held open", "not held open"])
def ours(
    request: pytest.FixtureRequest, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MultiprocessDirectory]:
    if request.param != "held open":
        monkeypatch.setattr("dynamometer.multiprocess.open_files._MAX_HELD_OPEN", 0)
    with MultiprocessDirectory(directory, keep_totals=True) as made:
        yield made


def expected(c: float, h: float) -> dict[str, float]:
    return {
        "c_total": c,
        'd_total{k="1"}': c / 2,
        'd_total{k="2"}': 0.0,
        "h_sum": 2 * h,
        'h_bucket{le="1.0"}': h / 2,
        'h_bucket{le="5.0"}': h,
        'h_bucket{le="+Inf"}': h * 1.5,
        "h_count": h * 1.5,
    }


@pytest.mark.parametrize("name", GLITCHES)
def test_one_odd_reading(name: str, ours: MultiprocessDirectory, directory: Path) -> None:
    assert values(ours.render()) == expected(100, 100)
    for amount in (100, 104, 110):
        with GLITCHES[name](directory):  # type: ignore[attr-defined]
            assert values(ours.render()) == expected(amount, amount)
        assert values(ours.render()) == expected(amount, amount)
        more = 104 if amount == 100 else 110
        in_place(directory / "counter_7.db", counted(more))
        in_place(directory / "histogram_7.db", histogram(more))
        assert values(ours.render()) == expected(more, more)


@pytest.mark.parametrize("name", sorted(GLITCHES.keys() - {"far less in place"}))
def test_odd_readings_in_a_row(name: str, ours: MultiprocessDirectory, directory: Path) -> None:
    ours.render()
    for _ in range(3):
        with GLITCHES[name](directory):  # type: ignore[attr-defined]
            for _ in range(3):
                assert values(ours.render()) == expected(100, 100)
    for _ in range(3):
        assert values(ours.render()) == expected(100, 100)


def test_another_process_in_another_file_adds_to_the_totals(
    ours: MultiprocessDirectory, directory: Path
) -> None:
    """Nearly all values are less than half of the former ones."""
    ours.render()
    replace(directory / "counter_7.db", counted(2))
    replace(directory / "histogram_7.db", histogram(2))
    assert values(ours.render()) == expected(102, 102)
    in_place(directory / "counter_7.db", counted(20))
    in_place(directory / "histogram_7.db", histogram(20))
    assert values(ours.render()) == expected(120, 120)


def test_another_process_in_the_same_file_adds_to_the_totals_from_the_second_reading_on(
    ours: MultiprocessDirectory, directory: Path
) -> None:
    ours.render()
    in_place(directory / "counter_7.db", counted(2))
    in_place(directory / "histogram_7.db", histogram(2))
    assert values(ours.render()) == expected(100, 100)
    assert values(ours.render()) == expected(102, 102)
    in_place(directory / "counter_7.db", counted(20))
    in_place(directory / "histogram_7.db", histogram(20))
    assert values(ours.render()) == expected(120, 120)


def test_another_process_that_has_counted_nothing_yet_adds_nothing(
    ours: MultiprocessDirectory, directory: Path
) -> None:
    ours.render()
    path = directory / "counter_7.db"
    path.unlink()
    (directory / "histogram_7.db").unlink()
    assert values(ours.render()) == expected(100, 100)
    path.write_bytes(counted(0))
    assert values(ours.render()) == expected(100, 100)
    in_place(path, counted(2))
    ours.render()
    assert values(ours.render()) == expected(102, 100)


def test_after_an_odd_reading_other_files_count_as_before(
    ours: MultiprocessDirectory, directory: Path
) -> None:
    (directory / "counter_8.db").write_bytes(counted(10))
    assert values(ours.render()) == expected(110, 100)
    in_place(directory / "counter_7.db", b"")
    in_place(directory / "counter_8.db", counted(14))
    assert values(ours.render()) == expected(114, 100)
    in_place(directory / "counter_7.db", counted(102))
    assert values(ours.render()) == expected(116, 100)


def test_a_gauge_is_what_its_file_has_now(tmp_path: Path) -> None:
    path = tmp_path / "gauge_sum_7.db"
    path.write_bytes(content(entry(key("g", "g"), 5.0), size=SIZE))
    with MultiprocessDirectory(tmp_path, keep_totals=True) as ours:
        assert values(ours.render()) == {"g": 5.0}
        in_place(path, content(entry(key("g", "g"), 4.0), size=SIZE))
        assert values(ours.render()) == {"g": 4.0}
        in_place(path, b"")
        assert values(ours.render()) == {}
        in_place(path, content(entry(key("g", "g"), 3.0), size=SIZE))
        assert values(ours.render()) == {"g": 3.0}


def test_sums_of_negative_amounts_fall_as_they_do(
    ours: MultiprocessDirectory, directory: Path
) -> None:
    path = directory / "summary_7.db"
    samples = key("s", "s_count"), key("s", "s_sum")
    path.write_bytes(content(entry(samples[0], 2.0), entry(samples[1], 6.0), size=SIZE))
    assert values(ours.render())["s_sum"] == 6.0
    in_place(path, content(entry(samples[0], 3.0), entry(samples[1], 1.0), size=SIZE))
    assert values(ours.render())["s_sum"] == 1.0


@pytest.mark.parametrize("name", GLITCHES)
def test_without_keep_totals_the_page_is_what_can_be_read(name: str, directory: Path) -> None:
    with MultiprocessDirectory(directory) as ours:
        ours.render()
        with GLITCHES[name](directory):  # type: ignore[attr-defined]
            shown = values(ours.render())
            assert all(
                shown[series] <= value
                for series, value in expected(100, 100).items()
                if series in shown
            )
        assert values(ours.render()) == expected(100, 100)


class Processes:
    """Processes that count into the files of a directory, and their totals."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.counted: dict[int, dict[str, float]] = {}
        self.ended: list[dict[str, float]] = []

    def count(self, pid: int, amounts: dict[str, float]) -> None:
        counts = self.counted.setdefault(pid, {})
        for kind, amount in amounts.items():
            counts[kind] = counts.get(kind, 0.0) + amount
        path = self.directory / f"counter_{pid}.db"
        path.touch()
        entries = [entry(key("c", "c_total", {"k": k}), value) for k, value in counts.items()]
        in_place(path, content(*entries, size=SIZE))

    def end(self, pid: int) -> None:
        """End a process, and remove its file."""
        self.ended.append(self.counted.pop(pid, {}))
        (self.directory / f"counter_{pid}.db").unlink(missing_ok=True)

    def totals(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for counts in [*self.ended, *self.counted.values()]:
            for kind, value in counts.items():
                series = f'c_total{{k="{kind}"}}'
                found[series] = found.get(series, 0.0) + value
        return found


# Those that leave nothing behind in the files which is not theirs.
PASSING = sorted(name for name in GLITCHES if "less" not in name and "values" not in name)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.integers(1, 3),
            st.dictionaries(st.sampled_from("xyz"), st.integers(1, 9), min_size=1),
        ),
        st.integers(1, 3),  # that one ends
        st.sampled_from(PASSING),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, held=st.sampled_from([0, 1, 512]))
def test_whatever_happens_totals_are_what_was_counted(
    steps: list[tuple[int, dict[str, float]] | int | str], held: int
) -> None:
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynamometer.multiprocess.open_files._MAX_HELD_OPEN", held)
        processes = Processes(Path(place) / "files")
        processes.directory.mkdir()
        ended = 0
        with MultiprocessDirectory(processes.directory, keep_totals=True) as ours:
            for step in steps:
                if isinstance(step, tuple):
                    # A process that begins after another one's end has another number.
                    processes.count(step[0] + 3 * ended, step[1])
                elif isinstance(step, int):
                    processes.end(step + 3 * ended)
                    ended += 1
                else:
                    with GLITCHES[step](processes.directory):  # type: ignore[attr-defined]
                        assert values(ours.render()) == processes.totals()
                assert values(ours.render()) == processes.totals()


@pytest.mark.parametrize("keep_totals", [False, True])
@pytest.mark.parametrize("held", ["held open", "not held open"])
@pytest.mark.parametrize("name", GLITCHES)
def test_one_odd_reading_of_a_retired_file(
    name: str, held: str, keep_totals: bool, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if held != "held open":
        monkeypatch.setattr("dynamometer.multiprocess.open_files._MAX_HELD_OPEN", 0)
    gauge = content(entry(key("g", "g"), 5.0), size=SIZE)
    (directory / "gauge_sum_7.db").write_bytes(gauge)
    with MultiprocessDirectory(directory, keep_totals=keep_totals) as ours:
        ours.retire([7])
        for _ in range(3):
            with GLITCHES[name](directory):  # type: ignore[attr-defined]
                assert totals(ours) == expected(100, 100)
            assert totals(ours) == expected(100, 100)
        ours.retire([7])
        in_place(directory / "counter_7.db", counted(104))
        assert totals(ours) == expected(104, 100)
        ours.retire([7])
        assert totals(ours) == expected(104, 100)


def totals(ours: MultiprocessDirectory) -> dict[str, float]:
    return {series: value for series, value in values(ours.render()).items() if series != "g"}


@pytest.mark.parametrize("owned", [False, True])
@pytest.mark.parametrize("name", ["the files are missing", "the directory is missing"])
def test_files_that_are_missing_when_they_are_retired_count_once(
    name: str, owned: bool, directory: Path
) -> None:
    with MultiprocessDirectory(directory, owned=owned, keep_totals=True) as ours:
        ours.render()
        with GLITCHES[name](directory):  # type: ignore[attr-defined]
            ours.retire([7])
            assert values(ours.render()) == expected(100, 100)
        assert values(ours.render()) == expected(100, 100)
        ours.retire([7])
        assert values(ours.render()) == expected(100, 100)


def test_a_directory_of_thousands_of_files_that_is_missing_for_a_reading_counts_once(
    tmp_path: Path,
) -> None:
    path = tmp_path / "files"
    path.mkdir()
    for number in range(3000):
        one = content(entry(key("c", "c_total", {}), 2.0), size=64)
        (path / f"counter_{number}.db").write_bytes(one)
    with MultiprocessDirectory(path, keep_totals=True) as ours:
        assert values(ours.render()) == {"c_total": 6000.0}
        with moved_directory(path):
            assert values(ours.render()) == {"c_total": 6000.0}
        assert values(ours.render()) == {"c_total": 6000.0}


def test_the_gauges_of_an_ended_process_stay_hidden_when_its_files_are_read_as_zeros(
    directory: Path,
) -> None:
    path = directory / "gauge_sum_7.db"
    path.write_bytes(content(entry(key("g", "g"), 5.0), size=SIZE))
    with MultiprocessDirectory(directory) as ours:
        ours.retire([7])
        before = path.read_bytes()
        for odd in (content(entry(key("g", "g"), 0.0), size=SIZE), bytes(SIZE), b"", before):
            in_place(path, odd)
            assert values(ours.render()) == expected(100, 100)
            in_place(path, before)
            assert values(ours.render()) == expected(100, 100)
        in_place(path, content(entry(key("g", "g"), 6.0), size=SIZE))
        assert values(ours.render()) == {**expected(100, 100), "g": 6.0}
