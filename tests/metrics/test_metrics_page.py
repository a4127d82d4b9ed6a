"""The page, with sources that have faults of all kinds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.parser import text_string_to_metric_families as parse_text

from dynamometer.exposition.families import Family, Metadata
from dynamometer.metrics.instruments import InstrumentRegistry
from dynamometer.metrics.page import MetricsPage
from dynamometer.metrics.refresh import PageRequest
from dynamometer.metrics.sources import RegistrySource
from parsing import parse


@dataclass
class Source:
    """A source whose families the test chooses."""

    name: str
    answer: Callable[[], Sequence[Family]]
    owner: str = ""
    errors: Mapping[str, int] = field(default_factory=dict)

    def families(self) -> Sequence[Family]:
        return self.answer()


def families(text: str) -> tuple[Family, ...]:
    return parse(text.encode())


@pytest.fixture
def instruments() -> CollectorRegistry:
    made = InstrumentRegistry()
    Counter("own_total", "ours", registry=made).inc(3)
    return made


@pytest.fixture
def never() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def samples(page: MetricsPage) -> dict[str, float]:
    page.refresh()
    return {
        s.name + "".join(f"|{k}={v}" for k, v in sorted(s.labels.items())): s.value
        for family in parse_text(page.render().decode())
        for s in family.samples
    }


def errors(found: Mapping[str, float], source: str, reason: str) -> float:
    return found[f"dynamometer_engine_scrape_errors_total|reason={reason}|source={source}"]


def test_the_runtimes_families_stand_before_the_engines(instruments: CollectorRegistry) -> None:
    page = MetricsPage(instruments)
    page.add(Source("engine", lambda: families("# TYPE a gauge\na 1\n")))
    page.refresh()
    text = page.render().decode()
    assert text.index("own_total 3.0") < text.index("a 1\n")
    assert page.render(openmetrics=True).endswith(b"# EOF\n")


@pytest.mark.parametrize("fault", ["raises", "hangs", "nonsense"])
def test_a_broken_source_affects_only_its_own_families(
    instruments: CollectorRegistry, never: threading.Event, fault: str
) -> None:
    def broken() -> Sequence[Family]:
        if fault == "raises":
            raise OSError("no such thing")
        if fault == "hangs":
            never.wait()
            return families("late 1\n")
        return ("nonsense",)  # type: ignore[return-value]

    reason = {"raises": "failed", "hangs": "timeout", "nonsense": "invalid"}[fault]
    page = MetricsPage(instruments, deadline=0.2)
    page.add(Source("broken", broken))
    page.add(Source("whole", lambda: families("whole 1\n")))
    for times in (1, 2):
        found = samples(page)
        assert found["own_total"] == 3
        assert found["whole"] == 1
        assert errors(found, "broken", reason) == times
        assert errors(found, "whole", reason) == 0
    if fault == "hangs":
        never.set()
        for _ in range(100):
            if "late" in samples(page):
                return
            threading.Event().wait(0.02)
        raise AssertionError("the source has recovered, and is not on the page")


def half_a_generator() -> Iterator[Family]:
    yield from families("a 1\n")
    raise ValueError("broke")


NOT_UTF8 = Family(Metadata("n", "gauge"), frozenset({"n"}), (b'n{x="\xff"} 1\n',))
NO_BYTES = Family(Metadata("n", "gauge"), frozenset({"n"}), ("n 1\n",))  # type: ignore[arg-type]
NOTHING = Family(None, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "nonsense", [None, 5, "text", [1], half_a_generator(), (NOT_UTF8,), (NO_BYTES,), (NOTHING,)]
)
def test_objects_that_are_not_families_are_refused(
    instruments: CollectorRegistry, nonsense: object
) -> None:
    page = MetricsPage(instruments)
    page.add(Source("whole", lambda: families("n 1\n")))
    page.add(Source("broken", lambda: nonsense))  # type: ignore[arg-type, return-value]
    found = samples(page)
    assert (found["n"], found["own_total"]) == (1, 3)
    assert errors(found, "broken", "invalid") == 1


def test_error_counts_that_fail_or_fall_affect_nothing_else(
    instruments: CollectorRegistry,
) -> None:
    counts = {"truncated": 5}
    page = MetricsPage(instruments)
    page.add(Source("files", lambda: families("n 1\n"), errors=counts))
    page.add(Source("odd", lambda: families("m 1\n"), errors=None))  # type: ignore[arg-type]
    assert errors(samples(page), "files", "truncated") == 5
    counts["truncated"] = 2
    found = samples(page)
    assert errors(found, "files", "truncated") == 5
    assert found["m"] == 1


def test_a_source_that_hangs_delays_one_refresh_only(
    instruments: CollectorRegistry, never: threading.Event
) -> None:
    def hang() -> Sequence[Family]:
        never.wait()
        return ()

    before = set(threading.enumerate())
    page = MetricsPage(instruments, deadline=0.3)
    page.add(Source("hung", hang))
    page.refresh()
    for _ in range(50):  # with the deadline each, 15 s
        page.refresh()
    # One is left behind with it, one goes on.
    assert len(set(threading.enumerate()) - before) == 2


def test_several_sources_that_hang_are_abandoned_and_return(
    instruments: CollectorRegistry, never: threading.Event
) -> None:
    def hang(name: str) -> Sequence[Family]:
        never.wait()
        return families(f"{name} 1\n")

    page = MetricsPage(instruments, deadline=0.1)
    for name in ("a", "b"):
        page.add(Source(name, partial(hang, name)))
    page.add(Source("whole", lambda: families("whole 1\n")))
    for times in (1, 2):
        found = samples(page)
        assert found["whole"] == 1
        assert [errors(found, name, "timeout") for name in "ab"] == [times, times]
    never.set()
    for _ in range(100):
        if samples(page).keys() >= {"a", "b", "whole"}:
            return
        threading.Event().wait(0.02)
    raise AssertionError("the sources have recovered, and are not on the page")


def test_simultaneous_refreshes_all_end(instruments: CollectorRegistry) -> None:
    page = MetricsPage(instruments)
    page.add(Source("whole", lambda: families("whole 1\n")))
    threads = [threading.Thread(target=page.refresh) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert samples(page)["whole"] == 1


def test_the_omissions_of_a_source_are_counted(instruments: CollectorRegistry) -> None:
    left_out = {"truncated": 2}
    page = MetricsPage(instruments)
    page.add(Source("files", lambda: families("a 1\n"), errors=left_out))
    assert errors(samples(page), "files", "truncated") == 2
    assert errors(samples(page), "files", "truncated") == 2
    left_out["truncated"] = 5
    assert errors(samples(page), "files", "truncated") == 5


def test_of_a_series_in_two_sources_the_first_wins(
    instruments: CollectorRegistry,
) -> None:
    page = MetricsPage(instruments)
    one, other = families('a{x="1"} 1\n'), families('a{x="1"} 9\na{x="2"} 2\n')
    page.add(Source("files", lambda: one, owner="engine"))
    page.add(Source("page", lambda: other, owner="engine"))
    found = samples(page)
    assert (found["a|x=1"], found["a|x=2"]) == (1, 2)
    assert not any("overlap" in name for name in found)


def test_overlap_of_two_owners_is_counted_in_the_scrape_that_finds_it(
    instruments: CollectorRegistry,
) -> None:
    page = MetricsPage(instruments)
    one, other = families("# TYPE a gauge\na 1\n"), families("# TYPE a summary\na_sum 9\n")
    page.add(Source("one", lambda: one, owner="one"))
    page.add(Source("other", lambda: other, owner="other"))
    page.add(Source("third", lambda: one, owner="third"))
    for times in (1, 2):
        found = samples(page)
        assert found["a"] == 1
        assert errors(found, "other", "type_conflict") == times
        assert errors(found, "third", "overlap") == times


def test_an_unchanged_page_is_not_rendered_again(instruments: CollectorRegistry) -> None:
    source = RegistrySource("runtime", instruments)
    assert source.families() is source.families()
    page = MetricsPage(instruments)
    page.refresh()
    plain, packed = page.render(), page.answer(PageRequest(gzip=True))
    page.refresh()
    assert page.render() is plain
    assert page.answer(PageRequest(gzip=True)) is packed


class Doubled:
    """A derivation that doubles the value of a family."""

    name = "doubled"
    owner = "engine"
    names = frozenset({"a"})

    def __init__(self) -> None:
        self.given: list[Sequence[Family]] = []
        self.broken = False

    def families(self, given: Sequence[Family]) -> Sequence[Family]:
        if self.broken:
            raise ValueError("cannot be concluded")
        self.given.append(given)
        values = [float(sample.value) for family in given for sample in family.samples]
        return families(f"# TYPE twice gauge\ntwice {2 * sum(values)}\n")


def test_a_derivation_uses_the_families_of_the_same_refresh(instruments: CollectorRegistry) -> None:
    page, doubled, value = MetricsPage(instruments), Doubled(), [1]
    page.derive(doubled)
    page.add(Source("engine", lambda: families(f"a {value[0]}\nb 5\n"), owner="engine"))
    page.add(Source("other", lambda: families('a{x="other"} 100\n'), owner="other"))
    assert samples(page)["twice"] == 2
    value[0] = 7
    found = samples(page)
    assert (found["a"], found["twice"]) == (7, 14)
    page.remove(doubled)
    assert "twice" not in samples(page)


def test_a_series_that_two_sources_have_counts_once(instruments: CollectorRegistry) -> None:
    page, doubled = MetricsPage(instruments), Doubled()
    files, fetched = families('a{r="0"} 1\n'), families('a{r="0"} 2\na{r="1"} 10\n')
    page.add(Source("files", lambda: files, owner="engine"))
    page.add(Source("page", lambda: fetched, owner="engine"))
    page.derive(doubled)
    for _ in range(2):
        assert samples(page)["twice"] == 22
    assert doubled.given[0] is doubled.given[1]  # nothing is done twice


def test_a_derivation_that_fails_affects_only_its_own_families(
    instruments: CollectorRegistry,
) -> None:
    page, doubled = MetricsPage(instruments), Doubled()
    page.add(Source("engine", lambda: families("a 1\n"), owner="engine"))
    page.derive(doubled)
    assert errors(samples(page), "doubled", "failed") == 0
    doubled.broken = True
    found = samples(page)
    assert (found["a"], errors(found, "doubled", "failed")) == (1, 1)
    assert "twice" not in found
    doubled.broken = False
    assert samples(page)["twice"] == 2


def test_a_source_that_fails_takes_its_derived_families_with_it(
    instruments: CollectorRegistry,
) -> None:
    def answer() -> Sequence[Family]:
        if broken:
            raise OSError
        return families("a 1\n")

    broken: list[bool] = []
    page = MetricsPage(instruments)
    page.add(Source("engine", answer, owner="engine"))
    page.derive(Doubled())
    assert samples(page)["twice"] == 2
    broken.append(True)
    assert samples(page)["twice"] == 0  # nothing is left of what it said before


def test_a_source_whose_errors_cannot_be_read_is_counted(instruments: CollectorRegistry) -> None:
    class Odd(Source):
        @property
        def errors(self) -> Mapping[str, int]:
            raise OSError("no such thing")

        @errors.setter
        def errors(self, _: Mapping[str, int]) -> None:
            pass

    page = MetricsPage(instruments)
    page.add(Odd("odd", lambda: families("a 1\n")))
    samples(page)
    found = samples(page)
    assert found["a"] == 1
    assert errors(found, "odd", "failed") == 2


def test_errors_are_on_the_page_while_the_runtimes_own_metrics_hang(
    instruments: CollectorRegistry, never: threading.Event
) -> None:
    Gauge("hangs", "a gauge that hangs", registry=instruments).set_function(
        lambda: float(never.wait())
    )
    page = MetricsPage(instruments, deadline=0.2)
    page.add(Source("whole", lambda: families("whole 1\n")))
    for times in (1, 2):
        found = samples(page)
        assert found["whole"] == 1
        assert errors(found, "runtime", "timeout") == times


class UnspeakableError(Exception):
    def __repr__(self) -> str:
        raise ValueError("nor can it be said what is wrong")


def test_an_error_without_a_repr_is_counted(
    instruments: CollectorRegistry,
) -> None:
    def answer() -> Sequence[Family]:
        raise UnspeakableError

    page = MetricsPage(instruments)
    page.add(Source("odd", answer))
    for times in (1, 2):
        assert errors(samples(page), "odd", "failed") == times


@pytest.mark.parametrize("odd", [{"x": None}, {"x": "many"}, ["boom"], 5, print])
def test_error_counts_that_are_not_numbers_are_one_failure(
    instruments: CollectorRegistry, odd: object
) -> None:
    page = MetricsPage(instruments)
    page.add(Source("odd", lambda: families("a 1\n"), errors=odd))  # type: ignore[arg-type]
    for times in (1, 2):
        found = samples(page)
        assert found["a"] == 1
        assert errors(found, "odd", "failed") == times
    assert not any("boom" in name or "=x" in name for name in found)


def test_errors_that_hang_are_given_up_like_families(
    instruments: CollectorRegistry, never: threading.Event
) -> None:
    class Hangs(Source):
        @property
        def errors(self) -> Mapping[str, int]:
            never.wait()
            return {}

        @errors.setter
        def errors(self, _: Mapping[str, int]) -> None:
            pass

    page = MetricsPage(instruments, deadline=0.2)
    page.add(Hangs("hangs", lambda: families("a 1\n")))
    page.add(Source("whole", lambda: families("whole 1\n")))
    found = samples(page)
    assert (found["whole"], errors(found, "hangs", "timeout")) == (1, 1)


def test_sources_that_come_and_go_at_once_are_all_there(instruments: CollectorRegistry) -> None:
    page = MetricsPage(instruments)
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait()
        for step in range(50):
            gone = Source("gone", lambda: families("gone 1\n"))
            page.add(gone)
            page.add(Source("kept", partial(families, f"a{number}_{step} 1\n")))
            page.remove(gone)
            Gauge(f"own{number}_{step}", "ours", registry=instruments)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = samples(page)
    assert "gone" not in found
    assert sum(name.startswith("a") for name in found) == 8 * 50
    assert sum(name.startswith("own") for name in found) == 8 * 50 + 1
