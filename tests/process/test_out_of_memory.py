"""The number of kills because memory ran out, from cgroup directories that the tests write."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynamometer.process import out_of_memory

CGROUP = "proc/self/cgroup"
V2 = {CGROUP: "0::/kubepods/pod1"}
V1 = {CGROUP: "5:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab"}
FS = "sys/fs/cgroup"
EVENTS = "low 0\nhigh 0\nmax 51\noom 3\noom_kill 2\noom_group_kill 0"


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        pytest.param({}, 0, id="no cgroups"),
        pytest.param(V2 | {f"{FS}/kubepods/pod1/memory.events": EVENTS}, 2, id="v2"),
        pytest.param({CGROUP: "0::/", f"{FS}/memory.events": EVENTS}, 2, id="namespace"),
        pytest.param(
            V2
            | {
                f"{FS}/kubepods/pod1/memory.events": "oom_kill 1",
                f"{FS}/kubepods/memory.events": "oom_kill 9",
            },
            1,
            id="the cgroups above have other kills",
        ),
        pytest.param(
            V1 | {f"{FS}/memory/docker/ab/memory.oom_control": "under_oom 0\noom_kill 4"},
            4,
            id="v1",
        ),
        pytest.param(
            V1 | {f"{FS}/memory/memory.oom_control": "oom_kill 5"}, 5, id="v1 in a container"
        ),
        pytest.param({CGROUP: "0::/", "proc/vmstat": "pgfault 7\noom_kill 6"}, 6, id="machine"),
        pytest.param(V2 | {f"{FS}/kubepods/pod1/memory.events": "nonsense"}, 0, id="nonsense"),
    ],
)
def test_the_kills_are_those_of_the_own_cgroup(
    tmp_path: Path, files: dict[str, str], kills: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert out_of_memory.kills(tmp_path) == kills


def test_this_machine_has_a_number_of_kills() -> None:
    assert out_of_memory.kills() >= 0
