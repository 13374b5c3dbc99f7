"""DCNv4 layer and blocks; importing them registers them with ultralytics."""

# first, so that a checkout whose tasks.py imports the blocks finds them whichever package is imported first
import ultralytics.nn.tasks  # noqa: F401

from yolo_dcnv4.modules.block import Bottleneck_DCNv4, C2f_DCNv4, C3_DCNv4, C3k2_DCNv4, C3k_DCNv4
from yolo_dcnv4.modules.conv import DCNv4Conv
from yolo_dcnv4.modules.dcnv4 import DCNv4, DCNv4Core
from yolo_dcnv4.modules.flops import register_flops
from yolo_dcnv4.registry.hook import register

__all__ = [
    "Bottleneck_DCNv4",
    "C2f_DCNv4",
    "C3_DCNv4",
    "C3k2_DCNv4",
    "C3k_DCNv4",
    "DCNv4",
    "DCNv4Conv",
    "DCNv4Core",
]

register_flops()
register()
