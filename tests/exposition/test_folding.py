"""Later values of a client's label are added up in one series of an engine's page."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamometer.exposition.families import Family
from dynamometer.exposition.folding import SeriesFolding
from dynamometer.exposition.label_bounds import ClientLabels, LabelBounds, LabelLimits
from dynamometer.exposition.totals import Totals
from parsing import PageParser

CLIENT = ClientLabels(
    prefixes=("",), names=frozenset({"endpoint", "method"}), summed_gauges=frozenset({"active"})
)
MAX_VALUES = 3


def folding(max_values: int = MAX_VALUES, max_bytes: int = 50) -> SeriesFolding:
    limits = LabelLimits(max_values=max_values, max_bytes=max_bytes)
    return SeriesFolding(LabelBounds(CLIENT, limits))


def lines(families: Sequence[Family]) -> set[str]:
    return {line for family in families for line in family.lines.decode().splitlines()}


def fold(page: str, used: SeriesFolding | None = None) -> set[str]:
    return lines((used or folding()).apply(PageParser().parse(page.encode())))


def test_later_values_of_a_counter_are_one_series() -> None:
    page = "# TYPE c_total counter\n"
    page += "".join(f'c_total{{endpoint="/{n}",method="GET"}} {n}\n' for n in range(6))
    page += 'c_total{endpoint="/9",method="PUT"} 0.5\nc_total{endpoint="/1",method="PUT"} 7\n'
    assert fold(page) == {
        'c_total{endpoint="/0",method="GET"} 0',
        'c_total{endpoint="/1",method="GET"} 1',
        'c_total{endpoint="/2",method="GET"} 2',
        'c_total{endpoint="other",method="GET"} 12.0',
        'c_total{endpoint="other",method="PUT"} 0.5',
        'c_total{endpoint="/1",method="PUT"} 7',
    }


@pytest.mark.parametrize("name", ["active", "newest"])
def test_gauges_are_added_up_only_where_that_is_right(name: str) -> None:
    page = f"# TYPE {name} gauge\n"
    page += "".join(f'{name}{{endpoint="/{n}"}} {n}\n' for n in range(6))
    found = fold(page)
    if name == "active":
        assert len(found) == MAX_VALUES + 1
        assert 'active{endpoint="other"} 12.0' in found
    else:
        assert len(found) == 6


def test_quantiles_cannot_be_added_up() -> None:
    page = "# TYPE s summary\n" + "".join(
        f's{{endpoint="/{n}",quantile="0.5"}} {n}\ns_sum{{endpoint="/{n}"}} {n}\n'
        f's_count{{endpoint="/{n}"}} 1\n'
        for n in range(3)
    )
    assert fold(page, folding(1)) == {
        's{endpoint="/0",quantile="0.5"} 0',
        's_sum{endpoint="/0"} 0',
        's_count{endpoint="/0"} 1',
        's_sum{endpoint="other"} 3.0',
        's_count{endpoint="other"} 2.0',
    }


def test_histograms_with_other_buckets_stay_cumulative() -> None:
    def histogram(endpoint: str, buckets: Mapping[str, int]) -> str:
        text = "".join(
            f'h_bucket{{endpoint="{endpoint}",le="{bound}"}} {count}\n'
            for bound, count in buckets.items()
        )
        return f'{text}h_count{{endpoint="{endpoint}"}} {buckets["+Inf"]}\n'

    used = folding(0)
    first = "# TYPE h histogram\n" + histogram("/m", {"1.0": 1, "2.0": 5, "+Inf": 6})
    fold(first, used)
    second = first.replace("histogram\n", "histogram\n" + histogram("/a", {"0.5": 2, "+Inf": 4}))
    assert fold(second + histogram("/z", {"1.5": 3, "2.0": 3, "+Inf": 3}), used) == {
        'h_bucket{endpoint="other",le="1.0"} 3.0',
        'h_bucket{endpoint="other",le="2.0"} 10.0',
        'h_bucket{endpoint="other",le="+Inf"} 13.0',
        'h_count{endpoint="other"} 13.0',
    }


def test_a_page_within_the_bounds_is_not_changed() -> None:
    families = PageParser().parse(b'# TYPE c_total counter\nc_total{endpoint="/a"} 1\nother 2\n')
    assert folding().apply(families) == families


def test_long_values_are_dropped_and_counted() -> None:
    used = folding()
    page = f'# TYPE c_total counter\nc_total{{model="{"x" * 51}"}} 1\nc_total{{model="y"}} 2\n'
    for _ in range(2):
        assert fold(page, used) == {'c_total{model="y"} 2'}
        assert used.dropped == 1
        assert "label model of c" in used.fault
    assert fold('a{model="y"} 2\n', used)
    assert not used.dropped
    assert fold(f'# TYPE c_total counter\nc_total{{endpoint="{"é" * 26}"}} 1\n', used) == {
        'c_total{endpoint="other"} 1.0'
    }
    assert not used.dropped


BOUNDS = ("0.5", "1.0", "+Inf")


@dataclass
class Engine:
    """A process that counts by endpoint; its page starts from zero."""

    counts: dict[str, int] = field(default_factory=dict)
    observed: dict[str, list[int]] = field(default_factory=dict)

    def page(self) -> bytes:
        text = "# TYPE c_total counter\n"
        text += "".join(f'c_total{{endpoint="{e}"}} {n}\n' for e, n in self.counts.items())
        text += "# TYPE h histogram\n"
        for endpoint, buckets in self.observed.items():
            accumulated = list(itertools.accumulate(buckets))
            for bound, count in zip(BOUNDS, accumulated, strict=True):
                text += f'h_bucket{{endpoint="{endpoint}",le="{bound}"}} {count}\n'
            text += f'h_count{{endpoint="{endpoint}"}} {accumulated[-1]}\n'
            text += f'h_sum{{endpoint="{endpoint}"}} {accumulated[-1] / 10}\n'
        return text.encode()


steps = st.lists(
    st.tuples(
        st.sampled_from(["count", "count", "observe", "restart"]),
        st.integers(0, 7),
        st.integers(1, 9),
    ),
    max_size=25,
)


@given(steps)
def test_every_count_is_shown_once_and_no_total_falls(taken: list[tuple[str, int, int]]) -> None:
    engine, parser, used, totals = Engine(), PageParser(), folding(), Totals()
    counted = observed = 0
    shown: dict[str, float] = {}
    began = 0.0
    for action, number, amount in taken:
        endpoint = f"/{number}"
        if action == "count":
            engine.counts[endpoint] = engine.counts.get(endpoint, 0) + amount
            counted += amount
        elif action == "observe":
            engine.observed.setdefault(endpoint, [0, 0, 0])[amount % 3] += 1
            observed += 1
        else:
            engine, began = Engine(), began + 100
        families = totals.update(used.apply(parser.parse(engine.page())), began=began)
        samples = [sample for family in families for sample in family.samples]
        now = {sample.series.text: float(sample.value) for sample in samples}
        assert sum(v for series, v in now.items() if series.startswith("c_total")) == counted
        assert sum(v for series, v in now.items() if series.startswith("h_count")) == observed
        assert len({s.series.labels["endpoint"] for s in samples}) <= MAX_VALUES + 1
        assert all(now[series] >= value for series, value in shown.items())
        for endpoint in {
            s.series.labels["endpoint"] for s in samples if "h_count" in s.series.text
        }:
            buckets = [now[f'h_bucket{{endpoint="{endpoint}",le="{bound}"}}'] for bound in BOUNDS]
            assert buckets == sorted(buckets)
            assert buckets[-1] == now[f'h_count{{endpoint="{endpoint}"}}']
        shown = now
