"""A fused layer in eager inference, in as few Python calls as there can be: at small maps a GPU waits for each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_dcnv4.modules.merged_projection import MergedProjection
from yolo_dcnv4.modules.projection import convolve, multiply, parses
from yolo_dcnv4.ops.dcnv4 import dense_rows
from yolo_dcnv4.ops.packed import infer_packed
from yolo_dcnv4.ops.window import Window


def infer(
    x: Tensor,
    packed_proj: MergedProjection,
    output_proj: nn.Linear,
    arguments: tuple[int, int, Window, float, bool],
) -> Tensor:
    """Project, sample and project once more, past the calls of modules and the checks in them.

    Args:
        x: (N, C, H, W) in any memory format.
        packed_proj: Projection to features and records.
        output_proj: Projection of what the operator returns.
        arguments: Those of `infer_packed`.

    Returns:
        (N, C_out, H, W) in channels-last memory format.
    """
    if parses(x):
        packed = convolve(packed_proj, x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
        out = infer_packed(dense_rows(packed), *arguments)
        return convolve(output_proj, out.permute(0, 3, 1, 2))
    packed = multiply(packed_proj, x.permute(0, 2, 3, 1).contiguous())
    return multiply(output_proj, infer_packed(packed, *arguments)).permute(0, 3, 1, 2)
