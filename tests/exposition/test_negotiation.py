"""The format and encoding that a scraper receives."""

from __future__ import annotations

import pytest

from dynamometer.exposition.negotiation import Format, accepts_gzip, choose_format

PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROTOBUF = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
)
FORMATS = {
    None: Format.TEXT,
    "": Format.TEXT,
    "*/*": Format.TEXT,
    "text/*": Format.TEXT,
    "text/html, */*;q=0.8": Format.TEXT,
    PROMETHEUS_2: Format.OPENMETRICS,
    PROMETHEUS_3: Format.OPENMETRICS,
    f"{PROTOBUF};q=0.7,{PROMETHEUS_3}": Format.OPENMETRICS,
    f"{PROTOBUF},text/plain;version=0.0.4;q=0.5": Format.TEXT,
    PROTOBUF: Format.TEXT,
    "application/openmetrics-text": Format.OPENMETRICS,
    "Application/OpenMetrics-Text; Version=1.0.0": Format.OPENMETRICS,
    'application/openmetrics-text; version="1.0.0"; charset=utf-8': Format.OPENMETRICS,
    "application/openmetrics-text;version=0.0.1": Format.TEXT,
    "application/openmetrics-text;version=2.0.0,text/plain;q=0.1": Format.TEXT,
    "application/openmetrics-text;q=0": Format.TEXT,
    "application/openmetrics-text;q=0,*/*": Format.TEXT,
    "application/openmetrics-text;q=0.3,text/plain;q=0.4": Format.TEXT,
    "application/openmetrics-text;q=0.4,text/plain;q=0.4": Format.OPENMETRICS,
    "text/plain,application/openmetrics-text": Format.TEXT,
    "application/openmetrics-text;q=high": Format.TEXT,
    ";;,,q=1": Format.TEXT,
}
GZIP = {
    None: False,
    "": False,
    "identity": False,
    "gzip": True,
    "GZIP": True,
    "x-gzip": True,
    "deflate, gzip;q=1.0, *;q=0.5": True,
    "gzip;q=0": False,
    "*": True,
    "*;q=0": False,
    "gzip;q=0, *": False,
    "br, zstd": False,
    "gzip;q=0.5, identity": False,
    "gzip, identity;q=0.5": True,
    "gzip;q=?": False,
}


@pytest.mark.parametrize("header", FORMATS)
def test_format(header: str | None) -> None:
    assert choose_format(header) is FORMATS[header]


@pytest.mark.parametrize("header", GZIP)
def test_gzip(header: str | None) -> None:
    assert accepts_gzip(header) is GZIP[header]


def test_content_types_have_version_and_charset() -> None:
    assert Format.TEXT.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert (
        Format.OPENMETRICS.content_type
        == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    )
