"""`make docs`: docs/configuration.md from the code, docs/metrics.md from the code and live pages.

Tests hold both to the code: tests/test_docs.py.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import http.client
import importlib
import json
import os
import sys
import tempfile
import tomllib
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families as parse

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]


from dynamometer.cli import COMMANDS
from dynamometer.frontend import failures
from dynamometer.names import labels
from dynamometer.variables import OTHERS, VARIABLES

CONFIGURATION, METRICS = HERE / "configuration.md", HERE / "metrics.md"
PEER = HERE.parent / "tests" / "samples" / "dynamo-metrics.tsv"
COLUMNS = "| family | type | labels | unit | what moves it | buckets |\n" + 6 * "| --- " + "|"
WORDS = tomllib.loads((HERE / "families.toml").read_text(encoding="utf-8"))
MOVES: Mapping[str, str] = WORDS["moves"]
FAILURES: Mapping[str, str] = WORDS["failures"]
NOT_SERVED: Mapping[str, str] = WORDS["not_served"]
MADE_LATE: Sequence[str] = WORDS["peer_makes_late"]
_ENGINE = "sglang:"
_PROCESS = "process_"
# Every series of an engine's has them too: said once.
RUNTIME_LABELS = {
    labels.NAMESPACE,
    labels.COMPONENT,
    labels.ENDPOINT,
    labels.MODEL,
    labels.WORKER_ID,
}
# By a word of the name; of several the last one counts.
_UNITS = {
    "seconds": "seconds",
    "ms": "milliseconds",
    "bytes": "bytes",
    "tokens": "tokens",
    "blocks": "blocks",
    "gb": "gigabytes",
    "mb": "megabytes",
    "ratio": "a part of 1",
    "usage": "a part of 1",
    "rate": "a part of 1",
    "percent": "a part of 1",
    "requests": "requests",
    "reqs": "requests",
    "seqs": "requests",
    "length": "tokens",
    "len": "tokens",
    "size": "tokens",
    "pages": "pages",
}


@dataclass(frozen=True)
class Documented:
    """A family as a page shows it, or as docs/metrics.md does.

    Attributes:
        type: as the text format has it.
        labels: of its series, without `le` and `quantile`.
        buckets: upper bounds, without +Inf.
    """

    type: str
    labels: frozenset[str]
    buckets: tuple[float, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "what", nargs="*", default=["configuration", "metrics"], help="configuration, metrics"
    )
    wanted = parser.parse_args().what
    if "configuration" in wanted:
        CONFIGURATION.write_text(configuration(), encoding="utf-8")
        print(f"wrote {CONFIGURATION.name}")
    if "metrics" in wanted:
        print("starting a frontend and a worker around the real SGLang (half a minute)", flush=True)
        METRICS.write_text(metrics(*live_pages()), encoding="utf-8")
        print(f"wrote {METRICS.name}")


# docs/configuration.md


def configuration() -> str:
    """Every variable and every flag."""
    rows = [
        f"| `{name}` | {variable.meaning} | {variable.default} | {variable.flag} |"
        for name, variable in VARIABLES.items()
    ]
    helps = [
        f"## dyno {command}\n\n```\n{_help(module, command)}```\n"
        for command, (module, _) in COMMANDS.items()
    ]
    others = [f"| `{name}` | {meaning} |" for name, meaning in OTHERS.items()]
    return _CONFIGURATION + "\n".join([*rows, _OTHERS, *others, "", *helps])


_CONFIGURATION = """\
<!-- Made by `make docs` from the code; not to be edited. -->
# Configuration

A flag wins over the variable of the same meaning. A value that is not allowed ends the command with
exit code 2 and a line that names variable, value and what is allowed. An empty variable is one that
is not set; white space around a value is none of it. A variable that looks like a mistyped one of
these is pointed out; others of NVIDIA Dynamo's mean nothing here and are passed over.

| variable | meaning | without it | flag |
| --- | --- | --- | --- |
"""


_OTHERS = """
What is looked at, or set, besides:

| variable | what for |
| --- | --- |"""


def _help(module: str, command: str) -> str:
    os.environ["COLUMNS"] = "100"
    parser: argparse.ArgumentParser = importlib.import_module(module).parser(f"dyno {command}")
    # What depends on the machine is not the flag's.
    return parser.format_help().replace(sys.executable, "python")


# docs/metrics.md


def live_pages() -> tuple[str, str]:
    """The pages of a frontend and of a worker around the real engine, after some requests."""
    from dynamometer import tiny_model
    from stack import Stack, eventually
    from stack import http as fetch

    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        model = place / "tiny"
        tiny_model.make(model, engine_python=sys.executable)
        stack = Stack(place, model, place / "discovery")
        with (
            stack.run_frontend() as (_, url),
            stack.run_worker("--model", str(model), "--enable-metrics", system_port=0) as worker,
        ):
            worker.wait_until_ready()
            body = {
                "model": str(model),
                "messages": [{"role": "user", "content": "hello"}],
                "max_tokens": 16,
                "ignore_eos": True,
            }
            for stream in (False, True, True):
                fetch(f"{url}/v1/chat/completions", body | {"stream": stream})
            _abort(url, body | {"stream": True, "max_tokens": 1800})
            eventually(lambda: _ABORTED in worker.page(), within=30, what="the engine aborts it")
            return fetch(f"{url}/metrics").body.decode(), worker.page()


_ABORTED = "sglang:num_aborted_requests_total"


def _abort(url: str, body: Mapping[str, object]) -> None:
    """Go away in the midst of a stream."""
    address = urllib.parse.urlsplit(url)
    client = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    headers = {"Content-Type": "application/json"}
    client.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    client.getresponse().read(300)
    client.close()


def metrics(frontend: str, worker: str) -> str:
    """The whole page.

    Args:
        frontend: its `/metrics`.
        worker: a worker's, with the real engine.
    """
    template = (HERE / "metrics.in.md").read_text(encoding="utf-8")
    of_frontend, of_worker = _by_name(frontend), _by_name(worker)
    parts = {
        "frontend": _table(of_frontend, lambda n: n not in of_worker),
        "worker": _table(of_worker, lambda n: not n.startswith(_ENGINE) and n not in of_frontend),
        "both": _table(of_frontend, lambda n: n in of_worker),
        "engine": _table(of_worker, lambda n: n.startswith(_ENGINE)),
        "failures": _failures(),
        "not_served": _not_served({*of_frontend, *of_worker}),
    }
    for name, part in parts.items():
        template = template.replace(f"{{{{{name}}}}}", part)
    return "<!-- Made by `make docs` from metrics.in.md, the code and live pages. -->\n" + template


def _by_name(page: str) -> Mapping[str, Metric]:
    return {text_name(family): family for family in parse(page) if family.samples}


def text_name(family: Metric) -> str:
    """A family's name as the text format has it."""
    return f"{family.name}_total" if family.type == "counter" else str(family.name)


def documented(family: Metric) -> Documented:
    """What a page shows of a family."""
    found = {label for sample in family.samples for label in sample.labels}
    if family.type in ("histogram", "summary"):
        found -= {"le", "quantile"}
    if family.name.startswith(_ENGINE):
        found -= RUNTIME_LABELS
    les = {
        s.labels["le"] for s in family.samples if family.type == "histogram" and "le" in s.labels
    }
    bounds = set(map(float, les)) - {float("inf")}
    rounded = [float(f"{bound:g}") for bound in sorted(bounds)]
    return Documented(family.type, frozenset(found), tuple(rounded))


def _table(families: Mapping[str, Metric], wanted: Callable[[str], bool]) -> str:
    return "\n".join([COLUMNS, *(_row(n, families[n]) for n in sorted(families) if wanted(n))])


def _row(name: str, family: Metric) -> str:
    shown = documented(family)
    moves = MOVES.get(name)
    if moves is None:
        assert name.startswith((_ENGINE, _PROCESS)), f"docs/families.toml has nothing on {name}"
        moves = family.documentation.replace("|", "\\|").replace("\n", " ")
    of = " ".join(f"`{label}`" for label in sorted(shown.labels))
    bounds = " ".join(f"{bound:g}" for bound in shown.buckets)
    return f"| `{name}` | {shown.type} | {of} | {unit(name)} | {moves} | {bounds} |"


def _failures() -> str:
    kinds = {f"{failure.kind} {failure.reason}" for failure in failures.ALL}
    assert kinds == FAILURES.keys(), f"docs/families.toml: {kinds ^ FAILURES.keys()}"
    rows = ((*kind.split(), what) for kind, what in FAILURES.items())
    return "\n".join(f"| `{kind}` | `{reason}` | {what} |" for kind, reason, what in rows)


def unit(name: str) -> str:
    """The unit of a family, by its name; empty where that says none."""
    for word in reversed(name.removesuffix("_total").replace(":", "_").split("_")):
        if word in _UNITS:
            return _UNITS[word]
    return ""


def _not_served(served: set[str]) -> str:
    """Every family of the peer that is on none of our pages, with the reason."""
    by_reason: dict[str, list[str]] = {}
    for name in peer_families():
        if name not in served:
            by_reason.setdefault(reason(name), []).append(f"`{name}`")
    rows = [f"| {', '.join(names)} | {why} |" for why, names in by_reason.items()]
    return "\n".join(["| not served | because |", "| --- | --- |", *rows])


def peer_families() -> Sequence[str]:
    """The families of a real Dynamo 1.6.1."""
    with PEER.open(encoding="utf-8") as file:
        shown = [row["name"] for row in csv.DictReader(file, delimiter="\t")]
    return list(dict.fromkeys([*shown, *MADE_LATE]))


def reason(name: str) -> str:
    """Why a family of the peer's is not served."""
    for pattern, why in NOT_SERVED.items():
        if fnmatch.fnmatchcase(name, pattern):
            return why
    raise AssertionError(f"docs/families.toml does not say why {name} is not served")


def read() -> Iterator[tuple[str, Documented]]:
    """The families of docs/metrics.md, as they stand there."""
    for line in METRICS.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.replace("\\|", "").split("|")[1:-1]]
        if len(cells) == 6 and cells[0].startswith("`"):
            of = frozenset(label.strip("`") for label in cells[2].split())
            bounds = tuple(float(bound) for bound in cells[5].split())
            yield cells[0].strip("`"), Documented(cells[1], of, bounds)


if __name__ == "__main__":
    main()
