from __future__ import annotations

from functools import partial

import pytest
import torch

from yolo_dcnv4 import timing
from yolo_dcnv4.timing import LEAST_RUNS, MOST_RUNS, WARM_UP_RUNS, median_seconds, run_seconds


class Work:
    """Takes the given times on a clock of its own, one after the other, then the last one again and again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *durations: float):
        self.durations, self.calls, self.now = durations, 0, 0.0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def __call__(self) -> None:
        self.now += self.durations[min(self.calls, len(self.durations) - 1)]
        self.calls += 1


def test_slow_warm_up_does_not_count(monkeypatch: pytest.MonkeyPatch):
    work = Work(monkeypatch, *[50.0] * WARM_UP_RUNS, 0.25)
    assert median_seconds(work, "cpu") == pytest.approx(0.25)


def test_median_is_not_moved_by_an_outlier(monkeypatch: pytest.MonkeyPatch):
    probing = WARM_UP_RUNS + LEAST_RUNS
    work = Work(monkeypatch, *[0.5] * probing, 0.5, 90.0, 0.5, 0.75, 0.5)
    assert median_seconds(work, "cpu", seconds=1) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("duration", "runs"), [(0.01, 200), (10.0, LEAST_RUNS), (1e-9, MOST_RUNS)], ids=["fits", "slow", "fast"]
)
def test_goes_on_for_about_the_time_asked_for(duration: float, runs: int, monkeypatch: pytest.MonkeyPatch):
    times = run_seconds(Work(monkeypatch, duration), "cpu", seconds=2.001)
    assert len(times) == runs
    assert times == pytest.approx([duration] * runs, rel=1e-3)


@pytest.mark.parametrize(
    ("device", "seconds", "message"),
    [("meta", 1.0, "device must be a CPU or CUDA device, got 'meta'"), ("cpu", 0.0, "seconds must be positive, got 0")],
)
def test_refuses(device: str, seconds: float, message: str):
    with pytest.raises(ValueError, match=message):
        run_seconds(lambda: None, device, seconds)


@pytest.mark.gpu
def test_cuda_time_is_that_of_the_gpu():
    # launches take microseconds, whatever they launch
    short, long = (median_seconds(partial(torch.cuda._sleep, cycles), "cuda", 0.3) for cycles in (10**7, 3 * 10**7))
    assert short > 1e-3
    assert long / short == pytest.approx(3, rel=0.2)
