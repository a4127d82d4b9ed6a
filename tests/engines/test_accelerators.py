"""Devices in directory trees like those of Linux; the test machine has no devices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from dynamometer.engines import accelerators

KFD = "sys/class/kfd/kfd/topology/nodes/{}/properties"
TREES: Mapping[str, tuple[Mapping[str, str], str | None]] = {
    "nothing": ({"dev/null": ""}, None),
    "NVIDIA": ({"dev/nvidia0": "", "dev/nvidiactl": ""}, "NVIDIA"),
    "NVIDIA's driver without a card": ({"dev/nvidiactl": ""}, None),
    "NVIDIA under WSL": ({"dev/dxg": "", "usr/lib/wsl/lib/libcuda.so.1": ""}, "NVIDIA"),
    "WSL without CUDA": ({"dev/dxg": ""}, None),
    "AMD": ({"dev/kfd": "", KFD.format(1): "cpu_cores_count 0\nsimd_count 304\n"}, "AMD"),
    "AMD, processor alone": (
        {"dev/kfd": "", KFD.format(0): "cpu_cores_count 8\nsimd_count 0"},
        None,
    ),
    "Ascend": ({"dev/davinci0": ""}, "Ascend"),
    "Ascend's manager without a card": ({"dev/davinci_manager": ""}, None),
    "Gaudi": ({"sys/class/accel/accel0/device/vendor": "0x1da3\n"}, "Intel"),
    "Intel's NPU": ({"sys/class/accel/accel0/device/vendor": "0x8086\n"}, None),
}


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.mark.parametrize("case", TREES)
def test_the_accelerator_is_found_by_its_devices(tmp_path: Path, case: str) -> None:
    files, expected = TREES[case]
    assert accelerators.find(tree(tmp_path, files), {}) == expected


@pytest.mark.parametrize(
    ("address", "expected"), [("0000:00:02.0", None), ("0000:03:00.0", "Intel")]
)
def test_of_intels_gpus_only_discrete_ones_count(
    tmp_path: Path, address: str, expected: str | None
) -> None:
    tree(tmp_path, {f"devices/{address}/vendor": "0x8086\n"})
    link = tmp_path / "sys/class/drm/renderD128/device"
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "devices" / address)
    assert accelerators.find(tmp_path, {}) == expected


def test_a_hidden_accelerator_is_not_found(tmp_path: Path) -> None:
    root = tree(tmp_path, {"dev/nvidia0": ""})
    assert accelerators.find(root, {"CUDA_VISIBLE_DEVICES": ""}) is None
    assert accelerators.find(root, {"CUDA_VISIBLE_DEVICES": "-1"}) is None
    assert accelerators.find(root, {"CUDA_VISIBLE_DEVICES": "0"}) == "NVIDIA"


def test_devices_have_their_drivers_names(tmp_path: Path) -> None:
    for bus, uuid in (("0000:3b:00.0", "GPU-1f0c"), ("0000:af:00.0", "GPU-77aa")):
        gpu = tmp_path / "proc/driver/nvidia/gpus" / bus
        gpu.mkdir(parents=True)
        (gpu / "information").write_text(f"Model: \t NVIDIA H100\nGPU UUID: \t {uuid}\nIRQ: 1\n")
    for card, unique in (("card2", "aa11"), ("card10", "bb22")):
        device = tmp_path / "sys/class/drm" / card / "device"
        device.mkdir(parents=True)
        (device / "unique_id").write_text(f"{unique}\n")
    assert accelerators.devices(tmp_path) == [
        accelerators.Accelerator("NVIDIA", 0, "GPU-1f0c"),
        accelerators.Accelerator("NVIDIA", 1, "GPU-77aa"),
        accelerators.Accelerator("AMD", 0, "aa11"),
        accelerators.Accelerator("AMD", 1, "bb22"),
    ]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ("GPU-0a", "GPU-0b", "GPU-1c")),
        ("2, 0", ("GPU-1c", "GPU-0a")),
        ("0,0", ("GPU-0a",)),
        ("GPU-1,GPU-0a", ("GPU-1c", "GPU-0a")),
        ("1,7,0", ("GPU-0b",)),
        ("GPU-0,1", ()),  # the beginning of two names
        ("-1", ()),
        ("", ()),
        ("MIG-0a/1/0", ()),
    ],
)
def test_visible_devices_are_those_that_cuda_shows(
    tmp_path: Path, visible: str | None, expected: tuple[str, ...]
) -> None:
    for number, uuid in enumerate(("GPU-0a", "GPU-0b", "GPU-1c")):
        file = f"proc/driver/nvidia/gpus/0000:{number}b:00.0/information"
        tree(tmp_path, {file: f"GPU UUID: {uuid}\n"})
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert accelerators.visible_nvidia_uuids(tmp_path, environment) == expected


def test_a_machine_without_devices_has_none(tmp_path: Path) -> None:
    assert list(accelerators.devices(tmp_path)) == []


NVIDIA_SMI = """#!/bin/sh
echo "GPU-aa, 1024"
echo "GPU-bb, [N/A]"
echo "GPU-cc, 0"
"""


def test_the_memory_in_use_is_that_of_each_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    files = {
        "dev/nvidia0": "",
        "sys/class/drm/card1/device/mem_info_vram_used": "4096\n",
        "bin/nvidia-smi": NVIDIA_SMI,
    }
    root = tree(tmp_path, files)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    amd = str(root / "sys/class/drm/card1/device/mem_info_vram_used")
    assert accelerators.memory_in_use(root) == {"GPU-aa": 1 << 30, "GPU-cc": 0, amd: 4096}


def test_a_driver_without_its_program_reports_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert accelerators.memory_in_use(tree(tmp_path, {"dev/nvidia0": ""})) == {}
