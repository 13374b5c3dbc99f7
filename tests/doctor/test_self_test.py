from __future__ import annotations

import pytest
import torch

from yolo_dcnv4.doctor import self_test as module
from yolo_dcnv4.doctor.self_test import TOLERANCE, self_test
from yolo_dcnv4.ops import dcnv4


def test_passes_here_in_time():
    outcome = self_test("cpu")
    assert outcome["passed"] and 0 < outcome["forward"] < TOLERANCE / 10
    assert outcome["seconds"] < 5


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (lambda out: out * 1.001, ("forward", "backward")),
        (lambda out: out.roll(1, dims=2), ("forward", "backward")),
        (lambda out: out.detach() + 0.999 * (out - out.detach()), ("backward",)),
        (lambda out: out * float("nan"), ("forward", "backward")),
    ],
    ids=["scaled", "shifted", "gradient alone", "not a number"],
)
def test_finds_an_operator_that_is_wrong(wrong, found: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "dcnv4", lambda *tensors, **window: wrong(dcnv4(*tensors, **window)))
    outcome = self_test("cpu")
    assert not outcome["passed"]
    assert all(outcome[part] > TOLERANCE for part in found)


@pytest.mark.gpu
def test_passes_on_a_gpu():
    assert self_test(f"cuda:{torch.cuda.current_device()}")["passed"]
