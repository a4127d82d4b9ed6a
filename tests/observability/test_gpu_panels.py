"""The GPU dashboard joins dcgm-exporter's values to workers; promtool evaluates made-up series."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from dynamometer.observability.gpu_panels import GPU
from dynamometer.panels import Panel

WORKERS = ("w1:8081", "w2:8081")
# The GPUs of the workers' machine, by number, and a GPU of another machine.
GPUS = {"0": "GPU-a", "1": "GPU-b"}
ELSEWHERE = "GPU-c"


def selector(name: str, labels: Mapping[str, str]) -> str:
    return name + "{" + ", ".join(f'{label}="{value}"' for label, value in labels.items()) + "}"


def of_dcgm(panel: Panel, uuid: str, *, exporter: str = "d:9400") -> str:
    (name,) = set(re.findall(r"DCGM_\w+", panel.queries[0].expr))
    target = {"instance": exporter, "job": "dcgm", "Hostname": "h"}
    return selector(name, {**target, "gpu": "0", "UUID": uuid, "modelName": "NVIDIA H100"})


def of_worker(name: str, worker: str, index: str) -> str:
    target = {"instance": worker, "job": "dynamometer", "role": "worker"}
    return selector(name, {**target, "kind": "NVIDIA", "index": index, "uuid": GPUS[index]})


def check(
    directory: Path,
    panel: Panel,
    values: Mapping[str, str],
    expected: Mapping[str, float],
    *,
    instance: str = ".*",
) -> None:
    """Fail unless the query of a panel returns the expected values, by series, after 40 s."""
    info = [
        of_worker("dynamometer_accelerator_info", worker, index)
        for worker in WORKERS
        for index in GPUS
    ]
    given = [*values.items(), *((series, "1x10") for series in info)]
    expr = panel.queries[0].expr.replace("$instance", instance).replace("$__rate_interval", "20s")
    samples = [{"labels": series, "value": value} for series, value in expected.items()]
    test = {
        "interval": "5s",
        "input_series": [{"series": series, "values": value} for series, value in given],
        "promql_expr_test": [{"expr": expr, "eval_time": "40s", "exp_samples": samples}],
    }
    file = directory / "test.yml"
    file.write_text(json.dumps({"evaluation_interval": "5s", "tests": [test]}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def on_each(workers: Sequence[str], values: Mapping[str, float]) -> Mapping[str, float]:
    return {
        of_worker("", worker, index): value for worker in workers for index, value in values.items()
    }


@pytest.mark.parametrize("panel", GPU.panels, ids=lambda panel: panel.title)
def test_each_worker_has_the_value_of_each_gpu_of_its_machine(tmp_path: Path, panel: Panel) -> None:
    values = {
        of_dcgm(panel, GPUS["0"]): "0+10x10",
        of_dcgm(panel, GPUS["1"]): "0+20x10",
        of_dcgm(panel, ELSEWHERE): "0+30x10",
    }
    counter = "rate(" in panel.queries[0].expr
    expected = {"0": 2.0, "1": 4.0} if counter else {"0": 80.0, "1": 160.0}
    check(tmp_path, panel, values, on_each(WORKERS, expected))


def test_an_instance_can_be_chosen(tmp_path: Path) -> None:
    panel = GPU.panels[0]
    expected = on_each(WORKERS[1:], {"0": 5})
    check(tmp_path, panel, {of_dcgm(panel, GPUS["0"]): "5x10"}, expected, instance=WORKERS[1])


def test_two_exporters_that_show_one_gpu_do_not_break_the_join(tmp_path: Path) -> None:
    panel = GPU.panels[0]
    values = {of_dcgm(panel, GPUS["0"], exporter=f"{name}:9400"): "5x10" for name in "de"}
    check(tmp_path, panel, values, on_each(WORKERS, {"0": 5}))
