"""The files of deploy/, read."""

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
    """The one engine that the exporter takes these flags to mean."""
    given = command.parser("dyno exporter").parse_args(list(flags))
    selection = targets.TargetFlags(
        pids=given.pid, directories=given.multiproc_dir, urls=given.engine_url
    )
    (found,) = targets.select(selection)
    return found


def sglang_port(words: Sequence[str]) -> int:
    """Where the engine of a command line listens, for its container's neighbours to reach it."""
    arguments = sglang_flags.launch_arguments(words)
    assert arguments is not None, f"no SGLang is started by {words}"
    known = sglang_flags.parse(arguments)
    assert known.host == "0.0.0.0"
    assert "--enable-metrics" in words
    return int(known.port or sglang_flags.DEFAULT_PORT)


def checked_by(module: str, *arguments: str | Path) -> str:
    """What a checker says that is a Python package and finds no fault."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def dockerfile() -> dict[str, list[str]]:
    """The arguments of each instruction, by its name."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"([A-Z]+) (.+)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def unit_settings() -> dict[str, list[str]]:
    """Every value of each setting of the systemd unit, in their order."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def with_the_units_rights() -> list[str]:
    """Words before a command that then has the unit's rights, as far as it goes without systemd:
    root's capabilities bounded as there, and mounts of its own that are read only.
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
    """Words before a command that then has the rights of the exporter's containers: processes and
    mounts of its own, no capability, and `directory` as `inside`, read only.
    """
    script = (
        'mkdir -p "$2" && mount --bind "$1" "$2" && mount -o remount,bind,ro "$2" && shift 2 && '
        'exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all -- "$@"'
    )
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]
    return [*unshare, "sh", "-c", script, "sh", directory, inside]
