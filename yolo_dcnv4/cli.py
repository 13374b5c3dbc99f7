"""The command `yolo-dcnv4`, in ultralytics' key=value style."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

USAGE = """\
yolo-dcnv4 COMMAND [key=value ...]

  compare    models=a.yaml,b.yaml,... [imgsz=640] [format=md|csv|json] [out=FILE] [plot=1|FILE.png] [results=a.csv,...]
             layers, parameters, gradients and GFLOPs, and their difference to the first model; plot= adds a figure
             with latency and mAP
  demo-data  out=DIR [train=160] [val=40] [imgsz=128] [seed=0]
             write a generated detection data set of circles, squares and triangles
  variant    model=FILE.yaml where=backbone|neck|full|4,6,8 [out=FILE] [layout=keep|plain]
             write any model YAML, bare name or path, with DCNv4 in place of the layers named
  build      [cuda=0|1|try] [arch=8.6,9.0+PTX|native|wide] [jobs=N] [verbose=1] [force=1]
             build the compiled operator
  doctor     [format=text|json]
             versions, backends, registration and a self-test, and how to mend what is wrong; status 1 for a problem
  bench      model=best.pt [plain=yolov8n.yaml] [imgsz=640] [batch=1] [device=cpu|0] [half=1]
             [format=md|json] [out=FILE]
             latency of a model and of its DCNv4 layers, against the same model without them
  visualize  model=best.pt source=picture.jpg [layer=4] [points=x1,y1,x2,y2,...] [group=0] [imgsz=640] [device=cpu|0]
             [out=visualize]
             pictures of where DCNv4 layers sample: for the points, else for what is detected
  patch      DIR [check=1] [diff=1] [revert=1]
             write the blocks into the source checkout of ultralytics in DIR, for a fork
  help       show this
  version    show the version

  train, val, predict, export, track, benchmark
             handed on to ultralytics' `yolo`, which knows the blocks and the model YAMLs of this package

Example: yolo-dcnv4 train model=yolov8n-dcnv4-backbone.yaml data=coco8.yaml epochs=3
"""

DONE, FAILED, MISUSED = 0, 1, 2
HANDED_ON = ("train", "val", "predict", "export", "track", "benchmark")


class UsageError(ValueError):
    """The command line is wrong."""


@dataclass(frozen=True)
class Option:
    """One key of a command.

    Args:
        kind: Types its value may have after ultralytics' parser; `str` takes the text as it stands.
        required: The command cannot do without.
    """

    kind: type | tuple[type, ...]
    required: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for a failure, 2 for a wrong command line.

    Args:
        arguments: The words after `yolo-dcnv4`; `None` takes those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = words.pop(0) if words else "help"
    try:
        return _find(command)(words)
    except UsageError as error:
        return _report(error, MISUSED)
    except (ValueError, OSError, RuntimeError) as error:
        # what ultralytics raises while it runs keeps its traceback, as under `yolo`
        if command in HANDED_ON:
            raise
        return _report(error, MISUSED if isinstance(error, (ValueError, FileNotFoundError)) else FAILED)
    except ImportError as error:
        if command in HANDED_ON:
            raise
        return _report(RuntimeError(f"{error}; `yolo-dcnv4 doctor` says what mends it"), FAILED)


def parse_options(words: Sequence[str], options: dict[str, Option]) -> dict[str, Any]:
    """Read key=value words with ultralytics' own parser.

    Args:
        words: Such as `["models=a.yaml,b.yaml", "imgsz=640"]`; spaces around `=` are words of their own.
        options: The keys a command knows.

    Raises:
        UsageError: A word is no pair, a key is unknown or missing, or a value has a wrong type.
    """
    from ultralytics.cfg import merge_equals_args, parse_key_value_pair

    values: dict[str, Any] = {}
    known = ", ".join(f"{key}=" for key in options)
    try:
        pairs = merge_equals_args(list(words))
    except SyntaxError as error:
        raise UsageError(str(error)) from error
    for pair in pairs:
        key, equals, text = (part.strip() for part in pair.partition("="))
        if not equals or key not in options:
            raise UsageError(f"unknown argument {pair!r}; known: {known}")
        if not text:
            raise UsageError(f"{key}= needs a value")
        # older releases evaluate the text: a folder called `list` must stay a folder
        kind = options[key].kind
        values[key] = text if kind is str else parse_key_value_pair(pair)[1]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if bool in kinds and values[key] in (0, 1):
            values[key] = bool(values[key])
        # True and False are ints
        if not isinstance(values[key], kinds) or (isinstance(values[key], bool) and bool not in kinds):
            raise UsageError(f"{key} must be {' or '.join(k.__name__ for k in kinds)}, got {text!r}")
    missing = [f"{key}=" for key, option in options.items() if option.required and key not in values]
    if missing:
        raise UsageError(f"missing {', '.join(missing)}; known: {known}")
    return values


def _compare(words: Sequence[str]) -> int:
    from yolo_dcnv4.comparison import PLOT_NAME, compare

    options = parse_options(
        words,
        {
            "models": Option(str, required=True),
            "imgsz": Option((int, list, tuple)),
            "format": Option(str),
            "out": Option(str),
            "plot": Option((bool, str)),
            "results": Option(str),
        },
    )
    models = [name.strip() for name in options.pop("models").split(",") if name.strip()]
    if "results" in options:
        # a model without results has an empty place: results=,b.csv
        options["results"] = [name.strip() or None for name in options["results"].split(",")]
    compare(models, **options)
    if "out" in options:
        print(f"written to {options['out']}")
    if options.get("plot"):
        print(f"drawn to {PLOT_NAME if options['plot'] is True else options['plot']}")
    return DONE


def _demo_data(words: Sequence[str]) -> int:
    from yolo_dcnv4.demo_data import write_demo_data

    numbers = ("train", "val", "imgsz", "seed")
    options = parse_options(words, {"out": Option(str, required=True), **dict.fromkeys(numbers, Option(int))})
    print(f"written to {write_demo_data(**options)}")
    return DONE


def _variant(words: Sequence[str]) -> int:
    from yolo_dcnv4.variant import write_variant

    named = Option(str, required=True)
    options = parse_options(words, {"model": named, "where": named, "out": Option(str), "layout": Option(str)})
    variant = write_variant(**options)
    print(f"written to {variant.file}: {variant.base.name} with {variant.summary}")
    print(f"use it: yolo train model={variant.usage}")
    return DONE


def _build(words: Sequence[str]) -> int:
    from yolo_dcnv4.build.command import run

    return run(words)


def _doctor(words: Sequence[str]) -> int:
    from yolo_dcnv4.doctor.command import run

    return run(words)


def _bench(words: Sequence[str]) -> int:
    options = parse_options(
        words,
        {
            "model": Option(str, required=True),
            "plain": Option(str),
            "imgsz": Option((int, list, tuple)),
            "batch": Option(int),
            "device": Option(str),
            "half": Option(bool),
            "format": Option(str),
            "out": Option(str),
        },
    )
    from yolo_dcnv4.bench import bench

    bench(options.pop("model"), **options)
    if "out" in options:
        print(f"written to {options['out']}")
    return DONE


def _visualize(words: Sequence[str]) -> int:
    options = parse_options(
        words,
        {
            "model": Option(str, required=True),
            "source": Option(str, required=True),
            "layer": Option((int, str, list, tuple)),
            "points": Option((list, tuple)),
            "group": Option(int),
            "imgsz": Option((int, list, tuple)),
            "device": Option(str),
            "out": Option(str),
        },
    )
    from yolo_dcnv4.visualization import visualize

    visualize(options.pop("model"), options.pop("source"), **options)
    return DONE


def _patch(words: Sequence[str]) -> int:
    from yolo_dcnv4.registry.checkout import main

    return main(words, program="yolo-dcnv4 patch")


def _help(words: Sequence[str]) -> int:
    print(USAGE, end="")
    return DONE


def _version(words: Sequence[str]) -> int:
    from yolo_dcnv4 import __version__

    print(__version__)
    return DONE


def _hand_on(mode: str) -> Callable[[Sequence[str]], int]:
    def run(words: Sequence[str]) -> int:
        import yolo_dcnv4

        yolo_dcnv4.register()
        from ultralytics import cfg, utils

        # ultralytics looks in here in several places; the string that `entrypoint` takes would be split at spaces
        before = list(cfg.ARGV)
        cfg.ARGV[:] = utils.ARGV[:] = ["yolo", mode, *words]
        try:
            cfg.entrypoint()
        except Exception as error:
            if _is_about_arguments(error):
                raise UsageError(str(error)) from error
            raise
        finally:
            cfg.ARGV[:] = utils.ARGV[:] = before
        return DONE

    return run


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "compare": _compare,
    "demo-data": _demo_data,
    "variant": _variant,
    "build": _build,
    "doctor": _doctor,
    "bench": _bench,
    "visualize": _visualize,
    "patch": _patch,
    "help": _help,
    "version": _version,
    **{mode: _hand_on(mode) for mode in HANDED_ON},
}


def _find(command: str) -> Callable[[Sequence[str]], int]:
    command = {"-h": "help", "--help": "help", "--version": "version"}.get(command, command)
    if command not in COMMANDS:
        raise UsageError(f"unknown command {command!r}; known: {', '.join(COMMANDS)}")
    return COMMANDS[command]


def _is_about_arguments(error: Exception) -> bool:
    """Tell whether ultralytics refused its arguments, rather than failed later on."""
    from ultralytics import cfg

    return isinstance(error, FileNotFoundError) or Path(traceback.extract_tb(error.__traceback__)[-1].filename) == Path(
        cfg.__file__
    )


def _report(error: Exception, status: int) -> int:
    print(f"yolo-dcnv4: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
