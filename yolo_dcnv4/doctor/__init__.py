"""Says what this environment holds, which backend serves, whether YOLO knows the blocks, and how to mend what is wrong.

Importing this loads neither torch nor ultralytics: it has to work where they are missing or broken.
"""

from yolo_dcnv4.doctor.examination import Examination, examine
from yolo_dcnv4.doctor.findings import Finding

__all__ = ["Examination", "Finding", "examine"]
