"""Pages are parsed as leniently as by Prometheus: only an invalid line is dropped."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.openmetrics import exposition as peer_openmetrics
from random_metrics import metrics, registry_of

from dynamometer.errors import ExpositionError
from dynamometer.exposition.parser import Parser
from dynamometer.exposition.rendering import render
from parsing import OPENMETRICS, parse

# Text pages, and what they become.
VALID_TEXT = {
    "white space and comments": (
        b'\n# a comment\n  a { x = "1" , y="2", }   3.5  \n#HELP\n\t b\t4\r\n',
        b'# HELP a \n# TYPE a untyped\na{x="1",y="2"} 3.5\n# HELP b \n# TYPE b untyped\nb 4\n',
    ),
    "labels in order": (b'a{y="2",x="1"} 1\n', b'# HELP a \n# TYPE a untyped\na{x="1",y="2"} 1\n'),
    "labels in the order of their names": (
        b'a{b1="x",b="=,b2=",b_="\\\\\\"\\n"} 1\na{b="\\t",b1="x"} 2\n',
        (
            b"# HELP a \n# TYPE a untyped\n"
            b'a{b="=,b2=",b1="x",b_="\\\\\\"\\n"} 1\na{b="\\\\t",b1="x"} 2\n'
        ),
    ),
    "special values": (
        b'a{x="1"} nan\na{x="2"} inf\na{x="3"} -INF\n',
        b'# HELP a \n# TYPE a untyped\na{x="1"} NaN\na{x="2"} +Inf\na{x="3"} -Inf\n',
    ),
    "escapes": (
        b'# HELP a one \\\\ two \\n three "\na{x="\\\\ \\n \\" }"} 1\n',
        b'# HELP a one \\\\ two \\n three "\n# TYPE a untyped\na{x="\\\\ \\n \\" }"} 1\n',
    ),
    "timestamp": (b"a 1 1700000000123\n", b"# HELP a \n# TYPE a untyped\na 1 1700000000123\n"),
    "counter without _total": (
        b"# HELP a h\n# TYPE a counter\na 1\n",
        b"# HELP a h\n# TYPE a counter\na 1\n",
    ),
    "counter without _total, and without samples": (
        b"# TYPE a counter\n",
        b"# HELP a \n# TYPE a counter\n",
    ),
    "counter whose TYPE alone is without _total": (
        b'# TYPE a counter\na_total{x="1"} 1\na_total{x="2"} 2\n',
        b'# HELP a_total \n# TYPE a_total counter\na_total{x="1"} 1\na_total{x="2"} 2\n',
    ),
    "counter whose HELP and TYPE are without _total": (
        b"# HELP a h\n# TYPE a counter\na_total 1\n# TYPE b gauge\nb 2\n",
        b"# HELP a_total h\n# TYPE a_total counter\na_total 1\n# HELP b \n# TYPE b gauge\nb 2\n",
    ),
    "counter whose HELP and samples alone have _total": (
        b"# HELP a_total h\n# TYPE a counter\na_total 1\n",
        b"# HELP a_total h\n# TYPE a_total counter\na_total 1\n",
    ),
    "counter whose HELP with _total is behind its TYPE": (
        b"# TYPE a counter\n# HELP a_total h\na_total 1\n",
        b"# HELP a_total h\n# TYPE a_total counter\na_total 1\n",
    ),
    "counter whose samples are elsewhere": (
        b"# TYPE a counter\n# TYPE b gauge\nb 1\na_total 2\n",
        b"# HELP a_total \n# TYPE a_total counter\na_total 2\n# HELP b \n# TYPE b gauge\nb 1\n",
    ),
    "counter whose HELP alone is without _total": (
        b"# HELP a h\n# TYPE a_total counter\na_total 1\n",
        b"# HELP a_total h\n# TYPE a_total counter\na_total 1\n",
    ),
    "counter beside a gauge that has the HELP": (
        b"# HELP a h\n# TYPE a gauge\na 1\n# TYPE a_total counter\na_total 2\n",
        b"# HELP a h\n# TYPE a gauge\na 1\n# HELP a_total \n# TYPE a_total counter\na_total 2\n",
    ),
    "counter under both of its names": (
        b'# TYPE a counter\na 1\na_total 2\na_total{x="1"} 3\n# TYPE a_total counter\na_total 4\n',
        (
            b"# HELP a \n# TYPE a counter\na 1\n"
            b'# HELP a_total \n# TYPE a_total counter\na_total 2\na_total{x="1"} 3\na_total 4\n'
        ),
    ),
    "counter of no name": (
        b"# TYPE _total counter\n_total 1\n",
        b"# HELP _total \n# TYPE _total untyped\n_total 1\n",
    ),
    "counter of no samples beside a gauge of its name": (
        b"# TYPE a counter\n# TYPE a_total gauge\na_total 1\n",
        b"# HELP a_total \n# TYPE a_total gauge\na_total 1\n",
    ),
    "created series among others": (
        (
            b'# TYPE a counter\na_total{x="1"} 1\na_created{x="1"} 1.7e9\na_total{x="2"} 2\n'
            b'# TYPE b_total counter\nb_total{x="1"} 1\nb_created{x="1"} 1.7e9\nb_total{x="2"} 2\n'
        ),
        (
            b'# HELP a_total \n# TYPE a_total counter\na_total{x="1"} 1\na_total{x="2"} 2\n'
            b'# HELP b_total \n# TYPE b_total counter\nb_total{x="1"} 1\nb_total{x="2"} 2\n'
        ),
    ),
    "created series of another client": (
        (
            b"# HELP a_total h\n# TYPE a_total counter\na_total 1\n"
            b"# HELP a_created h\n# TYPE a_created gauge\na_created 1.7e9\n"
        ),
        b"# HELP a_total h\n# TYPE a_total counter\na_total 1\n",
    ),
    "a gauge with the name of a created series": (
        (
            b"# HELP a_total h\n# TYPE a_total counter\na_total 1\n"
            b"# HELP a_created mine\n# TYPE a_created gauge\na_created 5\n"
            b"# TYPE s summary\ns_sum 1\ns_count 1\n"
            b"# HELP s_created mine\n# TYPE s_created gauge\ns_created 6\n"
        ),
        (
            b"# HELP a_total h\n# TYPE a_total counter\na_total 1\n"
            b"# HELP a_created mine\n# TYPE a_created gauge\na_created 5\n"
            b"# HELP s \n# TYPE s summary\ns_sum 1\ns_count 1\n"
            b"# HELP s_created mine\n# TYPE s_created gauge\ns_created 6\n"
        ),
    ),
    "created series of another client that sorts its families": (
        (
            b"# HELP a_created h\n# TYPE a_created gauge\na_created 1.7e9\n"
            b"# HELP a_total h\n# TYPE a_total counter\na_total 1\n"
        ),
        b"# HELP a_total h\n# TYPE a_total counter\na_total 1\n",
    ),
    "created series without HELP, or with an empty one": (
        (
            b"# TYPE a_total counter\na_total 1\n# TYPE a_created gauge\na_created 1.7e9\n"
            b"# HELP s \n# TYPE s summary\ns_sum 1\n"
            b"# HELP s_created \n# TYPE s_created gauge\ns_created 1.7e9\n"
        ),
        (
            b"# HELP a_total \n# TYPE a_total counter\na_total 1\n"
            b"# HELP s \n# TYPE s summary\ns_sum 1\n"
        ),
    ),
    "a gauge that is called created": (
        b"# TYPE a_created gauge\na_created 1\n",
        b"# HELP a_created \n# TYPE a_created gauge\na_created 1\n",
    ),
    "quoted names": (
        b'# TYPE "my.name" gauge\n{"my.name","the label"="x"} 1\n',
        b'# HELP my_name \n# TYPE my_name gauge\nmy_name{the_label="x"} 1\n',
    ),
    "a header without samples": (b"# TYPE a gauge\n", b"# HELP a \n# TYPE a gauge\n"),
    "a HELP alone": (b"# HELP a h\n", b""),
    "headers twice: the first stand": (
        b"# HELP a x\n# TYPE a gauge\na 1\n# HELP a y\n# TYPE a counter\na 2 5\n",
        b"# HELP a x\n# TYPE a gauge\na 1\na 2 5\n",
    ),
    "headers behind samples": (
        b"a 1\n# HELP a h\n# TYPE a histogram\na_count 2\na 3 5\n",
        (
            b"# HELP a h\n# TYPE a untyped\na 1\na 3 5\n"
            b"# HELP a_count \n# TYPE a_count untyped\na_count 2\n"
        ),
    ),
    "samples in two places": (
        b'# TYPE a gauge\na{x="1"} 1\nb 2\na{x="2"} 3\n',
        b'# HELP a \n# TYPE a gauge\na{x="1"} 1\na{x="2"} 3\n# HELP b \n# TYPE b untyped\nb 2\n',
    ),
    "a series of two times": (
        b"# TYPE a_total counter\na_total 1 1\na_total 2 2\n",
        b"# HELP a_total \n# TYPE a_total counter\na_total 1 1\na_total 2 2\n",
    ),
    "no comma between labels": (
        b'a{x="1" y="2"} 1\na{x="3"y="4"}5\n',
        b'# HELP a \n# TYPE a untyped\na{x="1",y="2"} 1\na{x="3",y="4"} 5\n',
    ),
    "no white space before a value": (
        b'a-1\nb+Inf 5\nc.5\nd{x="1"}-2\n',
        (
            b"# HELP a \n# TYPE a untyped\na -1\n# HELP b \n# TYPE b untyped\nb +Inf 5\n"
            b'# HELP c \n# TYPE c untyped\nc .5\n# HELP d \n# TYPE d untyped\nd{x="1"} -2\n'
        ),
    ),
    "a label of Prometheus' own kind": (
        b'a{__x="1"} 1\n',
        b'# HELP a \n# TYPE a untyped\na{__x="1"} 1\n',
    ),
    "comments": (
        b"#\n#HELP\n#TYPE a\n# HELPa b\n# UNIT a\n# UNIT\n# EOF\n# \na 1\n",
        b"# HELP a \n# TYPE a untyped\na 1\n",
    ),
    "types of OpenMetrics": (
        b'# TYPE a info\na_info{v="1"} 1\n# TYPE b unknown\nb 1\n',
        (
            b'# HELP a_info \n# TYPE a_info gauge\na_info{v="1"} 1\n'
            b"# HELP b \n# TYPE b untyped\nb 1\n"
        ),
    ),
    "a gauge with the name, but not the value, of a created series": (
        b"# TYPE a_created gauge\na_created 5\n# TYPE a_total counter\na_total 1\n",
        (
            b"# HELP a_created \n# TYPE a_created gauge\na_created 5\n"
            b"# HELP a_total \n# TYPE a_total counter\na_total 1\n"
        ),
    ),
    "a sample with the name, but not the value, of a created series": (
        b"# TYPE a_total counter\na_total 1\na_created 5\n",
        (
            b"# HELP a_total \n# TYPE a_total counter\na_total 1\n"
            b"# HELP a_created \n# TYPE a_created untyped\na_created 5\n"
        ),
    ),
    "nothing": (b"", b""),
    "comments alone": (b"# EOF\n# a comment\n", b""),
}
# OpenMetrics pages, the text pages that they become, and the OpenMetrics pages where those differ
# from the given ones.
VALID_OPENMETRICS = {
    "info": (
        b'# HELP a h\n# TYPE a info\na_info{v="1"} 1\n# EOF\n',
        b'# HELP a_info h\n# TYPE a_info gauge\na_info{v="1"} 1\n',
        None,
    ),
    "info that is called so": (
        b'# TYPE a_info info\na_info{v="1"} 1\n# EOF\n',
        b'# HELP a_info \n# TYPE a_info gauge\na_info{v="1"} 1\n',
        b'# HELP a \n# TYPE a info\na_info{v="1"} 1\n# EOF\n',
    ),
    "info without its suffix": (
        b'# TYPE a info\na{v="1"} 1\n# EOF\n',
        b'# HELP a \n# TYPE a untyped\na{v="1"} 1\n',
        b'# HELP a \n# TYPE a unknown\na{v="1"} 1\n# EOF\n',
    ),
    "stateset": (
        b'# HELP a h\n# TYPE a stateset\na{a="x"} 1\na{a="y"} 0\n# EOF\n',
        b'# HELP a h\n# TYPE a gauge\na{a="x"} 1\na{a="y"} 0\n',
        None,
    ),
    "unknown": (
        b"# HELP a h\n# TYPE a unknown\na 1\n# EOF\n",
        b"# HELP a h\n# TYPE a untyped\na 1\n",
        None,
    ),
    "gaugehistogram": (
        (
            b'# HELP a h\n# TYPE a gaugehistogram\na_bucket{le="+Inf"} 2\na_gcount 2\na_gsum 3\n'
            b"# EOF\n"
        ),
        (
            b'# HELP a h\n# TYPE a histogram\na_bucket{le="+Inf"} 2\n'
            b"# HELP a_gcount h\n# TYPE a_gcount gauge\na_gcount 2\n"
            b"# HELP a_gsum h\n# TYPE a_gsum gauge\na_gsum 3\n"
        ),
        None,
    ),
    "unit": (
        b"# HELP a_s h\n# TYPE a_s counter\n# UNIT a_s s\na_s_total 1\n# EOF\n",
        b"# HELP a_s_total h\n# TYPE a_s_total counter\na_s_total 1\n",
        None,
    ),
    "created": (
        b"# TYPE a counter\na_total 1\na_created 1.7e9\n# EOF\n",
        b"# HELP a_total \n# TYPE a_total counter\na_total 1\n",
        b"# HELP a \n# TYPE a counter\na_total 1\n# EOF\n",
    ),
    "counter with _total in its TYPE": (
        b"# TYPE a_total counter\na_total 1\n# EOF\n",
        b"# HELP a_total \n# TYPE a_total counter\na_total 1\n",
        b"# HELP a \n# TYPE a counter\na_total 1\n# EOF\n",
    ),
    "counter without _total": (
        b"# HELP a h\n# TYPE a counter\na 1\n# EOF\n",
        b"# HELP a h\n# TYPE a counter\na 1\n",
        b"# HELP a h\n# TYPE a counter\na_total 1\n# EOF\n",
    ),
    "float timestamp and exemplar": (
        (b'# HELP a h\n# TYPE a counter\na_total{x="1"} 1 1700000000.5 # {t="q"} 0.5 1.5\n# EOF\n'),
        b'# HELP a_total h\n# TYPE a_total counter\na_total{x="1"} 1 1700000000500\n',
        None,
    ),
    "exemplars where none belong, and one that is too long": (
        (
            b"# HELP a h\n# TYPE a gauge\na 1 # {} 1\n# HELP b h\n# TYPE b counter\n"
            b'b_total 2 # {x="' + b"y" * 128 + b'"} 1\n# EOF\n'
        ),
        b"# HELP a h\n# TYPE a gauge\na 1\n# HELP b_total h\n# TYPE b_total counter\nb_total 2\n",
        (b"# HELP a h\n# TYPE a gauge\na 1\n# HELP b h\n# TYPE b counter\nb_total 2\n# EOF\n"),
    ),
    "escapes": (
        b'# HELP a one \\\\ two \\n \\"three\\"\n# TYPE a gauge\na{x="\\\\ \\n \\" }"} 1\n# EOF\n',
        b'# HELP a one \\\\ two \\n "three"\n# TYPE a gauge\na{x="\\\\ \\n \\" }"} 1\n',
        None,
    ),
    "quoted names": (
        b'# TYPE "my.name" gauge\n{"my.name","the label"="x"} 1\n# EOF\n',
        b'# HELP my_name \n# TYPE my_name gauge\nmy_name{the_label="x"} 1\n',
        b'# HELP my_name \n# TYPE my_name gauge\nmy_name{the_label="x"} 1\n# EOF\n',
    ),
    "white space, comments and line ends of the text format": (
        b'# a comment\n\n  a{x="1", y="2",}   1\r\n#\n\tb\t2\n# EOF',
        b'# HELP a \n# TYPE a untyped\na{x="1",y="2"} 1\n# HELP b \n# TYPE b untyped\nb 2\n',
        (
            b'# HELP a \n# TYPE a unknown\na{x="1",y="2"} 1\n# HELP b \n# TYPE b unknown\nb 2\n'
            b"# EOF\n"
        ),
    ),
    "odd values": (
        (
            b"# TYPE a counter\na_total NaN\n# TYPE b info\nb_info 2\n"
            b"# TYPE h histogram\nh_bucket 2.5\n# EOF\n"
        ),
        (
            b"# HELP a_total \n# TYPE a_total counter\na_total NaN\n"
            b"# HELP b_info \n# TYPE b_info gauge\nb_info 2\n"
            b"# HELP h \n# TYPE h histogram\nh_bucket 2.5\n"
        ),
        (
            b"# HELP a \n# TYPE a counter\na_total NaN\n# HELP b \n# TYPE b info\nb_info 2\n"
            b"# HELP h \n# TYPE h histogram\nh_bucket 2.5\n# EOF\n"
        ),
    ),
    "nothing": (b"# EOF\n", b"", b"# EOF\n"),
}
# Lines that cannot be read, in either format.
UNREADABLE = {
    "no value": b"b",
    "no value behind labels": b'b{x="1"}',
    "value no number": b"b x",
    "value with underscore": b"b 1_0",
    "value of other digits": "b \N{ARABIC-INDIC DIGIT ONE}".encode(),
    "value out of range": b"b 1e999",
    "value that is hexadecimal": b"b 0x10",
    "timestamp no number": b"b 1 x",
    "timestamp is NaN": b"b 1 NaN",
    "timestamp out of range": b"b 1 99999999999999999999",
    "more behind": b"b 1 2 3",
    "a comment behind": b"b 1 # a comment",
    "exemplar without value": b'b_total 1 # {x="1"}',
    "exemplar without labels": b"b_total 1 # 1",
    "exemplar not closed": b'b_total 1 # {x="1" 1',
    "brace not closed": b'b{x="1" 1',
    "quote not closed": b'b{x="1} 1',
    "label without value": b"b{x} 1",
    "label without quotes": b"b{x=1} 1",
    "label twice": b'b{x="1",x="2"} 1',
    "two commas": b'b{x="1",,y="2"} 1',
    "a comma alone": b"b{,} 1",
    "the name as a label": b'b{__name__="c"} 1',
    "no name": b'{x="1"} 1',
    "two names": b'b{"c"} 1',
    "an empty name": b'{"",} 1',
    "a name and an empty one": b'b{"",} 1',
    "braces alone": b"{} 1",
    "braces twice": b'b{x="1"} {y="1"} 1',
    "name of a digit": b"1b 1",
    "name with a dot": b"b.c 1",
    "no UTF-8": b"b\xff 2",
    "label that is not UTF-8": b'b{x="\xff"} 2',
    "comment that is not UTF-8": b"# \xff",
    "HELP that is not UTF-8": b"# HELP b \xff",
    "a NUL": b"b\0 1",
    "a byte order mark": b"\xef\xbb\xbfb 1",
    "words": b"an error has occurred",
    "JSON": b'{"b": 1}',
    "a native histogram": b"b {count:1,sum:2,schema:0,zero_threshold:0,zero_count:0}",
    "HELP of nothing": b"# HELP",
    "TYPE of nothing": b"# TYPE",
    "type of no name": b"# TYPE 1b gauge",
    "no type": b"# TYPE b",
    "unknown type": b"# TYPE b meter",
    "type and more": b"# TYPE b gauge counter",
}
UNREADABLE_OPENMETRICS = {
    "unit not in the name": b"# TYPE b gauge\n# UNIT b seconds",
    "unit of nothing": b"# UNIT",
}


@pytest.mark.parametrize("case", VALID_TEXT)
def test_valid_text(case: str) -> None:
    page, rendered = VALID_TEXT[case]
    assert render(parse(page)) == rendered


@pytest.mark.parametrize("case", VALID_OPENMETRICS)
def test_valid_openmetrics(case: str) -> None:
    page, text, openmetrics = VALID_OPENMETRICS[case]
    families = parse(page, openmetrics=True)
    assert render(families) == text
    assert render(families, openmetrics=True) == (openmetrics or page)


@pytest.mark.parametrize("openmetrics", [False, True])
@pytest.mark.parametrize("case", UNREADABLE)
def test_a_line_that_cannot_be_read_costs_itself(case: str, openmetrics: bool) -> None:
    kind = "OpenMetrics" if openmetrics else "text"
    page = b"# TYPE a gauge\na 1\n%s\nc 2\n# EOF\n" % UNREADABLE[case]
    parsed = Parser().parse(page, OPENMETRICS if openmetrics else "")
    assert render(parsed.families) == (
        b"# HELP a \n# TYPE a gauge\na 1\n# HELP c \n# TYPE c untyped\nc 2\n"
    )
    assert parsed.dropped == 1
    assert parsed.fault.startswith(f"line 3 of the {kind} page: ")


@pytest.mark.parametrize("case", UNREADABLE_OPENMETRICS)
def test_a_unit_that_cannot_be_read_costs_itself(case: str) -> None:
    page = b"%s\nb 1\n# EOF\n" % UNREADABLE_OPENMETRICS[case]
    parsed = Parser().parse(page, OPENMETRICS)
    assert parsed.dropped == 1
    assert b"\nb 1\n" in render(parsed.families, openmetrics=True)
    assert b"# UNIT" not in render(parsed.families, openmetrics=True)
    assert Parser().parse(page).dropped == 0  # a comment in the text format


def test_timestamps_are_milliseconds_in_text_and_seconds_in_openmetrics() -> None:
    page = b"a 1 1.5\nb 1 2\n# EOF\n"
    assert Parser().parse(page).fault.startswith("line 1 of the text page: not a timestamp")
    families = Parser().parse(page).families
    assert render(families).endswith(b"\nb 1 2\n")
    families = Parser().parse(page, OPENMETRICS).families
    assert b"\na 1 1500\n" in render(families)
    assert b"\na 1 1.5\n" in render(families, openmetrics=True)


@pytest.mark.parametrize(
    "line", [b"a1", b"a-1", b'a{x="1"', b'a{x="1"}b 5', b"a5 1", b"ab", b"a\xc2\xa05"]
)
def test_a_known_series_makes_no_other_line_readable(line: bytes) -> None:
    parser = Parser()
    good = b'a 5\na{x="1"} 5\n'
    assert parser.parse(good).dropped == 0
    again, fresh = parser.parse(good + line), Parser().parse(good + line)
    assert (again.dropped, again.fault) == (fresh.dropped, fresh.fault)
    assert render(again.families) == render(fresh.families)


UNUSABLE = {
    "HTML": ("text/html", b"<html>\n<pre>\na 1\n</pre>", "HTML"),
    "HTML behind a blank line": ("", b"\n <!doctype html>\na 1\n", "HTML"),
    "words": ("text/plain", b"Not found\n", "line 1 of the text page: "),
    "JSON": ("application/json", b'{\n  "a": 1\n}\n', "line 1 of the text page: "),
    "another encoding": ("", "a 1\nb 2\n".encode("utf-16"), "line 1 of the text page: "),
    "compressed": ("", b"\x1f\x8b\x08\x00\x00\n\x00\xff", "line 1 of the text page: "),
    "headers and a line that cannot be read": (
        "",
        b"# TYPE a gauge\na\n",
        "line 2 of the text page: ",
    ),
    "OpenMetrics without an end": (OPENMETRICS, b"a 1\n", "does not end with # EOF"),
    "OpenMetrics without anything": (OPENMETRICS, b"", "does not end with # EOF"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_page_of_which_nothing_can_be_used_is_an_error(case: str) -> None:
    content_type, page, message = UNUSABLE[case]
    with pytest.raises(ExpositionError, match=message):
        Parser().parse(page, content_type)


def test_a_time_before_1970_is_on_the_openmetrics_page_alone() -> None:
    """Prometheus refuses a text page with such a timestamp."""
    for page, openmetrics in ((b"decoy -1 -2\n", False), (b"decoy -1 -0.002\n# EOF\n", True)):
        families = parse(page, openmetrics=openmetrics)
        assert render(families).endswith(b"\ndecoy -1\n")
        assert b"\ndecoy -1 -0.002\n" in render(families, openmetrics=True)


def test_lines_behind_the_end_are_dropped() -> None:
    parsed = Parser().parse(b"a 1\n# EOF\nb 2\n# EOF\n", OPENMETRICS)
    assert [family.name for family in parsed.families] == ["a"]
    assert parsed.dropped == 2
    assert parsed.fault == "line 3 of the OpenMetrics page: a line after # EOF"


@pytest.mark.parametrize(
    ("content_type", "openmetrics"),
    [
        ("application/openmetrics-text", True),
        ("Application/OpenMetrics-Text ; version=0.0.1", True),
        ("application/openmetrics-text;;x", True),
        ("text/plain; version=0.0.4", False),
        ("text/html", False),
        ("", False),
    ],
)
def test_the_content_type_chooses_the_format(content_type: str, openmetrics: bool) -> None:
    (family,) = Parser().parse(b"a 1 2\n# EOF\n", content_type).families
    assert render([family]).endswith(b"a 1 2000\n" if openmetrics else b"a 1 2\n")


BUCKETS = b'h_bucket{le="1"} 1\nh_bucket{le="+Inf"} 2\nh_count 2\nh_sum 3\n'
HISTOGRAMS = {
    "no +Inf": b'h_bucket{le="1"} 1\nh_count 2\nh_sum 3\n',
    "no buckets": b"h_count 2\nh_sum 3\n",
    "no +Inf of one label set": BUCKETS + b'h_bucket{le="1",x="1"} 1\n',
    "out of order": b'h_bucket{le="+Inf"} 2\nh_bucket{le="1"} 1\n',
    "the same bound": b'h_bucket{le="1"} 1\nh_bucket{le="1.0"} 1\nh_bucket{le="+Inf"} 2\n',
    "no bound": b'h_bucket 1\nh_bucket{le="+Inf"} 2\n',
    "no number": b'h_bucket{le="x"} 1\nh_bucket{le="+Inf"} 2\n',
}


@pytest.mark.parametrize("case", HISTOGRAMS)
def test_a_histogram_is_shown_as_it_is(case: str) -> None:
    """Prometheus accepts any buckets, and so does the parser."""
    header = b"# HELP h \n# TYPE h histogram\n"
    assert render(parse(header + HISTOGRAMS[case])) == header + HISTOGRAMS[case]


def spoiled(draw: st.DrawFn, page: bytes) -> tuple[bytes, int]:
    """Return a page with odd white space and invalid lines, and the number of these lines."""
    lines, dropped = [], 0
    for line in page.split(b"\n")[:-1]:
        for _ in range(draw(st.integers(0, 1))):
            lines.append(draw(st.sampled_from([*UNREADABLE.values(), b"", b"# a comment", b"#"])))
            dropped += lines[-1] in UNREADABLE.values()
        end = (
            b"" if line.startswith(b"# HELP") else draw(st.sampled_from([b"", b"\r", b" ", b"\t"]))
        )
        lines.append(draw(st.sampled_from([b"", b" ", b"\t"])) + line + end)
    return b"\n".join(lines), dropped


@settings(max_examples=200, deadline=None)
@given(data=st.data(), openmetrics=st.booleans())
def test_noise_costs_nothing_but_itself(data: st.DataObject, openmetrics: bool) -> None:
    registry = registry_of(data.draw(metrics(openmetrics=openmetrics)))
    page = (peer_openmetrics.generate_latest if openmetrics else generate_latest)(registry)
    noisy, dropped = data.draw(st.composite(spoiled)(page))
    content_type = OPENMETRICS if openmetrics else ""
    parser = Parser()
    clean = parser.parse(page, content_type)
    assert clean.dropped == 0
    try:
        parsed = parser.parse(noisy, content_type)
    except ExpositionError:
        assert dropped
        assert not any(family.sample_names for family in clean.families)
    else:
        assert parsed == replace(clean, dropped=dropped, fault=parsed.fault)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from([page for page, _ in VALID_TEXT.values()]), st.booleans())
def test_the_last_page_makes_no_difference_to_a_broken_one(
    data: st.DataObject, page: bytes, openmetrics: bool
) -> None:
    content_type = OPENMETRICS if openmetrics else ""
    page += b"# EOF\n"
    start = data.draw(st.integers(0, len(page)))
    end = data.draw(st.integers(start, min(start + 3, len(page))))
    broken = page[:start] + data.draw(st.sampled_from([b"", b" ", b"\n", b"}", b"1"])) + page[end:]
    parser = Parser()
    with contextlib.suppress(ExpositionError):
        parser.parse(page, content_type)
    assert outcome(parser, broken, content_type) == outcome(Parser(), broken, content_type)


def outcome(parser: Parser, page: bytes, content_type: str) -> tuple[object, ...]:
    try:
        parsed = parser.parse(page, content_type)
    except ExpositionError as error:
        return (str(error),)
    rendered = [render(parsed.families, openmetrics=one) for one in (False, True)]
    return (*rendered, parsed.dropped, parsed.fault)


def test_a_page_that_cannot_be_parsed_in_time_does_not_spoil_the_next_one() -> None:
    parser = Parser()
    page = b'a{x="1"} 1\n'
    before = parser.parse(page).families
    with pytest.raises(TimeoutError):
        parser.parse(b'a{x="2"} 2\n' * 1000, until=0.0)
    assert parser.parse(page).families is before
