"""What does DCNv4 cost, and where? Compare the shipped variants of one scale with the plain model.

python examples/compare_variants.py [scale=n] [imgsz=640] [out=table.csv]
"""

from __future__ import annotations

import sys

from yolo_dcnv4 import compare
from yolo_dcnv4.cli import Option, parse_options


def main() -> None:
    """Print the comparison and name the smallest model."""
    options = parse_options(sys.argv[1:], {"scale": Option(str), "imgsz": Option(int), "out": Option(str)})
    scale = options.pop("scale", "n")
    variants = ("", "-dcnv4-backbone", "-dcnv4-neck", "-dcnv4-full", "-dcnv4-conv")
    costs = compare([f"yolov8{scale}{variant}.yaml" for variant in variants], **options)
    smallest = min(costs, key=lambda cost: cost.parameters)
    print(f"fewest parameters: {smallest.model} ({smallest.parameters_change_pct:+.1f} % of {costs[0].model})")


if __name__ == "__main__":
    main()
