"""Readers of the files in deploy/."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from conftest import ROOT
from dynamometer.engines import sglang_flags
from dynamometer.exporter import command, targets
from dynamometer.exporter.targets import Target

DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "dyno-exporter.service"


def read(name: str) -> dict[str, Any]:
    (found,) = read_all(name)
    return found


def read_all(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def exporter_target(flags: Sequence[str]) -> Target:
    """Return the engine that these flags of the exporter name."""
    given = command.parser("dyno exporter").parse_args(list(flags))
    selection = targets.TargetFlags(
        pids=given.pid, directories=given.multiproc_dir, urls=given.engine_url
    )
    (found,) = targets.select(selection)
    return found


def sglang_port(words: Sequence[str]) -> int:
    """Return the port of the engine that a command line starts, reachable from other containers."""
    arguments = sglang_flags.launch_arguments(words)
    assert arguments is not None, f"no SGLang is started by {words}"
    known = sglang_flags.parse(arguments)
    assert known.host == "0.0.0.0"
    assert "--enable-metrics" in words
    return int(known.port or sglang_flags.DEFAULT_PORT)


def checked_by(module: str, *arguments: str | Path) -> str:
    """Run a checker, a Python package, and return its output; fail if it finds a fault."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def dockerfile() -> dict[str, list[str]]:
    """Return the arguments of each instruction, by the name of the instruction."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"([A-Z]+) (.+)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def unit_settings() -> dict[str, list[str]]:
    """Return the values of each setting of the systemd unit, in order."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def with_the_units_rights() -> list[str]:
    """Return a command that runs another command with the rights that the unit leaves.

    Without systemd, these are the bounded capabilities of root and read-only mounts.
    """
    (capabilities,) = unit_settings()["CapabilityBoundingSet"]
    bounding = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in capabilities.split())
    script = (
        "mount -t tmpfs tmpfs /run && mount -o remount,bind,ro / && "
        f"exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all,{bounding} -- "
        '"$@"'
    )
    return ["unshare", "--mount", "--", "sh", "-c", script, "sh"]


def with_a_containers_rights(directory: str, inside: str) -> list[str]:
    """Return a command that runs another command with the rights of the exporter's container.

    It has its own processes and mounts, no capabilities, and reads `directory` at `inside`.
    """
    script = (
        'mkdir -p "$2" && mount --bind "$1" "$2" && mount -o remount,bind,ro "$2" && shift 2 && '
        'exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all -- "$@"'
    )
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]
    return [*unshare, "sh", "-c", script, "sh", directory, inside]
