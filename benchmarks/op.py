"""How fast is the operator on this GPU, next to the floor, to other convolutions, and to the published kernels?

    python benchmarks/op.py --published DIR --json docs/results/op.json --plot docs/pictures/op.png

DIR is where an installed published DCNv4 package can be imported from; without it that column is missing. Each result
is checked against the float64 oracle before it is timed. Every time is a median of what the GPU needed, in
microseconds, the L2 cache flushed before each call.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from oracle import oracle, relative_error, torchvision_arguments
from report import geometric_mean, plot, save, table
from torch import Tensor

from yolo_dcnv4.ops import backend, dcnv4
from yolo_dcnv4.ops.packed import dcnv4_packed, padded_row
from yolo_dcnv4.ops.window import window_of


@dataclass(frozen=True)
class Map:
    """A feature map and its groups."""

    name: str
    n: int
    height: int
    width: int
    groups: int
    depth: int

    @property
    def channels(self) -> int:
        """C = G * D."""
        return self.groups * self.depth

    @property
    def row(self) -> int:
        """Entries of offset_mask a pixel, as the layer pads them."""
        return -(-27 * self.groups // 8) * 8

    def bytes(self, element: int) -> int:
        """Bytes that a forward pass must move: value, offset_mask and output once."""
        return self.n * self.height * self.width * (2 * self.channels + self.row) * element


MAPS = [
    Map("v8n-P3 16x80x80, 2, 16", 16, 80, 80, 2, 16),
    Map("v8n-P4 16x40x40, 4, 16", 16, 40, 40, 4, 16),
    Map("v8n-P5 16x20x20, 8, 16", 16, 20, 20, 8, 16),
    Map("v8m-P3 16x80x80, 6, 16", 16, 80, 80, 6, 16),
    Map("v8x-P3 16x80x80, 10, 16", 16, 80, 80, 10, 16),
    Map("64x56x56, 8, 16", 64, 56, 56, 8, 16),
    Map("64x28x28, 16, 16", 64, 28, 28, 16, 16),
    Map("64x14x14, 32, 16", 64, 14, 14, 32, 16),
    Map("1x200x320, 8, 16", 1, 200, 320, 8, 16),
    Map("64x56x56, 4, 32", 64, 56, 56, 4, 32),
    Map("16x80x80, 4, 64", 16, 80, 80, 4, 64),
]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TOLERANCE = {torch.float32: 3e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
# more than a GPU's clock makes
CYCLES_A_SECOND = 2.5e9
SHORTEST_PAUSE = 5e-4
SPREADS = {"ours": 1.0, "ours, offsets N(0,4)": 2.0, "ours, zero offsets": 0.0}


@functools.cache
def flush_buffer() -> Tensor:
    """Return a buffer larger than any L2 cache."""
    return torch.empty(256 << 20, dtype=torch.uint8, device="cuda")


def microseconds(function: Callable[[], Any], repetitions: int) -> float:
    """Return the median time that the GPU needs for what the function launches, the L2 cache flushed before."""
    function()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    function()
    # the GPU waits until all is queued: what Python needs for a launch is no part of the figure
    pause = int(CYCLES_A_SECOND * max(SHORTEST_PAUSE, 2 * (time.perf_counter() - begun)))
    times = []
    for _ in range(repetitions):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush_buffer().zero_()
        torch.cuda._sleep(pause)
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Return bytes a microsecond, read plus written, of a large copy."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / microseconds(lambda: target.copy_(source), 20)


def published_operator(folder: str) -> Callable[..., Tensor]:
    """Return the published package's function on (value, offset_mask, groups), 3 x 3, stride 1, padding 1."""
    sys.path.insert(0, folder)
    from DCNv4.functions import DCNv4Function

    def run(value: Tensor, offset_mask: Tensor, groups: int) -> Tensor:
        depth = value.shape[-1] // groups
        return DCNv4Function.apply(value, offset_mask, 3, 3, 1, 1, 1, 1, 1, 1, groups, depth, 1.0, 256, False)

    return run


@dataclass
class Candidate:
    """Something to time: its forward pass, and the tensors that its backward pass gives gradients of."""

    forward: Callable[[], Tensor]
    leaves: tuple[Tensor, ...]


def inputs(m: Map, dtype: torch.dtype, spread: float) -> tuple[Tensor, Tensor]:
    """Draw value and offset_mask; offsets N(0, spread^2), weights N(0, 1)."""
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (m.n, m.height, m.width)
    value = torch.randn(*shape, m.channels, device="cuda", generator=generator)
    offset_mask = torch.randn(*shape, m.row, device="cuda", generator=generator)
    records = offset_mask[..., : 27 * m.groups].view(*shape, m.groups, 27)
    records[..., :18] *= spread
    return value.to(dtype).requires_grad_(), offset_mask.to(dtype).requires_grad_()


def ours(m: Map, dtype: torch.dtype, spread: float = 1.0, softmax: bool = False) -> Candidate:
    """Our operator."""
    value, offset_mask = inputs(m, dtype, spread)
    return Candidate(lambda: dcnv4(value, offset_mask, groups=m.groups, softmax=softmax), (value, offset_mask))


def merged(m: Map, dtype: torch.dtype) -> Candidate:
    """Our operator on rows that hold value and offset_mask of a pixel, as the layer's projection writes them."""
    value, offset_mask = (t.detach() for t in inputs(m, dtype, 1.0))
    width = m.channels + m.row if dtype == torch.float32 else padded_row(m.channels + m.row)
    added = value.new_zeros(*value.shape[:-1], width - m.channels - m.row)
    rows = torch.cat([value, offset_mask, added], dim=-1).requires_grad_()
    window = window_of(3, 1, 1, 1)
    return Candidate(lambda: dcnv4_packed(rows, channels=m.channels, groups=m.groups, window=window), (rows,))


def rivals(m: Map, dtype: torch.dtype) -> dict[str, Candidate]:
    """What else a network could do with such a map: DCNv2, and plain convolutions."""
    value, offset_mask = inputs(m, dtype, 1.0)
    c = m.channels
    nchw = value.detach().permute(0, 3, 1, 2).contiguous().requires_grad_()
    offset, mask = (t.requires_grad_() for t in torchvision_arguments(offset_mask.detach(), m.groups))
    full = torch.randn(c, c, 3, 3, device="cuda").to(dtype).requires_grad_()
    found = {
        "torchvision deform_conv2d": Candidate(
            lambda: torchvision.ops.deform_conv2d(nchw, offset, full, None, 1, 1, 1, mask), (nchw, offset, full, mask)
        )
    }
    last = value.detach().permute(0, 3, 1, 2).requires_grad_()
    for name, size, groups in (("conv 3x3", 3, 1), ("depthwise 3x3", 3, c), ("depthwise 7x7", 7, c)):
        weight = torch.randn(c, c // groups, size, size, device="cuda").to(dtype)
        weight = weight.to(memory_format=torch.channels_last).requires_grad_()
        found[name] = Candidate(
            functools.partial(F.conv2d, last, weight, None, 1, size // 2, 1, groups), (last, weight)
        )
    return found


def time_both(candidate: Candidate, repetitions: int) -> dict[str, float | None]:
    """Return microseconds of the forward and the backward pass; None where one does not run."""
    times: dict[str, float | None] = {}
    with torch.no_grad():
        times["forward"] = _time_or_none(candidate.forward, repetitions)
    try:
        out = candidate.forward()
    except RuntimeError:
        return times | {"backward": None}
    grad = torch.randn_like(out)
    times["backward"] = _time_or_none(
        lambda: torch.autograd.grad(out, candidate.leaves, grad, retain_graph=True), repetitions
    )
    return times


def _time_or_none(function: Callable[[], Any], repetitions: int) -> float | None:
    try:
        function()
    except RuntimeError as error:
        print(f"    does not run: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    return microseconds(function, repetitions)


def peak_bytes(candidate: Candidate) -> int | None:
    """Return what forward and backward allocate at most, beyond the inputs."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    try:
        out = candidate.forward()
        torch.autograd.grad(out, candidate.leaves, torch.ones_like(out))
    except RuntimeError:
        return None
    return torch.cuda.max_memory_allocated() - before


def errors(candidate: Candidate, m: Map) -> dict[str, float]:
    """Return the relative errors of output and gradients against the float64 oracle."""
    value, offset_mask = candidate.leaves
    exact = tuple(t.detach().double().requires_grad_() for t in (value, offset_mask))
    expected = oracle(*exact, m.groups)
    out = candidate.forward()
    found = {"output": relative_error(out.detach(), expected.detach())}
    grad = torch.randn(out.shape, device="cuda").to(out.dtype)
    try:
        actual = torch.autograd.grad(out, candidate.leaves, grad)
    except RuntimeError:
        return found
    wanted = torch.autograd.grad(expected, exact, grad.double())
    names = ("grad_value", "grad_offset_mask")
    return found | {n: relative_error(a, e) for n, a, e in zip(names, actual, wanted, strict=True)}


def measure(m: Map, dtype: torch.dtype, published: Callable[..., Tensor] | None, settings: argparse.Namespace) -> list:
    """Return the rows of one map and dtype: forward, backward."""
    repetitions = settings.repetitions
    times = {name: time_both(ours(m, dtype, spread), repetitions) for name, spread in SPREADS.items()}
    wrong = errors(ours(m, dtype), m)
    # on the integer grid rounding flips floor() in float32 now and then; what must hold is the output
    if not wrong["output"] <= TOLERANCE[dtype]:
        raise SystemExit(f"wrong result on {m.name} in {dtype}: {wrong}")
    peaks = {"ours": peak_bytes(ours(m, dtype))}
    rows_of_both = merged(m, dtype)
    difference = relative_error(rows_of_both.forward().detach(), ours(m, dtype).forward().detach().double())
    if not difference <= TOLERANCE[dtype]:
        raise SystemExit(f"wrong result on {m.name} in {dtype}, merged rows: {difference}")
    times["ours, merged rows"] = time_both(rows_of_both, repetitions)
    times["ours, softmax (DCNv3)"] = time_both(ours(m, dtype, softmax=True), repetitions)
    torch.use_deterministic_algorithms(True, warn_only=True)
    times["ours, deterministic"] = time_both(ours(m, dtype), repetitions)
    torch.use_deterministic_algorithms(False)
    if published:
        value, offset_mask = inputs(m, dtype, 1.0)
        candidate = Candidate(lambda: published(value, offset_mask, m.groups), (value, offset_mask))
        times["published"] = time_both(candidate, repetitions)
        peaks["published"] = peak_bytes(candidate)
        published_errors = errors(candidate, m)
    if not settings.quick:
        times |= {name: time_both(candidate, repetitions) for name, candidate in rivals(m, dtype).items()}

    element = dtype.itemsize
    rows = []
    for direction in ("forward", "backward"):
        # the backward pass reads value, offset_mask and grad_output, and writes two gradients
        moved = m.bytes(element)
        if direction == "backward":
            moved += m.n * m.height * m.width * (m.channels + m.row) * element
        row: dict[str, Any] = {"map": m.name, "dtype": str(dtype).removeprefix("torch."), "pass": direction}
        row["floor"] = moved / settings.bandwidth
        row |= {name: found[direction] for name, found in times.items()}
        row["ours / floor"] = row["ours"] / row["floor"]
        if row.get("published"):
            row["published / ours"] = row["published"] / row["ours"]
        row["errors"] = wrong
        row["peak MB"] = {name: None if peak is None else peak / 1e6 for name, peak in peaks.items()}
        if published:
            row["published errors"] = published_errors
        rows.append(row)
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return geometric means over the maps, for each dtype and pass."""
    found = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        for direction in ("forward", "backward"):
            chosen = [row for row in rows if (row["dtype"], row["pass"]) == (dtype, direction)]

            def mean(over: str, under: str, chosen: list[dict[str, Any]] = chosen) -> float | None:
                return geometric_mean(row[over] / row[under] for row in chosen if row.get(over) and row.get(under))

            found.append(
                {
                    "dtype": dtype,
                    "pass": direction,
                    "published / ours": mean("published", "ours"),
                    "ours / floor": mean("ours", "floor"),
                    "N(0,1) / zero offsets": mean("ours", "ours, zero offsets"),
                    "deterministic / default": mean("ours, deterministic", "ours"),
                }
            )
    return found


def draw(target: str, rows: list[dict[str, Any]]) -> None:
    """Draw a picture of the forward and one of the backward pass, in float16 where there is any."""
    chosen = [row for row in rows if row["dtype"] == "float16"] or rows
    shown = ("floor", "ours", "published", "torchvision deform_conv2d", "conv 3x3")
    names = [name for name in shown if name in rows[0]]
    for direction in ("forward", "backward"):
        drawn = [row for row in chosen if row["pass"] == direction]
        series = {name: [row[name] for row in drawn] for name in names}
        plot(target.replace(".png", f"-{direction}.png"), [row["map"] for row in drawn], series, "microseconds")


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", metavar="DIR", help="where the published DCNv4 package can be imported from")
    parser.add_argument("--json", help="file to write the figures to")
    parser.add_argument("--plot", help="PNG to draw, of float16")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="comma-separated (default: %(default)s)")
    parser.add_argument("--maps", type=int, default=len(MAPS), help="how many of the maps (default: all)")
    parser.add_argument("--repetitions", type=int, default=15, help="timed replays (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="leave the other convolutions out")
    settings = parser.parse_args(arguments)

    if not torch.cuda.is_available() or backend("cuda").name != "cuda":
        raise SystemExit(f"no compiled CUDA kernels to measure: {backend('cuda').reason}")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    published = published_operator(settings.published) if settings.published else None
    settings.bandwidth = copy_bandwidth()
    print(f"copy: {settings.bandwidth / 1e6:.2f} TB/s", file=sys.stderr)
    rows: list[dict[str, Any]] = []
    for dtype in settings.dtypes.split(","):
        for i, m in enumerate(MAPS[: settings.maps]):
            print(f"{dtype}, {m.name} ({i + 1} of {settings.maps})", file=sys.stderr, flush=True)
            rows += measure(m, DTYPES[dtype], published, settings)
            # a run that is cut off keeps what it has measured
            if settings.json:
                save(settings.json, rows, bandwidth_tb_s=settings.bandwidth / 1e6, geometric_means=summary(rows))
    shown = [key for key in rows[0] if key not in ("errors", "published errors", "peak MB", "published / ours")]
    print(table(rows, [*shown, *(["published / ours"] if published else [])]))
    means = summary(rows)
    print(table(means, list(means[0])))
    if settings.plot:
        draw(settings.plot, rows)


if __name__ == "__main__":
    main()
