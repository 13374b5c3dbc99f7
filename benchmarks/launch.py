"""What does a call of the operator cost the CPU, next to one of a trivial operator registered the same way?

    python benchmarks/launch.py --json docs/results/launch.json

The map is so small that a GPU has computed it before the next call comes. The trivial operator takes the same
arguments and multiplies value by two. Microseconds a call.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from report import save, table
from torch import Tensor
from turns import seconds

from yolo_dcnv4.ops import backend, dcnv4
from yolo_dcnv4.ops.library import SCHEMAS
from yolo_dcnv4.ops.packed import dcnv4_packed
from yolo_dcnv4.ops.window import window_of

SIDE, GROUPS, DEPTH = 4, 4, 16
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# kept: operators go with their library
_LIBRARY = torch.library.Library("yolo_dcnv4_benchmark", "DEF")


def trivial_operator() -> Callable[..., Tensor]:
    """Register the trivial operator with its autograd rule, and return it."""
    _LIBRARY.define("double" + SCHEMAS["dcnv4"])

    def double(value: Tensor, *_: Any) -> Tensor:
        return value * 2

    for key in ("CPU", "CUDA"):
        _LIBRARY.impl("double", double, key)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad * 2, None, None, None, None, None, None

    torch.library.register_autograd("yolo_dcnv4_benchmark::double", backward, lib=_LIBRARY)
    return torch.ops.yolo_dcnv4_benchmark.double.default


def calls(trivial: Callable[..., Tensor], dtype: torch.dtype, device: str, grad: bool) -> dict[str, Callable[[], Any]]:
    """Return the calls to time."""
    channels, entries = GROUPS * DEPTH, 27 * GROUPS
    packed = torch.randn(1, SIDE, SIDE, channels + entries, device=device).to(dtype)
    value, offset_mask = (part.contiguous() for part in packed.split([channels, entries], dim=-1))
    for tensor in (packed, value, offset_mask):
        tensor.requires_grad_(grad)
    window = window_of(3, 1, 1, 1)
    return {
        "trivial": lambda: trivial(value, offset_mask, GROUPS, window.to_list(), 1.0, False, False),
        "dcnv4": lambda: dcnv4(value, offset_mask, groups=GROUPS),
        "packed": lambda: dcnv4_packed(packed, channels=channels, groups=GROUPS, window=window),
    }


def measure(trivial: Callable[..., Tensor], dtype_name: str, device: str, grad: bool, rounds: int) -> dict[str, Any]:
    """Return a row."""
    functions = calls(trivial, DTYPES[dtype_name], device, grad)
    with torch.set_grad_enabled(grad):
        times = {name: 1e6 * time for name, time in seconds(functions, rounds).items()}
    row: dict[str, Any] = {"dtype": dtype_name, "gradients": "recorded" if grad else "no_grad", **times}
    return row | {f"{name} / trivial": times[name] / times["trivial"] for name in ("dcnv4", "packed")}


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="file to write the figures to")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each call (default: %(default)s)")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="default: %(default)s")
    settings = parser.parse_args(arguments)

    serving = backend(settings.device)
    if serving.name != settings.device:
        raise SystemExit(f"no compiled operator for {settings.device} to measure: {serving.reason}")
    trivial = trivial_operator()
    rows = []
    for dtype in settings.dtypes.split(","):
        for grad in (False, True):
            print(f"{dtype}, gradients {'recorded' if grad else 'not recorded'}", file=sys.stderr, flush=True)
            rows.append(measure(trivial, dtype, settings.device, grad, settings.rounds))
    print(table(rows, list(rows[0])))
    if settings.json:
        save(settings.json, rows, device=settings.device)


if __name__ == "__main__":
    main()
