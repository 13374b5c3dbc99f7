"""Pictures of where DCNv4 layers sample."""

from yolo_dcnv4.visualization.visualize import LayerPicture, visualize

__all__ = ["LayerPicture", "visualize"]
