"""Declare the operators that torchvision needs for its import with a CPU build of torch.

torchvision 0.28 registers meta kernels for `torchvision::nms` and `torchvision::qnms` when it is
imported, and fails if its compiled library has not declared them. Text models never call these
operators, so their schemas suffice.
"""

from __future__ import annotations

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
# The declarations disappear when their Library is garbage-collected.
_library: torch.library.Library | None = None


def declare() -> None:
    """Declare the missing operators; a second call has no effect."""
    global _library
    missing = [s for name, s in _SCHEMAS.items() if not _declared(name)]
    if not missing or _library is not None:
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in missing:
        _library.define(schema)


def _declared(name: str) -> bool:
    return hasattr(torch.ops.torchvision, name)
