"""The commands, as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dynamometer import __version__, cli
from processes import running
from stack import eventually, http

MOCK = ("--engine", "mocker", "--model", "mock")
WRONG = "300.1.1.1"
NO_HOST = f"{WRONG!r} must be an address or a name of this machine"
SYSTEM_HOST = {"DYN_SYSTEM_HOST": WRONG, "DYN_SYSTEM_PORT": "0"}


def dyno(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dynamometer.cli", *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_help_teaches() -> None:
    for words in (["--help"], ["frontend", "--help"], ["sglang", "--help"], ["demo", "--help"]):
        done = dyno(*words)
        assert done.returncode == 0
        assert "dyno" in done.stdout
        assert "\x1b" not in done.stdout
    assert "DYN_SYSTEM_PORT" in dyno("sglang", "--help").stdout
    frontend = dyno("frontend", "--help").stdout
    for variable in ("DYN_HTTP_PORT", "DYN_METRICS_PREFIX", "DYN_METRICS_REQUEST_DURATION_MIN"):
        assert variable in frontend


def test_version() -> None:
    assert dyno("--version").stdout == f"dynamometer {__version__}\n"
    assert dyno("frontend", "--version").stdout == f"dynamometer {__version__}\n"


def test_dyno_without_a_command_shows_the_help_and_fails() -> None:
    done = dyno()
    assert (done.returncode, done.stdout.startswith("usage: dyno")) == (2, True)


@pytest.mark.parametrize(
    ("words", "environment", "says"),
    [
        (["serv"], {}, "'serv' is not a command"),
        (
            ["sglang", "--model", "x", "--api-key", "a\nb"],
            {},
            "--api-key: the key must not contain line breaks",
        ),
        (["frontend", "--http-port", "x"], {}, "argument --http-port: 'x' must be a port"),
        (["frontend", "--router-mode", "x"], {}, "invalid choice"),
        (["frontend", "--max-body-size", "0"], {}, "--max-body-size: '0' must be"),
        (["frontend", "--allow-origin", "x"], {}, "--allow-origin: 'x' must be * or an origin"),
        (["sglang", *MOCK, "--allow-origin", "http://x/"], {}, "'http://x/' must be * or"),
        (["frontend"], {"DYN_HTTP_PORT": "x"}, "DYN_HTTP_PORT='x': must be a port"),
        (["frontend"], {"DYN_METRICS_TTFT_MIN": "0"}, "DYN_METRICS_TTFT_MIN='0': must be"),
        (
            ["frontend"],
            {"DYN_METRICS_PREFIX": "dynamo_request_plane"},
            "DYN_METRICS_PREFIX='dynamo_request_plane': must not begin with",
        ),
        (["frontend", "--http-host", WRONG], {}, f"--http-host, DYN_HTTP_HOST: {NO_HOST}"),
        (["frontend"], {"DYN_HTTP_HOST": WRONG}, f"--http-host, DYN_HTTP_HOST: {NO_HOST}"),
        (["sglang", *MOCK, "--host", WRONG], {"DYN_SYSTEM_PORT": "0"}, f"--host: {NO_HOST}"),
        (["sglang", *MOCK], SYSTEM_HOST, f"--system-host, DYN_SYSTEM_HOST: {NO_HOST}"),
        (["exporter"], SYSTEM_HOST, f"--system-host, DYN_SYSTEM_HOST: {NO_HOST}"),
        (["sglang"], {}, "--model is missing"),
        (["sglang", *MOCK, "--worker-id", "0"], {}, "--worker-id: '0' must be a number from 1"),
        (["sglang", *MOCK, "--worker-id", "$(POD)"], {}, "'$(POD)' has a variable that was not"),
        (["frontend", "--drain-delay", "x"], {}, "--drain-delay: 'x' must be a number of seconds"),
        (["drain"], {}, "arguments are required: INSTANCE"),
        (["sglang", "--model", "m"], {"DYN_SYSTEM_PORT": "x"}, "DYN_SYSTEM_PORT='x'"),
    ],
)
def test_a_wrong_argument_is_one_line_that_names_it_and_code_2(
    words: list[str], environment: dict[str, str], says: str, tmp_path: Path
) -> None:
    done = dyno(*words, DYN_FILE_KV=str(tmp_path / "kv"), **environment)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    from dynamometer.http import addresses

    with addresses.listen("127.0.0.1", 0, setting="") as taken:
        port = str(taken.getsockname()[1])
        done = dyno("frontend", "--http-port", port, DYN_FILE_KV=str(tmp_path / "kv"))
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1 is already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_engines_variable_in_the_shell_creates_no_files(tmp_path: Path) -> None:
    directory = tmp_path / "multiproc"
    directory.mkdir()
    environment = {
        "PROMETHEUS_MULTIPROC_DIR": str(directory),
        "DYN_FILE_KV": str(tmp_path / "kv"),
        "DYN_HTTP_PORT": "0",
    }
    command = [sys.executable, "-m", "dynamometer.frontend"]
    with running(command, tmp_path / "log", environment) as frontend:
        url = frontend.wait_for(r"metrics at (\S+)", within=20)[1]
        assert b"dynamo_frontend_requests_total" in http(url).body
    assert list(directory.iterdir()) == []


def test_a_model_is_not_written_over_anything(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    done = dyno("tiny-model", str(tmp_path))
    assert (done.returncode, "is not empty" in done.stderr) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_the_runtime_imports_no_engine() -> None:
    ask = (
        "import sys, dynamometer.worker.command, dynamometer.frontend.command;"
        "loaded = {name.split('.')[0] for name in sys.modules};"
        "print(sorted(loaded & {'torch', 'sglang', 'transformers'}))"
    )
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


SOURCE = Path(__file__).parent.parent / "src"
TMP = "mount -t tmpfs -o {0} tmpfs /tmp; mount -t tmpfs -o {0} tmpfs /var/tmp; cd /tmp; "
FULL = "head -c 4096 /dev/zero > /tmp/full; head -c 4096 /dev/zero > /var/tmp/full; "
SHM = "mount -t tmpfs -o size=4k tmpfs /dev/shm; "
GONE = "mkdir /dev/shm/gone; cd /dev/shm/gone; rmdir /dev/shm/gone; "
NO_TMP = "error: No usable temporary directory found in ["
NO_CURRENT = "error: the current directory cannot be used: "
SGLANG = ("sglang", "--model", "x", "--engine-python", "/bin/false")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")
@pytest.mark.parametrize(
    ("prepare", "words", "says"),
    [
        (TMP.format("ro"), SGLANG, NO_TMP),
        (TMP.format("ro"), ("mocker",), NO_TMP),
        (TMP.format("ro"), ("frontend",), "error: discovery: cannot create the directory /tmp/"),
        (TMP.format("ro"), ("exporter",), "error: discovery: cannot create the directory /tmp/"),
        (TMP.format("ro"), ("tiny-model", "x"), "error: cannot create x: Read-only"),
        (TMP.format("ro"), ("demo",), "error: cannot create .demo/tiny: Read-only"),
        (TMP.format("size=4k") + FULL, SGLANG, NO_TMP),
        (TMP.format("size=4k") + FULL, ("frontend",), "error: discovery: cannot write /tmp/"),
        (
            SHM + "head -c 4096 /dev/zero > /dev/shm/full; ",
            SGLANG,
            "error: cannot prepare the engine's start: /dev/shm/",
        ),
        ("mount -t tmpfs tmpfs /proc; ", SGLANG, "error: /proc does not show this process"),
        ("unshare --pid --fork ", SGLANG, "error: /proc does not show this process"),
        ("mount -t tmpfs tmpfs /proc; ", ("exporter",), "error: /proc does not show this"),
        ("mount -t tmpfs tmpfs /proc; ", ("exporter", "--pid", "1"), "error: /proc does not show"),
        (GONE, SGLANG, NO_CURRENT),
        (GONE, ("mocker",), NO_CURRENT),
        (GONE, ("tiny-model", "x"), NO_CURRENT),
        (GONE, ("demo",), NO_CURRENT),
    ],
)
def test_a_directory_that_cannot_be_used_is_one_line_and_leaves_nothing(
    prepare: str, words: tuple[str, ...], says: str
) -> None:
    ports = {"DYN_SYSTEM_PORT": "0", "DYN_HTTP_PORT": "0", "PYTHONPATH": "/media"}
    # The checkout and its environment may be below /tmp, over which the script mounts.
    script = f"mount --bind {sys.prefix} /mnt; mount --bind {SOURCE} /media; "
    script += f'mount -t tmpfs tmpfs /dev/shm; {prepare} "$@"; code=$?; rm -f /dev/shm/full; '
    script += "ls -A /dev/shm; exit $code"
    command = ("/mnt/bin/python", "-m", "dynamometer.cli", *words)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *command],
        env={k: v for k, v in os.environ.items() if k not in ("XDG_RUNTIME_DIR", "TMPDIR")} | ports,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith(says)
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines() == [line for line in done.stdout.splitlines() if "==>" in line]


def test_a_worker_without_standard_streams_serves(tmp_path: Path) -> None:
    """The shell closes the streams: `<&- >&- 2>&-`."""
    worker = [sys.executable, "-m", "dynamometer.cli", "sglang", *MOCK]
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *worker]
    environment = {"DYN_SYSTEM_PORT": "0", "DYN_FILE_KV": str(tmp_path / "discovery")}
    with running(closed, tmp_path / "log", environment) as process:
        eventually(
            lambda: any(
                json.loads(record.read_bytes())["state"] == "ready"
                for record in tmp_path.glob("discovery/instances/*.json")
            ),
            within=30,
            what="the worker is ready",
        )
        assert process.running


@pytest.mark.parametrize("words", [["frontend"], ["sglang", *MOCK], ["mocker"]], ids=str)
@pytest.mark.parametrize("limit", [12, 31])
def test_a_limit_of_open_files_that_is_too_low_is_named(words: list[str], limit: int) -> None:
    command = [sys.executable, "-m", "dynamometer.cli", *words]
    done = subprocess.run(
        ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *command],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: the limit of open files is {limit}, and this process needs 32"
    )
    assert len(done.stderr.splitlines()) == 1


def test_a_fault_of_the_system_is_one_line_that_names_the_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device", "/some/file")

    monkeypatch.setattr("dynamometer.tiny_model.main", fail)
    with pytest.raises(SystemExit) as ended:
        cli.run("tiny-model", ["x"])
    assert ended.value.code == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("error: /some/file: No space left on device")
