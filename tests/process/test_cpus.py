"""The number of CPUs, from made-up cgroup directories."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dynamometer.process import cpus


@pytest.fixture(autouse=True)
def affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


V2 = {"proc/self/cgroup": "0::/user.slice/frontend.service"}
V1 = {"proc/self/cgroup": "5:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab\n1:name=systemd:/x"}
FS = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "count"),
    [
        pytest.param({}, 8, id="no cgroups"),
        pytest.param(V2, 8, id="v2 without a controller"),
        pytest.param(V2 | {f"{FS}/user.slice/frontend.service/cpu.max": "max 100000"}, 8, id="max"),
        pytest.param(
            V2 | {f"{FS}/user.slice/frontend.service/cpu.max": "300000 100000"}, 3, id="3"
        ),
        pytest.param(V2 | {f"{FS}/user.slice/cpu.max": "250000 100000"}, 2, id="above, 2.5"),
        pytest.param(V2 | {f"{FS}/user.slice/cpu.max": "50000 100000"}, 1, id="0.5"),
        pytest.param(V2 | {f"{FS}/user.slice/cpu.max": "1600000 100000"}, 8, id="above affinity"),
        pytest.param(V2 | {f"{FS}/user.slice/cpu.max": "much"}, 8, id="v2 not a number"),
        pytest.param(
            V2
            | {
                f"{FS}/user.slice/cpu.max": "200000 100000",
                f"{FS}/user.slice/frontend.service/cpu.max": "600000 100000",
            },
            2,
            id="the least",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/", f"{FS}/cpu.max": "400000 100000"}, 4, id="namespace"
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/../other", f"{FS}/cpu.max": "400000 100000"}, 4, id="outside"
        ),
        pytest.param(
            V1
            | {
                f"{FS}/cpu,cpuacct/docker/ab/cpu.cfs_quota_us": "500000",
                f"{FS}/cpu,cpuacct/docker/ab/cpu.cfs_period_us": "100000",
            },
            5,
            id="v1",
        ),
        pytest.param(
            V1 | {f"{FS}/cpu/cpu.cfs_quota_us": "100000", f"{FS}/cpu/cpu.cfs_period_us": "50000"},
            2,
            id="v1 in a container",
        ),
        pytest.param(
            V1 | {f"{FS}/cpu/cpu.cfs_quota_us": "-1", f"{FS}/cpu/cpu.cfs_period_us": "50000"},
            8,
            id="v1 without a quota",
        ),
    ],
)
def test_the_quota_limits_the_affinity(tmp_path: Path, files: dict[str, str], count: int) -> None:
    assert cpus.available(write(tmp_path, files)) == count


def test_this_machine_has_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 1 <= cpus.available() <= len(os.sched_getaffinity(0))
