"""How fast is the operator on the CPU, next to torchvision's deform_conv2d and to the PyTorch reference?

    python benchmarks/cpu.py --json docs/results/cpu.json --plot docs/pictures/cpu.png

Results and the gradient of value are checked against the float64 oracle before they are timed. All figures of one run
are comparable.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from oracle import oracle, relative_error, torchvision_arguments
from report import plot, save, table
from torch import Tensor
from turns import seconds

from yolo_dcnv4.ops import backend, dcnv4, dcnv4_reference

MAPS = {"1x80x80x64, 4 groups": (1, 80, 80, 4, 16), "1x40x40x128, 8 groups": (1, 40, 40, 8, 16)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def candidates(
    shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[dict[str, Callable[[], Tensor]], tuple[Tensor, ...], Tensor]:
    """Return functions that compute the forward, the leaves of each, and the gradient of the output."""
    n, height, width, groups, depth = shape
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(n, height, width, groups * depth, generator=generator).to(dtype)
    offset_mask = torch.randn(n, height, width, -(-27 * groups // 8) * 8, generator=generator).to(dtype)
    grad = torch.randn(value.shape, generator=generator).to(dtype)
    value.requires_grad_()
    offset_mask.requires_grad_()

    exact = tuple(t.detach().double().requires_grad_() for t in (value, offset_mask))
    expected = oracle(*exact, groups)
    found = dcnv4(value, offset_mask, groups=groups)
    # that of offset_mask jumps where float32 rounds a position across a pixel; the tests keep off these
    (grad_value,), (exact_grad_value,) = (
        torch.autograd.grad(out, leaf, g)
        for out, leaf, g in ((found, value, grad), (expected, exact[0], grad.double()))
    )
    pairs = {"output": (found.detach(), expected.detach()), "grad_value": (grad_value, exact_grad_value)}
    for name, (actual, wanted) in pairs.items():
        error = relative_error(actual, wanted)
        if not error <= TOLERANCE[dtype]:
            raise SystemExit(f"wrong {name} for {shape} in {dtype}: relative error {error:.2g}")

    leaves = value, offset_mask
    functions = {
        "ours": lambda: dcnv4(value, offset_mask, groups=groups),
        "reference": lambda: dcnv4_reference(value, offset_mask, groups=groups),
    }
    if dtype == torch.float32:
        # torchvision has no other dtype on the CPU
        pixels = value.detach().permute(0, 3, 1, 2).contiguous().requires_grad_()
        offset, mask = (t.requires_grad_() for t in torchvision_arguments(offset_mask.detach(), groups))
        weight = torch.ones(groups * depth, 1, 3, 3)
        functions["torchvision"] = lambda: torchvision.ops.deform_conv2d(
            pixels, offset, weight, None, 1, 1, 1, mask
        ).permute(0, 2, 3, 1)
        leaves = value, offset_mask, pixels, offset, mask
    return functions, leaves, grad


def measure(name: str, dtype_name: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for the forward and one for the backward pass."""
    torch.set_num_threads(threads)
    functions, leaves, grad = candidates(MAPS[name], DTYPES[dtype_name])
    with torch.no_grad():
        forward = seconds(functions, rounds, threads)
    outputs = {key: function() for key, function in functions.items()}

    def gradient(output: Tensor) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(output, leaves, grad, retain_graph=True, allow_unused=True)

    backward = seconds({key: gradient(output) for key, output in outputs.items()}, rounds, threads)
    rows = []
    for direction, times in (("forward", forward), ("backward", backward)):
        row: dict[str, Any] = {"map": name, "dtype": dtype_name, "threads": threads, "pass": direction}
        row |= {f"{key} ms": 1e3 * value for key, value in times.items()}
        row["torchvision / ours"] = times["torchvision"] / times["ours"] if "torchvision" in times else None
        row["reference / ours"] = times["reference"] / times["ours"]
        rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="file to write the figures to")
    parser.add_argument("--plot", help="PNG to draw")
    parser.add_argument("--threads", default="1,2", help="thread counts, comma-separated (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each function (default: %(default)s)")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="default: %(default)s")
    settings = parser.parse_args(arguments)

    serving = backend("cpu")
    if serving.name != "cpu":
        raise SystemExit(f"no compiled CPU kernels to measure: {serving.reason}")
    rows: list[dict[str, Any]] = []
    for threads in map(int, settings.threads.split(",")):
        for dtype in settings.dtypes.split(","):
            for name in MAPS:
                print(f"{name}, {dtype}, {threads} threads", file=sys.stderr, flush=True)
                rows += measure(name, dtype, threads, settings.rounds)
    print(table(rows, list(rows[0])))
    if settings.json:
        save(settings.json, rows, capability=torch.ops.yolo_dcnv4.cpu_capability())
    if settings.plot:
        shown = [row for row in rows if row["dtype"] == "float32"]
        groups = [f"{row['pass']}, {row['map'].split(',')[0]}, {row['threads']} thr." for row in shown]
        series = {key: [row.get(f"{key} ms") for row in shown] for key in ("ours", "torchvision", "reference")}
        plot(settings.plot, groups, series, "milliseconds")


if __name__ == "__main__":
    main()
