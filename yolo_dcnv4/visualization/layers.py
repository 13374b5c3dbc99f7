"""Records where each DCNv4 layer of a model samples in one forward pass."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from yolo_dcnv4.modules import DCNv4, DCNv4Core


@dataclass(frozen=True)
class LayerSampling:
    """Where one layer samples; the arrays are (H_out, W_out, groups, K), in pixels of the sampled map.

    Attributes:
        path: Path of the layer in the model.
        map_size: (height, width) of the sampled map.
        x: Horizontal positions.
        y: Vertical positions.
        dx: How far the learned offsets have moved the points to the right.
        dy: How far they have moved them down.
        weights: Aggregation weights.
    """

    path: str
    map_size: tuple[int, int]
    x: np.ndarray
    y: np.ndarray
    dx: np.ndarray
    dy: np.ndarray
    weights: np.ndarray

    @property
    def out_size(self) -> tuple[int, int]:
        """(height, width) of the output map."""
        return self.x.shape[0], self.x.shape[1]

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.x.shape[2]

    @property
    def mean_offset_lengths(self) -> np.ndarray:
        """Mean length of the offsets over groups and points, (H_out, W_out)."""
        return np.hypot(self.dx, self.dy).mean((2, 3))

    @property
    def outside(self) -> float:
        """Share of the points that lie off the map and contribute nothing."""
        height, width = self.map_size
        inside = (self.x > -1) & (self.x < width) & (self.y > -1) & (self.y < height)
        return 1 - float(inside.mean())

    def of_group(self, group: int) -> LayerSampling:
        """Return the points of one group alone."""
        kept = (array[:, :, group : group + 1] for array in (self.x, self.y, self.dx, self.dy, self.weights))
        return LayerSampling(self.path, self.map_size, *kept)


def choose_layers(net: nn.Module, chosen: int | str | Sequence[int | str] | None) -> list[str]:
    """Return the paths of DCNv4 layers in a model.

    Args:
        net: The model.
        chosen: Index of a layer of the YAML, path of a module, or a list of these: all DCNv4 layers in it are taken.
            `None` takes all.

    Raises:
        ValueError: There is no DCNv4 layer there, or none at all.
    """
    paths = [path for path, module in net.named_modules() if isinstance(module, DCNv4)]
    if not paths:
        raise ValueError("the model holds no DCNv4 layer")
    if chosen is None:
        return paths
    taken: set[str] = set()
    for choice in [chosen] if isinstance(chosen, (int, str)) else chosen:
        root = f"model.{choice}" if re.fullmatch(r"\d+", str(choice)) else str(choice)
        found = {path for path in paths if f"{path}.".startswith(f"{root}.")}
        if not found:
            raise ValueError(f"layer={choice} holds no DCNv4 layer; there are {', '.join(paths)}")
        taken |= found
    return [path for path in paths if path in taken]


def record_sampling(net: nn.Module, picture: Tensor, paths: Sequence[str]) -> list[LayerSampling]:
    """Run a model on one picture and return where its layers sample.

    Args:
        net: The model, in eval mode.
        picture: Input (1, C, H, W).
        paths: Paths of DCNv4 layers.
    """
    seen: dict[str, LayerSampling] = {}
    hooks = []
    for path in paths:
        core = net.get_submodule(path).core
        hooks.append(core.register_forward_pre_hook(partial(_record, seen, path)))  # type: ignore[operator, union-attr]
    try:
        with torch.no_grad():
            net(picture)
    finally:
        for hook in hooks:
            hook.remove()
    return [seen[path] for path in paths]


def _record(seen: dict[str, LayerSampling], path: str, core: DCNv4Core, inputs: tuple[Any, ...]) -> None:
    points = core.sampling_points(*inputs)
    height, width = inputs[0].shape[1:3]
    arrays = (tensor[0].cpu().numpy() for tensor in points)
    seen[path] = LayerSampling(path, (height, width), *arrays)
