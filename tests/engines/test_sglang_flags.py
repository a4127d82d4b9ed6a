from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from dynamometer.engines import sglang_flags
from dynamometer.engines.sglang_cpu import SWITCH
from dynamometer.engines.sglang_flags import Node, launch_arguments
from dynamometer.errors import SettingsError


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


def parse(*arguments: str):  # type: ignore[no-untyped-def]
    return sglang_flags.parse(arguments)


TWO = ("--nnodes", "2", "--dist-init-addr", "10.0.0.1:25000")


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (("--tp-size", "2"), "tp_size", 2),
        (("--tp=2",), "tp_size", 2),
        (("--tensor-parallel-size", "2"), "tp_size", 2),
        (("--tensor-par", "2"), "tp_size", 2),
        (("--pp-size", "2"), "pp_size", 2),
        (("--pipeline-parallel-size=2",), "pp_size", 2),
        (("--dp", "2"), "dp_size", 2),
        (("--attn-dp-size", "2"), "attn_dp_size", 2),
        (("--attention-data-parallel-size", "2"), "attn_dp_size", 2),
        (("--nnodes=2",), "nnodes", 2),
        (("--nn", "2"), "nnodes", 2),
        (("--node-rank", "1"), "node_rank", 1),
        (("--node", "1"), "node_rank", 1),
        (("--dist-init-addr", "h:1"), "dist_init_addr", "h:1"),
        (("--nccl-init-addr", "h:1"), "dist_init_addr", "h:1"),
        (("--nccl-i=h:1",), "dist_init_addr", "h:1"),
        (("--disaggregation-mode", "decode"), "disaggregation_mode", "decode"),
        (("--disaggregation-m=decode",), "disaggregation_mode", "decode"),
        (("--disaggregation-bootstrap-port", "7"), "bootstrap_port", 7),
        (("--disaggregation-b", "7"), "bootstrap_port", 7),
        (("--disaggregation-transfer-backend", "nixl"), "transfer_backend", "nixl"),
        (("--enable-dp-attention",), "enable_dp_attention", True),
        (("--enable-dp-attention-local-control-broadcast",), "enable_dp_attention", False),
        (("--enable-metrics",), "metrics_of_all_ranks", False),
        (("--enable-metrics-for-all-schedulers",), "metrics_of_all_ranks", True),
        (("--enable-metrics-for",), "metrics_of_all_ranks", True),
        (("--enable-metrics-for",), "enable_metrics", False),
        (("--max-total-tokens", "7", "--nnodes", "2", "--nnodes", "3"), "nnodes", 3),
    ],
)
def test_a_flag_is_read_in_each_spelling_that_sglang_accepts(
    arguments: tuple[str, ...], name: str, value: object
) -> None:
    assert getattr(parse(*arguments), name) == value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--nnodes", "two"), "--nnodes: invalid int value: 'two'"),
        (("--nnodes",), "--nnodes: expected one argument"),
        (("--disaggregation", "prefill"), "ambiguous option: --disaggregation could match"),
        (("--disaggregation-bootstrap-port", ""), "--disaggregation-bootstrap-port"),
    ],
)
def test_a_flag_that_cannot_be_read_is_named(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse(*arguments)


@pytest.mark.parametrize(
    ("arguments", "node"),
    [
        ((), Node()),
        (("--nnodes", "1", "--node-rank", "0"), Node()),
        (("--dist-init-addr", "h:1"), Node()),
        (TWO, Node(count=2, rank=0, group="10.0.0.1:25000")),
        ((*TWO, "--node-rank", "1"), Node(count=2, rank=1, group="10.0.0.1:25000")),
        (
            ("--nnodes=2", "--nccl-init-addr=Node-0.Example:0025"),
            Node(count=2, rank=0, group="node-0.example:25"),
        ),
        (("--nnodes=2", "--dist-init-addr=[::1]:1"), Node(count=2, rank=0, group="[::1]:1")),
    ],
)
def test_nodes_of_one_engine_have_one_group(arguments: tuple[str, ...], node: Node) -> None:
    assert sglang_flags.node(parse(*arguments)) == node


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--nnodes", "0"), "--nnodes 0: must be 1 or more"),
        (("--nnodes", "-1"), "--nnodes -1: must be 1 or more"),
        (("--node-rank", "1"), "--node-rank 1: must be 0, because --nnodes is 1"),
        ((*TWO, "--node-rank", "2"), "--node-rank 2: must be from 0 to 1, because --nnodes is 2"),
        ((*TWO, "--node-rank", "-1"), "--node-rank -1: must be from 0 to 1"),
        (("--nnodes", "2", "--tp-size", "2"), "--dist-init-addr is missing: with --nnodes 2"),
        *(
            (("--nnodes", "2", f"--dist-init-addr={address}"), "--dist-init-addr .*: must be HOST")
            for address in (
                *("", "h", ":1", "h:", "h:0", "h:65536", "h:x", "h:-1", "h:1_0", "h: 1", "a b:1"),
                *(
                    "::1:1",
                    "[::1]",
                    "[h]:1",
                    "[::1:1",
                    "http://h:1",
                    "user@h:1",
                    "h:1/x",
                    "\ud800:1",
                ),
            )
        ),
    ],
)
def test_nodes_that_cannot_start_together_are_refused(
    arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        sglang_flags.node(parse(*arguments))


@pytest.mark.parametrize(
    ("arguments", "ranks", "data_parallel"),
    [
        ((), 1, 1),
        (("--tp-size", "2"), 2, 1),
        (("--pp-size", "2"), 2, 1),
        (("--dp-size", "2"), 2, 2),
        (("--dp-size", "2", "--tp-size", "2", "--pp-size", "2"), 8, 2),
        (("--dp-size", "2", "--tp-size", "4", "--enable-dp-attention"), 4, 2),
        (("--attn-dp-size", "2", "--tp-size", "4"), 4, 2),
        (("--attn-dp-size", "2", "--tp-size", "4", "--enable-dp-attention"), 4, 2),
    ],
)
def test_ranks_are_counted_as_sglang_starts_them(
    arguments: tuple[str, ...], ranks: int, data_parallel: int
) -> None:
    flags = parse(*arguments)
    assert sglang_flags.ranks(flags) == ranks
    assert sglang_flags.data_parallel_ranks(flags) == data_parallel


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ([], ["--device", "cpu", "--sleep-on-idle"]),
        (["--device=cpu", "--x"], ["--sleep-on-idle"]),
        (["--dev", "cpu", "--sleep-on"], []),
        (["--sleep_on_idle", "--", "-"], ["--device", "cpu"]),
    ],
)
def test_flags_that_the_user_gave_are_not_added(given: list[str], added: list[str]) -> None:
    flags = {"--device": "cpu", "--sleep-on-idle": None}
    assert sglang_flags.missing(flags, given) == added


@pytest.mark.engine
def test_no_flag_of_sglang_is_read_as_the_beginning_of_another_one() -> None:
    command = [sys.executable, "-m", "sglang.launch_server", "--help"]
    wide = os.environ | {SWITCH: "1", "COLUMNS": "1000"}
    done = subprocess.run(command, env=wide, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    options = " ".join(re.findall(r"^  (-.*?)(?:  |$)", done.stdout, re.MULTILINE))
    values = {flag: vars(parse(flag, "7")) for flag in re.findall(r"--[a-z][\w-]*", options)}
    read = {flag for flag, value in values.items() if value != vars(parse())}
    assert {"--tp-size", "--tensor-parallel-size", "--nnodes", "--dist-init-addr"} <= read
    assert [
        (flag, longer)
        for flag in read
        for longer in read
        if longer != flag and longer.startswith(flag) and values[flag] == values[longer]
    ] == [("--model", "--model-path")]
