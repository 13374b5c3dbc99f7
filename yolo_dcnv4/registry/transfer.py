"""Say which layers start fresh where a model with registered modules takes weights over from another model."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

# `yolo train pretrained=...` loads twice: the weights into a model, and that one into the model of the trainer
_untrained: WeakKeyDictionary[nn.Module, frozenset[str]] = WeakKeyDictionary()


def with_fresh_layers_named(load: Callable[..., Any], is_registered: Callable[[nn.Module], bool]) -> Callable[..., Any]:
    """Wrap `BaseModel.load` so that it also logs which layers keep tensors as they were initialised, and how many.

    ultralytics transfers every tensor whose name and shape fit, and logs their number alone.

    Args:
        load: `BaseModel.load`.
        is_registered: Tells a registered module; models without one load as before.
    """

    @functools.wraps(load)
    def load_and_name(self: nn.Module, weights: Any, *args: Any, **kwargs: Any) -> Any:
        source = weights.get("ema") or weights.get("model") if isinstance(weights, dict) else weights
        if not isinstance(source, nn.Module) or not any(is_registered(module) for module in self.modules()):
            return load(self, weights, *args, **kwargs)
        shapes = {name: tensor.shape for name, tensor in source.state_dict().items()}
        unfit = {name: tensor.clone() for name, tensor in self.state_dict().items() if shapes.get(name) != tensor.shape}
        loaded = load(self, weights, *args, **kwargs)
        state = self.state_dict()
        fresh = [
            name
            for name, tensor in state.items()
            if name in _untrained.get(source, ())
            or (shapes.get(name) != tensor.shape and not _is_filled(unfit.get(name), tensor))
        ]
        _untrained[self] = frozenset(fresh)
        verbose = args[0] if args else kwargs.get("verbose", True)
        if fresh and verbose:
            from ultralytics.utils import LOGGER

            LOGGER.info(_line(self, fresh, state))
        return loaded

    return load_and_name


def _is_filled(before: Tensor | None, after: Tensor) -> bool:
    # ultralytics fills some tensors in part: a first convolution of more channels, rows of classes known by name
    return before is not None and before.shape == after.shape and not torch.equal(before, after)


def _line(model: nn.Module, fresh: Collection[str], state: Collection[str]) -> str:
    total, modules = _per_layer(state), dict(model.named_modules())
    layers = [
        f"{layer.removeprefix('model.')} {type(modules[layer]).__name__} ({n} of {total[layer]})"
        # some models keep a tensor outside of their layers
        if layer in modules
        else layer
        for layer, n in _per_layer(fresh).items()
    ]
    return f"Starting fresh: {len(fresh)}/{len(state)} items, in layers {', '.join(layers)}"


def _per_layer(names: Iterable[str]) -> Counter[str]:
    """Count tensors by the layer whose they are: `model.4.m.0.cv1.bn.bias` belongs to `model.4`."""
    return Counter(".".join(name.split(".")[:2]) for name in names)
