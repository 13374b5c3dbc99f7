"""Models of ultralytics by name: load them, make them ready, and what pictures they take."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


def load_model(name: str) -> Any:
    """Return the model of a YAML or checkpoint as a module; arguments and errors as of `load_yolo`."""
    return load_yolo(name).model


def load_yolo(name: str) -> Any:
    """Return ultralytics' object for a YAML or checkpoint; this package's blocks must be registered.

    Args:
        name: Model YAML or checkpoint.

    Raises:
        FileNotFoundError: There is no such model.
        RuntimeError: It cannot be built; names the model and the cause.
    """
    from ultralytics import RTDETR, YOLO

    try:
        with quiet():
            return (RTDETR if "rtdetr" in Path(name).stem.lower() else YOLO)(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: no such model; {error}") from error
    except Exception as error:
        raise RuntimeError(f"{name}: the model cannot be built: {type(error).__name__}: {error}") from error


def fused_for_inference(net: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Return a model of ultralytics on a device, in eval mode and fused, as predict runs it."""
    import torch

    net = net.to(device).eval()
    # fusing in older releases would leave parameters with a history
    with torch.no_grad():
        net.fuse(verbose=False)  # type: ignore[operator]
    return net.to(dtype)


def input_channels(net: nn.Module) -> int:
    """Return how many channels a model of ultralytics takes."""
    # called `ch` in older releases
    return net.yaml.get("channels", net.yaml.get("ch", 3))  # type: ignore[union-attr, operator, return-value]


def image_size(imgsz: int | Sequence[int]) -> list[int]:
    """Return [height, width] of a picture size as a user gives it.

    Args:
        imgsz: A side, or (height, width), in pixels.

    Raises:
        ValueError: It is neither.
    """
    size = [imgsz, imgsz] if isinstance(imgsz, int) else list(imgsz) if isinstance(imgsz, (list, tuple)) else []
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"imgsz must be a positive integer or a pair (height, width) of them, got {imgsz!r}")
    # get_flops of older releases tells a pair from a side by `list`
    return size


@contextmanager
def quiet(least: int = logging.WARNING) -> Iterator[None]:
    """Keep ultralytics' summaries, one line per model, off the screen.

    Args:
        least: Level of `logging` from which messages are shown.
    """
    from ultralytics.utils import LOGGER

    level = LOGGER.level
    LOGGER.setLevel(least)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
