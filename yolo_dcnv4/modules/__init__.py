"""DCNv4 layer and blocks; importing them registers them with ultralytics."""

from yolo_dcnv4.modules.block import Bottleneck_DCNv4, C2f_DCNv4, C3k2_DCNv4, C3k_DCNv4
from yolo_dcnv4.modules.conv import DCNv4Conv
from yolo_dcnv4.modules.dcnv4 import DCNv4, DCNv4Core
from yolo_dcnv4.modules.flops import register_flops

__all__ = ["Bottleneck_DCNv4", "C2f_DCNv4", "C3k2_DCNv4", "C3k_DCNv4", "DCNv4", "DCNv4Conv", "DCNv4Core"]

register_flops()
