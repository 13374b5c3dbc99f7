"""Devices by the names that ultralytics' command line uses."""

from __future__ import annotations

import torch


def find_device(name: str | int | torch.device | None = None) -> torch.device:
    """Return the device a user means.

    Args:
        name: `"cpu"`, `"cuda"`, `"cuda:1"` or the index of a CUDA device; `None` for the first CUDA device where there
            is one, else the CPU.

    Raises:
        ValueError: There is no such device.
    """
    if name is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    text = f"cuda:{name}" if str(name).isdigit() else str(name)
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda or the index of a CUDA device, got {name!r}") from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"device={name} is not there: torch sees {count} CUDA devices")
    return device
