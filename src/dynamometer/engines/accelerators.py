"""Find this machine's accelerators, and their memory in use, without torch.

The accelerators are found in /dev, /proc and /sys. NVIDIA's driver shows the memory only through
its library: `nvidia-smi` comes with the driver.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_INTEL: Final = "0x8086"
_HABANA: Final = "0x1da3"
_NVIDIA_UUID: Final = re.compile(r"GPU UUID:\s*(GPU-\S+)")
# Integrated Intel GPUs are on bus 0; SGLang needs a discrete one.
_DISCRETE: Final = re.compile(r"[0-9a-f]{4}:(?!00:)[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]")


def find(root: Path = Path("/"), environment: Mapping[str, str] | None = None) -> str | None:
    """Return the kind of the accelerator (`NVIDIA`, `AMD`, `Intel`, `Ascend`), or None.

    Args:
        root: the parent of `dev`, `proc` and `sys`.
        environment: the variables that can hide devices (`CUDA_VISIBLE_DEVICES=`); by default
            those of this process.
    """
    variables = os.environ if environment is None else environment
    if not _hidden(variables, "CUDA_VISIBLE_DEVICES") and _nvidia(root):
        return "NVIDIA"
    hidden = _hidden(variables, "HIP_VISIBLE_DEVICES") or _hidden(variables, "ROCR_VISIBLE_DEVICES")
    if not hidden and _amd(root):
        return "AMD"
    if _intel(root):
        return "Intel"
    if not _hidden(variables, "ASCEND_RT_VISIBLE_DEVICES") and any(root.glob("dev/davinci[0-9]*")):
        return "Ascend"
    return None


# `nvidia-smi` loads the driver first where no process keeps it loaded.
QUERY_SECONDS: Final = 10.0
_NVIDIA_QUERY: Final = (
    "nvidia-smi",
    "--query-gpu=uuid,memory.used",
    "--format=csv,noheader,nounits",
)


@dataclass(frozen=True)
class Accelerator:
    """One device.

    Attributes:
        kind: `NVIDIA` or `AMD`.
        index: the position among the devices of its kind, in the driver's order.
        uuid: the driver's unique name of the device.
    """

    kind: str
    index: int
    uuid: str


def devices(root: Path = Path("/")) -> Sequence[Accelerator]:
    """Return the devices whose drivers report a unique name, hidden devices included.

    Args:
        root: the parent of `proc` and `sys`.
    """
    nvidia = [
        match[1]
        for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information"))
        if (match := _NVIDIA_UUID.search(_text(path)))
    ]
    amd = [
        text
        for path in sorted(root.glob("sys/class/drm/card*/device/unique_id"), key=_card)
        if (text := _text(path))
    ]
    return [
        *(Accelerator("NVIDIA", index, uuid) for index, uuid in enumerate(nvidia)),
        *(Accelerator("AMD", index, uuid) for index, uuid in enumerate(amd)),
    ]


def visible_nvidia_uuids(
    root: Path = Path("/"), environment: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Return the UUIDs of the NVIDIA devices that CUDA_VISIBLE_DEVICES shows to an engine.

    Args:
        root: the parent of `proc` and `sys`.
        environment: the variables; by default those of this process.
    """
    uuids = [device.uuid for device in devices(root) if device.kind == "NVIDIA"]
    variables = os.environ if environment is None else environment
    visible = variables.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(uuids)
    found: list[str] = []
    for entry in map(str.strip, visible.split(",")):
        if re.fullmatch(r"[0-9]{1,9}", entry):
            matches = uuids[int(entry) :][:1]
        else:
            matches = [uuid for uuid in uuids if entry and uuid.startswith(entry)]
        if len(matches) != 1:
            break  # CUDA ignores the entries from the first invalid one
        found += matches
    return tuple(dict.fromkeys(found))


def memory_in_use(root: Path = Path("/")) -> Mapping[str, int]:
    """Return the bytes in use on each device, by a unique name; devices of other kinds are missing.

    This call blocks for up to some seconds, because it may run `nvidia-smi`; run it in a thread.

    Args:
        root: the parent of `dev`, `proc` and `sys`.
    """
    used = {
        str(path): int(text)
        for path in root.glob("sys/class/drm/card*/device/mem_info_vram_used")
        if (text := _text(path)).isdecimal()
    }
    if _nvidia(root):
        for line in _nvidia_smi().splitlines():
            uuid, _, mebibytes = line.partition(", ")
            if mebibytes.isdecimal():
                used[uuid] = int(mebibytes) << 20
    return used


def _nvidia_smi() -> str:
    try:
        done = subprocess.run(
            _NVIDIA_QUERY,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=QUERY_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("ascii", "replace")


def _card(path: Path) -> int:
    """Return the number of a card, so that `card10` follows `card9`."""
    return int("".join(filter(str.isdigit, path.parent.parent.name)) or 0)


def _hidden(variables: Mapping[str, str], variable: str) -> bool:
    return variables.get(variable, "0").strip() in ("", "-1", "NoDevFiles", "none")


def _nvidia(root: Path) -> bool:
    # WSL has no /dev/nvidia*, but a paravirtual device and the driver's library.
    wsl = (root / "dev/dxg").exists() and any(root.glob("usr/lib/wsl/lib/libcuda.so*"))
    return wsl or any(root.glob("dev/nvidia[0-9]*")) or any(root.glob("proc/driver/nvidia/gpus/*"))


def _amd(root: Path) -> bool:
    """Return whether a compute node has SIMD units; a CPU is a node without SIMD units."""
    if not (root / "dev/kfd").exists():
        return False
    nodes = root.glob("sys/class/kfd/kfd/topology/nodes/*/properties")
    return any(re.search(r"^simd_count [1-9]", _text(node), re.MULTILINE) for node in nodes)


def _intel(root: Path) -> bool:
    for node in root.glob("sys/class/drm/renderD*/device"):
        address = node.resolve().name
        if _text(node / "vendor") == _INTEL and _DISCRETE.fullmatch(address):
            return True
    return any(_text(v) == _HABANA for v in root.glob("sys/class/accel/accel*/device/vendor"))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
