"""The platform that makes SGLang use its pure-torch kernels.

Out-of-tree platforms dispatch to SGLang's `native` forwards, which need neither a compiled
`sgl_kernel` nor AMX. Written for SGLang 0.5.23.
"""

from __future__ import annotations

import os

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.interface import PlatformEnum, SRTPlatform


class CpuPlatform(CpuDeviceMixin, SRTPlatform):  # type: ignore[misc]  # sglang is untyped here
    """A CPU without AMX: torch's own attention, and no pinned memory."""

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"

    def get_default_attention_backend(self) -> str:
        """Return the backend that uses only torch."""
        return "torch_native"

    def is_pin_memory_available(self, device: object = None) -> bool:  # noqa: ARG002  # SGLang passes it
        """Return False: without a device, pinned memory has no use."""
        return False

    def init_backend(self) -> None:
        """Let Mooncake, where it transfers without a GPU, not use pinned memory."""
        if os.environ.get("MC_FORCE_TCP") == "1":
            from sglang.srt.disaggregation.mooncake.conn import MooncakeKVSender

            MooncakeKVSender.supports_host_tensor_indices = False
