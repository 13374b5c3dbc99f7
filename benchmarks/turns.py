"""Functions timed in turns, so that a machine that is busy for a while disturbs all alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from torch.utils.benchmark import Timer

TURN_SECONDS = 0.2


def seconds(functions: dict[str, Callable[[], Any]], rounds: int, threads: int = 1) -> dict[str, float]:
    """Return the median time of each function, called again and again in its turn.

    Args:
        functions: What to call, by name.
        rounds: Turns of each function.
        threads: Threads that PyTorch may use on the CPU.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            timer = Timer("function()", globals={"function": function}, num_threads=threads)
            times[name] += timer.blocked_autorange(min_run_time=TURN_SECONDS).times
    return {name: statistics.median(values) for name, values in times.items()}
