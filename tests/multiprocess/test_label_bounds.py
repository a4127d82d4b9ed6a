"""The values of a label that clients choose are bounded, and every count stays on the page."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from bytes_of_files import content, entry, key
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamometer.exposition.families import Family
from dynamometer.exposition.label_bounds import ClientLabels, LabelBounds, LabelLimits
from dynamometer.multiprocess import MultiprocessDirectory

CLIENT = ClientLabels(
    prefixes=("",), names=frozenset({"endpoint"}), summed_gauges=frozenset({"active"})
)
BOUNDS = ("0.5", "1.0", "+Inf")
MAX_VALUES = 3


def bounds(max_values: int = MAX_VALUES, max_bytes: int = 100) -> LabelBounds:
    return LabelBounds(CLIENT, LabelLimits(max_values=max_values, max_bytes=max_bytes))


def directory(path: Path, found: LabelBounds | None = None) -> MultiprocessDirectory:
    return MultiprocessDirectory(path, keep_totals=True, owned=True, label_bounds=found or bounds())


def by_endpoint(families: tuple[Family, ...], name: str) -> dict[str, float]:
    """Return the values of a sample name by the label `endpoint`, and `le` behind it."""
    return {
        sample.series.labels["endpoint"] + sample.series.labels.get("le", ""): float(sample.value)
        for family in families
        for sample in family.samples
        if sample.series.name == name
    }


def counter(endpoint: str, value: float) -> bytes:
    return entry(key("c", "c_total", {"endpoint": endpoint}), value)


def test_later_values_count_in_one_series(tmp_path: Path) -> None:
    ours = directory(tmp_path)
    path = tmp_path / "counter_1.db"
    entries = [counter(f"/{number}", number + 1) for number in range(5)]
    path.write_bytes(content(*entries))
    expected = {"/0": 1.0, "/1": 2.0, "/2": 3.0, "other": 9.0}
    assert by_endpoint(ours.families(), "c_total") == expected
    path.write_bytes(content(*entries, counter("/9", 10), counter("other", 100)))
    assert by_endpoint(ours.families(), "c_total") == expected | {"other": 119.0}
    assert not ours.errors


def test_the_kept_values_are_those_of_all_families_and_sources(tmp_path: Path) -> None:
    shared = bounds(max_values=1)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "counter_1.db").write_bytes(content(counter("/b", 1), counter("/a", 2)))
    (tmp_path / "two" / "counter_1.db").write_bytes(
        content(counter("/a", 4), counter("/b", 8), entry(key("d", "d_total", {"endpoint": "/a"})))
    )
    one, two = directory(tmp_path / "one", shared), directory(tmp_path / "two", shared)
    assert by_endpoint(one.families(), "c_total") == {"/b": 1.0, "other": 2.0}
    assert by_endpoint(two.families(), "c_total") == {"/b": 8.0, "other": 4.0}
    assert by_endpoint(two.families(), "d_total") == {"other": 1.0}


def test_gauges_are_added_up_only_where_that_is_right(tmp_path: Path) -> None:
    for name, mode in (("active", "livesum"), ("newest", "mostrecent")):
        entries = [entry(key(name, name, {"endpoint": f"/{n}"}), n) for n in range(5)]
        (tmp_path / f"gauge_{mode}_1.db").write_bytes(content(*entries))
    families = directory(tmp_path).families()
    assert by_endpoint(families, "active") == {"/0": 0.0, "/1": 1.0, "/2": 2.0, "other": 7.0}


def test_families_of_other_programs_are_not_bounded(tmp_path: Path) -> None:
    (tmp_path / "counter_1.db").write_bytes(content(*[counter(f"/{n}", 1) for n in range(9)]))
    client = replace(CLIENT, prefixes=("engine:",))
    families = directory(tmp_path, LabelBounds(client, LabelLimits(max_values=1))).families()
    assert len(by_endpoint(families, "c_total")) == 9


def test_labels_of_the_engine_itself_are_not_bounded(tmp_path: Path) -> None:
    entries = [entry(key("c", "c_total", {"rank": str(n), "endpoint": ""})) for n in range(9)]
    (tmp_path / "counter_1.db").write_bytes(content(*entries))
    (family,) = directory(tmp_path).families()
    assert len(family.samples) == 9


@pytest.mark.parametrize("value", ["x" * 101, "é" * 51, "💥" * 26])
def test_a_long_value_of_a_client_is_an_other_one(tmp_path: Path, value: str) -> None:
    (tmp_path / "counter_1.db").write_bytes(content(counter(value, 2), counter("/a", 1)))
    ours = directory(tmp_path)
    assert by_endpoint(ours.families(), "c_total") == {"other": 2.0, "/a": 1.0}
    assert not ours.errors


def test_a_long_value_of_the_engine_is_omitted_counted_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = entry(key("c", "c_total", {"model": "x" * 101}))
    short = entry(key("c", "c_total", {"model": "é" * 50}), 2)
    (tmp_path / "counter_1.db").write_bytes(content(long, short))
    ours = directory(tmp_path)
    for times in (1, 2):
        (family,) = ours.families()
        assert [sample.value for sample in family.samples] == ["2.0"]
        assert ours.errors == {"label_bytes": times}
    (message,) = [record.getMessage() for record in caplog.records]
    assert "label model of c: a value of more than 100 bytes" in message


def test_a_value_that_is_read_again_after_a_fault_counts_where_it_did(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    entries = [counter(f"/{number}", 1) for number in range(5)]
    ours = directory(tmp_path)
    path.write_bytes(content(*reversed(entries)))
    before = by_endpoint(ours.families(), "c_total")
    path.write_bytes(b"broken")
    assert by_endpoint(ours.families(), "c_total") == before
    path.write_bytes(content(*entries))
    assert by_endpoint(ours.families(), "c_total") == before


@dataclass
class Process:
    """A process that counts: the values of its files, in the order of their entries."""

    counts: dict[str, int] = field(default_factory=dict)
    observed: dict[str, list[int]] = field(default_factory=dict)

    def count(self, endpoint: str, amount: int) -> None:
        self.counts[endpoint] = self.counts.get(endpoint, 0) + amount

    def observe(self, endpoint: str, bucket: int) -> None:
        self.observed.setdefault(endpoint, [0] * len(BOUNDS))[bucket] += 1

    def write(self, path: Path, pid: str) -> None:
        size = 1 << 14
        counters = [counter(endpoint, value) for endpoint, value in self.counts.items()]
        (path / f"counter_{pid}.db").write_bytes(content(*counters, size=size))
        entries: list[bytes] = []
        for endpoint, buckets in self.observed.items():
            labels = {"endpoint": endpoint}
            entries.append(entry(key("h", "h_sum", labels), sum(buckets)))
            entries += [
                entry(key("h", "h_bucket", labels | {"le": bound}), value)
                for bound, value in zip(BOUNDS, buckets, strict=True)
            ]
        (path / f"histogram_{pid}.db").write_bytes(content(*entries, size=size))


actions = st.lists(
    st.tuples(
        st.sampled_from(["count", "count", "observe", "end", "retire", "hide", "show", "read"]),
        st.integers(0, 2),  # the process
        st.integers(0, 7),  # the endpoint
        st.integers(1, 9),
    ),
    max_size=30,
)


class World:
    """Processes, their files, and the sum of all counts."""

    def __init__(self, path: Path) -> None:
        self.path, self.hidden = path / "files", path / "hidden"
        self.path.mkdir()
        self.hidden.mkdir()
        self.ours = directory(self.path)
        self.processes: dict[str, Process] = defaultdict(Process)
        self.generation = [0, 0, 0]
        self.totals: Counter[str] = Counter()
        self.observations = [0] * len(BOUNDS)
        self.shown: dict[str, Mapping[str, float]] = {"c_total": {}, "h_bucket": {}}

    def pid(self, number: int) -> str:
        return f"{number}{self.generation[number]}"

    def files(self, pid: str, where: Path) -> Iterator[Path]:
        yield from where.glob(f"*_{pid}.db")

    def act(self, action: str, number: int, endpoint: int, amount: int) -> None:
        pid = self.pid(number)
        if action in ("count", "observe"):
            self.show(pid)
            name = f"/{endpoint}"
            if action == "count":
                self.processes[pid].count(name, amount)
                self.totals[name] += amount
            else:
                self.processes[pid].observe(name, amount % len(BOUNDS))
                self.observations[amount % len(BOUNDS)] += 1
            self.processes[pid].write(self.path, pid)
        elif action == "hide":
            self.ours.families()  # a file that was never read has no counts to keep
            for file in self.files(pid, self.path):
                shutil.move(file, self.hidden / file.name)
        elif action == "show":
            self.show(pid)
        elif action in ("end", "retire"):
            self.ours.families()
            self.generation[number] += 1
            if action == "retire":
                self.ours.retire([pid])
            for file in [*self.files(pid, self.path), *self.files(pid, self.hidden)]:
                file.unlink()

    def show(self, pid: str) -> None:
        for file in self.files(pid, self.hidden):
            shutil.move(file, self.path / file.name)

    def check(self) -> None:
        families = self.ours.families()
        counts = by_endpoint(families, "c_total")
        assert sum(counts.values()) == sum(self.totals.values())
        own = counts.keys() - {"other"}
        assert len(own) <= MAX_VALUES
        assert {name: counts[name] for name in own} == {name: self.totals[name] for name in own}
        buckets = by_endpoint(families, "h_bucket")
        endpoints = {name.removesuffix(bound) for name in buckets for bound in BOUNDS} & {
            "other",
            *(f"/{number}" for number in range(8)),
        }
        assert len(endpoints | own) <= MAX_VALUES + 1
        accumulated = [0.0] * len(BOUNDS)
        for endpoint in endpoints:
            values = [buckets[endpoint + bound] for bound in BOUNDS]
            assert values == sorted(values)
            accumulated = [a + b for a, b in zip(accumulated, values, strict=True)]
            assert by_endpoint(families, "h_count")[endpoint] == values[-1]
        expected = [sum(self.observations[: place + 1]) for place in range(len(BOUNDS))]
        assert accumulated == expected
        for name, before in self.shown.items():
            now = by_endpoint(families, name)
            assert all(now[series] >= value for series, value in before.items())
            self.shown[name] = now


@settings(max_examples=60)
@given(actions)
def test_every_count_is_shown_once_and_no_total_falls(
    taken: list[tuple[str, int, int, int]],
) -> None:
    with TemporaryDirectory() as temporary:
        world = World(Path(temporary))
        with world.ours:
            for action in taken:
                world.act(*action)
                if action[0] != "count":
                    world.check()
            world.check()
