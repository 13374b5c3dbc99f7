"""What one model costs, next to the first of a comparison."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelCost:
    """What one model costs.

    Args:
        model: The model as the caller named it.
        layers: Number of layers, as ultralytics counts them.
        parameters: Number of parameters.
        gradients: Number of parameters that are trained; 0 for a checkpoint, which ultralytics stores frozen.
        gflops: 10^9 floating point operations of one picture; a multiply-add is two.
        parameters_change_pct: Difference in parameters to the first model, in per cent.
        gflops_change_pct: Difference in GFLOPs to the first model, in per cent.
    """

    model: str
    layers: int
    parameters: int
    gradients: int
    gflops: float
    parameters_change_pct: float
    gflops_change_pct: float
