"""What the matrix runs: releases of ultralytics and of torch, and the pins that an old release needs today."""

from __future__ import annotations

from dataclasses import dataclass, field

NEWEST = "newest"
TORCHES = ("2.10.0", NEWEST)

# np.trapz left with numpy 2.4; OpenCV 5 and numpy 2 are younger than these releases
OLD = ("numpy<2", "opencv-python<5")
OLDER = ("numpy<2.4", "opencv-python<5")
# torch >= 2.6 loads nothing but tensors unless it is told otherwise, and these releases do not tell
LOADS_ALL = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}


@dataclass(frozen=True)
class Cell:
    """One release of ultralytics.

    Args:
        ultralytics: Its version, or `NEWEST`.
        pins: Requirements besides those it states itself.
        environment: Variables set for it.
    """

    ultralytics: str
    pins: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


CELLS = (
    Cell("8.0.239", OLD),
    Cell("8.0.239", OLD, LOADS_ALL),
    Cell("8.1.47", OLD),
    Cell("8.1.47", OLD, LOADS_ALL),
    Cell("8.2.103", OLD),
    Cell("8.3.0", OLDER),
    Cell("8.3.100", OLDER),
    Cell("8.3.200", OLDER),
    Cell("8.3.253", OLDER),
    Cell("8.4.0"),
    Cell("8.4.60"),
    Cell("8.4.120"),
    Cell("8.4.190"),
    Cell(NEWEST),
)
