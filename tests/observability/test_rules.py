"""Rules and alerts: the cases of promtool, the runbooks, and the names that the rules read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from shipped_rules import ALERTS, FILES, RULES, load, rules, scaled

from conftest import ROOT
from dynamometer.names import labels

sys.path.insert(0, str(ROOT / "docs"))

import generate
import sglang_page

CASES = sorted((Path(__file__).parent / "rules").glob("*.yml"))
RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text(encoding="utf-8")
PARTS = ("Users", "Confirm", "Causes", "Do", "Back to sleep")
# Alerts for which a person is woken: what users feel.
PAGES = {"DynamometerModelNotReady", "DynamometerErrorBudgetBurn", "DynamometerFirstTokenSlow"}


def promtool(*arguments: str | Path) -> str:
    assert shutil.which("promtool"), "install Debian's package prometheus"
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cases(alert: str, result: str) -> list[dict[str, Any]]:
    """Return promtool's cases in which an alert `fires`, or `does not fire`."""
    found = load(Path(__file__).parent / "rules" / f"{alert}.yml")["tests"]
    return [case for case in found if case["name"].startswith(f"{result}: ")]


def test_promtool_accepts_the_rules() -> None:
    found = promtool("check", "rules", *RULES)
    assert found.count("SUCCESS") == len(RULES)


def test_scaled_rules_differ_only_in_their_durations(tmp_path: Path) -> None:
    assert scaled("[5m] [1h] for: 2m [1d] 0.5 p99 1e9") == (
        "[5000ms] [60000ms] for: 2000ms [1440000ms] 0.5 p99 1e9"
    )
    for path in RULES:
        (tmp_path / path.name).write_text(scaled(path.read_text(encoding="utf-8")))
    promtool("check", "rules", *tmp_path.iterdir())


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_cases_of_promtool_pass(path: Path) -> None:
    promtool("test", "rules", path)


def test_an_alert_is_a_page_only_if_users_feel_it() -> None:
    assert {rule["labels"]["severity"] for rule in ALERTS.values()} == {"page", "ticket"}
    paged = {name for name, rule in ALERTS.items() if rule["labels"]["severity"] == "page"}
    assert paged == PAGES


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_waits_and_describes_itself(alert: str) -> None:
    rule = ALERTS[alert]
    assert alert.startswith("Dynamometer")
    assert re.fullmatch(r"[1-9]\d*m", rule["for"])
    assert set(rule["labels"]) == {"severity"}
    summary, description, runbook = (
        rule["annotations"][name] for name in ("summary", "description", "runbook_url")
    )
    assert summary
    assert "$labels" in description
    assert runbook == f"docs/runbooks.md#{alert.lower()}"


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_cases_that_fire_and_that_do_not(alert: str) -> None:
    fires = [test for case in cases(alert, "fires") for test in case.get("alert_rule_test", ())]
    assert any(test["alertname"] == alert and test.get("exp_alerts") for test in fires)
    quiet = [test for case in cases(alert, "does not fire") for test in case["alert_rule_test"]]
    assert quiet
    assert all(test["alertname"] == alert and not test.get("exp_alerts") for test in quiet)


def test_every_case_belongs_to_an_alert() -> None:
    assert {path.stem for path in CASES} == {*ALERTS, "quiet"}
    for alert in ALERTS:
        named = cases(alert, "fires") + cases(alert, "does not fire")
        assert len(named) == len(load(Path(__file__).parent / "rules" / f"{alert}.yml")["tests"])


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_a_section_in_the_runbooks(alert: str) -> None:
    (section,) = re.findall(rf"^## {alert}\n(.*?)(?=^## |\Z)", RUNBOOKS, re.MULTILINE | re.DOTALL)
    assert re.findall(r"^\*\*(.+?):\*\*", section, re.MULTILINE) == list(PARTS)
    confirm = section[section.index("**Confirm:**") : section.index("**Causes:**")]
    assert "curl" in confirm


def test_the_runbooks_have_no_section_of_a_missing_alert() -> None:
    assert set(re.findall(r"^## (Dynamometer\w+)$", RUNBOOKS, re.MULTILINE)) == set(ALERTS)


def test_the_runbooks_list_every_objective_with_its_default() -> None:
    row = re.compile(r"^\| `(dynamometer:objective:\w+)` \| ([\d.]+) \|", re.MULTILINE)
    documented = row.findall(RUNBOOKS)
    defined = [
        (rule["record"], rule["expr"].removeprefix("vector(").removesuffix(")"))
        for rule in rules()
        if rule.get("record", "").startswith("dynamometer:objective:")
    ]
    assert documented == defined


def known_names() -> set[str]:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    return recorded | {name for name, _ in generate.read()} | {*sglang_page.labels()}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_reads_only_names_that_exist(rule: dict[str, Any]) -> None:
    expression = re.sub(r'"[^"]*"|\b(by|on) \([^)]*\)', "", rule["expr"])
    for name in re.findall(r"\b(?:dynamo|dynamometer|sglang|process)[_:][\w:]+", expression):
        assert {name, re.sub(r"_(bucket|count|sum)$", "", name)} & known_names(), name


def test_the_runbooks_read_only_names_that_exist() -> None:
    """A name may be the beginning of a family's name, as in patterns."""
    known = known_names() | {labels.NAMESPACE}
    for name in set(re.findall(r"\b(?:dynamo|dynamometer|sglang)[_:][\w:]+", RUNBOOKS)):
        assert any(one.startswith(name) for one in known), name


def test_the_queries_of_the_runbooks_are_valid(tmp_path: Path) -> None:
    queries = re.findall(r"--data-urlencode 'query=(.+)'$", RUNBOOKS, re.MULTILINE)
    assert len(queries) == RUNBOOKS.count("/api/v1/query ") > 0
    rule_file = {"groups": [{"name": "g", "rules": [{"record": "r", "expr": q} for q in queries]}]}
    (tmp_path / "rules.yml").write_text(json.dumps(rule_file))  # JSON is YAML
    promtool("check", "rules", "--lint=none", tmp_path / "rules.yml")


def test_alertmanagers_rules_name_alerts_and_their_labels() -> None:
    rules_of_inhibition = load(FILES / "alertmanager.yml")["inhibit_rules"]
    assert rules_of_inhibition
    for rule in rules_of_inhibition:
        for matcher in rule["source_matchers"] + rule["target_matchers"]:
            matched = re.fullmatch(r'alertname=~?"(.+)"', matcher)
            assert matched, matcher
            pattern = matched[1]
            assert any(re.fullmatch(pattern, alert) for alert in ALERTS), matcher
            prefix, _, choices = pattern.removesuffix(")").partition("(")
            for choice in choices.split("|"):
                assert prefix + choice in ALERTS
