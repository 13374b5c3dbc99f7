"""Use a module of your own in a model YAML: registration knows nothing of DCNv4.

The module is treated like ultralytics' Conv: the YAML gives (c2, k, s), c1 and the width scaling come by themselves.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.nn.modules import Conv

from yolo_dcnv4 import register_module


class GatedConv(nn.Module):
    """A convolution whose output a second one switches on and off.

    Args:
        c1: Input channels.
        c2: Output channels.
        k: Kernel size in pixels.
        s: Stride in pixels.
    """

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1):
        super().__init__()
        self.features = Conv(c1, c2, k, s)
        self.gate = nn.Conv2d(c1, c2, k, s, k // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both convolutions to (N, c1, H, W)."""
        return self.features(x) * self.gate(x).sigmoid()


MODEL = """
nc: 3
scales:
  n: [0.33, 0.25, 1024]
backbone:
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, GatedConv, [128, 3, 2]]
  - [-1, 3, C2f, [128, True]]
  - [-1, 1, GatedConv, [256, 3, 2]]
head:
  - [[2, 3], 1, Detect, [nc]]
"""


def main() -> None:
    """Register the module, build a model with it and run the model."""
    register_module(GatedConv, like="Conv")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "yolov8n-gated.yaml"
        path.write_text(MODEL, encoding="utf-8")
        model = YOLO(path).model
    gated = [layer for layer in model.modules() if isinstance(layer, GatedConv)]
    print(
        f"{len(gated)} GatedConv of {', '.join(str(layer.gate.out_channels) for layer in gated)} channels, "
        f"strides {model.stride.int().tolist()}"
    )
    with torch.inference_mode():
        print(f"predictions {tuple(model.eval()(torch.rand(1, 3, 64, 64))[0].shape)}")


if __name__ == "__main__":
    main()
