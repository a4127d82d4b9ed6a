from __future__ import annotations

import os
import socket
import subprocess
import sysconfig
from pathlib import Path

import pytest

from dynamometer.engines import accelerators
from dynamometer.engines.interface import Launch, MetricSources
from dynamometer.engines.sglang import CPU_FLAGS, SGLang, exit_reason
from dynamometer.engines.sglang_cpu import SWITCH
from dynamometer.errors import AddressError, SettingsError
from dynamometer.http.addresses import free_port


def plan(tmp_path: Path, *arguments: str):  # type: ignore[no-untyped-def]
    return SGLang().plan(arguments, directory=tmp_path, python="python9")


@pytest.fixture
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators, "find", lambda: None)


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators, "find", lambda: "NVIDIA")


def test_flags_are_passed_unchanged_and_in_order(tmp_path: Path, accelerator: None) -> None:
    given = ["--tp-size", "2", "--model", "m", "--json-model-override-args", '{"a": -1}', "--x=-3"]
    launch = plan(tmp_path, *given)
    assert launch.command[: 3 + len(given)] == ["python9", "-m", "sglang.launch_server", *given]
    assert launch.command[-6::2] == ["--host", "--port", "--nccl-port"]
    assert SWITCH not in launch.environment


@pytest.mark.parametrize("flag", ["--dp-size", "--data-parallel-size"])
def test_each_data_parallel_rank_finds_a_port(tmp_path: Path, accelerator: None, flag: str) -> None:
    assert "--nccl-port" not in plan(tmp_path, "--model", "m", flag, "2").command
    assert "--nccl-port" in plan(tmp_path, "--model", "m", flag, "1").command


def test_without_an_accelerator_the_cpu_flags_that_were_not_given_are_added(
    tmp_path: Path, no_accelerator: None
) -> None:
    launch = plan(tmp_path, "--model", "m", "--dtype=bfloat16", "--max_running_requests", "2")
    for flag in CPU_FLAGS:
        given = flag in ("--dtype", "--max-running-requests")
        assert (flag in launch.command) is not given
    assert launch.environment[SWITCH] == "1"
    assert "--attention-backend torch_native" in launch.notes[0]
    assert "--dtype" not in launch.notes[0]


@pytest.mark.parametrize(("device", "on_cpu"), [("cuda", False), ("cpu", True), ("xpu", False)])
def test_a_device_that_the_user_gave_decides(
    tmp_path: Path, no_accelerator: None, device: str, on_cpu: bool
) -> None:
    launch = plan(tmp_path, "--model", "m", "--device", device)
    assert (SWITCH in launch.environment) is on_cpu
    assert launch.command.count("--device") == 1


def test_metrics_are_written_if_they_are_enabled(tmp_path: Path, accelerator: None) -> None:
    assert plan(tmp_path, "--model", "m").sources == MetricSources()
    launch = plan(tmp_path, "--model-path", "m", "--enable-metrics")
    assert launch.sources.directory
    assert Path(launch.environment["PROMETHEUS_MULTIPROC_DIR"]).is_dir()


def test_the_model_label_is_the_served_name(tmp_path: Path, accelerator: None) -> None:
    assert plan(tmp_path, "--model", "m").model == "m"
    assert plan(tmp_path, "--model", "m", "--served-model-name", "s").model == "s"


def test_flags_in_a_config_file_are_known_and_overridden(
    tmp_path: Path, no_accelerator: None
) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text("model-path: m\nenable_metrics: true\ndtype: bfloat16\nport: 1\n")
    launch = plan(tmp_path, "--config", str(file), "--served-model-name", "s")
    assert (launch.model, bool(launch.sources.directory)) == ("s", True)
    assert "--dtype" not in launch.command
    assert launch.command[3:5] == ["--config", str(file)]


@pytest.mark.parametrize(
    ("content", "known"),
    [
        ("stream-response-default-include-usage: true", True),
        ("stream_response_default_include_usage: true", True),
        ("stream-response-default-include-usage: false", False),
        ("enable-metrics: true", False),
    ],
)
def test_usage_in_every_stream_may_be_a_default_of_the_config_file(
    tmp_path: Path, no_accelerator: None, content: str, known: bool
) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text(f"model-path: m\n{content}\n")
    assert plan(tmp_path, "--config", str(file)).stream_usage is known


@pytest.mark.parametrize("content", ["", "[1]", "{", None])
def test_a_config_file_that_cannot_be_read_is_left_to_sglang(
    tmp_path: Path, accelerator: None, content: str | None
) -> None:
    file = tmp_path / "engine.yaml"
    if content is not None:
        file.write_text(content)
    assert plan(tmp_path, "--model", "m", "--config", str(file)).model == "m"


@pytest.mark.parametrize(
    ("flags", "mode", "component"),
    [
        ((), "aggregated", "backend"),
        (("--disaggregation-mode", "null"), "aggregated", "backend"),
        (("--disaggregation-mode=prefill",), "prefill", "prefill"),
        (("--disaggregation-mode", "decode"), "decode", "backend"),
    ],
)
def test_the_disaggregation_mode_is_the_workers_mode(
    tmp_path: Path, accelerator: None, flags: tuple[str, ...], mode: str, component: str
) -> None:
    launch = plan(tmp_path, "--model", "m", *flags)
    assert (launch.mode, launch.component) == (mode, component)


@pytest.mark.parametrize("value", ["perfill", "Prefill", "aggregated", "None", ""])
@pytest.mark.parametrize("in_file", [False, True])
def test_a_wrong_disaggregation_mode_is_an_error_that_names_the_allowed_values(
    tmp_path: Path, accelerator: None, value: str, in_file: bool
) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text(f"disaggregation-mode: '{value}'")
    flags = ("--config", str(file)) if in_file else ("--disaggregation-mode", value)
    allowed = f"--disaggregation-mode {value}: must be prefill, decode or null"
    with pytest.raises(SettingsError, match=f"^{allowed}$"):
        plan(tmp_path, "--model", "m", *flags)


def test_a_missing_model_is_an_error_that_names_the_flag(tmp_path: Path, accelerator: None) -> None:
    with pytest.raises(SettingsError, match="--model"):
        plan(tmp_path, "--enable-metrics")
    with pytest.raises(SettingsError, match="--model"):
        plan(tmp_path, "--model")


PREFILL = ("--model", "m", "--disaggregation-mode", "prefill")
DECODE = ("--model", "m", "--disaggregation-mode", "decode")
TWO_NODES = ("--nnodes", "2", "--tp-size", "2", "--dist-init-addr", "127.0.0.1:25000")
ALL_RANKS = "--enable-metrics-for-all-schedulers"


def value(launch: Launch, flag: str) -> str | None:
    """Return the last value of a flag; None if the command does not have the flag."""
    command = list(launch.command)
    return command[len(command) - command[::-1].index(flag)] if flag in command else None


@pytest.fixture
def no_host_ip(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SGLANG_HOST_IP", "SGLANG_RUST_SERVER"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("accelerator", "no_host_ip")
def test_a_prefill_engine_has_a_bootstrap_port_of_its_own(tmp_path: Path) -> None:
    launch = plan(tmp_path, *PREFILL)
    port = value(launch, "--disaggregation-bootstrap-port")
    assert port not in (None, value(launch, "--port"), value(launch, "--nccl-port"))
    assert launch.bootstrap == f"127.0.0.1:{port}"
    assert launch.environment["SGLANG_HOST_IP"] == "127.0.0.1"
    assert not any("listens for requests" in note for note in launch.notes)
    ports = iter(range(1, 10))
    again = launch.with_other_ports(lambda: next(ports))
    assert again.bootstrap == f"127.0.0.1:{value(again, '--disaggregation-bootstrap-port')}"
    assert again.bootstrap != launch.bootstrap


@pytest.mark.usefixtures("accelerator", "no_host_ip")
def test_a_bootstrap_port_that_the_user_chose_stays_at_a_restart(tmp_path: Path) -> None:
    port = free_port()
    launch = plan(tmp_path, *PREFILL, f"--disaggregation-bootstrap-port={port}")
    assert launch.bootstrap == f"127.0.0.1:{port}"
    assert launch.with_other_ports(lambda: 5).bootstrap == launch.bootstrap
    assert "--disaggregation-bootstrap-port" not in launch.port_flags


@pytest.mark.usefixtures("accelerator", "no_host_ip")
def test_a_bootstrap_port_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    """SGLang would serve without a bootstrap server."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AddressError, match=rf"{port}.*in use.*--disaggregation-bootstrap-port"):
            plan(tmp_path, *PREFILL, "--disaggregation-bootstrap-port", str(port))
    for wrong in ("0", "65536", "-1"):
        with pytest.raises(
            SettingsError, match=f"--disaggregation-bootstrap-port {wrong}: must be"
        ):
            plan(tmp_path, *PREFILL, "--disaggregation-bootstrap-port", wrong)


@pytest.mark.usefixtures("accelerator", "no_host_ip")
@pytest.mark.parametrize("enabled", ["1", "true", "Yes", "y"])
def test_the_bootstrap_server_of_the_rust_server_is_at_its_api(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enabled: str
) -> None:
    monkeypatch.setenv("SGLANG_RUST_SERVER", enabled)
    launch = plan(tmp_path, *PREFILL)
    assert value(launch, "--disaggregation-bootstrap-port") is None
    assert launch.bootstrap == launch.url.removeprefix("http://")
    again = launch.with_other_ports(lambda: 5)
    assert (again.url, again.bootstrap) == ("http://127.0.0.1:5", "127.0.0.1:5")


@pytest.mark.usefixtures("accelerator", "no_host_ip")
def test_other_engines_have_no_bootstrap_server(tmp_path: Path) -> None:
    for flags in (DECODE, ("--model", "m"), (*PREFILL, *TWO_NODES, "--node-rank", "1")):
        launch = plan(tmp_path, *flags)
        assert launch.bootstrap is None
        assert "--disaggregation-bootstrap-port" not in launch.command
        assert ("SGLANG_HOST_IP" in launch.environment) is (launch.mode != "aggregated")


@pytest.mark.usefixtures("accelerator", "no_host_ip")
def test_both_sides_transfer_at_the_transfer_host(tmp_path: Path) -> None:
    """Another address of the loopback network stands for one that other machines reach."""
    for flags, listens in ((PREFILL, "127.0.0.2"), (DECODE, "127.0.0.1")):
        launch = SGLang().plan(
            flags, directory=tmp_path, python="python9", transfer_host="127.0.0.2"
        )
        assert launch.environment["SGLANG_HOST_IP"] == "127.0.0.2"
        assert value(launch, "--host") == listens
        assert launch.url.startswith(f"http://{listens}:")
        assert (launch.bootstrap or "").startswith("127.0.0.2:") is (launch.mode == "prefill")


@pytest.mark.usefixtures("accelerator", "no_host_ip")
def test_an_address_in_sglangs_variable_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other programs, too, use HOST_IP, which SGLang reads only without a variable of its own."""
    monkeypatch.setenv("HOST_IP", "10.0.0.2")
    assert plan(tmp_path, *DECODE).environment["SGLANG_HOST_IP"] == "127.0.0.1"
    monkeypatch.setenv("SGLANG_HOST_IP", "10.0.0.1")
    assert plan(tmp_path, *DECODE).environment["SGLANG_HOST_IP"] == "10.0.0.1"


@pytest.mark.usefixtures("accelerator", "no_host_ip")
@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "::ffff:0.0.0.0", "", "192.0.2.1", "a b", "224.0.0.1", "255.255.255.255"],
)
def test_a_transfer_host_that_is_not_an_address_of_this_machine_is_refused(
    tmp_path: Path, host: str
) -> None:
    with pytest.raises(SettingsError, match="--transfer-host, DYN_TRANSFER_HOST"):
        SGLang().plan(PREFILL, directory=tmp_path, python="python9", transfer_host=host)
    SGLang().plan(["--model", "m"], directory=tmp_path, python="python9", transfer_host=host)


@pytest.mark.usefixtures("accelerator", "no_host_ip")
def test_a_node_has_the_address_of_all_nodes_and_no_port_of_its_own(tmp_path: Path) -> None:
    for rank in (0, 1):
        launch = plan(tmp_path, "--model", "m", *TWO_NODES, "--node-rank", str(rank))
        assert (launch.nodes, launch.node_rank) == (2, rank)
        assert launch.group == "127.0.0.1:25000"
        assert launch.port_flags == ("--port",)
    assert plan(tmp_path, "--model", "m").group == ""


@pytest.mark.usefixtures("accelerator", "no_host_ip")
def test_the_bootstrap_server_of_several_nodes_is_where_they_register(tmp_path: Path) -> None:
    launch = plan(tmp_path, *PREFILL, *TWO_NODES)
    assert launch.bootstrap is not None
    assert launch.bootstrap.startswith("127.0.0.1:")
    with pytest.raises(SettingsError, match=r"--transfer-host.* must be 127\.0\.0\.2"):
        plan(tmp_path, *PREFILL, *TWO_NODES, "--dist-init-addr", "127.0.0.2:25000")
    with pytest.raises(SettingsError, match=r"--dist-init-addr: the host 'no\.such\.invalid'"):
        plan(tmp_path, *PREFILL, *TWO_NODES, "--dist-init-addr", "no.such.invalid:25000")


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize(
    ("flags", "added"),
    [
        ((), False),
        (("--tp-size", "2"), False),
        (("--pp-size", "2"), False),
        (("--dp-size", "2"), True),
        (("--attn-dp-size", "2", "--tp-size", "2"), True),
        (("--dp-size", "2", "--tp-size", "2", "--enable-dp-attention"), True),
        (TWO_NODES, False),
        ((*TWO_NODES, "--node-rank", "1"), True),
        ((*TWO_NODES, "--attn-dp-size", "2"), True),
    ],
)
def test_each_rank_that_is_not_a_copy_of_another_one_has_series(
    tmp_path: Path, flags: tuple[str, ...], added: bool
) -> None:
    assert ALL_RANKS not in plan(tmp_path, "--model", "m", *flags).command
    launch = plan(tmp_path, "--model", "m", "--enable-metrics", *flags)
    assert (ALL_RANKS in launch.command) is added
    assert any(ALL_RANKS in note for note in launch.notes) is added


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize(
    ("flags", "repeats"),
    [
        ((), False),
        (TWO_NODES, False),
        ((*TWO_NODES, "--node-rank", "1"), True),
        ((*TWO_NODES, "--pp-size", "2", "--node-rank", "1"), True),
        ((*TWO_NODES, "--attn-dp-size", "2", "--node-rank", "1"), False),
        ((*TWO_NODES, "--dp-size", "2", "--enable-dp-attention", "--node-rank", "1"), False),
    ],
)
def test_only_data_parallel_ranks_of_other_nodes_have_requests_of_their_own(
    tmp_path: Path, flags: tuple[str, ...], repeats: bool
) -> None:
    assert plan(tmp_path, "--model", "m", *flags).repeats_node_0 is repeats


@pytest.mark.usefixtures("accelerator")
def test_series_of_all_ranks_that_the_user_requested_are_requested_once(tmp_path: Path) -> None:
    launch = plan(tmp_path, "--model", "m", "--enable-metrics", "--dp-size", "2", ALL_RANKS)
    assert list(launch.command).count(ALL_RANKS) == 1


MOONCAKE_VARIABLES = {
    "MOONCAKE_PROTOCOL": "tcp",
    "MC_FORCE_TCP": "1",
    "SGLANG_DISAGG_PREFILL_EARLY_SEND_CACHED_PREFIX": "0",
}


@pytest.mark.usefixtures("no_accelerator", "no_host_ip")
@pytest.mark.parametrize(
    ("flags", "backend", "backup", "variables"),
    [
        (("--model", "m"), None, None, False),
        (PREFILL, "mooncake", None, True),
        (DECODE, "mooncake", "cpu_tensor", True),
        ((*DECODE, "--disaggregation-transfer", "mooncake_tcp"), None, "cpu_tensor", True),
        ((*DECODE, "--disaggregation-transfer-backend=fake"), None, "cpu_tensor", False),
        ((*DECODE, "--disaggregation-decode-retraction-backup=none"), "mooncake", None, True),
    ],
)
def test_a_side_on_a_cpu_transfers_by_mooncake_over_tcp(
    tmp_path: Path,
    flags: tuple[str, ...],
    backend: str | None,
    backup: str | None,
    variables: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in MOONCAKE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    launch = plan(tmp_path, *flags)
    assert value(launch, "--disaggregation-transfer-backend") == backend
    assert value(launch, "--disaggregation-decode-retraction-backup") == backup
    assert (MOONCAKE_VARIABLES.items() <= launch.environment.items()) is variables
    assert ("MC_FORCE_TCP" in launch.environment) is variables


@pytest.mark.usefixtures("no_accelerator", "no_host_ip")
def test_variables_of_the_user_stay_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONCAKE_PROTOCOL", "rdma")
    monkeypatch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "0-3|4-7")
    launch = plan(tmp_path, *PREFILL, "--tp-size", "2")
    assert launch.environment["MOONCAKE_PROTOCOL"] == "rdma"
    assert launch.environment["SGLANG_CPU_OMP_THREADS_BIND"] == "0-3|4-7"


@pytest.mark.usefixtures("no_accelerator")
@pytest.mark.parametrize(
    ("cpus", "flags", "expected"),
    [
        ({0, 1}, (), None),
        ({0, 1}, ("--tp-size", "2"), "0|1"),
        ({0, 1}, ("--dp-size", "2"), "0|1"),
        ({4, 5, 6, 9, 10}, ("--pp-size", "2"), "4,5|6,9"),
        ({0}, ("--tp-size", "2"), "0|0"),
        ({0, 1}, ("--tp-size", "2", "--dp-size", "2"), "0|1|0|1"),
        ({0, 1}, TWO_NODES, "0,1"),
    ],
)
def test_each_rank_on_a_cpu_has_cores(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cpus: set[int],
    flags: tuple[str, ...],
    expected: str | None,
) -> None:
    monkeypatch.delenv("SGLANG_CPU_OMP_THREADS_BIND", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cpus)
    launch = plan(tmp_path, "--model", "m", *flags)
    assert launch.environment.get("SGLANG_CPU_OMP_THREADS_BIND") == expected


LOGS = {
    "an exception": (
        ["[2026-01-31 12:00:00] Load weight begin.", "Traceback (most recent call last):",
         '  File "x.py", line 1, in <module>', "ValueError: no memory: raise --mem-fraction"],
        1,
        "ValueError: no memory: raise --mem-fraction (exit code 1)",
    ),
    "an exception without a message, after one that ended nothing": (
        ["requests.exceptions.ConnectionError: HTTPConnectionPool(host='127.0.0.1', port=1)",
         "[2026-01-31 12:00:00 TP0] Scheduler hit an exception: Traceback (most recent call last):",
         '  File "x.py", line 1, in <module>', "    raise NotImplementedError()",
         "NotImplementedError", "[2026-01-31 12:00:05] Waiting for CUDA coredumps before exiting."],
        0,
        "NotImplementedError (exit code 0)",
    ),
    "a child's exception": (
        ["torch.OutOfMemoryError: CUDA out of memory", "",
         "[2026-01-31 12:00:00 TP0] Received sigquit from a child process: it failed.",
         "[2026-01-31 12:00:00] kill_process_tree called: parent_pid=1"],
        -9,
        "torch.OutOfMemoryError: CUDA out of memory (signal 9)",
    ),
    "a flag": (
        ["usage: sglang serve [-h]", "sglang serve: error: unrecognized arguments: --no-such 3"],
        2,
        "unrecognized arguments: --no-such 3 (exit code 2)",
    ),
    "no SGLang": (
        ["python: No module named sglang"],
        1,
        (
            "SGLang is not installed for its interpreter (exit code 1): install it, or choose "
            "another interpreter with --engine-python"
        ),
    ),
    "a crash, and what came of it": (
        ["[2026-01-31 12:00:00] Subprocess scheduler_0 (pid=7) crashed with exit code -9", "",
         "asyncio.exceptions.CancelledError: x", "[2026-01-31 12:00:01] kill_process_tree called"],
        -9,
        "Subprocess scheduler_0 (pid=7) crashed with exit code -9 (signal 9)",
    ),
    "a kill": ([], -9, "it was killed by signal 9 (SIGKILL)"),
    "a kill after a request": (
        ["[2026-01-31 12:00:00] POST /generate 200"], -9, "it was killed by signal 9 (SIGKILL)"
    ),
    "an abort": (
        ["what():  no memory"], -6,
        "it was killed by signal 6 (SIGABRT); its last message: what():  no memory",
    ),
    "a real-time signal": ([], -40, "it was killed by signal 40 (Real-time signal 6)"),
    "silence": ([], 3, "exit code 3, without a message"),
    "a last word": (["hello", " "], 3, "hello (exit code 3)"),
}  # fmt: skip


@pytest.mark.parametrize("case", LOGS)
def test_the_reason_of_an_end_is_the_engines_own(case: str) -> None:
    log, exit_code, expected = LOGS[case]
    assert exit_reason(log, exit_code) == expected


def test_a_missing_model_is_in_the_message(
    tmp_path: Path, accelerator: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    engine = SGLang()
    log = ["OSError: Repo id must be in the form 'namespace/repo_name'"]
    launch = plan(tmp_path, "--model", "./nosuch")
    assert engine.describe_exit(log, 1, launch).endswith("(exit code 1); ./nosuch does not exist")
    launch = plan(tmp_path, "--model", "Qwen/Qwen3-8B")
    assert "HF_HUB_OFFLINE is set" in engine.describe_exit(log, 1, launch)
    launch = plan(tmp_path, "--model", str(tmp_path))
    assert engine.describe_exit(log, 1, launch).endswith("(exit code 1)")


NO_FILE = "cannot open shared object file: No such file or directory"
IMPORT_ERROR = "ImportError: Please install mooncake by following the instructions at https://x "


@pytest.mark.parametrize(
    ("cause", "hint"),
    [
        (
            f"ImportError: libibverbs.so.1: {NO_FILE}",
            "; the shared library libibverbs.so.1 is missing: install Debian's package libibverbs1",
        ),
        (
            f"ImportError: libnuma.so.1: {NO_FILE}",
            "; the shared library libnuma.so.1 is missing: install Debian's package libnuma1",
        ),
        (
            f"ImportError: libx.so: {NO_FILE}",
            "; the shared library libx.so is missing",
        ),
        (
            "ModuleNotFoundError: No module named 'mooncake'",
            "; install mooncake-transfer-engine, without a GPU mooncake-transfer-engine-non-cuda",
        ),
        ("ValueError: x", ""),
    ],
)
def test_a_library_that_mooncake_needs_is_in_the_message(
    tmp_path: Path, accelerator: None, cause: str, hint: str
) -> None:
    log = [
        "[2026-01-31 12:00:00] Scheduler hit an exception: Traceback (most recent call last):",
        "    from mooncake.engine import TransferEngine", cause, "",
        "The above exception was the direct cause of the following exception:", "",
        "Traceback (most recent call last):", '  File "x.py", line 1, in init', IMPORT_ERROR, "",
        "[2026-01-31 12:00:00] Received sigquit from a child process.",
    ]  # fmt: skip
    message = SGLang().describe_exit(log, -9, plan(tmp_path, "--model", str(tmp_path)))
    assert message == f"{IMPORT_ERROR.strip()} (signal 9){hint}"


def test_progress_is_not_a_warning() -> None:
    log = ["[2026-01-31 12:00:00] Load weight begin.", "x.py:3: UserWarning: y", "  warnings.warn("]
    assert SGLang().describe_progress(log) == "Load weight begin."
    assert SGLang().describe_progress([]) == ""


@pytest.mark.engine
@pytest.mark.slow
def test_the_cpu_platform_reaches_an_engine_of_another_interpreter(
    tmp_path: Path, no_accelerator: None
) -> None:
    """The interpreter has SGLang, but not this package."""
    directory = tmp_path / "run"
    directory.mkdir()
    launch = SGLang().plan(["--model", "m"], directory=directory, python="python")
    site = tmp_path / "site"
    site.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "dynamometer" not in entry.name and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    subprocess.run(["python3", "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    platform = "from sglang.srt.platforms import current_platform as p; print(type(p).__module__)"
    entry_points = (
        "from importlib.metadata import entry_points as e;"
        "print(*[point.load()() for point in e(group='sglang.srt.platforms')])"
    )
    variables = dict(launch.environment)
    variables["PYTHONPATH"] += os.pathsep + str(site)
    for switch, ask, expected in (
        ("1", platform, "dynamometer.engines.sglang_cpu.cpu_platform"),
        ("0", entry_points, "None"),
    ):
        variables[SWITCH] = switch
        done = subprocess.run(
            [tmp_path / "venv/bin/python", "-c", ask],
            env=variables, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().splitlines()[-1] == expected
