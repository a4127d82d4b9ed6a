"""The operators that torchvision's wheel lacks beside a CPU build of torch.

torchvision 0.28 registers meta kernels for `torchvision::nms` and `torchvision::qnms` when it
is imported, and fails where its compiled library did not declare them. Text models never call
them; declaring their schemas first is enough for the import.
"""

from __future__ import annotations

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
# A Library takes its declarations with it when it is collected.
_library: torch.library.Library | None = None


def declare() -> None:
    """Declare what is not there yet; a second call does nothing."""
    global _library
    missing = [s for name, s in _SCHEMAS.items() if not _declared(name)]
    if not missing or _library is not None:
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in missing:
        _library.define(schema)


def _declared(name: str) -> bool:
    return hasattr(torch.ops.torchvision, name)
