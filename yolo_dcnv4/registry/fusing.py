"""Give registered modules a part in `BaseModel.fuse`, which knows ultralytics' own classes only."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn


def with_fuse_protocol(fuse: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `BaseModel.fuse` so that it also calls `fuse_dcnv4()` of every submodule that has this method.

    The calls come after ultralytics' own fusing, and at every `fuse()`: the method must be idempotent.

    Args:
        fuse: `BaseModel.fuse`.
    """

    @functools.wraps(fuse)
    def fuse_all(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        fused = fuse(self, *args, **kwargs)
        for module in list(self.modules()):
            method = getattr(module, "fuse_dcnv4", None)
            if callable(method):
                method()
        return fused

    return fuse_all
