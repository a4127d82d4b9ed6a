"""The exporter's image, checked without a Docker engine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from conftest import ROOT
from processes import running
from recipes import dockerfile
from stack import http


def environment() -> dict[str, str]:
    words = " ".join(dockerfile()["ENV"]).split()
    return dict(word.split("=", 1) for word in words)


def test_the_package_is_built_from_what_is_copied_and_no_more(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for instruction in dockerfile()["COPY"]:
        *names, destination = instruction.split()
        for name in names:
            where = tmp_path / destination.lstrip("/")
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, where, ignore=ignored, symlinks=True)
            else:
                where.mkdir(exist_ok=True)
                shutil.copy(ROOT / name, where)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("dynamometer-*.whl")
    with zipfile.ZipFile(wheel) as files:
        runbooks = files.read("dynamometer/observability/files/runbooks.md")
    assert runbooks == (ROOT / "docs" / "runbooks.md").read_bytes()


def test_what_it_starts_is_an_exporter_that_others_reach(tmp_path: Path) -> None:
    program, *words = json.loads(dockerfile()["ENTRYPOINT"][0])
    assert program == "dyno"
    variables = environment()
    (exposed,) = dockerfile()["EXPOSE"]
    assert variables["DYN_SYSTEM_PORT"] == exposed
    variables |= {"DYN_SYSTEM_PORT": "0", "DYN_FILE_KV": str(tmp_path / "instances")}
    flags = ["--multiproc-dir", str(tmp_path), "--engine-url", "http://127.0.0.1:9"]
    command = [sys.executable, "-m", "dynamometer", *words, *flags]
    with running(command, tmp_path / "log", variables) as process:
        port = process.wait_for(r"metrics and health: http://\S+:(\d+)/metrics", within=20)[1]
        listening = Path("/proc/net/tcp").read_text()
        assert f" 00000000:{int(port):04X} " in listening  # all addresses
        assert http(f"http://127.0.0.1:{port}/live").status == 200
