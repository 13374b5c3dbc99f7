"""DCNv4 layer and blocks; importing them registers them with ultralytics."""

from typing import Any

# first, so that a checkout whose tasks.py imports the blocks finds them whichever package is imported first
import ultralytics.nn.tasks
from ultralytics.nn.modules import block as stock

from yolo_dcnv4.modules.block import Bottleneck_DCNv4, C2f_DCNv4, C3_DCNv4
from yolo_dcnv4.modules.conv import DCNv4Conv
from yolo_dcnv4.modules.dcnv4 import DCNv4, DCNv4Core
from yolo_dcnv4.modules.flops import register_flops
from yolo_dcnv4.registry.hook import register

__all__ = ["Bottleneck_DCNv4", "C2f_DCNv4", "C3_DCNv4", "DCNv4", "DCNv4Conv", "DCNv4Core"]

if hasattr(stock, "C3k2"):
    from yolo_dcnv4.modules.c3k2 import C3k2_DCNv4, C3k_DCNv4

    __all__ += ["C3k2_DCNv4", "C3k_DCNv4"]


def __getattr__(name: str) -> Any:
    if name in ("C3k2_DCNv4", "C3k_DCNv4"):
        raise AttributeError(
            f"{name} needs ultralytics >= 8.3.0, whose C3k2 it extends; installed is {ultralytics.__version__}"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register_flops()
register()
