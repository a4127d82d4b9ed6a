"""The generated docs describe the code; `make docs` regenerates them."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families as parse

DOCS = Path(__file__).parent.parent / "docs"
SOURCE = DOCS.parent / "src"
sys.path.insert(0, str(DOCS))

import generate
import integrations

from dynamometer.cli import COMMANDS
from dynamometer.names import build, engine_state
from dynamometer.variables import OTHERS, VARIABLES
from stack import Stack, eventually, http, ops_url


@pytest.mark.parametrize("arguments", [[], ["dashboards"], ["metrics", "configuration"]])
def test_all_pages_are_written_unless_some_are_requested(arguments: list[str]) -> None:
    assert generate.requested(arguments) == (arguments or generate.PAGES)


def test_the_configuration_is_current() -> None:
    written = generate.CONFIGURATION.read_text(encoding="utf-8")
    assert written == generate.configuration(), "make docs"


def test_the_table_of_integrations_is_current() -> None:
    written = integrations.PAGE.read_text(encoding="utf-8")
    assert written == integrations.page(generate.published()), "make docs"


def test_every_variable_and_every_command_is_there() -> None:
    written = generate.CONFIGURATION.read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([A-Z_]+)` ", written, re.MULTILINE))
    assert documented == {*VARIABLES, *OTHERS}
    spelled = r'"([A-Z][A-Z0-9]+_[A-Z0-9_]+)"'
    used = {name for path in SOURCE.rglob("*.py") for name in re.findall(spelled, path.read_text())}
    # Names of buckets, and names of dcgm-exporter's families, are not variables of their own.
    assert {name for name in used if not name.startswith(("DYN_METRICS_", "DCGM_"))} <= documented
    assert set(COMMANDS) == set(re.findall(r"^## dyno (\S+)", written, re.MULTILINE))


@pytest.mark.parametrize("variable", [name for name, row in VARIABLES.items() if row.flag])
def test_the_flags_of_a_variable_exist_and_name_it(variable: str) -> None:
    helps: dict[str, str] = {}
    for module, _ in COMMANDS.values():
        for action in importlib.import_module(module).parser("dyno")._actions:
            for flag in action.option_strings:  # two commands may have one flag
                helps[flag] = helps.get(flag, "") + str(action.help)
    flags = re.findall(r"`(--[a-z-]+)`", VARIABLES[variable].flag)
    assert set(flags) <= set(helps)
    assert any(variable in helps[flag] for flag in flags)


def test_every_family_of_dynamo_is_served_or_has_a_reason() -> None:
    served = {name for name, _ in generate.read()}
    page = generate.METRICS.read_text(encoding="utf-8")
    not_served = page[page.index("| not served | because |") :]
    for name in generate.dynamo_families():
        if name not in served:
            assert f"`{name}`" in not_served, name
            assert generate.reason(name) in not_served, name


def test_no_reason_is_left_over() -> None:
    """A served family needs no reason, and every pattern matches a family."""
    served = {name for name, _ in generate.read()}
    reasons = {generate.reason(name) for name in generate.dynamo_families() if name not in served}
    assert reasons == {why for _, why in generate.NOT_SERVED.items()}


def test_every_family_of_dynamometer_documents_what_changes_it() -> None:
    ours = {name for name, _ in generate.read() if not name.startswith(("sglang:", "process_"))}
    # Families of an exporter and of accelerators are described in sentences.
    elsewhere = {engine_state.UP, build.ACCELERATOR_INFO}
    assert ours == set(generate.CHANGES) - elsewhere


@pytest.mark.parametrize(
    ("family", "unit"),
    [
        ("dynamo_frontend_model_kv_cache_block_size", "tokens"),
        ("dynamo_frontend_model_max_num_seqs", "requests"),
        ("sglang:context_len", "tokens"),
        ("sglang:page_size", "tokens"),
        ("sglang:num_pages", "pages"),
        ("sglang:kv_transfer_speed_gb_s", "gigabytes"),
        ("dynamo_frontend_model_workers", ""),
    ],
)
def test_a_familys_unit_is_in_its_name(family: str, unit: str) -> None:
    assert generate.unit(family) == unit


def test_nothing_of_the_template_is_left() -> None:
    page = generate.METRICS.read_text(encoding="utf-8")
    assert "{{" not in page
    template = (DOCS / "metrics.in.md").read_text(encoding="utf-8")
    for part in re.split(r"\{\{\w+\}\}", template):
        assert part in page, "make docs"


def test_prometheus_takes_the_rules_for_older_names(tmp_path: Path) -> None:
    page = generate.METRICS.read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(\s*groups:.*?)```", page, re.DOTALL)
    rules = tmp_path / "rules.yaml"
    rules.write_text(textwrap.dedent(block), encoding="utf-8")
    checked = subprocess.run(["promtool", "check", "rules", rules], capture_output=True, text=True)
    assert (checked.returncode, "2 rules found" in checked.stdout) == (0, True), checked
    read = set(re.findall(r"expr: (\w+)", block))
    assert read <= {name for name, _ in generate.read()}


def of_fleet(page: str) -> Iterator[Metric]:
    """Return the families that only the page of all engines has."""
    return (family for family in parse(page) if family.name.startswith("dynamometer_fleet_"))


@pytest.mark.engine
def test_live_pages_are_as_documented(stack: Stack) -> None:
    """Families of the runtime are compared in both directions; of the engine, those on the page."""
    assert stack.worker is not None
    body = {"model": str(stack.model), "messages": [{"role": "user", "content": "hi"}]}
    for stream in (False, True):
        asked = body | {"stream": stream, "max_tokens": 4}
        assert http(f"{stack.frontend_url}/v1/chat/completions", asked).status == 200
    # The watchdog records the progress of the ranks once a second.
    page = stack.worker.page
    shown = engine_state.LAST_PROGRESS_TIMESTAMP_SECONDS
    eventually(lambda: shown in page(), within=15, what=shown)
    assert stack.frontend is not None
    fleet = http(f"{ops_url(stack.frontend)}/engine_metrics").body.decode()
    pages = (http(f"{stack.frontend_url}/metrics").body.decode(), page())
    live = {
        generate.text_name(family): generate.documented(family)
        for family in [*(one for page in pages for one in parse(page)), *of_fleet(fleet)]
        if family.samples
    }
    written = dict(generate.read())
    assert live.keys() <= written.keys(), "make docs"
    for name, family in live.items():
        documented = written[name]
        if name.startswith("sglang:"):
            assert family.labels <= documented.labels, name
            assert (family.type, family.buckets) == (documented.type, documented.buckets), name
        else:
            assert family == documented, name
    ours = {name for name in written if not name.startswith("sglang:")}
    assert ours <= live.keys()
