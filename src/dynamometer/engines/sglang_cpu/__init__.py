"""SGLang on a machine without a GPU, through SGLang's own platform interface.

SGLang calls `activate` in each of its processes (entry point group `sglang.srt.platforms`). The
function changes nothing unless the environment variable `DYNAMOMETER_SGLANG_CPU` is `1`; a worker
sets the variable if it finds no accelerator.

This module must import on an interpreter that has SGLang, but not this project's dependencies.
"""

from __future__ import annotations

import os

SWITCH = "DYNAMOMETER_SGLANG_CPU"
ENTRY_POINT_GROUP = "sglang.srt.platforms"
ENTRY_POINT_NAME = "dynamometer-cpu"
ENTRY_POINT_VALUE = "dynamometer.engines.sglang_cpu:activate"


def activate() -> str | None:
    """Return the dotted path of the platform's class; None unless the variable enables it.

    Return None also if CUDA is available: the platform never hides an accelerator.
    """
    if os.environ.get(SWITCH) != "1":
        return None
    import torch

    if torch.cuda.is_available():
        return None
    from dynamometer.engines.sglang_cpu import torchvision_schemas

    torchvision_schemas.declare()
    return "dynamometer.engines.sglang_cpu.cpu_platform:CpuPlatform"
