"""ultralytics' C3k2, which came with 8.3.0, with DCNv4 in its bottlenecks."""

from __future__ import annotations

from typing import Any

from torch import nn
from ultralytics.nn.modules.block import Bottleneck, C3k, C3k2

from yolo_dcnv4.modules.block import Bottleneck_DCNv4


class C3k_DCNv4(C3k):
    """ultralytics' C3k with `Bottleneck_DCNv4` inside; takes the arguments of C3k."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5, k: int = 3):
        super().__init__(c1, c2, n, shortcut, g, e, k)
        hidden = int(c2 * e)
        self.m = nn.Sequential(*(Bottleneck_DCNv4(hidden, hidden, shortcut, g, k=(k, k), e=1.0) for _ in range(n)))


class C3k2_DCNv4(C3k2):
    """ultralytics' C3k2 with DCNv4 bottlenecks; takes the arguments of the installed ultralytics' C3k2."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # the signature of C3k2 differs between releases: replace what it built, whatever its arguments were called
        for index, block in enumerate(self.m):
            self.m[index] = self._with_dcnv4(block)

    def _with_dcnv4(self, block: nn.Module) -> nn.Module:
        if isinstance(block, C3k):
            return C3k_DCNv4(self.c, self.c, len(block.m), bool(block.m[0].add))
        if isinstance(block, Bottleneck):
            return Bottleneck_DCNv4(self.c, self.c, block.add)
        if isinstance(block, nn.Sequential):
            return nn.Sequential(*(self._with_dcnv4(part) for part in block))
        return block
