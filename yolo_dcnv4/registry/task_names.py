"""Let ultralytics see the task of a model whose head is a registered class: it reads tasks from heads' names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn


def with_tasks_of_likes(guess: Callable[[Any], Any], like_of: Callable[[str], str | None]) -> Callable[[Any], Any]:
    """Wrap `guess_model_task` so that a registered head stands for the task of the head it is like.

    Args:
        guess: The function to wrap.
        like_of: Gives the module of ultralytics that a registered name is like; None for any other name.
    """

    @functools.wraps(guess)
    def guess_task(model: Any) -> Any:
        config = model.yaml if isinstance(model, nn.Module) and hasattr(model, "yaml") else model
        renamed = _with_head_of_ultralytics(config, like_of)
        if renamed is None:
            return guess(model)
        # what a checkpoint says of its task comes before the name of its head
        found = guess(model) if isinstance(model, nn.Module) else None
        return found or guess(renamed)

    return guess_task


def _with_head_of_ultralytics(config: Any, like_of: Callable[[str], str | None]) -> dict[str, Any] | None:
    """Return a model's YAML with ultralytics' head in place of a registered one, None where there is no such head."""
    try:
        *rows, (source, repeats, name, arguments) = config["head"]
    except (TypeError, KeyError, ValueError):
        return None
    like = like_of(name) if isinstance(name, str) else None
    return None if like is None else {**config, "head": [*rows, [source, repeats, like, arguments]]}
