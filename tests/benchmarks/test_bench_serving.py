"""The parts of `make bench-serving` on which its figures depend."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import serving_machine
import serving_report
from serving_answers import checksum_of, fault_of
from serving_client import Load, Measured, percentile, run
from serving_report import Results

from processes import PYTHON, running

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def event(number: int, answer: str = "a1", created: int = 1) -> bytes:
    choice = {"index": 0, "delta": {"content": f" mock{number}"}}
    content = {"id": answer, "created": created, "choices": [choice]}
    return f"data: {json.dumps(content)}\n\n".encode()


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))


EVENTS = [event(number) for number in range(4)]
CHECKSUM = checksum_of(b"".join(EVENTS) + DONE)


def test_an_unchanged_answer_is_correct_in_any_chunks() -> None:
    body = b"".join(EVENTS) + DONE
    assert fault_of(HEAD + chunked(*EVENTS, DONE), 4, CHECKSUM) is None
    assert fault_of(HEAD + chunked(body), 4, CHECKSUM) is None
    assert fault_of(HEAD + chunked(body[:70], body[70:71], body[71:]), 4, CHECKSUM) is None


def test_ids_and_times_of_answers_do_not_change_the_checksum() -> None:
    other = [event(number, answer="b2", created=2) for number in range(4)]
    assert fault_of(HEAD + chunked(*other, DONE), 4, CHECKSUM) is None


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (HEAD + chunked(*EVENTS[:2], EVENTS[3], DONE), "3 tokens instead of 4"),
        (HEAD + chunked(EVENTS[0], *EVENTS, DONE), "5 tokens instead of 4"),
        (HEAD + chunked(EVENTS[1], EVENTS[0], *EVENTS[2:], DONE), "correct only before token 0"),
        (HEAD + chunked(*EVENTS), "instead of [DONE]"),
        (HEAD + chunked(*EVENTS, b": x\n\n", DONE), "the bytes of the answer differ"),
        (HEAD + chunked(*EVENTS, DONE).replace(b"choices", b"Choices", 1), "the bytes"),
        (HEAD + chunked(*EVENTS, DONE) + b"x", "1 bytes follow"),
        (HEAD + chunked(*EVENTS, DONE).replace(b"\r\n", b"\r\n ", 1), "a chunk"),
        (HEAD + b"+5\r\nhello\r\n0\r\n\r\n", "a chunk's size"),
        (HEAD + chunked(*EVENTS, DONE)[:-7], "a chunk"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "the answer begins with"),
        (HEAD.replace(b"Transfer", b"X-Transfer") + chunked(*EVENTS, DONE), "not chunked"),
        (b"", "the answer begins with"),
    ],
)
def test_a_changed_answer_has_a_fault(answer: bytes, fault: str) -> None:
    assert fault in str(fault_of(answer, 4, CHECKSUM))


def test_a_percentile_is_the_time_that_its_share_does_not_exceed() -> None:
    times = Counter({100: 50, 200: 49, 5000: 1})  # buckets of 10 µs
    assert percentile(times, 0.5) == 1.0
    assert percentile(times, 0.51) == 2.0
    assert percentile(times, 0.99) == 2.0
    assert percentile(times, 1.0) == 50.0
    assert percentile(Counter(), 0.5) != percentile(Counter(), 0.5)  # NaN


def test_measurements_of_clients_add_up() -> None:
    one = Measured(chunks=3, answers=1, faults=["a"], failed=1, gaps=Counter({5: 2}))
    one.add(Measured.from_json(Measured(chunks=4, gaps=Counter({5: 1, 6: 1})).to_json()))
    assert (one.chunks, one.answers, one.failed, one.faults) == (7, 1, 1, ["a"])
    assert one.gaps == Counter({5: 3, 6: 1})


async def measured(answer: list[bytes], **options: object) -> Measured:
    """Return the measurements of one request to a server that sends these parts 20 ms apart."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in answer:
            await asyncio.sleep(0.02)
            writer.write(part)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        now = time.monotonic()
        values: dict[str, object] = {
            "ports": [server.sockets[0].getsockname()[1]], "body": "", "tokens": 4,
            "checksum": CHECKSUM, "streams": 1, "begin": now, "spread": 0.0,
            "window": (0, now + 10), "within": 5.0, "most": 1,
        }  # fmt: skip
        return await run(Load(**(values | options)))  # type: ignore[arg-type]


async def test_a_client_counts_events_that_are_cut_anywhere() -> None:
    whole = HEAD + chunked(*EVENTS, DONE)
    for cut in (50, len(HEAD) + 7, len(HEAD) + 11, len(whole) - 20, len(whole) - 3):
        found = await measured([whole[:cut], whole[cut:]])
        assert (found.answers, found.failed, found.faults) == (1, 0, [])
        assert (found.chunks, found.requests) == (4, 1)
        assert (found.first.total(), found.total.total()) == (1, 1)
        assert min(found.total) >= 3_900  # two waits of 20 ms, in buckets of 10 µs


async def test_a_client_counts_only_in_the_window() -> None:
    now = time.monotonic()
    found = await measured([HEAD + chunked(*EVENTS, DONE)], window=(now, now + 0.01))
    assert (found.answers, found.requests, found.chunks) == (1, 0, 0)


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ([HEAD + chunked(*EVENTS)[:-5]], "the connection was closed in an answer"),
        ([b"HTTP/1.1 502 Bad Gateway\r\n\r\nx"], "the answer begins with"),
        ([HEAD + chunked(*EVENTS[1:], DONE)], "3 tokens instead of 4"),
    ],
)
async def test_a_client_reports_answers_that_fail(answer: list[bytes], fault: str) -> None:
    found = await measured(answer)
    assert (found.answers, found.failed) == (0, 1)
    assert fault in found.faults[0]


async def test_a_client_does_not_wait_without_a_limit() -> None:
    found = await measured([HEAD, *[b""] * 100], within=0.1)
    assert (found.answers, found.failed) == (0, 1)
    assert "not complete" in found.faults[0]


async def test_the_bare_relay_changes_no_byte(tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while part := await reader.read(65536):
            writer.write(part)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    target = server.sockets[0].getsockname()[1]
    command = [PYTHON, str(ROOT / "benchmarks" / "serving_relay.py"), "0", str(target)]
    content = bytes(range(256)) * 4096
    async with server:
        with running(command, tmp_path / "log", {}) as process:
            port = int((await asyncio.to_thread(process.wait_for, r"port (\d+)", within=10))[1])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(content)
            assert await asyncio.wait_for(reader.readexactly(len(content)), 30) == content
            writer.close()


def row(path: str, hops: int, front: float, back: float) -> dict[str, float | str]:
    values = {"front a chunk": front, "back a chunk": back, "chunks/s": 3000.0, "streams": 64.0}
    return {"path": path, "hops": hops, "ratio": 2.5, **values}


def test_the_page_gets_the_tables_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_report, "PAGE", tmp_path / "performance.md")
    monkeypatch.setattr(serving_report, "PICTURE", tmp_path / "serving-cost.svg")
    serving_report.PAGE.write_text("# Performance\n\nBy hand.\n")
    rows = [row("engines alone", 0, 0, 0), row("Dynamometer", 2, 70.5, 80)]
    for machine in ("one machine", "another machine"):
        results = Results(machine=machine, setting="A setting.", rows=rows)
        results.save(tmp_path / "results.json")
        serving_report.write(Results.load(tmp_path / "results.json"))
    page = serving_report.PAGE.read_text()
    assert page.startswith("# Performance\n\nBy hand.\n")
    assert page.count("| Dynamometer | 64 | 3,000 |") == 1
    assert "70.5 + 80.0 | 2.50" in page
    assert "another machine" in page
    assert "one machine" not in page
    assert serving_report.PICTURE.read_text().count("Dynamometer, 64 streams") == 1


def test_a_saved_run_is_printed_again(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    rows = [row("Dynamometer", 2, 70.5, 80)]
    Results(machine="a machine", setting="A setting.", rows=rows, faults=["a fault"]).save(results)
    command = [PYTHON, str(ROOT / "benchmarks" / "serving.py"), "--report", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr  # a run with a fault
    assert "| Dynamometer | 64 | 3,000 |" in done.stdout
    assert "**Failed: a fault**" in done.stdout


def benchmark(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [PYTHON, str(ROOT / "benchmarks" / "serving.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--levels 64,x", "--levels: '64,x': give whole numbers above 0, such as 1,4"),
        ("--levels 0", "--levels: '0': give whole numbers"),
        ("--concurrency 1,,2", "--concurrency: '1,,2': give whole numbers"),
        ("--processes auto", "--processes: 'auto': give whole numbers"),
        ("--rounds 0", "--rounds: '0': give a whole number above 0"),
        ("--clients 1.5", "--clients: '1.5': give a whole number above 0"),
        ("--engines -1", "--engines: '-1': give a whole number above 0"),
        ("--seconds nan", "--seconds: 'nan': give a number above 0"),
        ("--rate 0", "--rate: '0': give a number above 0"),
        ("--long x", "--long: 'x': give a number above 0"),
        ("--paths rowter", "no path has 'rowter' in its name: give parts of engines alone; bare"),
        ("--paths relay,", "no path has '' in its name"),
        ("--paths sglang-router", "others with ROUTER=1"),
    ],
)
def test_a_wrong_flag_has_a_clear_error(flags: str, message: str) -> None:
    done = benchmark(*flags.split())
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_quick_keeps_the_flags_that_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    import serving

    monkeypatch.setattr(sys, "argv", ["serving.py", "--quick", "--levels", "8,16"])
    options = serving._options()
    assert (options.rounds, options.seconds, options.levels) == (1, 2.0, [8, 16])
    assert options.concurrency == [16]


def test_a_simulated_engine_that_runs_is_refused(tmp_path: Path) -> None:
    command = [PYTHON, "-m", "dynamometer.mocker", "--model", "mock", "--processes", "2"]
    with running(command, tmp_path / "log", {}) as process:
        process.wait_for("serving mock", within=30)
        done = benchmark("--quick")
    assert done.returncode == 1
    assert done.stderr.count(f"{process.pid} (") == 1
    assert "-m dynamometer.mocker --model mock" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["python", "-m", "sglang.launch_server"],
        ["python", "-m", "dynamometer.mocker"],
        ["python", "/usr/bin/dyno", "mocker", "--model", "m"],
        ["python", "-m", "dynamometer.cli", "mocker"],
        ["sglang::scheduler", "", ""],
    ],
)
def test_every_form_of_an_engine_is_found(words: list[str]) -> None:
    assert serving_machine._is_engine("python", words)


@pytest.mark.parametrize(
    "words",
    [
        ["python", "/usr/bin/dyno", "sglang", "--engine", "mocker"],
        ["grep", "mocker"],
        ["python", "-m", "pytest", "tests/mocker"],
    ],
)
def test_other_processes_are_not_engines(words: list[str]) -> None:
    assert not serving_machine._is_engine("python", words)


def test_an_engine_of_several_processes_is_shown_once(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = ["/usr/bin/python", "-m", "sglang.launch_server", *[""] * 9]
    processes = [
        SimpleNamespace(pid=pid, info={"ppid": ppid, "name": "python", "cmdline": words})
        for pid, ppid, words in (
            (7, 1, launch), (8, 7, ["sglang::scheduler" + " " * 90]), (9, 8, ["sglang::x"]),
            (10, 1, ["sglang::detokenizer", ""]), (11, 7, ["cat"]),
        )
    ]  # fmt: skip
    monkeypatch.setattr(psutil, "process_iter", lambda _: processes)
    shown = ["7 (python -m sglang.launch_server)", "10 (sglang::detokenizer)"]
    assert serving_machine.left_over_engines() == shown


def test_the_revision_is_a_commit_of_main(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        own = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", *own, *words]
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert serving_machine.revision(tmp_path) == "unknown"
    git("init", "-b", "main")
    (tmp_path / "code").write_text("one")
    git("add", "code")
    git("commit", "-m", "one")
    first = git("rev-parse", "HEAD")[:9]
    assert serving_machine.revision(tmp_path) == first
    git("checkout", "-b", "topic")
    (tmp_path / "code").write_text("two")
    assert serving_machine.revision(tmp_path) == f"{first} with local changes"
    git("commit", "-am", "two")
    assert serving_machine.revision(tmp_path) == f"{first} with local changes"
    topic = git("rev-parse", "HEAD")[:9]
    git("branch", "-D", "main")
    assert serving_machine.revision(tmp_path) == topic
