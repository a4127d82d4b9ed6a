from __future__ import annotations

import pytest

from dynamometer.engines.sglang_flags import launch_arguments


@pytest.mark.parametrize(
    "command",
    [
        ["python", "-m", "sglang.launch_server", "--port", "1"],
        [
            "/usr/bin/python3.11",
            "-u",
            "-X",
            "dev",
            "-B",
            "-m",
            "sglang.launch_server",
            "--port",
            "1",
        ],
        ["python3", "/opt/lib/sglang/launch_server.py", "--port", "1"],
        ["/opt/bin/python", "/opt/bin/sglang", "serve", "--port", "1"],
        ["/opt/bin/sglang", "serve", "--port", "1"],
    ],
)
def test_a_command_that_starts_sglang_has_its_flags(command: list[str]) -> None:
    assert launch_arguments(command) == ["--port", "1"]


@pytest.mark.parametrize(
    "command",
    [
        [],
        [""],
        ["python"],
        ["python", "-m"],
        ["python", "-m", "pytest", "sglang.launch_server"],
        ["python", "-c", "pass", "-m", "sglang.launch_server", "--port", "99999"],
        ["bash", "-c", "python -m sglang.launch_server"],
        ["bash", "-c", "x", "-m", "sglang.launch_server"],
        ["vim", "/opt/sglang/launch_server.py.orig"],
        ["grep", "-m", "sglang.launch_server"],
        ["tail", "-f", "/opt/sglang/launch_server.py"],
        ["/bin/sh", "/opt/docker", "run", "python3", "-m", "sglang.launch_server"],
        ["sudo", "python", "-m", "sglang.launch_server"],
        ["sglang::scheduler"],
        ["sglang", "router"],
    ],
)
def test_a_command_that_does_not_start_sglang_has_none(command: list[str]) -> None:
    assert launch_arguments(command) is None
