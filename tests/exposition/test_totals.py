"""Totals continue over restarts of an engine of which only the page is visible."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as read_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as read_text

from dynamometer.exposition.families import Family
from dynamometer.exposition.merging import Merger, Source
from dynamometer.exposition.rendering import render
from dynamometer.exposition.totals import Totals
from parsing import PageParser, parse


def counter(value: object, labels: str = "", name: str = "a_total") -> str:
    return f"# TYPE {name} counter\n{name}{labels} {value}\n"


def gauge(value: object, name: str = "g") -> str:
    return f"# TYPE {name} gauge\n{name} {value}\n"


def histogram(bounds: dict[str, int], total: object = 0) -> str:
    """Return a histogram of label x="1", with a bucket for each bound."""
    buckets = "".join(f'h_bucket{{le="{le}",x="1"}} {count}\n' for le, count in bounds.items())
    count = bounds["+Inf"]
    return f'# TYPE h histogram\n{buckets}h_count{{x="1"}} {count}\nh_sum{{x="1"}} {total}\n'


class Pages:
    """The pages of one engine, fetched one after the other."""

    def __init__(self, *, openmetrics: bool = False) -> None:
        self.totals = Totals()
        self.shown: Sequence[Family] = ()
        self._openmetrics = openmetrics
        self._began = 1_000.0
        self._parser = PageParser(openmetrics=openmetrics)

    def fetch(self, *parts: str, restarted: bool = False, ended: bool = False) -> list[str]:
        """Return the sample lines that are shown after a page of these parts.

        Args:
            parts: the parts of the page, without its start time.
            restarted: True if the start time is a minute later than on the last page.
            ended: True if the process of the last page ended.
        """
        page = "".join(parts) + ("# EOF\n" if self._openmetrics else "")
        self._began += 60 if restarted else 0
        families = self._parser.parse(page.encode())
        self.shown = self.totals.update(families, began=self._began, ended=ended)
        return lines(self.shown)


def lines(families: Iterable[Family], *, openmetrics: bool = False) -> list[str]:
    page = render(families, openmetrics=openmetrics).decode()
    return [line for line in page.splitlines() if not line.startswith("#")]


@pytest.fixture
def pages() -> Pages:
    return Pages()


def test_without_a_restart_the_families_are_the_given_ones() -> None:
    totals = Totals()
    for value in (0, 1, 7):
        page = parse(
            (counter(value) + histogram({"1.0": value, "+Inf": 9}) + gauge(-value)).encode()
        )
        assert totals.update(page) is page


def test_a_counter_that_falls_goes_on_from_its_total(pages: Pages) -> None:
    assert pages.fetch(counter(5)) == ["a_total 5"]
    assert pages.fetch(counter(2)) == ["a_total 7.0"]
    assert pages.fetch(counter(4)) == ["a_total 9.0"]
    assert pages.fetch(counter(1)) == ["a_total 10.0"]


@pytest.mark.parametrize("name", ["plain", "a_sum", "a_count_total"])
def test_a_counter_may_have_any_name(pages: Pages, name: str) -> None:
    pages.fetch(counter(5, name=name))
    assert pages.fetch(counter(1, name=name)) == [f"{name} 6.0"]


def test_only_the_counter_that_fell_began_again(pages: Pages) -> None:
    pages.fetch(counter(5), counter(1, name="b_total"))
    for _ in range(3):
        shown = pages.fetch(counter(2), counter(3, name="b_total"))
    assert shown == ["a_total 7.0", "b_total 3"]


def test_a_fall_counts_from_the_second_page_on(pages: Pages) -> None:
    pages.fetch(counter(5), counter(1, name="b_total"))
    assert pages.fetch(counter(0), counter(1, name="b_total")) == ["a_total 5.0", "b_total 1"]
    assert pages.fetch(counter(6), counter(1, name="b_total")) == ["a_total 6", "b_total 1"]
    assert pages.fetch(counter(1), counter(1, name="b_total")) == ["a_total 6.0", "b_total 1"]
    assert pages.fetch(counter(1), counter(1, name="b_total")) == ["a_total 7.0", "b_total 1"]


def test_a_series_that_is_missing_stays_at_its_total(pages: Pages) -> None:
    pages.fetch(counter(5), counter(3, '{x="1"}', "b_total"))
    assert pages.fetch(counter(6)) == ["a_total 6", 'b_total{x="1"} 3.0']
    new = pages.fetch(counter(6), counter(1, '{x="2"}', "b_total"))
    assert new == ["a_total 6", 'b_total{x="2"} 1', 'b_total{x="1"} 3.0']
    both = "# TYPE b_total counter\n" + 'b_total{x="1"} 4\nb_total{x="2"} 1\n'
    assert pages.fetch(counter(6), both) == ["a_total 6", 'b_total{x="1"} 4', 'b_total{x="2"} 1']


SEEN = {'a_total{m="1"}': 100.0, 'a_total{m="2"}': 40.0, "b_total": 7.0}
PROCESS = "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {}\n"
M1, M2, B = SEEN


@dataclass
class Case:
    """Pages that follow `SEEN`, each its samples and its start time, and the totals shown last."""

    name: str
    pages: list[dict[str, float]]
    totals: list[float]
    began: Sequence[float | None] = (None, None, None, None)  # of `SEEN` first


CASES = [
    Case("the same page", [SEEN], [100, 40, 7]),
    Case("one series missing", [{M1: 100, B: 7}], [100, 40, 7]),
    Case("one series missing once", [{M1: 100, B: 7}, SEEN], [100, 40, 7]),
    Case("one family missing once", [{M1: 100, M2: 40}, SEEN], [100, 40, 7]),
    Case("all but one missing once", [{M2: 40}, SEEN], [100, 40, 7]),
    Case("all but one missing, and that one is lower", [{M2: 39}, SEEN], [100, 40, 7]),
    Case("all but one missing, and that one is zero", [{M2: 0}, SEEN], [100, 40, 7]),
    Case("one a little lower", [SEEN | {M2: 39}], [100, 40, 7]),
    Case("one a little lower permanently", [SEEN | {M2: 39}] * 3, [100, 40, 7]),
    Case("all a little lower", [{M1: 99, M2: 39, B: 6}] * 2, [100, 40, 7]),
    Case("one goes up and down", [SEEN | {M2: v} for v in (39, 41, 38, 40, 39)], [100, 41, 7]),
    Case("one is zero once", [SEEN | {M2: 0}, SEEN], [100, 40, 7]),
    Case("one is zero now and then", [SEEN | {M2: 0}, SEEN] * 3, [100, 40, 7]),
    Case("an empty page", [{}], [100, 40, 7]),
    Case("an empty page once", [{}, SEEN], [100, 40, 7]),
    Case("several empty pages", [{}, {}, {}, SEEN], [100, 40, 7]),
    Case("one began again", [SEEN | {M2: 0}, SEEN | {M2: 3}], [100, 43, 7]),
    Case("one began again twice", [SEEN | {M2: v} for v in (9, 9, 2, 3)], [100, 52, 7]),
    Case("one label set in many began again", [SEEN | {M2: 3}] * 3, [100, 43, 7]),
    Case("all began again", [{M1: 3, M2: 2, B: 1}], [103, 42, 8]),
    Case("all began again, some series later", [{M1: 3}, {M1: 3, M2: 2, B: 1}], [103, 42, 8]),
    Case("all began again after an empty page", [{}, {M1: 3, M2: 2, B: 1}], [103, 42, 8]),
    Case("two restarts", [{M1: 3, M2: 2, B: 1}, {M1: 1, M2: 1, B: 0}], [104, 43, 8]),
    Case("the start time moved by 10 ms", [SEEN], [100, 40, 7], (1000.0, 1000.01)),
    Case("the start time drifts", [SEEN] * 3, [100, 40, 7], (1000.0, 1004.0, 1008.0, 1012.0)),
    Case("the start time moved back", [SEEN], [100, 40, 7], (1000.0, 400.0)),
    Case("the start time is missing once", [SEEN, SEEN], [100, 40, 7], (1000.0, None, 1000.0)),
    Case("the start time comes and goes", [SEEN] * 3, [100, 40, 7], (None, 1000.0, None, 1e9)),
    Case("the start time is NaN", [SEEN, SEEN], [100, 40, 7], (1000.0, math.nan, 1000.0)),
    Case("a later start time alone", [SEEN], [200, 80, 14], (1000.0, 1060.0)),
    Case(
        "a later start time, and not all are back",
        [{M1: 101}, {M1: 102, M2: 1, B: 1}],
        [202, 41, 8],
        (1000.0, 1060.0, 1060.0),
    ),
    Case(
        "a restart whose start time comes a page later",
        [{M1: 3, M2: 2, B: 1}, {M1: 4, M2: 2, B: 1}],
        [104, 42, 8],
        (1000.0, None, 1060.0),
    ),
    Case(
        "a fall whose start time comes with the next page",
        [SEEN | {M1: 3}, {M1: 4, M2: 2, B: 1}],
        [104, 42, 8],
        (1000.0, 1000.0, 1060.0),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_total_is_what_was_counted(case: Case) -> None:
    totals, parser = Totals(), PageParser()
    for samples, began in zip([SEEN, *case.pages], [*case.began, *case.began], strict=False):
        shown = totals.update(parser.parse(counters(samples)), began=began)
    assert written(shown) == dict(zip(SEEN, case.totals, strict=True))


def counters(samples: dict[str, float]) -> bytes:
    """A page of counters, whose families have one-letter names."""
    return "".join(
        f"# TYPE {family}_total counter\n"
        + "".join(f"{series} {value}\n" for series, value in samples.items() if series[0] == family)
        for family in sorted({series[0] for series in samples})
    ).encode()


def test_a_missing_collector_doubles_nothing(pages: Pages) -> None:
    """The page of node_exporter has hundreds of counters."""
    names = [f"c{number}_total" for number in range(100)]
    whole = [counter(number + 1, name=name) for number, name in enumerate(names)]
    before = pages.fetch(*whole)
    pages.fetch(*whole[:70])
    pages.fetch(*whole[70:])
    assert pages.fetch(*whole) == before


def test_many_label_sets_of_one_family_are_not_nearly_all(pages: Pages) -> None:
    many = "".join(f'a_total{{x="{x}"}} %s\n' for x in range(50))
    begin = "# TYPE a_total counter\n"
    pages.fetch(begin + many % ((9,) * 50), counter(9, name="b_total"))
    for _ in range(2):
        shown = pages.fetch(begin + many % ((1,) * 50), counter(9, name="b_total"))
    assert shown == [*[f'a_total{{x="{x}"}} 10.0' for x in range(50)], "b_total 9"]


def test_nearly_all_that_fell_mean_that_all_began_again(pages: Pages) -> None:
    names = [f"{letter}_total" for letter in "abcdefghij"]
    pages.fetch(*[counter(9, name=name) for name in names])
    now = [counter(1, name=name) for name in names[1:]]
    assert pages.fetch(counter(11, name=names[0]), *now)[0] == "a_total 20.0"


def test_after_an_end_the_next_page_with_counters_decides(pages: Pages) -> None:
    pages.fetch(counter(100), counter(40, name="b_total"), counter(9, name="c_total"))
    assert pages.fetch(gauge(1), ended=True)[1:] == ["a_total 100.0", "b_total 40.0", "c_total 9.0"]
    few = pages.fetch(gauge(1), counter(120))
    assert few[1:] == ["a_total 220.0", "b_total 40.0", "c_total 9.0"]
    more = pages.fetch(counter(120), counter(50, name="b_total"), counter(8, name="c_total"))
    assert more == ["a_total 220.0", "b_total 90.0", "c_total 17.0"]


def test_after_an_end_small_falls_suffice(pages: Pages) -> None:
    pages.fetch(counter(3), counter(4, name="b_total"))
    assert pages.fetch(counter(2), counter(3, name="b_total"), ended=True) == [
        "a_total 5.0",
        "b_total 7.0",
    ]


def test_after_an_end_a_page_may_go_on_by_itself(pages: Pages) -> None:
    pages.fetch(counter(100), counter(40, name="b_total"))
    assert pages.fetch(counter(100), ended=True) == ["a_total 100", "b_total 40.0"]
    assert pages.fetch(counter(101), counter(41, name="b_total")) == ["a_total 101", "b_total 41"]


def test_a_histogram_of_which_a_part_is_seen_stays_whole(pages: Pages) -> None:
    whole, part = {"1.0": 3, "2.0": 5, "+Inf": 9}, {"2.0": 5, "+Inf": 9}
    for shown in (pages.fetch(histogram(whole, 7)), pages.fetch(histogram(whole, 7))):
        assert shown == lines(parse(histogram(whole, 7).encode()))
    assert pages.fetch(histogram(part, 7)) == lines(parse(histogram(part, 7).encode()))
    pages.fetch(histogram(whole, 7))
    before = pages.fetch(histogram({"1.0": 1, "2.0": 2, "+Inf": 3}, 2))  # of the next process
    assert before[2] == 'h_bucket{le="+Inf",x="1"} 12.0'
    for _ in range(2):
        assert pages.fetch(histogram({"2.0": 2, "+Inf": 3}, 2)) == before[1:]
        assert (
            pages.fetch(histogram({"2.0": 2, "+Inf": 4}, 2))[1] == 'h_bucket{le="+Inf",x="1"} 13.0'
        )
    assert pages.fetch(histogram({"1.0": 1, "2.0": 2, "+Inf": 3}, 2)) == before


def test_a_histogram_falls_with_its_count(pages: Pages) -> None:
    other = counter(1)
    pages.fetch(histogram({"1.0": 3, "+Inf": 9}, 7), other)
    assert pages.fetch(histogram({"1.0": 0, "+Inf": 9}, 7), other)[:2] == [
        'h_bucket{le="1.0",x="1"} 3.0',
        'h_bucket{le="+Inf",x="1"} 9',
    ]
    for _ in range(2):
        shown = pages.fetch(histogram({"1.0": 3, "+Inf": 4}, 7), other)
    assert shown[:4] == [
        'h_bucket{le="1.0",x="1"} 6.0',
        'h_bucket{le="+Inf",x="1"} 13.0',
        'h_count{x="1"} 13.0',
        'h_sum{x="1"} 14.0',
    ]


def test_an_empty_page_loses_no_total(pages: Pages) -> None:
    pages.fetch(counter(5), histogram({"1.0": 1, "+Inf": 2}, 3.5), gauge(1))
    expected = [
        "a_total 5.0",
        'h_bucket{le="1.0",x="1"} 1.0',
        'h_bucket{le="+Inf",x="1"} 2.0',
        'h_count{x="1"} 2.0',
        'h_sum{x="1"} 3.5',
    ]
    assert pages.fetch() == expected
    assert pages.fetch(gauge(2)) == ["g 2", *expected]


def test_a_later_start_time_is_a_restart_that_no_counter_shows(pages: Pages) -> None:
    pages.fetch(counter(5))
    assert pages.fetch(counter(5), restarted=True) == ["a_total 10.0"]
    assert pages.fetch(counter(6), restarted=True) == ["a_total 16.0"]
    assert pages.fetch(counter(7)) == ["a_total 17.0"]


def test_the_first_page_is_shown_as_it_is(pages: Pages) -> None:
    assert pages.fetch(counter(5), restarted=True, ended=True) == ["a_total 5"]


def test_a_sum_that_falls_is_no_restart(pages: Pages) -> None:
    pages.fetch(histogram({"1.0": 1, "+Inf": 1}, 5))
    assert pages.fetch(histogram({"1.0": 2, "+Inf": 2}, -3))[-1] == 'h_sum{x="1"} -3'


def test_gauges_and_what_has_no_type_are_those_of_now(pages: Pages) -> None:
    pages.fetch(counter(5), gauge(8), "free 3\n")
    assert pages.fetch(counter(0), gauge(1), "free 2\n") == ["a_total 5.0", "g 1", "free 2"]
    assert pages.fetch(counter(0)) == ["a_total 5.0"]


def test_of_a_summary_the_quantiles_are_those_of_now(pages: Pages) -> None:
    page = '# TYPE s summary\ns{quantile="0.5"} %s\ns_count %s\ns_sum 1.5\n'
    pages.fetch(page % (9, 4))
    assert pages.fetch(page % (2, 1)) == ['s{quantile="0.5"} 2', "s_count 5.0", "s_sum 3.0"]
    assert lines(pages.totals.kept()) == ["s_count 5.0", "s_sum 3.0"]
    assert pages.fetch() == ["s_count 5.0", "s_sum 3.0"]


def test_a_summary_that_comes_back_without_its_count_starts_again(pages: Pages) -> None:
    """An old count among new quantiles would follow the quantile of another label set."""
    begin = "# TYPE s summary\n"
    of = 's{{quantile="0.5",x="{0}"}} 1\n'.format
    pages.fetch(begin + of(1) + 's_count{x="1"} 2\ns_sum{x="1"} 2\n')
    shown = ['s{quantile="0.5",x="1"} 1', 's{quantile="0.5",x="2"} 1']
    assert pages.fetch(begin + of(1) + of(2)) == shown
    pages.fetch(begin + 's_count{x="3"} 4\ns_sum{x="3"} 4\n')
    assert pages.fetch(begin + of(1)) == [shown[0], 's_count{x="3"} 4.0', 's_sum{x="3"} 4.0']
    assert pages.fetch() == ['s_count{x="3"} 4.0', 's_sum{x="3"} 4.0']  # without quantiles of then


def test_a_histogram_with_other_bounds_starts_again(pages: Pages) -> None:
    pages.fetch(counter(1), histogram({"1.0": 3, "+Inf": 9}))
    new = histogram({"2.0": 1, "+Inf": 2})
    shown = ["a_total 1.0", *lines(parse(new.encode()))]
    assert pages.fetch(counter(0), new) == shown
    assert pages.fetch(counter(0), new) == shown
    pages.fetch(counter(0), histogram({"2.0": 1, "+Inf": 1}))  # and goes on from there
    assert 'h_bucket{le="+Inf",x="1"} 3.0' in lines(pages.shown)


def test_other_label_sets_of_it_stay(pages: Pages) -> None:
    other = 'h_bucket{le="+Inf",x="2"} 7\nh_count{x="2"} 7\nh_sum{x="2"} 7\n'
    pages.fetch(histogram({"1.0": 3, "+Inf": 9}) + other)
    shown = pages.fetch(histogram({"2.0": 1, "+Inf": 2}))
    assert shown[-3:] == ['h_bucket{le="+Inf",x="2"} 7.0', 'h_count{x="2"} 7.0', 'h_sum{x="2"} 7.0']
    assert 'h_bucket{le="+Inf",x="1"} 2' in shown


def test_a_family_that_comes_back_with_another_type_is_the_new_one_alone(pages: Pages) -> None:
    pages.fetch(counter(5), counter(1, name="b_total"))
    new = gauge(1, "a_total")
    assert pages.fetch(new, counter(0, name="b_total")) == ["a_total 1", "b_total 1.0"]
    assert pages.fetch(counter(0, name="b_total")) == ["b_total 1.0"]


def test_a_type_that_is_missing_once_costs_no_total(pages: Pages) -> None:
    pages.fetch(counter(5), counter(9, name="b_total"))
    pages.fetch(counter(2), counter(3, name="b_total"), restarted=True)
    assert pages.fetch("a_total 2\n", counter(3, name="b_total")) == ["a_total 2", "b_total 12.0"]
    assert pages.fetch(counter(3), counter(3, name="b_total")) == ["a_total 8.0", "b_total 12.0"]


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf"])
def test_what_is_not_finite_is_shown_and_the_number_before_it_counts(
    pages: Pages, value: str
) -> None:
    pages.fetch(counter(5))
    pages.fetch(counter(value))
    assert pages.fetch(counter(2)) == ["a_total 7.0"]
    assert pages.fetch(counter(value)) == [f"a_total {value}"]
    assert pages.fetch(counter(1), restarted=True) == ["a_total 8.0"]


def test_a_restart_with_a_value_that_is_not_finite_is_one(pages: Pages) -> None:
    pages.fetch(counter(5))
    assert pages.fetch(counter("NaN"), restarted=True) == ["a_total NaN"]
    assert pages.fetch(counter(4)) == ["a_total 9.0"]


def test_what_stays_infinite_is_no_restart_again_and_again(pages: Pages) -> None:
    pages.fetch(counter(5), counter(1, name="b_total"))
    for value in (2, 3, 4):
        page = counter("-Inf"), counter(value, name="b_total")
        assert pages.fetch(*page) == ["a_total -Inf", f"b_total {value}"]


def test_a_sum_of_nan_costs_no_counts(pages: Pages) -> None:
    pages.fetch(histogram({"1.0": 1, "+Inf": 2}, "NaN"))
    assert pages.fetch(histogram({"1.0": 0, "+Inf": 1}, 0.5)) == [
        'h_bucket{le="1.0",x="1"} 1.0',
        'h_bucket{le="+Inf",x="1"} 3.0',
        'h_count{x="1"} 3.0',
        'h_sum{x="1"} 0.5',
    ]


def test_buckets_around_one_that_is_nan_stay_a_histogram(pages: Pages) -> None:
    pages.fetch(histogram({"1.0": 1, "2.0": 2, "+Inf": 3}))
    page = histogram({"1.0": 7, "2.0": 8, "+Inf": 9}).replace(" 8\n", " NaN\n")
    pages.fetch(page)
    shown = pages.fetch(histogram({"1.0": 0, "2.0": 0, "+Inf": 0}))
    assert [line.rpartition(" ")[2] for line in shown[:4]] == ["1.0", "2.0", "3.0", "3.0"]


def test_numbers_too_large_for_each_other_do_not_poison(pages: Pages) -> None:
    pages.fetch(counter(1.7e308))
    pages.fetch(counter(1.6e308))
    assert pages.fetch(counter(1))[0] == "a_total 1.7e+308"


def test_the_order_of_labels_does_not_matter(pages: Pages) -> None:
    pages.fetch(counter(5, '{x="1",y="2"}'))
    assert pages.fetch(counter(1, '{y="2",x="1"}')) == ['a_total{x="1",y="2"} 6.0']


def test_label_values_may_look_like_anything(pages: Pages) -> None:
    labels = r'{a="} 1 # {x=\"1\"} 2",b="\\",c="x,le=",d="é"}'
    pages.fetch(counter(5, labels))
    assert pages.fetch(counter(1, labels)) == [f"a_total{labels} 6.0"]


def test_large_totals_are_written_as_all_numbers_are(pages: Pages) -> None:
    pages.fetch(counter(999_999))
    assert pages.fetch(counter(1)) == ["a_total 1e+06"]


def test_what_did_not_change_is_the_same_object(pages: Pages) -> None:
    first = [counter(5), counter(2, name="b_total"), counter(0, name="c_total"), gauge(1)]
    pages.fetch(*first)
    zero = pages.shown[2]
    pages.fetch(counter(1), *first[2:], restarted=True)
    assert [family.name for family in pages.shown] == ["a", "c", "g", "b"]
    assert pages.shown[1] is zero
    before, kept = pages.shown, pages.totals.kept()
    pages.fetch(counter(1), *first[2:])
    assert pages.shown is before
    assert pages.totals.kept() is kept
    pages.fetch(counter(2), *first[2:])
    same = [one is other for one, other in zip(pages.shown, before, strict=True)]
    assert same == [False, True, True, True]


def test_a_total_that_reads_the_same_after_a_restart_is_the_same_object(pages: Pages) -> None:
    pages.fetch(counter(5.0))
    before = pages.shown
    pages.fetch(counter(0.0))
    assert pages.shown == before  # families are equal to themselves only


def test_what_is_missing_is_found_by_the_names_of_its_samples(pages: Pages) -> None:
    pages.fetch(histogram({"1.0": 1, "+Inf": 2}))
    pages.fetch()
    assert pages.shown[0].sample_names == {"h_bucket", "h_count", "h_sum"}


def test_equal_families_that_are_others_count_as_the_same() -> None:
    totals = Totals()
    totals.update(parse(counter(5).encode()))
    before = totals.update(parse(counter(1).encode()))
    assert totals.update(parse(counter(1).encode())) is before


def test_what_is_kept_of_an_engine_that_is_gone(pages: Pages) -> None:
    assert pages.totals.kept() == ()
    pages.fetch(counter(5), gauge(1), "free 3\n")
    assert pages.totals.kept() == pages.shown[:1]
    pages.fetch(counter(1), gauge(1), "free 3\n")
    assert lines(pages.totals.kept()) == ["a_total 6.0"]


def test_exemplars_and_timestamps_stay_and_both_formats_agree() -> None:
    pages = Pages(openmetrics=True)
    page = (
        "# TYPE a counter\n"
        'a_total{x="1"} %s 1.5 # {t="} 1"} 0.25 1.0\n'
        "# TYPE h histogram\n"
        'h_bucket{le="+Inf"} %s # {t="u"} 0.5\nh_count %s\nh_sum 0.5\n'
    )
    pages.fetch(page % (5, 3, 3))
    assert pages.fetch(page % (1, 2, 2)) == [
        'a_total{x="1"} 6.0 1500',
        'h_bucket{le="+Inf"} 5.0',
        "h_count 5.0",
        "h_sum 1.0",
    ]
    assert lines(pages.shown, openmetrics=True) == [
        'a_total{x="1"} 6.0 1.5 # {t="} 1"} 0.25 1.0',
        'h_bucket{le="+Inf"} 5.0 # {t="u"} 0.5',
        "h_count 5.0",
        "h_sum 1.0",
    ]
    pages.fetch("# TYPE a counter\n" + 'a_total{x="2"} 1 # {} 1\n')
    assert lines(pages.shown, openmetrics=True)[:2] == [
        'a_total{x="2"} 1 # {} 1',
        'a_total{x="1"} 6.0',
    ]
    assert lines(pages.shown)[:2] == ['a_total{x="2"} 1', 'a_total{x="1"} 6.0']


BOUNDS = ("0.5", "2.0", "+Inf")
SERIES = [f'{{x="{x}"}}' for x in "12}"]


@dataclass
class Engine:
    """An engine that counts; series without a count are not on its page."""

    counters: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, list[float]] = field(default_factory=dict)

    def count(self, labels: str, amount: float) -> None:
        self.counters[labels] = self.counters.get(labels, 0.0) + amount

    def observe(self, labels: str, value: float) -> None:
        self.histograms.setdefault(labels, []).append(value)

    def samples(self) -> dict[str, float]:
        """Return the cumulative samples."""
        found = {f"a_total{labels}": value for labels, value in self.counters.items()}
        for labels, values in self.histograms.items():
            for bound in BOUNDS:
                series = f'h_bucket{{le="{bound}",{labels[1:]}'
                found[series] = float(sum(value <= float(bound) for value in values))
            found[f"h_count{labels}"] = float(len(values))
            found[f"h_sum{labels}"] = sum(values)
        return found

    def page(self, *, openmetrics: bool) -> bytes:
        end = "# EOF\n" if openmetrics else ""
        exemplar = ' # {t="# {"} 1.0' if openmetrics else ""
        pieces = ["# TYPE g gauge\n", f"g {len(self.counters)}\n"]
        for name, kind in (("a" if openmetrics else "a_total", "counter"), ("h", "histogram")):
            pieces.append(f"# TYPE {name} {kind}\n")
            for series, value in self.samples().items():
                if series[0] == name[0]:
                    behind = exemplar if series.startswith(("a", "h_bucket")) else ""
                    pieces.append(f"{series} {value}{behind}\n")
        return ("".join(pieces) + end).encode()


QUARTERS = st.integers(0, 2**20).map(lambda number: number / 4)
EVENTS = st.lists(
    st.tuples(st.just("count"), st.sampled_from(SERIES), QUARTERS)
    | st.tuples(st.just("observe"), st.sampled_from(SERIES), QUARTERS | st.just(0.25))
    | st.tuples(st.sampled_from(["fetch", "restart", "announced"]), st.just(""), st.just(0.0)),
    max_size=40,
)


ODD_PAGES = st.lists(
    st.dictionaries(st.sampled_from(list(SEEN)), st.integers(0, 12).map(float)), max_size=12
)


@given(ODD_PAGES)
@settings(max_examples=300, deadline=None)
def test_no_page_makes_a_total_that_prometheus_would_not_count(
    sequence: list[dict[str, float]],
) -> None:
    """Totals equal `increase()` of the raw pages from zero, and never fall."""
    totals, parser = Totals(), PageParser()
    last: dict[str, float] = {}
    increase: dict[str, float] = {}
    before: dict[str, float] = {}
    for samples in sequence:
        for series, value in samples.items():
            step = value - last.get(series, 0.0)
            increase[series] = increase.get(series, 0.0) + (step if step >= 0 else value)
            last[series] = value
        shown = written(totals.update(parser.parse(counters(samples))))
        assert shown.keys() == increase.keys()
        for series, total in shown.items():
            assert max(before.get(series, 0.0), samples.get(series, 0.0)) <= total
            assert total <= increase[series]
        before = shown


HISTOGRAM = ['h_bucket{le="1.0"}', 'h_bucket{le="2.0"}', 'h_bucket{le="+Inf"}', "h_count"]


@st.composite
def histograms(draw: st.DrawFn) -> dict[str, float]:
    """The counts of one histogram, or of a part of its series, or of none."""
    low, middle, high = (draw(st.integers(0, 6)) for _ in range(3))
    counts = [low, low + middle, low + middle + high, low + middle + high]
    dropped = draw(st.sets(st.sampled_from(HISTOGRAM), max_size=2))
    found = {s: float(n) for s, n in zip(HISTOGRAM, counts, strict=True) if s not in dropped}
    return found if draw(st.booleans()) else {}


@given(st.lists(st.tuples(histograms(), st.integers(0, 9)), max_size=12))
@settings(max_examples=300, deadline=None)
def test_a_histogram_stays_one_and_counts_nothing_that_was_not_counted(
    sequence: list[tuple[dict[str, float], int]],
) -> None:
    """A histogram of which any count fell began again as a whole, as native histograms do."""
    totals, parser = Totals(), PageParser()
    last: dict[str, float] = {}
    increase: dict[str, float] = {}
    for counts, other in sequence:
        begin = "# TYPE h histogram\n" if counts else ""
        rows = "".join(f"{series} {value}\n" for series, value in counts.items())
        fell = any(value < last.get(series, 0.0) for series, value in counts.items())
        for series, value in counts.items():
            step = value if fell else value - last.get(series, 0.0)
            increase[series] = increase.get(series, 0.0) + step
            last[series] = value
        page = parser.parse((begin + rows + counter(other)).encode())
        shown = written(totals.update(page))
        in_order = [shown[series] for series in HISTOGRAM if series in shown]
        assert in_order == sorted(in_order)
        assert all(value <= increase[s] for s, value in shown.items() if s != "a_total")


def visible(before: dict[str, float], now: dict[str, float]) -> bool:
    """Return whether the page alone shows a restart: all fell, and one of them to half or less."""
    counts = [
        (value, now.get(series, math.inf))
        for series, value in before.items()
        if value and series.startswith(("a_total", "h_count"))
    ]
    return all(after < value for value, after in counts) and any(
        after <= value / 2 for value, after in counts
    )


@given(EVENTS, st.booleans())
@settings(max_examples=100, deadline=None)
def test_totals_are_the_true_sums_since_the_beginning(
    events: list[tuple[str, str, float]], openmetrics: bool
) -> None:
    totals, parser = Totals(), PageParser(openmetrics=openmetrics)
    whole, engine = Engine(), Engine()
    last: dict[str, float] = {}
    announced = restarted = False
    began = 0.0
    for event, labels, amount in [*events, ("fetch", "", 0.0)]:
        if event == "count":
            whole.count(labels, amount)
            engine.count(labels, amount)
        elif event == "observe":
            whole.observe(labels, amount)
            engine.observe(labels, amount)
        else:
            now = engine.samples()
            announced |= restarted and not visible(last, now)
            began += 60 if announced else 0
            families = totals.update(
                parser.parse(engine.page(openmetrics=openmetrics)), began=began
            )
            last, announced, restarted = now, False, False
            check(families, whole, len(engine.counters))
            check(totals.kept(), whole, None)
            if event != "fetch":
                engine, restarted, announced = Engine(), True, event == "announced"


@st.composite
def other_pages(draw: st.DrawFn) -> str:
    """One page of an engine of any version: other bounds, types and label sets."""
    pieces = []
    if draw(st.booleans()):
        pieces.append("# TYPE h histogram\n")
        for x in draw(st.sets(st.sampled_from("12"))):
            total = 0
            for bound in (*sorted(draw(st.sets(st.sampled_from(["0.5", "1.0", "2.0"])))), "+Inf"):
                total += draw(st.integers(0, 3))
                pieces.append(f'h_bucket{{le="{bound}",x="{x}"}} {total}\n')
            if draw(st.booleans()):
                pieces.append(f'h_count{{x="{x}"}} {total}\nh_sum{{x="{x}"}} {total}\n')
    if draw(st.booleans()):
        pieces.append("# TYPE s summary\n")
        for x in draw(st.sets(st.sampled_from("12"))):
            value = draw(st.integers(0, 3))
            if draw(st.booleans()):
                pieces.append(f's{{quantile="0.5",x="{x}"}} {value}\n')
            if draw(st.booleans()):
                pieces.append(f's_count{{x="{x}"}} {value}\ns_sum{{x="{x}"}} {value}\n')
    kind, name = draw(st.sampled_from([("counter", "t"), ("gauge", "t_total"), ("gauge", "t")]))
    sample = "t_total" if kind == "counter" else name
    pieces.append(f"# TYPE {name} {kind}\n{sample} {draw(st.integers(0, 3))}\n")
    return "".join(pieces) + "# EOF\n"


@given(st.lists(st.tuples(other_pages(), st.booleans()), max_size=6))
@settings(max_examples=100, deadline=None)
def test_whatever_comes_back_the_page_is_valid(pages: list[tuple[str, bool]]) -> None:
    totals, parser = Totals(), PageParser(openmetrics=True)
    for number, (page, restarted) in enumerate(pages):
        families = parser.parse(page.encode())
        shown = totals.update(families, began=60.0 * number if restarted else None)
        assert {family.name for family in families} <= {family.name for family in shown}
        for valid in (shown, totals.kept()):
            merged = Merger().merge([Source("page", valid)])
            PageParser(openmetrics=True).parse(render(merged, openmetrics=True))
            list(read_openmetrics(render(merged, openmetrics=True).decode()))
            assert render(PageParser().parse(render(valid))) == render(valid)


def test_a_counter_that_is_not_back_yet_stays_beside_a_gauge_of_its_name() -> None:
    totals = Totals()
    totals.update(parse((gauge(1, "a") + counter(5)).encode()))
    shown = totals.update(parse(gauge(2, "a").encode()), ended=True)
    assert written(shown) == {"a": 2, "a_total": 5}


def check(families: Sequence[Family], whole: Engine, gauge: int | None) -> None:
    """Check that families have the totals of `whole`, and are a valid page of both formats."""
    expected = whole.samples() | ({} if gauge is None else {"g": float(gauge)})
    assert written(families) == expected
    page = render(families, openmetrics=True)
    assert render(PageParser(openmetrics=True).parse(page), openmetrics=True) == page
    for read in (read_text(render(families).decode()), read_openmetrics(page.decode())):
        found = [(s.name, s.labels, s.value) for metric in read for s in metric.samples]
        assert len(found) == len(expected)
        assert sorted(value for *_, value in found) == sorted(expected.values())


def written(families: Sequence[Family]) -> dict[str, float]:
    samples = [line.rpartition(" ") for line in lines(families)]
    found = {series: float(value) for series, _, value in samples}
    assert len(found) == len(samples)
    return found


def test_counters_with_and_without_total_are_two() -> None:
    totals = Totals()
    for old, new in ((10, 100), (1, 2)):
        text = f"# TYPE a counter\na {old}\n# TYPE a_total counter\na_total {new}\n"
        shown = totals.update(parse(text.encode()))
    for families in (shown, totals.kept()):
        assert [line for line in render(families).splitlines() if line[:1] != b"#"] == [
            b"a 11.0",
            b"a_total 102.0",
        ]
