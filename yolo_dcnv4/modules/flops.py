"""FLOP rules of the core operator and the merged projection for thop, which ultralytics counts with."""

from __future__ import annotations

from torch import Tensor

from yolo_dcnv4.modules.dcnv4 import DCNv4Core
from yolo_dcnv4.modules.merged_projection import MergedProjection


def multiply_adds(core: DCNv4Core, output: Tensor) -> int:
    """Return the multiply-adds of the core operator: 5*K*C per output pixel (InternImage's convention).

    Args:
        core: The module that ran.
        output: Its result (N, H_out, W_out, C).
    """
    return 5 * core.points * output.numel()


def count_core(core: DCNv4Core, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Add the operator to thop's `total_ops`."""
    core.total_ops += multiply_adds(core, output)  # type: ignore[operator, assignment]  # thop's own buffer


def count_projection(projection: MergedProjection, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Add a merged projection to thop's `total_ops`, as the layers that it replaces: without added rows."""
    pixels = output.numel() // output.shape[-1]
    projection.total_ops += pixels * projection.in_features * projection.out_features  # type: ignore[operator, assignment]


def register_flops() -> None:
    """Teach thop both; without thop there is nothing to teach."""
    try:
        # `thop.profile` is a function; its module must be named in full
        from thop.profile import register_hooks
    except ImportError:
        return
    register_hooks[DCNv4Core] = count_core
    register_hooks[MergedProjection] = count_projection
