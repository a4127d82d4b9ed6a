from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

from dynamometer.engines import accelerators
from dynamometer.engines.interface import MetricSources
from dynamometer.engines.sglang import CPU_FLAGS, SGLang, exit_reason
from dynamometer.engines.sglang_cpu import SWITCH
from dynamometer.errors import SettingsError


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


def test_a_missing_model_is_an_error_that_names_the_flag(tmp_path: Path, accelerator: None) -> None:
    with pytest.raises(SettingsError, match="--model"):
        plan(tmp_path, "--enable-metrics")
    with pytest.raises(SettingsError, match="--model"):
        plan(tmp_path, "--model")


LOGS = {
    "an exception": (
        ["[2026-01-31 12:00:00] Load weight begin.", "Traceback (most recent call last):",
         '  File "x.py", line 1, in <module>', "ValueError: no memory: raise --mem-fraction"],
        1,
        "ValueError: no memory: raise --mem-fraction (exit code 1)",
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
