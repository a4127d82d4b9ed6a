"""docs/sglang-metrics.md: SGLang's families, and the runs in which each was seen.

The page is written from two files: docs/sglang-metrics.tsv, which docs/sglang_runs.py records, and
docs/sglang-families.toml, which describes the runs, the categories, and the families of SGLang's
source that no run shows.
"""

from __future__ import annotations

import csv
import fnmatch
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

HERE = Path(__file__).parent
PAGE, DATA = HERE / "sglang-metrics.md", HERE / "sglang-metrics.tsv"
DESCRIPTIONS = tomllib.loads((HERE / "sglang-families.toml").read_text(encoding="utf-8"))
# The run of the main job: one engine with one rank, and no optional feature.
PLAIN = "plain"
# Labels of a rank's families, in the order of their names.
COMMON = ("engine_type", "model_name", "moe_ep_rank", "pp_rank", "tp_rank")
_NO_LABELS = "-"
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """A run of the engine.

    Attributes:
        name: the name in the tables.
        meaning: a noun phrase.
        flags: the flags of SGLang; `{port}` stands for a free port.
        environment: variables as `NAME=VALUE`.
        together: the name of the engines that run at the same time as this one; empty if none does.
    """

    name: str
    meaning: str
    flags: str
    environment: str = ""
    together: str = ""


@dataclass(frozen=True)
class Seen:
    """A family that a run shows.

    Attributes:
        type: the type in the text format.
        labels: the labels of its series, by run.
    """

    type: str
    labels: Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Unseen:
    """A family of SGLang's source that no run shows.

    Attributes:
        type: the type in the text format.
        labels: the labels in the source.
        because: the reason; a family is the subject.
    """

    type: str
    labels: frozenset[str]
    because: str


RUNS: Mapping[str, Run] = {one["name"]: Run(**one) for one in DESCRIPTIONS["runs"]}
CATEGORIES: Mapping[str, Sequence[str]] = {
    one["title"]: one["families"].split() for one in DESCRIPTIONS["categories"]
}


def read() -> Mapping[str, Seen]:
    """Return the families that the runs have shown, by name in the text format."""
    with DATA.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {
        row["family"]: Seen(
            row["type"],
            {
                run: frozenset(row[run].replace(_NO_LABELS, "").split())
                for run in RUNS
                if row.get(run)
            },
        )
        for row in rows
    }


def write(families: Mapping[str, Seen]) -> None:
    """Write the families that the runs have shown."""
    with DATA.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(["family", "type", *RUNS])
        for name, seen in sorted(families.items()):
            rows.writerow([name, seen.type, *(_cell(seen, run) for run in RUNS)])


def _cell(seen: Seen, run: str) -> str:
    if run not in seen.labels:
        return ""
    return " ".join(sorted(seen.labels[run])) or _NO_LABELS


def unseen() -> Mapping[str, Unseen]:
    """Return the families of SGLang's source that no run shows, by name in the text format."""
    found = {}
    for group in DESCRIPTIONS["unseen"]:
        for line in group["families"].strip().splitlines():
            name, kind, *own = line.split()
            labels = frozenset(group.get("labels", "").split()) | set(own)
            found[name] = Unseen(kind, labels, group["because"])
    return found


def labels() -> Mapping[str, frozenset[str]]:
    """Return the labels of all families of SGLang's source, in any run."""
    seen = {name: frozenset().union(*one.labels.values()) for name, one in read().items()}
    return seen | {name: one.labels for name, one in unseen().items()}


def categories(name: str) -> Sequence[str]:
    """Return the titles of the categories of a family; a test checks that there is one."""
    return [
        title
        for title, patterns in CATEGORIES.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    ]


def page() -> str:
    """Return docs/sglang-metrics.md."""
    shown, missing = read(), unseen()
    runs = [f"| {one.name} | {one.meaning} | {_command(one)} |" for one in RUNS.values()]
    return "\n".join(
        [
            _PAGE.format(seen=len(shown), all=len(shown) + len(missing), runs=len(RUNS)),
            *runs,
            _SEEN.format(common=_words(COMMON), sometimes=_sometimes(shown)),
            *(_row(name, one.type, _label_cell(one), _where(one)) for name, one in _sorted(shown)),
            _UNSEEN,
            *(
                _row(name, one.type, _labels(one.labels), one.because)
                for name, one in _sorted(missing)
            ),
            "",
        ]
    )


def _sorted(families: Mapping[str, T]) -> Sequence[tuple[str, T]]:
    order = list(CATEGORIES)
    return sorted(families.items(), key=lambda item: (order.index(_category(item[0])), item[0]))


def _category(name: str) -> str:
    (title,) = categories(name)
    return title


def _row(name: str, kind: str, label_names: str, last: str) -> str:
    return f"| `{name}` | {kind} | {label_names} | {_category(name)} | {last} |"


def _where(seen: Seen) -> str:
    """Return the runs; where few are missing, the missing ones."""
    missing = [run for run in RUNS if run not in seen.labels]
    if not missing:
        return "all"
    return f"all except {', '.join(missing)}" if len(missing) <= 3 else ", ".join(seen.labels)


def _label_cell(seen: Seen) -> str:
    """Return the labels; in brackets, those that only some runs have."""
    cells = [_labels(_always(seen)), *(f"[`{label}`]" for label in sorted(_some(seen)))]
    return " ".join(filter(None, cells))


def _always(seen: Seen) -> frozenset[str]:
    return frozenset.intersection(*seen.labels.values())


def _some(seen: Seen) -> frozenset[str]:
    return frozenset().union(*seen.labels.values()) - _always(seen)


def _sometimes(families: Mapping[str, Seen]) -> str:
    """Return the labels that only some runs have, each with these runs."""
    runs: dict[str, set[str]] = {}
    for seen in families.values():
        for label in _some(seen):
            runs.setdefault(label, set()).update(
                run for run, found in seen.labels.items() if label in found
            )
    return ", ".join(
        f"`{label}` ({', '.join(run for run in RUNS if run in runs[label])})"
        for label in sorted(runs)
    )


def _labels(found: frozenset[str]) -> str:
    if found >= set(COMMON):
        return " ".join(filter(None, ["common", _words(sorted(found - set(COMMON)))]))
    return _words(sorted(found))


def _words(names: Sequence[str]) -> str:
    return " ".join(f"`{name}`" for name in names)


def _command(run: Run) -> str:
    words = f"{run.environment} {run.flags}".replace("{port}", "PORT").strip()
    return f"`{words}`" if words else ""


_PAGE = """\
<!-- Generated from docs/sglang-metrics.tsv and docs/sglang-families.toml: do not edit. -->
# SGLang's families, and where they appear

The source of SGLang 0.5.23 has {all} families. {seen} of them were on workers' pages in {runs}
runs of the real engine, on two cores without a GPU, with requests that were answered, aborted,
queued and retracted, and with transfers that failed. The first table lists the runs, the second
each family that was [seen](#seen), and the last the families that were [not seen](#not-seen),
each with the reason. [metrics.md](metrics.md#sglang) has SGLang's own description of the families
of the plain run, and their buckets. A family can appear on more pages than these runs show:
[disaggregation.md](disaggregation.md#which-side-each-family-is-about) has the side of each family
where prefill and decode are apart. `make sglang-runs` runs the engines again and writes this page.

| run | meaning | SGLang's variables and flags, besides `--model` and `--enable-metrics` |
| --- | --- | --- |"""
_SEEN = """
## Seen

`common` stands for the labels of each rank: {common}. Labels in brackets exist in some runs only:
{sometimes}. Each series also has the labels of the worker: `dynamo_namespace`,
`dynamo_component`, `dynamo_endpoint`, `model` and `worker_id`. The first four categories are
those of SGLang's documentation. Many gauges are on every page, at 0 without their feature.

| family | type | labels | category | seen in |
| --- | --- | --- | --- | --- |"""
_UNSEEN = """
## Not seen

LoRA adapters, the hierarchical cache, speculative decoding and data-parallel attention were tried
on the CPU: the engine ended, for the reason in the table. Models with experts, hybrid models and
an encoder server were not tried.

| family | type | labels | category | reason |
| --- | --- | --- | --- | --- |"""
