"""The doctor as a command: `yolo-dcnv4 doctor [format=text|json]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from yolo_dcnv4.doctor.examination import examine
from yolo_dcnv4.doctor.report import FORMATS

FINE, PROBLEM, MISUSED = 0, 1, 2


def run(arguments: Sequence[str]) -> int:
    """Examine this environment and print what was found.

    Args:
        arguments: Such as `["format=json"]`. Read here, since ultralytics' parser may be what is broken.

    Returns:
        0, or 1 where something is wrong, or 2 for a wrong argument.
    """
    format = "text"
    for argument in arguments:
        key, _, format = argument.partition("=")
        if key != "format" or format not in FORMATS:
            print(f"unknown argument {argument!r}; expected format={' or format='.join(FORMATS)}", file=sys.stderr)
            return MISUSED
    examination = examine()
    print(FORMATS[format](examination), end="")
    return FINE if examination.is_fine else PROBLEM
