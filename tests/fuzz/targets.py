"""The targets of fuzzing: any bytes raise only the documented errors.

Where prometheus_client takes the same input, the results are compared.
"""

from __future__ import annotations

import logging
import math
import os
import struct
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families as peer_parse_text

from dynamometer.errors import ExpositionError
from dynamometer.exposition.conversion import to_metric
from dynamometer.exposition.families import Family
from dynamometer.exposition.merging import Merger, Source
from dynamometer.exposition.negotiation import accepts_gzip, choose_format
from dynamometer.exposition.parser import Parser, parse
from dynamometer.exposition.rendering import render
from dynamometer.exposition.series import label_name, metric_name
from dynamometer.multiprocess import MultiprocessDirectory

_NAMES = (
    "counter_1.db",
    "gauge_all_1.db",
    "gauge_mostrecent_1.db",
    "gauge_min_1.db",
    "histogram_1.db",
    "summary_1.db",
)
_OPENMETRICS = "application/openmetrics-text"
_scratch = Path(os.environ.get("FUZZ_SCRATCH") or tempfile.mkdtemp())
logging.disable(logging.CRITICAL)


def multiprocess_file(data: bytes) -> None:
    """Read a file of any content, of each type in turn, beside a valid file: twice, then grown."""
    if not data:
        return
    path = _scratch / _NAMES[data[0] % len(_NAMES)]
    good = _scratch / "counter_2.db"
    good.write_bytes(_GOOD)
    content, rest = data[1:], b""
    if data[0] & 0x80:
        content, rest = data[1 : len(data) // 2], data[len(data) // 2 :]
    path.write_bytes(content)
    directory = MultiprocessDirectory(_scratch, recursive=False)
    try:
        for more in (b"", b"", rest):
            if more:
                with path.open("ab") as file:
                    file.write(more)
            page = directory.render()
            assert b"good_total 1.0\n" in page, page
            directory.render(openmetrics=True)
    finally:
        directory.close()
        path.unlink()


def multiprocess_entries(data: bytes) -> None:
    """Read keys of any content in a well-formed file."""
    keys = data[1:].split(b"\0\n")
    entries = []
    for number, key in enumerate(keys):
        padded = key + b" " * (8 - (len(key) + 4) % 8)
        value = float(number) if data[:1] < b"\x80" else math.nan
        entries.append(struct.pack("=i", len(key)) + padded + struct.pack("=dd", value, number))
    body = b"".join(entries)
    multiprocess_file(data[:1] + struct.pack("=ii", 8 + len(body), 0) + body)


def text_page(data: bytes) -> None:
    """Read a text page; see `_page`."""
    _page(data, "")


def openmetrics_page(data: bytes) -> None:
    """Read an OpenMetrics page; see `_page`."""
    _page(data, _OPENMETRICS)


def _page(data: bytes, content_type: str) -> None:
    """Read a page twice with one parser; rendered again, the page has the same families."""
    parser = Parser()
    try:
        parsed = parser.parse(data, content_type)
    except ExpositionError:
        return
    assert parser.parse(data, content_type) == parsed  # known series do not change the result
    families = _merged(parsed.families)
    pages = {"": render(families), _OPENMETRICS: render(families, openmetrics=True)}
    for kind, page in pages.items():
        if b"_total_total" in data or b"_info_info" in data:
            break  # whose OpenMetrics name ends with the suffix that other pages put there
        found = parse(page, kind)
        assert not found.dropped, found.fault
        again = render(_merged(found.families), openmetrics=bool(kind))
        assert again == page, (again, page)
    text, openmetrics = pages.values()
    assert _sample_count(text) == _sample_count(openmetrics), (text, openmetrics)
    # prometheus_client takes any white space for a space, splits lines at more than newlines, and
    # refuses labels of Prometheus' own.
    if _plain(text) and b"__" not in text:
        ours, theirs = _values(map(to_metric, families)), _values(peer_parse_text(text.decode()))
        assert ours == theirs, (ours ^ theirs, text)


def _sample_count(page: bytes) -> int:
    return sum(1 for line in page.split(b"\n") if line and not line.startswith(b"#"))


def accept_header(data: bytes) -> None:
    """Read headers of any content."""
    header = data.decode("latin-1")
    assert choose_format(header) is choose_format(header + ",")
    accepts_gzip(header)


def _plain(data: bytes) -> bool:
    """Return whether prometheus_client's parsers read a valid page as its format is specified.

    They accept other white space as spaces, and read a comment as a header.
    """
    lines = data.split(b"\n")
    return all(32 <= byte < 127 for line in lines for byte in line) and not any(
        line.lstrip().startswith(b"#") and not line.startswith(b"# ") for line in lines
    )


def _merged(families: Sequence[Family]) -> Sequence[Family]:
    return Merger().merge([Source("page", families)])


def _values(families: Iterable[Metric]) -> set[tuple[object, ...]]:
    """Return names, labels and values; a counter's name has `_total` if either parser adds it."""
    return {
        (name.removesuffix("_total"), tuple(labels), value)  # type: ignore[attr-defined,arg-type]
        for _, _, name, labels, value in _samples(families)
    }


def _samples(families: Iterable[Metric]) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for family in families:
        for sample in family.samples:
            if sample.native_histogram is None and not sample.name.endswith("_created"):
                labels = sorted((label_name(k), v) for k, v in sample.labels.items())
                names = metric_name(family.name), family.type, metric_name(sample.name)
                found.append((*names, labels, str(float(sample.value))))
    return sorted(found, key=repr)


_GOOD = (
    struct.pack("=iii", 8 + 64, 0, 36)
    + b'["good", "good_total", {}, "A good"]'.ljust(44)
    + struct.pack("=dd", 1.0, 0.0)
)[: 8 + 64]

TARGETS: dict[str, Callable[[bytes], None]] = {
    found.__name__: found
    for found in (
        multiprocess_file,
        multiprocess_entries,
        text_page,
        openmetrics_page,
        accept_header,
    )
}
