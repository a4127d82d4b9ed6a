"""The examples work as documented, run as a new user runs them."""

from __future__ import annotations

import signal
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families as parse

from processes import PYTHON, running
from stack import eventually, http

EXAMPLES = Path(__file__).parent.parent / "examples"
PLACE = {"dynamo_namespace": "examples", "dynamo_component": "jobs", "dynamo_endpoint": "work"}


def test_metrics_of_a_users_own_process_are_on_the_page(tmp_path: Path) -> None:
    command = [PYTHON, str(EXAMPLES / "own_metrics.py")]
    with running(command, tmp_path / "log", {"DYN_SYSTEM_PORT": "0"}) as process:
        url = process.wait_for(r"metrics: (\S+)/metrics", within=20)[1]

        def samples() -> dict[str, float]:
            found = {}
            for family in parse(http(f"{url}/metrics").body.decode()):
                if family.name.startswith("dynamo_component_example"):
                    for sample in family.samples:
                        assert sample.labels.items() >= PLACE.items()
                        key = sample.labels.get("outcome", "")
                        found[sample.name.removeprefix("dynamo_component_example_") + key] = (
                            sample.value
                        )
            return found

        first = samples()
        assert {"jobs_totaldone", "jobs_totalfailed", "running_jobs"} <= first.keys()
        assert first["age_seconds"] > 0
        eventually(
            lambda: samples()["jobs_totaldone"] >= first["jobs_totaldone"] + 3,
            within=10,
            what="jobs are counted",
        )
        last = samples()
        assert last["age_seconds"] > first["age_seconds"]
        assert last["job_duration_seconds_count"] >= 3
        assert http(f"{url}/health").status == 200
        process.signal(signal.SIGINT)
        assert process.wait(within=10) == 130
        assert "Traceback" not in process.log


def test_a_wrong_variable_is_a_clear_message(tmp_path: Path) -> None:
    command = [PYTHON, str(EXAMPLES / "own_metrics.py")]
    with running(command, tmp_path / "log", {"DYN_SYSTEM_PORT": "http"}) as process:
        assert process.wait(within=20) == 2
        assert "error: DYN_SYSTEM_PORT='http'" in process.log
        assert "Traceback" not in process.log


def test_the_documented_program_shows_what_it_counted(tmp_path: Path) -> None:
    page = (EXAMPLES.parent / "docs" / "metrics-api.md").read_text(encoding="utf-8")
    program = tmp_path / "program.py"
    program.write_text(page.split("```python\n")[1].split("```")[0], encoding="utf-8")
    with running([PYTHON, str(program)], tmp_path / "log", {"DYN_SYSTEM_PORT": "0"}) as process:
        assert process.wait(within=20) == 0
        place = 'dynamo_component="backend",dynamo_endpoint="generate",dynamo_namespace="dynamo"'
        assert f'dynamo_component_jobs_total{{{place},outcome="done"}} 1.0' in process.log
        assert f'dynamo_component_depth{{{place},region="eu"}} 1.0' in process.log
        assert f"dynamo_component_latency_seconds_count{{{place}}} 1.0" in process.log
