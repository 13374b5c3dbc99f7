"""Write yolo_dcnv4's blocks into a source checkout of ultralytics: `python patches/apply.py DIR [--check] [--diff]`."""

from __future__ import annotations

import sys
from pathlib import Path

# runs from a clone in which nothing is installed yet
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from yolo_dcnv4.registry.checkout import main

if __name__ == "__main__":
    sys.exit(main())
