"""`--engine-header`: engines whose pages need a key, and only these receive the key."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from yarl import URL

from dynamometer.errors import SettingsError
from dynamometer.exporter import engine_headers
from dynamometer.exporter.engine_headers import by_origin, read
from dynamometer.exporter.targets import Target
from exporting import exporter, total
from processes import PYTHON
from stack import eventually

KEY = "sk-0123456789abcdef"
AUTHORIZATION = f"Authorization: Bearer {KEY}"
ENGINES = [Target(name="a", url="http://a:1"), Target(name="b", url="http://b:2")]


class Engine(ThreadingHTTPServer):
    """An engine whose routes need a key, and whose page takes `page_seconds`."""

    daemon_threads = True

    def __init__(self, key: str = KEY, page_seconds: float = 0.0, moved_to: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.key = key
        self.page_seconds = page_seconds
        self.moved_to = moved_to
        self.seen: set[tuple[str, str | None]] = set()  # paths, each with its Authorization

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Engine

    def do_GET(self) -> None:
        key = self.headers.get("Authorization")
        self.server.seen.add((self.path, key))
        if self.path == "/metrics" and self.server.moved_to:
            self.send_response(307)
            self.send_header("Location", self.server.moved_to)
            self.end_headers()
            return
        allowed = key == f"Bearer {self.server.key}"
        self.send_response(200 if allowed else 401)
        self.end_headers()
        if allowed and self.path == "/v1/models":
            self.wfile.write(b'{"data": [{"id": "served"}]}')
        elif allowed and self.path in ("/metrics", "/moved"):
            time.sleep(self.server.page_seconds)
            self.wfile.write(b"# TYPE a_total counter\na_total 5\n")

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(engine: Engine) -> Iterator[Engine]:
    with engine:
        threading.Thread(target=engine.serve_forever, daemon=True).start()
        yield engine
        engine.shutdown()


@pytest.mark.parametrize("given", ["flag", "file", "variable"])
def test_a_slow_page_that_needs_a_key_is_shown_and_the_key_is_not(
    given: str, tmp_path: Path
) -> None:
    (tmp_path / "headers").write_text(f"# of the engine\n\n{AUTHORIZATION}\n")
    flags, variables = {
        "flag": (["--engine-header", AUTHORIZATION], {}),
        "file": (["--engine-header-file", str(tmp_path / "headers")], {}),
        "variable": ([], {"DYN_ENGINE_HEADERS": AUTHORIZATION, "DYN_LOG": "debug"}),
    }[given]
    with (
        serving(Engine(page_seconds=1.5)) as engine,
        exporter(
            tmp_path, "--engine-url", engine.url, *flags, "--prefix", "", **variables
        ) as found,
    ):
        found.wait_until_ready("engine")
        eventually(lambda: "a_total" in found.page(), within=15, what=f"the page\n{found.log}")
        assert total(found.page(), "a_total") == 5
        assert 'model="served"' in found.page()
        paths = {path for path, key in engine.seen if key == f"Bearer {KEY}"}
        assert paths == {"/health", "/metrics", "/v1/models"}
        for text in (found.log, found.page(), str(found.health())):
            assert KEY not in text


def test_without_the_key_health_says_that_one_is_wanted(tmp_path: Path) -> None:
    with (
        serving(Engine()) as engine,
        exporter(tmp_path, "--engine-url", engine.url, "--prefix", "") as found,
    ):
        eventually(
            lambda: "answers 401 Unauthorized" in str(found.health()),
            within=15,
            what=f"the reason\n{found.log}",
        )


def test_a_page_that_is_slower_than_the_timeout_is_a_fault(tmp_path: Path) -> None:
    flags = ("--engine-timeout", "0.3", "--engine-header", AUTHORIZATION)
    with (
        serving(Engine(page_seconds=1.5)) as engine,
        exporter(tmp_path, "--engine-url", engine.url, "--prefix", "", *flags) as found,
    ):
        found.process.wait_for("no answer within 0.3 s", within=15)


def test_a_redirect_takes_the_key_along_to_its_own_host_alone(tmp_path: Path) -> None:
    with serving(Engine()) as other:
        elsewhere = Engine(moved_to=f"{other.url}/metrics")
        with serving(elsewhere), serving(Engine(moved_to="/moved")) as here:
            flags = [
                *("--engine-url", f"a={elsewhere.url}", "--engine-url", f"b={here.url}"),
                *("--engine-header", AUTHORIZATION, "--engine-header", "X-Key: second"),
            ]
            with exporter(tmp_path, *flags, "--prefix", "") as found:
                eventually(lambda: other.seen, within=15, what=f"redirected\n{found.log}")
                eventually(lambda: "a_total" in found.page(), within=15, what=found.log)
            assert other.seen == {("/metrics", None)}
            assert ("/moved", f"Bearer {KEY}") in here.seen


def sent(
    *flags: str, variable: str = "", files: Sequence[Path] = (), to: Sequence[Target] = ENGINES
) -> dict[str, dict[str, str]]:
    """Return the headers that engines receive, by URL."""
    found = by_origin(read(variable, files, flags), to)
    return {str(origin): dict(headers) for origin, headers in found.headers.items()}


def test_of_one_name_the_last_and_the_engines_own_win(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text("X-A: file\nX-B: file\n")
    assert sent("x-b: flag", "a=X-C: own", variable="X-A: variable\nX-C: all", files=[file]) == {
        "http://a:1": {"x-a": "file", "x-b": "flag", "x-c": "own"},
        "http://b:2": {"x-a": "file", "x-b": "flag", "x-c": "all"},
    }


def test_a_value_may_hold_colons_and_equals_signs() -> None:
    assert sent("a=Cookie: a=b; c=d:e")["http://a:1"] == {"cookie": "a=b; c=d:e"}
    assert sent("Cookie:a=b")["http://b:2"] == {"cookie": "a=b"}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (KEY, "must be 'Name: value'"),
        (f"Bearer {KEY}", "must be 'Name: value'"),
        (f"My Header: {KEY}", "must be 'Name: value'"),
        (f": {KEY}", "must be 'Name: value'"),
        ("", "must be 'Name: value'"),
        ("Authorization:  ", "empty"),
        (f"Authorization: {KEY}\nX: y", "characters"),
        (f"Authorization: {KEY}\x00", "characters"),
        (f"Authorization: {KEY}\udcff", "characters"),
        (f"Content-Length: {KEY}", "cannot be set"),
        (f"c=Authorization: {KEY}", "no --engine-url is named c"),
    ],
)
def test_a_malformed_header_is_an_error_that_names_the_flag_and_no_value(
    header: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as raised:
        sent(header)
    assert str(raised.value).startswith("--engine-header: ")
    assert KEY not in str(raised.value)


def test_an_error_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text(f"# keys\n{KEY}\n")
    with pytest.raises(SettingsError, match=r"--engine-header-file .*headers: line 2: must be"):
        sent(files=[file])
    with pytest.raises(SettingsError, match="DYN_ENGINE_HEADERS: line 1: must be"):
        sent(variable=KEY)
    with pytest.raises(SettingsError, match="No such file"):
        sent(files=[tmp_path / "none"])
    with pytest.raises(SettingsError, match="directory"):
        sent(files=[tmp_path])
    file.write_bytes(b"X: \xff")
    with pytest.raises(SettingsError, match="UTF-8"):
        sent(files=[file])
    file.write_bytes(b"#" * (1 << 20))
    with pytest.raises(SettingsError, match="larger than 64 KiB"):
        sent(files=[file])


def test_engines_that_were_found_get_no_key() -> None:
    with pytest.raises(SettingsError, match="--engine-header: needs --engine-url"):
        sent(AUTHORIZATION, to=[])
    with pytest.raises(SettingsError, match="needs --engine-url"):
        sent(AUTHORIZATION, to=[Target(name="engine")])


def test_engines_of_one_address_have_the_same_headers() -> None:
    same = [Target(name="a", url="http://h:1"), Target(name="b", url="http://H:1")]
    assert sent("X: y", to=same) == {"http://h:1": {"x": "y"}}
    with pytest.raises(SettingsError, match="the address http://h:1"):
        sent("a=X: y", to=same)


def test_a_header_does_not_show_its_value() -> None:
    (header,) = engine_headers.read("", [], [AUTHORIZATION])
    assert KEY not in repr(header)
    assert URL(ENGINES[0].url or "").origin() not in by_origin([], []).headers


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine-header", f"Bearer {KEY}"], "--engine-header: must be 'Name: value'"),
        (["--engine-header", *AUTHORIZATION.split()], "--engine-header: quote the header"),
        (["--engine-headers", AUTHORIZATION], "unrecognized arguments: --engine-headers"),
        ([f"--engine-headers={AUTHORIZATION}"], "unrecognized arguments: --engine-headers"),
    ],
)
def test_a_wrong_header_ends_the_command_with_a_line_without_the_key(
    words: list[str], message: str, tmp_path: Path
) -> None:
    command = [PYTHON, "-m", "dynamometer", "exporter", "--engine-url", "http://127.0.0.1:1"]
    done = subprocess.run(
        [*command, *words], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert KEY not in done.stderr + done.stdout
