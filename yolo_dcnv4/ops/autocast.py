"""The operator's rule under autocast: it runs in the autocast dtype."""

from __future__ import annotations

import torch
from torch import Tensor

# asked once: torch.compile of torch 2.10 and 2.11 cannot trace the question
_DEVICES = frozenset(
    device
    for device in ("cpu", "cuda", "hpu", "ipu", "maia", "mps", "mtia", "xla", "xpu", "privateuseone")
    if torch.amp.is_autocast_available(device)
)


# one flag for all devices, where torch has it: asking for a device by its name takes four times as long
_any_autocast = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """Return the autocast dtype of the tensor's device where autocast is on, else the tensor's own."""
    if not torch.compiler.is_compiling() and not _any_autocast():
        return tensor.dtype
    device = tensor.device.type
    # devices such as meta know no autocast
    if device not in _DEVICES or not torch.is_autocast_enabled(device):
        return tensor.dtype
    # float64 stays, as in torch's own autocast rules
    if not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor.dtype
    return torch.get_autocast_dtype(device)


def to_autocast_dtype(tensor: Tensor) -> Tensor:
    """Return the tensor in the dtype that `autocast_dtype` says."""
    dtype = autocast_dtype(tensor)
    return tensor if dtype == tensor.dtype else tensor.to(dtype)
