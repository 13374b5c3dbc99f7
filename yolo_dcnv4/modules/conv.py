"""DCNv4 in the role of ultralytics' Conv."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_linear_bn_eval
from ultralytics.nn.modules.conv import Conv, autopad

from yolo_dcnv4.modules.dcnv4 import DCNv4
from yolo_dcnv4.modules.projection import has_hooks


class DCNv4Conv(nn.Module):
    """DCNv4, batch normalisation and activation: a drop-in for ultralytics' Conv in a YAML.

    Not a subclass of Conv: `BaseModel.fuse` would look for a Conv2d in it.

    Args:
        c1: Input channels.
        c2: Output channels.
        k: Window size in pixels, int or (h, w).
        s: Stride in pixels.
        p: Padding in pixels; `None` keeps the size at stride 1.
        g: Number of groups; `None` chooses groups of 16 channels where the width allows.
        d: Dilation in pixels.
        act: `True` for Conv's default activation, a module for another one, anything else for none.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        k: int | Sequence[int] = 3,
        s: int = 1,
        p: int | Sequence[int] | None = None,
        g: int | None = None,
        d: int = 1,
        act: bool | nn.Module = True,
    ):
        super().__init__()
        self.dcn = DCNv4(c1, k, s, autopad(k, p, d), d, group=g, output_bias=False, out_channels=c2, init="average")
        self.bn = nn.BatchNorm2d(c2)
        self.act = Conv.default_act if act is True else act if isinstance(act, nn.Module) else nn.Identity()

    def fuse_dcnv4(self) -> None:
        """Fold the normalisation into the output projection, for inference; `BaseModel.fuse` calls this."""
        if isinstance(self.bn, nn.Identity):
            return
        self.dcn.output_proj = fuse_linear_bn_eval(self.dcn.output_proj.eval(), self.bn.eval()).requires_grad_(False)
        self.bn = nn.Identity()  # type: ignore[assignment]  # in the role of BatchNorm2d
        # as BaseModel.fuse does for Conv
        self.forward = self.forward_fuse  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to (N, c1, H, W)."""
        return self.act(self.bn(self.dcn(x)))

    def forward_fuse(self, x: Tensor) -> Tensor:
        """Apply the layer after `fuse_dcnv4`."""
        # past nn.Module.__getattr__ and a call, which take as long as an operator
        modules: dict[str, Any] = self._modules
        dcn = modules["dcn"]
        out = dcn.infer(x) if type(dcn) is DCNv4 and not has_hooks(dcn) else None
        return modules["act"](dcn(x) if out is None else out)
