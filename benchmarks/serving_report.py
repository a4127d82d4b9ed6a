"""The tables and the picture of `make bench-serving`, and docs/performance.md."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

_DOCS = Path(__file__).parent.parent / "docs"
PAGE, PICTURE = _DOCS / "performance.md", _DOCS / "serving-cost.svg"
_BEGIN, _END = "<!-- make bench-serving: begin -->", "<!-- make bench-serving: end -->"
_ABOUT = (
    "`make bench-serving BENCH_FLAGS=--write` measures these figures. "
    "`ROUTER=1` adds SGLang's Rust router, `DYNAMO=1` NVIDIA Dynamo, `REAL=1` the real engine, "
    "`GROWTH=1` large prompts, long answers and idle connections. Compare the paths of one run "
    "only: machines differ."
)
_ABOUT_ROWS = (
    "A hop is one program that relays: the frontend is the first one, the worker the second; the "
    "bare relay has two programs in their places. A chunk is one event of a stream, here a token. "
    "The last column is the processor time of the engines themselves."
)
_ABOUT_REQUESTS = (
    "Answers of one token, one request after another in each of this many clients. Added: the "
    "latency of the whole answer, minus the latency of the engines alone. With one client, a "
    "round has some 80 answers, and its p99 is the slowest one. Fixed CPU: the processor time of a "
    "request in all hops, minus that of one chunk."
)
_ABOUT_IDLE = (
    "Without traffic, and the memory of a stream in flight (the difference between the lowest and "
    "the highest number of streams, in the first round)."
)
_ABOUT_REAL = (
    "The real engine (SGLang on this processor, a tiny model), measured with SGLang's own "
    "`bench_serving`; medians."
)
_COLOURS = ("#2471a3", "#85c1e9")


@dataclass
class Results:
    """All figures of one run of the benchmark: medians of its rounds.

    Attributes:
        machine: the description of the machine.
        setting: the loads, in one sentence.
        rows: a path at a number of streams.
        requests: a path with answers of one token at a concurrency.
        idle: a path without traffic.
        start: the processor time until each process serves.
        growth: the lines of `--growth`, as table rows with a title.
        real: the lines about the real engine.
        faults: the loads with wrong or missing answers.
    """

    machine: str
    setting: str
    rows: list[dict[str, float | str]] = field(default_factory=list)
    requests: list[dict[str, float | str]] = field(default_factory=list)
    idle: list[dict[str, float | str]] = field(default_factory=list)
    start: list[list[str]] = field(default_factory=list)
    growth: list[tuple[str, list[list[str]]]] = field(default_factory=list)
    real: list[list[str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Results:
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def text(results: Results) -> str:
    """Return the tables as Markdown."""
    parts = [f"Machine: {results.machine}.", results.setting]
    if results.rows:
        parts += [_ABOUT_ROWS, _rows(results.rows)]
    if results.requests:
        parts += [_ABOUT_REQUESTS, _requests(results.requests)]
    if results.idle:
        parts += [_ABOUT_IDLE, _idle(results.idle)]
    if results.start:
        parts += ["The start of a process, with compiled modules; medians.", table(results.start)]
    for title, rows in results.growth:
        parts += [title, table(rows)]
    if results.real:
        parts += [_ABOUT_REAL, table(results.real)]
    parts += [f"**Failed: {fault}**" for fault in results.faults]
    return "\n\n".join(filter(None, parts)) + "\n"


def write(results: Results) -> None:
    """Write the tables into docs/performance.md, and draw the picture beside the page."""
    picture = f"![Processor time of a chunk by path]({PICTURE.name})\n\n" if results.rows else ""
    block = f"{_BEGIN}\n## All paths in one run\n\n{_ABOUT}\n\n{picture}{text(results)}{_END}"
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Performance\n"
    pattern = re.compile(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}", re.DOTALL)
    if pattern.search(page):
        page = pattern.sub(lambda _: block, page)
    else:
        page = f"{page.rstrip()}\n\n{block}\n"
    PAGE.write_text(page, encoding="utf-8")
    if results.rows:
        PICTURE.write_text(picture_of(results.rows), encoding="utf-8")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _rows(rows: Sequence[dict[str, float | str]]) -> str:
    head = ["path", "streams", "chunks/s", "requests/s", "TTFT p50 / p99, ms", "gap p50 / p99, ms"]
    head += ["CPU a chunk, µs: frontend + worker", "÷ bare relay, 2 hops"]
    with_router = any("router ratio" in row for row in rows)
    head += ["÷ sglang-router"] * with_router
    found = [[*head, "engines' CPU a chunk, µs"]]
    for row in rows:
        hops = row["hops"]
        cost = _number(row, "front a chunk", 1) if hops else ""
        if hops == 2:
            cost += f" + {_number(row, 'back a chunk', 1)}"
        ratios = [_number(row, "ratio", 2), *[_number(row, "router ratio", 2)] * with_router]
        found.append(
            [
                str(row["path"]), _number(row, "streams"), _number(row, "chunks/s"),
                _number(row, "requests/s"), _both(row, "first"), _both(row, "gaps"), cost, *ratios,
                _number(row, "engines a chunk", 1) if row.get("engines a chunk") else "",
            ]
        )  # fmt: skip
    return table(found)


def _requests(rows: Iterable[dict[str, float | str]]) -> str:
    head = ["path", "concurrency", "requests/s", "p50 / p99, ms", "added p50 / p99, ms"]
    found = [[*head, "fixed CPU, µs"]]
    for row in rows:
        added = f"{_number(row, 'added p50', 2)} / {_number(row, 'added p99', 2)}"
        found.append(
            [
                str(row["path"]), _number(row, "streams"), _number(row, "requests/s"),
                _both(row, "total", 2), added if row["hops"] else "",
                _number(row, "fixed") if "fixed" in row else "",
            ]
        )  # fmt: skip
    return table(found)


def _idle(rows: Iterable[dict[str, float | str]]) -> str:
    head = [
        "path",
        "CPU of a core: frontend, worker (each)",
        "resident: frontend, worker (each), MiB",
    ]
    found = [[*head, "a stream in flight: frontend, worker, KiB"]]
    for row in rows:
        stream = "not measured"
        if "front stream bytes" in row:
            stream = _pair(row, "front stream bytes", "back stream bytes", 1 / 1024, 1)
        found.append(
            [
                str(row["path"]), _pair(row, "front share", "back share", 100, 2, " %"),
                _pair(row, "front bytes", "back bytes", 2**-20, 1), stream,
            ]
        )  # fmt: skip
    return table(found)


def _number(row: dict[str, float | str], name: str, digits: int = 0) -> str:
    value = row.get(name, math.nan)
    return "" if not isinstance(value, float | int) or math.isnan(value) else f"{value:,.{digits}f}"


def _both(row: dict[str, float | str], name: str, digits: int = 1) -> str:
    return f"{_number(row, name + ' p50', digits)} / {_number(row, name + ' p99', digits)}"


def _pair(
    row: dict[str, float | str], one: str, two: str, factor: float, digits: int, unit: str = ""
) -> str:
    values = [float(row[name]) * factor for name in (one, two) if name in row]
    return ", ".join(f"{value:,.{digits}f}{unit}" for value in values)


def picture_of(rows: Sequence[dict[str, float | str]]) -> str:
    """Return bars of the processor time of a chunk in both hops, at each number of streams."""
    shown = [row for row in rows if row["hops"]]
    most = max(float(row["front a chunk"]) + float(row["back a chunk"]) for row in shown)
    left, width, step = 380, 330, 24
    whole, height = left + width + 80, 60 + step * len(shown)
    title = "processor time of a chunk, µs: first hop (dark), second hop (light)"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {height}" font-size="13">',
        f'<rect width="{whole}" height="{height}" fill="white"/>',
        '<g font-family="sans-serif">',
        f'<text x="10" y="22" fill="#333">{title}</text>',
    ]
    for number, row in enumerate(shown):
        y, x = 40 + step * number, float(left)
        label = escape(f"{row['path']}, {row['streams']:.0f} streams")
        parts.append(
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end" fill="#333">{label}</text>'
        )
        total = 0.0
        for name, colour in zip(("front a chunk", "back a chunk"), _COLOURS, strict=True):
            total += float(row[name])
            long = float(row[name]) / most * width
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{long:.1f}" height="16" fill="{colour}"/>'
            )
            x += long
        parts.append(f'<text x="{x + 6:.1f}" y="{y + 13}" fill="#333">{total:.0f}</text>')
    return "\n".join([*parts, "</g>", "</svg>", ""])
