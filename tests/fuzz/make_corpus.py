"""Write the corpus with which fuzzing starts: small valid inputs, one of each kind."""

from __future__ import annotations

import struct
from pathlib import Path

HERE = Path(__file__).parent / "corpus"


def entry(key: bytes, value: float) -> bytes:
    padded = key + b" " * (8 - (len(key) + 4) % 8)
    return struct.pack("=i", len(key)) + padded + struct.pack("=dd", value, 1.5)


KEYS = (
    b'["c", "c_total", {"x": "a\\"\\n"}, "help"]',
    b'["h", "h_bucket", {"le": "1.0"}, "help"]',
    b'["h", "h_bucket", {"le": "+Inf"}, "help"]',
    b'["h", "h_sum", {}, "help"]',
)
BODY = b"".join(entry(key, float(n)) for n, key in enumerate(KEYS))
FILE = struct.pack("=ii", 8 + len(BODY), 0) + BODY
TEXT = (
    b'# HELP a_total two\\nlines\n# TYPE a_total counter\na_total{x="1",y="\\"\\\\"} 1.5 17\n'
    b'# TYPE h histogram\nh_bucket{le="+Inf"} 1\nh_sum 2\nh_count 1\n# a comment\n'
    b'# TYPE s summary\ns{quantile="0.5"} NaN\nb -Inf\n{"q.r","s t"="u"} 1e5\n'
)
OPENMETRICS = (
    b"# HELP a help\n# TYPE a counter\n"
    b'a_total{x="1"} 1 1.5 # {t="q"} 0.5 1.5\n'
    b'# TYPE h_s histogram\n# UNIT h_s s\nh_s_bucket{le="+Inf"} 1\nh_s_count 1\nh_s_sum 2\n'
    b'# TYPE i info\ni_info{x="1"} 1\n# TYPE t stateset\nt{t="on"} 1\n'
    b'# TYPE g gaugehistogram\ng_bucket{le="+Inf"} 1\ng_gcount 1\ng_gsum 2\n'
    b'# TYPE s summary\ns{quantile="0.5"} 3\n# EOF\n'
)
# Names that clash in OpenMetrics, counters without `_total`, and lines that are almost valid.
CLASHES = (
    b"# TYPE a gauge\na 1\n# TYPE a_total counter\na_total 2\n# TYPE b counter\nb 3\nb_total 4\n"
    b"# TYPE b_created gauge\nb_created 5\n# TYPE i info\ni_info 1\n# TYPE i gauge\ni 2\n"
)
LENIENT = (
    b'# HELP\n# TYPE\n#HELP\n# UNIT a\na{x="1" y="2" } 1\r\n\tb{,} 2\nc 3 -4\n{"d",__e="f"}5\n'
    b'g1\n# TYPE h meter\nh 1e999\nj{k="l",k="m"} 6\nn 7 # {o="p"} 8 9\n# EOF\nq 1\n'
)
ACCEPT = (
    b"application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    b"text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
ACCEPT_ENCODING = b"gzip, identity;q=0.5, *;q=0"
CORPUS = {
    "multiprocess_file": [bytes([kind]) + FILE for kind in (0, 1, 2, 4, 128)],
    "multiprocess_entries": [b"\4" + b"\0\n".join(KEYS), b"\2" + KEYS[0]],
    "text_page": [TEXT, CLASHES, LENIENT],
    "openmetrics_page": [
        OPENMETRICS,
        OPENMETRICS.partition(b"# TYPE h_s")[0],
        CLASHES + b"# EOF\n",
        LENIENT,
    ],
    "accept_header": [ACCEPT, ACCEPT_ENCODING],
}


def main() -> None:
    for target, inputs in CORPUS.items():
        (HERE / target).mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(inputs):
            (HERE / target / str(number)).write_bytes(data)


if __name__ == "__main__":
    main()
