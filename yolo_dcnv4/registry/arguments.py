"""Say clearly where a registered class cannot take the arguments that `parse_model` gives it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

HEADS = "ultralytics.nn.modules.head"


def check(cls: type[nn.Module], like: type[nn.Module]) -> None:
    """Refuse a class that no row of a YAML could build in the place of `like`.

    Args:
        cls: The class to register.
        like: The module of ultralytics it is like.

    Raises:
        TypeError: `like` gets input and output channels and `cls` does not take two arguments, or `like` is a head
            and `cls` not a subclass of it.
    """
    if like.__module__ == HEADS and not issubclass(cls, like):
        raise TypeError(
            f"{cls.__name__} cannot be like the head {like.__name__} without being a subclass of it: ultralytics finds "
            f"the strides, the loss and the export of a model by isinstance(head, {like.__name__}). "
            f"Write class {cls.__name__}({like.__name__})."
        )
    parameters = _parameters(like)
    # what comes after the channels is the YAML's choice
    channels = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD][:2]
    try:
        inspect.signature(cls).bind_partial(*channels)
    except TypeError as error:
        raise TypeError(
            f"{cls.__name__}{signature(cls)} cannot stand for {like.__name__}{signature(like)}: parse_model passes at "
            f"least ({', '.join(channels)}), in this order and by position ({error})"
        ) from error
    except ValueError:
        pass  # no signature to read: parse_model will tell


def explained(init: Callable[..., None], reason: Callable[[BaseException], str]) -> Callable[..., None]:
    """Wrap a model's constructor so that an error in `parse_model` also says which registered class it is about.

    Args:
        init: `__init__` of a subclass of ultralytics' BaseModel.
        reason: Gives the sentence to add to an error, empty for none.
    """

    @functools.wraps(init)
    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except Exception as error:
            text = reason(error)
            # constructors of subclasses call each other
            if text and error.args and isinstance(error.args[0], str) and text not in error.args[0]:
                error.args = (f"{error.args[0]}\n{text}", *error.args[1:])
            raise

    return __init__


def described(cls: type, like: type | None, row: int, arguments: list[Any]) -> str:
    """Return what a registered class got from a row of a YAML and what was to be expected.

    Args:
        cls: The registered class.
        like: The module of ultralytics it is like, None for none.
        row: Number of the layer.
        arguments: What `parse_model` passed.
    """
    got = f"Layer {row} of the model passes {', '.join(map(repr, arguments)) or 'nothing'} to {cls.__name__}"
    expected = (
        f"registered like {like.__name__}{signature(like)}: it must take what {like.__name__} takes, by position, and "
        "have the attributes that parse_model sets on it"
        if like is not None
        else "registered with like=None: it gets the YAML's arguments as they are"
    )
    return f"{got}{signature(cls)}, {expected}."


def signature(cls: type) -> str:
    """Return a constructor's parameters without their annotations: `(c1, c2, n=1)`."""
    parameters = [p.replace(annotation=p.empty) for p in _parameters(cls)]
    return str(inspect.Signature(parameters))


def _parameters(cls: type) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(cls).parameters.values())
    except ValueError:
        return []
