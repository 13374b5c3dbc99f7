"""Say what starts fresh where weights are loaded into a model with registered modules, besides what was transferred."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def with_fresh_named(load: Callable[..., Any], is_ours: Callable[[nn.Module], bool]) -> Callable[..., Any]:
    """Wrap `BaseModel.load` so that it also logs which layers keep tensors as they were initialised, and how many.

    ultralytics transfers every tensor whose name and shape fit and logs their number alone.

    Args:
        load: `BaseModel.load`.
        is_ours: Tells whether a module is one of those whose models get the line; others load as before.
    """

    @functools.wraps(load)
    def load_and_tell(self: nn.Module, weights: Any, *args: Any, **kwargs: Any) -> Any:
        verbose = args[0] if args else kwargs.get("verbose", True)
        if not verbose or not any(is_ours(module) for module in self.modules()):
            return load(self, weights, *args, **kwargs)
        before = {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}
        loaded = load(self, weights, *args, **kwargs)
        # by value: besides what fits, ultralytics fills parts of tensors, such as the rows of classes known by name
        after = self.state_dict()
        fits = _shapes(weights)
        fresh = [name for name, tensor in after.items() if fits.get(name) != tensor.shape and _same(tensor, before.get(name))]
        if fresh:
            from ultralytics.utils import LOGGER

            LOGGER.info(_line(self, fresh, after))
        return loaded

    return load_and_tell
