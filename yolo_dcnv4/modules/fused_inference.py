"""A fused layer in eager inference, in as few Python calls as there can be: at small maps a GPU waits for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from yolo_dcnv4.modules.projection import convolve, multiply, parses
from yolo_dcnv4.ops.dcnv4 import dense_rows
from yolo_dcnv4.ops.packed import infer_packed

if TYPE_CHECKING:
    from yolo_dcnv4.modules.dcnv4 import DCNv4


def infer(layer: DCNv4, x: Tensor) -> Tensor:
    """Apply a fused layer past the calls of its modules, for which nothing but their own `forward` may wait.

    Args:
        layer: The layer, without `center_feature_scale`.
        x: (N, C, H, W) in any memory format.

    Returns:
        (N, C_out, H, W) in channels-last memory format.
    """
    # nn.Module.__getattr__ takes as long as what it leads to here
    modules: dict[str, Any] = layer._modules
    packed_proj, core, output_proj = modules["packed_proj"], modules["core"], modules["output_proj"]
    arguments = layer.channels, core.group, core.window, core.offset_scale, core.remove_center
    if parses(x):
        packed = convolve(packed_proj, x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
        out = infer_packed(dense_rows(packed), *arguments)
        return convolve(output_proj, out.permute(0, 3, 1, 2))
    packed = multiply(packed_proj, x.permute(0, 2, 3, 1).contiguous())
    return multiply(output_proj, infer_packed(packed, *arguments)).permute(0, 3, 1, 2)
