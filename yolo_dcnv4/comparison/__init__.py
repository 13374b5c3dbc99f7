"""Models compared by layers, parameters, gradients and GFLOPs."""

from yolo_dcnv4.comparison.compare import PLOT_NAME, compare
from yolo_dcnv4.comparison.cost import ModelCost

__all__ = ["PLOT_NAME", "ModelCost", "compare"]
