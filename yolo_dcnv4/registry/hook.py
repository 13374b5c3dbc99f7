"""The run-time hook: register modules with the ultralytics that is loaded in this process."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import linecache
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeVar

from torch import nn

from yolo_dcnv4.registry import (
    arguments,
    children,
    export_formats,
    fusing,
    safe_load,
    stride_probe,
    task_names,
    transfer,
    yaml_names,
)
from yolo_dcnv4.registry.errors import RegistrationError
from yolo_dcnv4.registry.pack import PACK
from yolo_dcnv4.registry.rewrite import SUPPORTED, known_modules, rewrite

TASKS = "ultralytics.nn.tasks"

M = TypeVar("M", bound=type[nn.Module])


@dataclass(frozen=True)
class Registration:
    """A class and the name of the module it is like; `like=None` takes its YAML arguments as they are."""

    cls: type[nn.Module]
    like: str | None


class _Hook:
    """What has been changed in one loaded `ultralytics.nn.tasks`, and how to undo it."""

    def __init__(self, tasks: ModuleType):
        self.tasks = tasks
        self.version = _version()
        self.function = _parse_model_of(tasks, self.version)
        self.namespaces = [self.function.__globals__]
        if vars(tasks) is not self.function.__globals__:
            self.namespaces.append(vars(tasks))
        self.original: CodeType = self.function.__code__
        self.code: CodeType = self.original
        self.source, self.first_line = _source_of(self.function, self.version)
        if not self.is_source_of_loaded_code():
            raise RegistrationError(_not_what_is_loaded(self.function, self.version))
        self.registrations: dict[str, Registration] = {}
        self.replaced: list[tuple[Any, str, Any, Any]] = []

    def compile(self, source: str) -> CodeType:
        """Compile `parse_model` under its own file name and line numbers, so that tracebacks show the right lines."""
        tree = ast.increment_lineno(ast.parse(source), self.first_line - 1)
        code = compile(tree, self.original.co_filename, "exec", flags=_future_flags(self.original), dont_inherit=True)
        return next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == "parse_model")

    def is_source_of_loaded_code(self) -> bool:
        """Return whether the source, which is read from the file only now, is the one of the code that is loaded."""
        try:
            compiled = self.compile(self.source)
        except (SyntaxError, StopIteration):
            return False
        # not co_code: the compiler calls methods of names otherwise where it sees them imported in the same file
        return _outline(compiled) == _outline(self.original)

    def is_current(self) -> bool:
        """Return whether the change still stands, and stands in what other code now sees as parse_model."""
        seen = getattr(self.tasks, "parse_model", None)
        return seen is not None and inspect.unwrap(seen) is self.function and self.function.__code__ is self.code

    def set(self, registrations: dict[str, Registration]) -> None:
        """Make `registrations` the ones that hold; raises before anything is changed."""
        likes = {name: entry.like for name, entry in registrations.items() if entry.like is not None}
        text = rewrite(self.source, likes, version=self.version)
        code = self.original if text == self.source else self.compile(text)
        self.function.__code__ = self.code = code
        for name, entry in registrations.items():
            for namespace in self.namespaces:
                namespace[name] = entry.cls
        self.registrations = registrations

    def wrap(self) -> None:
        """Wrap the functions of ultralytics around parse_model."""
        base = self.tasks.BaseModel
        self.replace(self.tasks, "check_yaml", yaml_names.with_shipped_yamls(self.tasks.check_yaml))
        self.replace(base, "fuse", fusing.with_fuse_protocol(base.fuse))
        if hasattr(base, "load"):  # a line in the log less is no reason to refuse a release
            self.replace(base, "load", transfer.with_fresh_layers_named(base.load, self.is_registered))
        self.wrap_guess_model_task()
        for cls in list(vars(self.tasks).values()):
            if inspect.isclass(cls) and issubclass(cls, base) and "__init__" in vars(cls):
                init = arguments.explained(cls.__init__, self.explain)
                self.replace(cls, "__init__", stride_probe.with_cuda_probe(init))

    def wrap_guess_model_task(self) -> None:
        """Wrap the function wherever it has been imported to."""
        original = getattr(self.tasks, "guess_model_task", None)
        if original is None:
            return
        # a module may import ours now and keep it for good: it must ask for what is registered then
        ours = task_names.with_tasks_of_likes(original, _stock_name_now)
        for module in (self.tasks, *map(sys.modules.get, ("ultralytics.nn", "ultralytics.engine.model"))):
            if module is not None and vars(module).get("guess_model_task") is original:
                self.replace(module, "guess_model_task", ours)

    def explain(self, error: BaseException) -> str:
        """Return what an error in parse_model has to do with a registered class, empty for nothing."""
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code is not self.code:
            trace = trace.tb_next
        if trace is None:
            return ""
        values = trace.tb_frame.f_locals
        cls, row, passed = (values.get(name) for name in ("m", "i", "args"))
        entry = self.registrations.get(getattr(cls, "__name__", ""))
        if entry is None or entry.cls is not cls or not isinstance(row, int) or not isinstance(passed, list):
            return ""
        return arguments.described(entry.cls, self.class_of(_stock_name(cls.__name__, self.registrations)), row, passed)

    def class_of(self, like: str | None) -> type[nn.Module] | None:
        """Return the class of ultralytics or torch by that name, as parse_model sees it."""
        thing: Any = None
        for number, part in enumerate((like or "").split(".")):
            thing = self.function.__globals__.get(part) if number == 0 else getattr(thing, part, None)
        return thing if inspect.isclass(thing) and issubclass(thing, nn.Module) else None

    def is_registered(self, module: nn.Module) -> bool:
        """Return whether a module is of a registered class."""
        return isinstance(module, tuple(entry.cls for entry in self.registrations.values()))

    def replace(self, owner: Any, name: str, ours: Any) -> None:
        self.replaced.append((owner, name, getattr(owner, name), ours))
        setattr(owner, name, ours)

    def undo(self) -> None:
        """Put everything back that is still as this hook left it."""
        if self.function.__code__ is self.code:
            self.function.__code__ = self.original
        for owner, name, original, ours in reversed(self.replaced):
            if vars(owner).get(name) is ours:
                setattr(owner, name, original)
        for name, entry in self.registrations.items():
            if name in self.original.co_names:  # a patched checkout imports the class itself
                continue
            for namespace in self.namespaces:
                if namespace.get(name) is entry.cls:
                    del namespace[name]


_lock = threading.RLock()
_hook: _Hook | None = None


def register() -> None:
    """Register this package's blocks with ultralytics; does nothing where that is done already.

    A block is left out where the installed ultralytics does not have the module that it is like.

    Raises:
        RegistrationError: ultralytics' `parse_model` has changed beyond recognition, has no source, or knows another
            class by the name of one of the blocks. Nothing is changed then.
    """
    with _lock:
        blocks = importlib.import_module("yolo_dcnv4.modules")
        _add([(getattr(blocks, name), like) for name, like in PACK.items() if hasattr(blocks, name)])
        safe_load.allow(safe_load.classes_of("yolo_dcnv4.modules"))
        safe_load.allow(safe_load.classes_of("yolo_dcnv4.ops.window"))
        export_formats.watch()


def register_module(cls: M, like: str | type[nn.Module] | None = "C2f", *, helpers: Sequence[type] = ()) -> M:
    """Make a module usable in model YAMLs by its class name, with the treatment that another module gets.

    Child processes (workers of distributed training) register the class too, if they can import it.

    Args:
        cls: Your class, a subclass of `torch.nn.Module`.
        like: The module of ultralytics (name or class), or one registered before, whose treatment in `parse_model`
            yours gets: input and output channels put first and scaled, the repeat count passed on, and so on. `None`
            for no treatment: the YAML's arguments are passed as they are, and channels stay.
        helpers: Further classes that instances of `cls` hold, to be allowed in checkpoints loaded with
            ULTRALYTICS_SAFE_LOAD=1.

    Returns:
        `cls`, so that this serves as a decorator.

    Raises:
        TypeError: `cls` is no subclass of `torch.nn.Module`, cannot take the arguments that `like` gets, or is no
            subclass of the head it is like; or `like` or `helpers` are of a wrong type.
        RegistrationError: ultralytics knows another class by that name, does not know `like`, or has changed beyond
            recognition. Nothing is changed then.
    """
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        raise TypeError(f"cls must be a subclass of torch.nn.Module, got {cls!r}")
    if like is not None and not isinstance(like, str) and not (inspect.isclass(like) and issubclass(like, nn.Module)):
        raise TypeError(f"like must be the name of a module, a subclass of torch.nn.Module or None, got {like!r}")
    for helper in helpers:
        if not inspect.isclass(helper):
            raise TypeError(f"helpers must be classes, got {helper!r}")
    with _lock:
        _add([(cls, like)])
        safe_load.allow([cls, *helpers])
        children.announce(cls, registered()[cls.__name__].like, helpers)
    return cls


def registered() -> dict[str, Registration]:
    """Return what is registered in this process: name in a YAML -> class and the module it is like."""
    return dict(_hook.registrations) if _hook is not None and _hook.is_current() else {}


def unregister() -> None:
    """Take everything back: parse_model, names, wrapped functions, allowed classes. Registered anew by `register()`."""
    global _hook
    with _lock:
        if _hook is not None:
            _hook.undo()
            safe_load.withdraw()
            children.withdraw()
            export_formats.withdraw()
            _hook = None


def _add(new: Iterable[tuple[type[nn.Module], str | type[nn.Module] | None]]) -> None:
    global _hook
    tasks = importlib.import_module(TASKS)
    # importing ultralytics may have run the post-import hook, and with it this function
    kept = {} if _hook is None else _hook.registrations
    fresh = _hook is None or _hook.tasks is not tasks or not _hook.is_current()
    hook = _Hook(tasks) if _hook is None or fresh else _hook
    registrations = dict(kept)
    for cls, like in new:
        _check_name(cls, hook, kept)
        registrations[cls.__name__] = Registration(cls, _name_of(like, hook))
        if stock := hook.class_of(_stock_name(cls.__name__, registrations)):
            arguments.check(cls, stock)
    if not fresh and registrations == kept:
        return
    hook.set(registrations)
    if fresh:
        try:
            hook.wrap()
        except AttributeError as error:
            hook.undo()
            raise RegistrationError(
                f"ultralytics {hook.version} has changed beyond recognition: {error}. Nothing was changed. "
                f"Install an ultralytics that is supported ({SUPPORTED})."
            ) from error
        _hook = hook


def _stock_name(name: str, registrations: dict[str, Registration]) -> str | None:
    """Return what a registered name is like in the end, None for nothing; a circle is for `rewrite` to refuse."""
    like = None
    for _ in registrations:
        if name not in registrations:
            break
        like = name = registrations[name].like or ""
    return like or None


def _stock_name_now(name: str) -> str | None:
    return _stock_name(name, registered())


def _check_name(cls: type[nn.Module], hook: _Hook, kept: dict[str, Registration]) -> None:
    name = cls.__name__
    if not name.isidentifier() or name in _local_names(hook.original) or hasattr(builtins, name):
        raise RegistrationError(
            f"a module cannot be called {name!r} in a YAML: parse_model or Python uses the name. Rename the class."
        )
    for namespace in hook.namespaces:
        known = namespace.get(name)
        if known is None or known is cls:
            continue
        # a notebook cell that is run again defines its class anew
        if name in kept and known is kept[name].cls and _place(known) == _place(cls):
            continue
        raise RegistrationError(
            f"the name {name} is taken: ultralytics {hook.version} knows {_place(known)} by it, and {_place(cls)} "
            "cannot stand beside it. Rename the class."
        )


def _name_of(like: str | type[nn.Module] | None, hook: _Hook) -> str | None:
    if like is None or isinstance(like, str):
        return like
    known = hook.function.__globals__.get(like.__name__)
    if known is not None and known is not like:
        raise RegistrationError(
            f"like={_place(like)} is not the {like.__name__} that ultralytics {hook.version} knows, {_place(known)}"
        )
    if known is None and not any(name.endswith(f".{like.__name__}") for name in known_modules(hook.source)):
        raise RegistrationError(
            f"like={_place(like)} is unknown to parse_model of ultralytics {hook.version}. "
            f"Known there: {', '.join(known_modules(hook.source))}"
        )
    return like.__name__


def _place(thing: Any) -> str:
    if not inspect.isclass(thing):
        return f"the {type(thing).__name__} {thing!r}"
    return f"{thing.__module__}.{thing.__qualname__}"


def _version() -> str:
    return str(getattr(importlib.import_module("ultralytics"), "__version__", "unknown"))


def _parse_model_of(tasks: ModuleType, version: str) -> FunctionType:
    if not hasattr(tasks, "parse_model"):
        unfinished = getattr(tasks.__spec__, "_initializing", False)
        reason = "is still being imported" if unfinished else f"of ultralytics {version} has no function parse_model"
        raise RegistrationError(f"{TASKS} {reason}; nothing was registered")
    function = inspect.unwrap(tasks.parse_model)
    if not isinstance(function, FunctionType):
        raise RegistrationError(
            f"parse_model of ultralytics {version} is a {type(function).__name__}, not a Python function whose code "
            "can be replaced. Nothing was changed. Install ultralytics from PyPI."
        )
    return function


def _source_of(function: FunctionType, version: str) -> tuple[str, int]:
    try:
        lines, first_line = inspect.getsourcelines(function)
    except (OSError, TypeError) as error:
        if linecache.getlines(function.__code__.co_filename):
            raise RegistrationError(_not_what_is_loaded(function, version)) from error
        raise RegistrationError(
            f"registration reads the source of parse_model, and {function.__code__.co_filename} (ultralytics "
            f"{version}) is not there: {error}. Nothing was changed. Install ultralytics with its .py files: "
            "pip install --force-reinstall --no-deps ultralytics"
        ) from error
    return "".join(lines), first_line


def _not_what_is_loaded(function: FunctionType, version: str) -> str:
    return (
        f"the source of parse_model in {function.__code__.co_filename} (ultralytics {version}) is not what is loaded: "
        "the file has changed since it was imported, or other code has replaced the function's code. Nothing was "
        "changed. Restart the process, or register before the other code does."
    )


def _future_flags(code: CodeType) -> int:
    import __future__

    known = 0
    for name in __future__.all_feature_names:
        known |= getattr(__future__, name).compiler_flag
    return code.co_flags & known


def _local_names(code: CodeType) -> tuple[str, ...]:
    return code.co_varnames + code.co_cellvars


def _outline(code: CodeType) -> tuple[Any, ...]:
    constants = [constant for constant in code.co_consts if not isinstance(constant, CodeType)]
    return code.co_argcount, _local_names(code), code.co_names, constants
