"""What is valid is taken whole; what is not is an error that names the line."""

from __future__ import annotations

import pytest

from dynamometer.errors import ExpositionError
from dynamometer.exposition.merge import Clash, Merger, Source
from dynamometer.exposition.parse import parse
from dynamometer.exposition.render import render

# Text pages, and what they become.
VALID_TEXT = {
    "white space and comments": (
        b'\n# a comment\n  a { x = "1" , y="2", }   3.5  \n#HELP\n\t b\t4\r\n',
        b'# HELP a \n# TYPE a untyped\na{x="1",y="2"} 3.5\n# HELP b \n# TYPE b untyped\nb 4\n',
    ),
    "labels in order": (b'a{y="2",x="1"} 1\n', b'# HELP a \n# TYPE a untyped\na{x="1",y="2"} 1\n'),
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
        b"# TYPE a counter\na 1\n",
        b"# HELP a_total \n# TYPE a_total counter\na_total 1\n",
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
        b'# HELP a_total \n# TYPE a_total counter\na_total 1\na_total{x="1"} 3\n',
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
    "somebody's gauge that is called as a created series": (
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
    "nothing": (b"", b""),
}
INVALID_TEXT = {
    "no value": (b"a 1\nb\n", 2),
    "value no number": (b"a x\n", 1),
    "value with underscore": (b"a 1_0\n", 1),
    "value of other digits": ("a \N{ARABIC-INDIC DIGIT ONE}\n".encode(), 1),
    "timestamp no number": (b"a 1 x\n", 1),
    "timestamp no whole number": (b"a 1 1.5\n", 1),
    "more behind": (b"a 1 2 3\n", 1),
    "brace not closed": (b'a{x="1" 1\n', 1),
    "quote not closed": (b'a{x="1} 1\n', 1),
    "label without value": (b"a{x} 1\n", 1),
    "label without quotes": (b"a{x=1} 1\n", 1),
    "label twice": (b'a{x="1",x="2"} 1\n', 1),
    "two commas": (b'a{x="1",,y="2"} 1\n', 1),
    "reserved label": (b'a{__x="1"} 1\n', 1),
    "no name": (b'{x="1"} 1\n', 1),
    "two names": (b'a{"b"} 1\n', 1),
    "name of a digit": (b"1a 1\n", 1),
    "unknown type": (b"# TYPE a meter\n", 1),
    "type of nothing": (b"# TYPE\n", 1),
    "no UTF-8": (b"a 1\nb\xff 2\n", 2),
    "a NUL": (b"a\0 1\n", 1),
}
INVALID_OPENMETRICS = {
    "no end": (b"a 1\n", 1),
    "more behind the end": (b"# EOF\na 1\n", 2),
    "blank line": (b"a 1\n\n# EOF\n", 2),
    "comment": (b"# a comment\n# EOF\n", 1),
    "two spaces": (b"a  1\n# EOF\n", 1),
    "comma at the end": (b'a{x="1",} 1\n# EOF\n', 1),
    "white space between labels": (b'a{x="1", y="2"} 1\n# EOF\n', 1),
    "untyped": (b"# TYPE a untyped\n# EOF\n", 1),
    "type after samples": (b"a 1\n# TYPE a gauge\n# EOF\n", 2),
    "type twice": (b"# TYPE a gauge\n# TYPE a gauge\n# EOF\n", 2),
    "family twice": (b"# TYPE a gauge\na 1\n# TYPE b gauge\n# TYPE a gauge\n# EOF\n", 4),
    "names that clash": (b"# TYPE a counter\n# TYPE a_total gauge\n# EOF\n", 2),
    "counter is NaN": (b"# TYPE a counter\na_total NaN\n# EOF\n", 2),
    "counter is negative": (b"# TYPE a counter\na_total -1\n# EOF\n", 2),
    "info is not 1": (b"# TYPE a info\na_info 2\n# EOF\n", 2),
    "stateset is 2": (b'# TYPE a stateset\na{a="x"} 2\n# EOF\n', 2),
    "bucket without bound": (b"# TYPE a histogram\na_bucket 2\n# EOF\n", 2),
    "bucket is no count": (b'# TYPE a histogram\na_bucket{le="+Inf"} 2.5\n# EOF\n', 2),
    "no last bucket": (b'# TYPE a histogram\na_bucket{le="1"} 2\n# EOF\n', 3),
    "buckets fall": (
        b'# TYPE a histogram\na_bucket{le="1"} 2\na_bucket{le="+Inf"} 1\n# EOF\n',
        4,
    ),
    "count is another": (
        b'# TYPE a histogram\na_bucket{le="+Inf"} 1\na_count 2\na_sum 1\n# EOF\n',
        5,
    ),
    "label sets mixed": (b'# TYPE a gauge\na{x="1"} 1\na{x="2"} 1\na{x="1"} 1\n# EOF\n', 4),
    "exemplar of a gauge": (b"# TYPE a gauge\na 1 # {} 1\n# EOF\n", 2),
    "exemplar without value": (b"# TYPE a counter\na_total 1 # {}\n# EOF\n", 2),
    "exemplar too long": (
        b'# TYPE a counter\na_total 1 # {x="' + b"y" * 128 + b'"} 1\n# EOF\n',
        2,
    ),
    "timestamp is NaN": (b"a 1 NaN\n# EOF\n", 1),
    "time goes back": (b"a 1 2\na 1 1\n# EOF\n", 2),
    "some have timestamps": (b"a 1 2\na 1\n# EOF\n", 2),
    "unit not in the name": (b"# TYPE a gauge\n# UNIT a seconds\n# EOF\n", 3),
    "no UTF-8": (b"a 1\n\xff 2\n# EOF\n", 2),
}


@pytest.mark.parametrize("case", VALID_TEXT)
def test_valid_text(case: str) -> None:
    page, rendered = VALID_TEXT[case]
    assert render(parse(page)) == rendered


@pytest.mark.parametrize("case", INVALID_TEXT)
def test_invalid_text_names_its_line(case: str) -> None:
    page, line = INVALID_TEXT[case]
    with pytest.raises(ExpositionError, match=rf"^line {line} of the text page: "):
        parse(page)


@pytest.mark.parametrize("case", INVALID_OPENMETRICS)
def test_invalid_openmetrics_names_its_line(case: str) -> None:
    page, line = INVALID_OPENMETRICS[case]
    with pytest.raises(ExpositionError, match=rf"^line {line} of the OpenMetrics page: "):
        parse(page, openmetrics=True)


def test_native_histograms_are_left_out() -> None:
    page = (
        b"# TYPE a histogram\n"
        b"a {count:1,sum:2,schema:0,zero_threshold:0,zero_count:0}\n"
        b'a_bucket{le="+Inf"} 1\na_count 1\na_sum 2\n# EOF\n'
    )
    rendered = render(parse(page, openmetrics=True))
    assert rendered.splitlines()[2:] == [b'a_bucket{le="+Inf"} 1', b"a_count 1", b"a_sum 2"]


def test_timestamps_and_exemplars_in_both_formats() -> None:
    page = b'# HELP a h\n# TYPE a counter\na_total{x="1"} 1 1700000000.5 # {t="q"} 0.5 1.5\n# EOF\n'
    families = parse(page, openmetrics=True)
    assert render(families, openmetrics=True) == page
    assert render(families).endswith(b'a_total{x="1"} 1 1700000000500\n')


@pytest.mark.parametrize("kind", ["gauge", "untyped"])
def test_families_that_would_be_one_on_our_page_are_two_for_the_merger(kind: str) -> None:
    """It shows the first, and counts what it leaves out."""
    one = b'# TYPE a_total %s\na_total{x="1"} 1\n' % kind.encode()
    other = b'# TYPE a counter\na{x="2"} 2\n'
    for page in (one + other, other + one):
        assert sorted(family.name for family in parse(page)) == ["a", "a_total"]
        merger = Merger()
        (first,) = merger.merge([Source("page", parse(page))])
        assert first.metadata.text_name == "a_total"
        assert merger.left_out[0].clash is Clash.TYPE_CONFLICT


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
    """Its buckets are for Prometheus to judge, which takes any."""
    header = b"# HELP h \n# TYPE h histogram\n"
    assert render(parse(header + HISTOGRAMS[case])) == header + HISTOGRAMS[case]


def test_a_line_that_cannot_be_read_is_named_wherever_it_stands() -> None:
    with pytest.raises(ExpositionError, match=r"^line 2 of the text page: no sample"):
        parse(b"# TYPE h histogram\nh_count\nh_bucket 1\n# TYPE a counter\na 1\n")


@pytest.mark.parametrize("line", [b'l{"",} 1\n', b'{"",} 1\n', b'l{"m"} 1\n', b"{} 1\n"])
def test_a_series_has_one_name(line: bytes) -> None:
    with pytest.raises(ExpositionError, match="line 1"):
        parse(line)
