"""The DCNv4 operator: compiled for CUDA and CPU, and in plain PyTorch."""

from yolo_dcnv4.ops.dcnv4 import dcnv4
from yolo_dcnv4.ops.export import export_form
from yolo_dcnv4.ops.library import Backend, backend
from yolo_dcnv4.ops.reference import dcnv4_reference

__all__ = ["Backend", "backend", "dcnv4", "dcnv4_reference", "export_form"]
