"""How long a function takes on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

WARM_UP_RUNS = 3
LEAST_RUNS = 5
MOST_RUNS = 1000


def median_seconds(fn: Callable[[], Any], device: torch.device | str, seconds: float = 1.0) -> float:
    """Return the median time of one call of `fn`; arguments as in `run_seconds`."""
    return statistics.median(run_seconds(fn, device, seconds))


def run_seconds(fn: Callable[[], Any], device: torch.device | str, seconds: float = 1.0) -> list[float]:
    """Return the time of each of many calls of `fn`, after a warm-up.

    On CUDA a time is the one between two events on the current stream: what the GPU needed, or, where the GPU waits
    for Python to launch the next kernel, what that took. On the CPU it is wall time.

    Args:
        fn: What is timed. It works on `device`, and does not wait for it.
        device: A CPU or CUDA device.
        seconds: About how long to go on, at least 5 and at most 1000 calls.

    Raises:
        ValueError: `device` is neither CPU nor CUDA, or `seconds` is not positive.
    """
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be a CPU or CUDA device, got {str(device)!r}")
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds!r}")
    times = _cpu_times if device.type == "cpu" else _cuda_times
    for _ in range(WARM_UP_RUNS):
        fn()
    once = max(statistics.median(times(fn, device, LEAST_RUNS)), 1e-9)
    return times(fn, device, min(max(int(seconds / once), LEAST_RUNS), MOST_RUNS))


def _cpu_times(fn: Callable[[], Any], device: torch.device, runs: int) -> list[float]:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        fn()
        times.append(time.perf_counter() - start)
    return times


def _cuda_times(fn: Callable[[], Any], device: torch.device, runs: int) -> list[float]:
    with torch.cuda.device(device):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
        torch.cuda.synchronize()
        events[0].record()
        for event in events[1:]:
            fn()
            event.record()
        # once, at the end: waiting after every call would add the time to fill the queue again
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in pairwise(events)]
