"""ultralytics' bottleneck blocks with DCNv4 in place of the second 3x3 convolution."""

from __future__ import annotations

from torch import nn
from ultralytics.nn.modules.block import C3, Bottleneck, C2f

from yolo_dcnv4.modules.conv import DCNv4Conv


class Bottleneck_DCNv4(Bottleneck):
    """ultralytics' Bottleneck with DCNv4 as its second convolution.

    Args:
        c1: Input channels.
        c2: Output channels.
        shortcut: Add the input to the output where widths match.
        g: Accepted for Bottleneck's signature; DCNv4 chooses its own groups.
        k: Kernel sizes of the convolution and of DCNv4, each an int or (h, w).
        e: Expansion ratio.
    """

    def __init__(self, c1: int, c2: int, shortcut: bool = True, g: int = 1, k: tuple = (3, 3), e: float = 0.5):
        super().__init__(c1, c2, shortcut, g, k, e)
        self.cv2 = DCNv4Conv(int(c2 * e), c2, k[1])  # type: ignore[assignment]  # in the role of Conv


class C2f_DCNv4(C2f):
    """ultralytics' C2f with `Bottleneck_DCNv4` inside; takes the arguments of C2f."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = False, g: int = 1, e: float = 0.5):
        super().__init__(c1, c2, n, shortcut, g, e)
        self.m = nn.ModuleList(Bottleneck_DCNv4(self.c, self.c, shortcut, g, e=1.0) for _ in range(n))


class C3_DCNv4(C3):
    """ultralytics' C3 with `Bottleneck_DCNv4` inside; takes the arguments of C3."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5):
        super().__init__(c1, c2, n, shortcut, g, e)
        hidden, k = int(c2 * e), ((1, 1), (3, 3))
        self.m = nn.Sequential(*(Bottleneck_DCNv4(hidden, hidden, shortcut, g, k, e=1.0) for _ in range(n)))
