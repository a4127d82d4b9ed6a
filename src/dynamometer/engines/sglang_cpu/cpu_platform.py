"""The platform that makes SGLang use its pure-torch kernels.

Out-of-tree platforms dispatch to SGLang's `native` forwards, which need no compiled
`sgl_kernel` and no AMX. Written against SGLang 0.5.23.
"""

from __future__ import annotations

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.interface import PlatformEnum, SRTPlatform


class CpuPlatform(CpuDeviceMixin, SRTPlatform):  # type: ignore[misc]  # sglang is untyped here
    """A CPU without AMX: torch's own attention, nothing pinned."""

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"

    def get_default_attention_backend(self) -> str:
        """Attention in plain torch."""
        return "torch_native"

    def is_pin_memory_available(self, device: object = None) -> bool:  # noqa: ARG002  # SGLang passes it
        """Never: there is no device to copy to."""
        return False
