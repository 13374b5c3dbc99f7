"""Which blocks of this pack a model YAML may name, and which module of ultralytics each one stands in for."""

from __future__ import annotations

# C3k_DCNv4 is missing on purpose: C3k stands in no list of parse_model, it only lives inside C3k2
PACK = {
    "DCNv4Conv": "Conv",
    "Bottleneck_DCNv4": "Bottleneck",
    "C2f_DCNv4": "C2f",
    "C3_DCNv4": "C3",
    "C3k2_DCNv4": "C3k2",
}

# the file of yolo_dcnv4.modules that defines each block
HOMES = {
    "DCNv4Conv": "conv",
    "Bottleneck_DCNv4": "block",
    "C2f_DCNv4": "block",
    "C3_DCNv4": "block",
    "C3k2_DCNv4": "c3k2",
}
