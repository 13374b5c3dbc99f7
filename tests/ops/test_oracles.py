"""The two oracles agree, so that a slip in one of them does not decide what is right."""

from __future__ import annotations

import pytest
import torch

from .cases import CASES, assert_close, relative_error
from .oracles import numpy_oracle, torchvision_gradients

SMALL = [case for case in CASES if case.channels <= 64 and case.n < 10 and not case.big and case.value_layout == "contiguous"]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_numpy_loop_equals_torchvision(case):
    inputs = case.inputs(torch.float64)
    assert_close(
        numpy_oracle(*inputs, case.geometry), torchvision_gradients(*inputs, case.geometry), torch.float64, 1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_inputs_survive_rounding(dtype):
    """The oracle sees the very numbers the operator sees."""
    inputs = CASES[0].inputs(dtype, poison=0.0)
    for tensor in inputs:
        assert relative_error(tensor.double().to(dtype), tensor) == 0
