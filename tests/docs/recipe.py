"""Makes a checkpoint as the copy-the-folder recipe leaves it: `python -m tests.docs.recipe OUT.pt EXPECTED.pt`.

The published layer and the blocks pasted into ultralytics are stand-ins, which share no code with the product: names,
attributes and parameters as published, the operator by torchvision. EXPECTED.pt holds an input and the model's output.
"""

from __future__ import annotations

import math
import sys
import types

import torch
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.nn.modules import Bottleneck, C2f, block

from tests.ops.oracles import Geometry, torchvision_oracle
from yolo_dcnv4 import register_module

MODEL = {
    "nc": 3,
    "scales": {"n": [0.33, 0.25, 1024]},
    "backbone": [
        [-1, 1, "Conv", [64, 3, 2]],
        [-1, 1, "Conv", [128, 3, 2]],
        [-1, 1, "Conv", [256, 3, 2]],
        [-1, 3, "C2f_DCNv4", [256, True]],
        [-1, 1, "Conv", [512, 3, 2]],
        [-1, 3, "C2f_DCNv4", [512, True]],
    ],
    "head": [[[3, 5], 1, "Detect", ["nc"]]],
}


class CenterFeatureScaleModule(nn.Module):
    pass


class DCNv4(nn.Module):
    def __init__(self, channels: int, kernel_size: int = 3, pad: int = 1, group: int = 4):
        super().__init__()
        self.channels, self.kernel_size, self.pad, self.group = channels, kernel_size, pad, group
        self.stride = self.dilation = 1
        self.group_channels = channels // group
        self.offset_scale, self.dw_kernel_size = 1.0, None
        self.center_feature_scale, self.remove_center, self.without_pointwise = False, 0, False
        self.K = group * kernel_size**2
        self.offset_mask = nn.Linear(channels, math.ceil(3 * self.K / 8) * 8)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.center_feature_scale_module = CenterFeatureScaleModule()

    def forward(self, x: Tensor, shape: tuple[int, int]) -> Tensor:
        n, length, channels = x.shape
        value = self.value_proj(x).reshape(n, *shape, channels)
        offset_mask = self.offset_mask(x).reshape(n, *shape, -1)
        out = torchvision_oracle(value.double(), offset_mask.double(), Geometry(self.group)).to(x.dtype)
        return self.output_proj(out.reshape(n, length, channels))


class DCNv4Block(nn.Module):
    def __init__(self, c: int, k: int = 3):
        super().__init__()
        self.dcnv4 = DCNv4(c, kernel_size=k, pad=k // 2, group=c // 16)
        self.bn = nn.BatchNorm2d(c)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = self.dcnv4(x.flatten(2).transpose(1, 2), (h, w))
        return self.act(self.bn(x.transpose(1, 2).reshape(n, c, h, w)))


class Bottleneck_DCNv4(Bottleneck):
    def __init__(self, c1: int, c2: int, shortcut: bool = True, g: int = 1, k: tuple = (3, 3), e: float = 0.5):
        super().__init__(c1, c2, shortcut, g, k, e)
        self.cv2 = DCNv4Block(c2)


class C2f_DCNv4(C2f):
    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = False, g: int = 1, e: float = 0.5):
        super().__init__(c1, c2, n, shortcut, g, e)
        self.m = nn.ModuleList(Bottleneck_DCNv4(self.c, self.c, shortcut, g, e=1.0) for _ in range(n))


def publish() -> None:
    """Let the classes lie where a recipe has them, which is where pickle looks for them."""
    for name in ("DCNv4", "DCNv4.modules", "DCNv4.modules.dcnv4"):
        sys.modules[name] = types.ModuleType(name)
    for cls in (DCNv4, CenterFeatureScaleModule):
        cls.__module__ = "DCNv4.modules.dcnv4"
        setattr(sys.modules[cls.__module__], cls.__name__, cls)
    for cls in (DCNv4Block, Bottleneck_DCNv4, C2f_DCNv4):
        cls.__module__ = "ultralytics.nn.modules.block"
        setattr(block, cls.__name__, cls)


def main(out: str, expected: str) -> None:
    publish()
    register_module(C2f_DCNv4, like="C2f")
    torch.manual_seed(0)
    description = "recipe-yolov8n.yaml"
    with open(description, "w", encoding="utf-8") as stream:
        print("\n".join(f"{key}: {value}" for key, value in MODEL.items()), file=stream)
    yolo = YOLO(description)
    for module in yolo.model.modules():
        if isinstance(module, DCNv4):
            nn.init.normal_(module.offset_mask.weight, std=0.3)
    yolo.save(out)  # in half precision
    picture = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        output = yolo.model.half().float().eval()(picture)[0]
    torch.save({"picture": picture, "output": output}, expected)


if __name__ == "__main__":
    main(*sys.argv[1:])
