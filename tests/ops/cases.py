"""The one list of configurations that feeds correctness, gradient and opcheck tests, and how their inputs are drawn."""

from __future__ import annotations

import functools
import gc
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from yolo_dcnv4.ops import dcnv4

from .oracles import Geometry, torchvision_gradients, torchvision_oracle

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
DTYPES = list(TOLERANCE)
# those that GPUs are fast in
SHORT = [torch.float32, torch.float16, torch.bfloat16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# distance in pixels that keeps rounding from flipping floor()
OFF_GRID = 0.01


class Inputs(NamedTuple):
    """Tensors of one call and the gradient that comes back for it."""

    value: Tensor
    offset_mask: Tensor
    grad: Tensor

    def leaves(self) -> tuple[Tensor, Tensor]:
        """Value and offset_mask as leaves that ask for gradients, strides kept."""
        return self.value.detach().requires_grad_(), self.offset_mask.detach().requires_grad_()

    def records(self, groups: int, points: int = 9) -> Tensor:
        """A view (N, H_out, W_out, G, 3*K) of offset_mask without its padding: offsets first, then weights."""
        return self.offset_mask[..., : 3 * groups * points].unflatten(-1, (groups, 3 * points))


def _nchw(t: Tensor) -> Tensor:
    return t.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)


def _inside(t: Tensor, shape: Iterable[int], *index: slice) -> Tensor:
    # what lies around the view is poison
    room = t.new_full(tuple(shape), torch.nan)
    room[index] = t
    return room[index]


def _packed_head(t: Tensor) -> Tensor:
    n, h, w, c = t.shape
    return _inside(t, (n, h, w, c + 5), slice(None), slice(None), slice(None), slice(0, c))


def _packed_tail(t: Tensor) -> Tensor:
    n, h, w, c = t.shape
    return _inside(t, (n, h, w, c + 5), slice(None), slice(None), slice(None), slice(5, None))


def _aligned_tail(t: Tensor) -> Tensor:
    n, h, w, c = t.shape
    return _inside(t, (n, h, w, c + 16), slice(None), slice(None), slice(None), slice(16, None))


def _crop(t: Tensor) -> Tensor:
    n, h, w, c = t.shape
    return _inside(t, (n, h + 3, w + 2, c), slice(None), slice(1, h + 1), slice(2, None), slice(None))


def _every_other_image(t: Tensor) -> Tensor:
    n, h, w, c = t.shape
    return _inside(t, (2 * n, h, w, c), slice(1, None, 2), slice(None), slice(None), slice(None))


def _every_other_channel(t: Tensor) -> Tensor:
    n, h, w, c = t.shape
    return _inside(t, (n, h, w, 2 * c), slice(None), slice(None), slice(None), slice(0, None, 2))


def _transposed(t: Tensor) -> Tensor:
    return t.transpose(1, 2).contiguous().transpose(1, 2)


def _misaligned(t: Tensor) -> Tensor:
    room = t.new_full((t.numel() + 1,), torch.nan)
    room[1:] = t.reshape(-1)
    return room[1:].view(t.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "nchw": _nchw,
    "packed_head": _packed_head,
    "packed_tail": _packed_tail,
    "aligned_tail": _aligned_tail,
    "crop": _crop,
    "every_other_image": _every_other_image,
    "every_other_channel": _every_other_channel,
    "transposed": _transposed,
    "misaligned": _misaligned,
}


@dataclass(frozen=True)
class Case:
    """One configuration of the operator.

    `depth` is D, channels of a group; `padding_rows` the entries of offset_mask past 3*G*K, `None` for the layer's
    rounding up to a multiple of 8; `spread` the standard deviation of the offsets in pixels.
    """

    id: str
    n: int = 2
    size: tuple[int, int] = (6, 7)
    depth: int = 4
    geometry: Geometry = field(default_factory=Geometry)
    padding_rows: int | None = None
    spread: float = 1.0
    value_layout: str = "contiguous"
    offset_mask_layout: str = "contiguous"
    grad_layout: str = "contiguous"
    big: bool = False

    @property
    def channels(self) -> int:
        """C = G * D."""
        return self.geometry.groups * self.depth

    def tolerance(self, dtype: torch.dtype) -> float:
        """Return what `dtype` may be off; float32 also rounds positions, the more the larger the map."""
        return TOLERANCE[dtype] + (max(self.size) * 2.0**-24 if dtype == torch.float32 else 0.0)

    @property
    def row(self) -> int:
        """R, entries of offset_mask per output pixel."""
        rows = self.geometry.rows
        return math.ceil(rows / 8) * 8 if self.padding_rows is None else rows + self.padding_rows

    def offset_mask(self, dtype: torch.dtype, generator: torch.Generator, poison: float = math.nan) -> Tensor:
        """Draw (N, H_out, W_out, R) whose sampling positions are off the integer grid after rounding to `dtype`.

        Positions outside the image are left alone; padding rows hold `poison`.
        """
        geometry = self.geometry
        out_h, out_w = geometry.output_size(self.size)
        groups, points = geometry.groups, len(geometry.points)
        result = torch.full((self.n, out_h, out_w, self.row), poison, dtype=dtype)
        records = torch.randn(self.n, out_h, out_w, groups, 3 * points, generator=generator, dtype=torch.float64)
        for axis in (0, 1):
            centers = torch.from_numpy(geometry.centers(axis, (out_h, out_w)[axis])).double()
            centers = centers.view((-1, 1, 1, 1) if axis == 0 else (-1, 1, 1))
            reach = torch.from_numpy(geometry.reach(axis)).double()
            offsets = records[..., 1 - axis : 2 * points : 2]
            offsets.copy_((offsets * self.spread).to(dtype))
            while True:
                position = centers + (reach + offsets) * geometry.scale
                near = (position - position.round()).abs() < OFF_GRID
                redo = near & (position > -1.5) & (position < self.size[axis] + 0.5)
                if not redo.any():
                    break
                fresh = torch.randn(int(redo.sum()), generator=generator, dtype=torch.float64) * self.spread
                offsets[redo] = fresh.to(dtype).double()
        result[..., : geometry.rows] = records.flatten(-2).to(dtype)
        return result

    def inputs(
        self, dtype: torch.dtype, device: str | torch.device = "cpu", seed: int = 0, poison: float = math.nan
    ) -> Inputs:
        """Draw value, offset_mask and grad, rounded to `dtype`, in this case's layouts."""
        generator = torch.Generator().manual_seed(seed)
        out_h, out_w = self.geometry.output_size(self.size)
        value = torch.randn(self.n, *self.size, self.channels, generator=generator, dtype=torch.float64)
        grad = torch.randn(self.n, out_h, out_w, self.channels, generator=generator, dtype=torch.float64)
        offset_mask = self.offset_mask(dtype, generator, poison)
        return Inputs(
            LAYOUTS[self.value_layout](value.to(device, dtype)),
            LAYOUTS[self.offset_mask_layout](offset_mask.to(device)),
            LAYOUTS[self.grad_layout](grad.to(device, dtype)),
        )


def _geometry_cases() -> list[Case]:
    cases = [
        Case("default"),
        Case("kernel1x1", geometry=Geometry(2, (1, 1), padding=(0, 0))),
        Case("kernel1x1-stride2", geometry=Geometry(2, (1, 1), (2, 2), (0, 0))),
        Case("kernel2x2", geometry=Geometry(2, (2, 2), padding=(0, 0))),
        Case("kernel4x4-pad2", geometry=Geometry(2, (4, 4), padding=(2, 2))),
        Case("kernel2x3", geometry=Geometry(1, (2, 3), padding=(1, 0))),
        Case("kernel5x3", geometry=Geometry(2, (5, 3), padding=(2, 1))),
        Case("kernel3x5", geometry=Geometry(2, (3, 5), padding=(1, 2))),
        Case("kernel1x7", geometry=Geometry(1, (1, 7), padding=(0, 3))),
        Case("kernel7x1", geometry=Geometry(1, (7, 1), padding=(3, 0))),
        Case("kernel7x7", size=(9, 8), geometry=Geometry(2, (7, 7), padding=(3, 3))),
        Case("kernel9x9", size=(9, 8), geometry=Geometry(2, (9, 9), padding=(4, 4))),
        Case("kernel5x5-nopad", size=(9, 8), geometry=Geometry(1, (5, 5), padding=(0, 0))),
        Case("stride2", size=(9, 8), geometry=Geometry(2, stride=(2, 2))),
        Case("stride2x3", size=(9, 11), geometry=Geometry(2, stride=(2, 3))),
        Case("stride3-kernel5x3", size=(11, 8), geometry=Geometry(2, (5, 3), (3, 1), (2, 1))),
        Case("stride-past-kernel", size=(13, 12), geometry=Geometry(1, (2, 2), (5, 4), (0, 0))),
        Case("dilation2", size=(9, 10), geometry=Geometry(2, dilation=(2, 2), padding=(2, 2))),
        Case("dilation2x3", size=(9, 10), geometry=Geometry(2, dilation=(2, 3), padding=(1, 2))),
        Case("dilation3-kernel2x4", size=(9, 12), geometry=Geometry(1, (2, 4), dilation=(3, 2), padding=(1, 3))),
        Case("padding4x0", geometry=Geometry(2, padding=(4, 0))),
        Case("padding-past-image", size=(2, 3), geometry=Geometry(1, padding=(7, 6))),
        Case(
            "everything-odd",
            3,
            (11, 13),
            5,
            Geometry(3, (5, 3), (2, 3), (1, 4), (2, 1), 0.5, True, True),
        ),
    ]
    cases += [
        Case(f"remove-center-{h}x{w}", size=(8, 7), geometry=Geometry(2, (h, w), padding=(h // 2, w // 2), **extra))
        for h, w, extra in (
            (3, 3, {"remove_center": True}),
            (5, 3, {"remove_center": True, "stride": (2, 1)}),
            (1, 3, {"remove_center": True, "scale": 2.0}),
        )
    ]
    for scale in (0.5, 2.0, 0.7):
        cases.append(Case(f"scale{scale}", geometry=Geometry(2, scale=scale)))
        cases.append(
            Case(
                f"scale{scale}-kernel4x3-dilation2",
                size=(9, 8),
                geometry=Geometry(1, (4, 3), dilation=(2, 2), scale=scale),
            )
        )
    cases += [
        Case("scale0.25", geometry=Geometry(2, scale=0.25)),
        Case("softmax", geometry=Geometry(2, softmax=True)),
        Case("softmax-remove-center", geometry=Geometry(2, remove_center=True, softmax=True)),
        Case("softmax-kernel1x1", geometry=Geometry(2, (1, 1), padding=(0, 0), softmax=True)),
        Case(
            "softmax-kernel7x7-scale2",
            size=(9, 8),
            geometry=Geometry(1, (7, 7), padding=(3, 3), scale=2.0, softmax=True),
        ),
    ]
    return cases


def _shape_cases() -> list[Case]:
    cases = [
        Case("batch1", 1),
        Case("batch33", 33, (4, 5)),
        Case("height1", size=(1, 9)),
        Case("width1", size=(9, 1)),
        Case("one-pixel", size=(1, 1), geometry=Geometry(2)),
        Case("two-rows", size=(2, 17), geometry=Geometry(4)),
        Case("one-output", size=(3, 3), geometry=Geometry(4, padding=(0, 0))),
        Case("tall", size=(31, 3), geometry=Geometry(2)),
        Case("wide", size=(3, 67), geometry=Geometry(2)),
        Case("near-offsets", size=(9, 8), spread=0.2, geometry=Geometry(2)),
        Case("far-offsets", size=(9, 8), spread=12.0, geometry=Geometry(2)),
        Case("outside-offsets", size=(9, 8), spread=300.0, geometry=Geometry(2)),
        Case("padding-rows0", padding_rows=0, geometry=Geometry(3)),
        Case("padding-rows0-one-group", padding_rows=0, geometry=Geometry(1)),
        Case("padding-rows1", padding_rows=1, geometry=Geometry(2)),
        Case("padding-rows37", padding_rows=37, geometry=Geometry(3)),
    ]
    cases += [
        Case(f"depth{depth}-groups{groups}", size=(5, 6), depth=depth, geometry=Geometry(groups))
        for depth in (1, 2, 3, 4, 5, 6, 7, 8, 12, 15, 16, 17, 20, 24, 32, 48, 64, 80, 128)
        for groups in (1, 3)
    ]
    cases += [
        Case("depth256-groups1", size=(5, 6), depth=256),
        Case("depth320-groups1", size=(5, 4), depth=320),
        Case("depth1-groups64", size=(5, 4), depth=1, geometry=Geometry(64)),
        Case("depth16-groups10", size=(5, 6), depth=16, geometry=Geometry(10)),
        Case("depth8-groups33", size=(5, 4), depth=8, geometry=Geometry(33)),
        Case("channels2048-groups128", 1, (4, 5), 16, Geometry(128)),
        Case("channels2048-groups32", 1, (4, 5), 64, Geometry(32)),
        Case("channels2048-groups1", 1, (4, 3), 2048, Geometry(1)),
        Case("channels1280-groups16", 1, (4, 3), 80, Geometry(16)),
        # published kernels are wrong where their block size does not divide H * W
        Case("yolo-n-p5", 16, (20, 20), 16, Geometry(8), big=True),
        Case("yolo-n-p5-batch1", 1, (20, 20), 16, Geometry(8)),
        Case("swin-14x14", 64, (14, 14), 16, Geometry(32), big=True),
        Case("yolo-m-p3", 4, (80, 80), 16, Geometry(6), big=True),
        Case("detector-200x320", 1, (200, 320), 16, Geometry(8), big=True),
        Case("depth64-80x80", 2, (80, 80), 64, Geometry(4), big=True),
        Case("stride2-kernel5x3-40x40", 8, (40, 40), 16, Geometry(4, (5, 3), (2, 2), (2, 1)), big=True),
    ]
    return cases


def _layout_cases() -> list[Case]:
    cases = []
    for layout in LAYOUTS:
        if layout == "contiguous":
            continue
        for depth in (3, 16):
            geometry = Geometry(2, stride=(2, 1))
            case = {"size": (7, 6), "depth": depth, "geometry": geometry}
            cases.append(Case(f"value-{layout}-depth{depth}", value_layout=layout, **case))
            cases.append(Case(f"grad-{layout}-depth{depth}", grad_layout=layout, **case))
        cases.append(
            Case(f"offset-mask-{layout}", size=(7, 6), depth=8, geometry=Geometry(2), offset_mask_layout=layout)
        )
        cases.append(
            Case(
                f"all-{layout}",
                size=(7, 6),
                depth=16,
                geometry=Geometry(2),
                padding_rows=0,
                value_layout=layout,
                offset_mask_layout=layout,
                grad_layout=layout,
            )
        )
    return cases


CASES = _geometry_cases() + _shape_cases() + _layout_cases()


def named(*ids: str) -> list[Case]:
    """Cases of these ids, in this order."""
    by_id = {case.id: case for case in CASES}
    return [by_id[i] for i in ids]


def parameters(cases: Iterable[Case] = CASES) -> list:
    """Pairs (case, device) for `pytest.mark.parametrize`; big cases run on the GPU alone."""
    return [
        pytest.param(case, device, id=f"{case.id}-{device}", marks=pytest.mark.gpu if device == "cuda" else ())
        for case in cases
        for device in (("cuda",) if case.big else ("cpu", "cuda"))
    ]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Frobenius |a - b| / |b| in float64; |a| where b is zero, infinite where a is not finite.

    What the subnormal numbers of a's dtype cannot hold does not count: in float16 that is 3e-8 a number.
    """
    dtype = actual.dtype
    actual, expected = actual.detach().double(), expected.detach().double().to(actual.device)
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    difference = float((actual - expected).norm())
    scale = float(expected.norm())
    if not math.isfinite(difference):
        return math.inf
    limits = torch.finfo(dtype)
    difference = max(0.0, difference - 0.5 * limits.smallest_normal * limits.eps * math.sqrt(actual.numel()))
    return difference / scale if scale else difference


def assert_close(
    actual: Iterable[Tensor], expected: Iterable[Tensor], dtype: torch.dtype, tolerance: float | None = None
) -> None:
    """Assert that output and gradients are within the tolerance of `dtype`, and name those that are not."""
    tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
    names = ("output", "grad_value", "grad_offset_mask")
    errors = {name: relative_error(a, e) for name, a, e in zip(names, actual, expected, strict=True)}
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    assert not wrong, f"relative errors beyond {tolerance:g}: {wrong} (all: {errors})"


@functools.lru_cache(maxsize=1)
def expectation(
    case: Case, dtype: torch.dtype, device: str | torch.device, seed: int = 0
) -> tuple[Inputs, tuple[Tensor, Tensor, Tensor]]:
    """Inputs of a case, not to be changed, and what the torchvision oracle makes of them.

    The last answer is kept: implementations of one case are tested one after the other.
    """
    inputs = case.inputs(dtype, device, seed)
    return inputs, torchvision_gradients(*inputs, case.geometry)


def poison_free_memory(tensors: Iterable[Tensor]) -> None:
    """Leave NaN in free blocks of these tensors' sizes, so that an output nobody writes is not zero by luck."""
    blocks = [torch.full_like(t, torch.nan, memory_format=torch.contiguous_format) for t in tensors for _ in range(2)]
    del blocks
    gc.collect(0)


def run(op: Callable[..., Tensor], inputs: Inputs, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """Return (output, gradient of value, gradient of offset_mask) of an implementation on poisoned memory."""
    value, offset_mask = inputs.leaves()
    poison_free_memory(inputs)
    out = op(value, offset_mask, **geometry.keywords)
    assert out.dtype == inputs.value.dtype
    assert out.device == inputs.value.device
    poison_free_memory(inputs)
    grads = torch.autograd.grad(out, (value, offset_mask), inputs.grad)
    for grad, leaf in zip(grads, (value, offset_mask), strict=True):
        assert grad.dtype == leaf.dtype
        assert grad.shape == leaf.shape
    return out.detach(), *grads


def assert_like_the_cpu(inputs: Inputs, geometry: Geometry, dtype: torch.dtype) -> None:
    """Assert that the operator gives what it does on the CPU in float32, infinite and NaN where that is."""
    results = run(dcnv4, inputs, geometry)
    on_cpu = run(dcnv4, Inputs(*(t.cpu().float() for t in inputs)), geometry)
    for name, result, expected in zip(("output", "value", "offset_mask"), results, on_cpu, strict=True):
        # what float32 holds and the dtype does not is infinite
        expected = expected.to(dtype).double()
        result = result.cpu().double()
        finite = expected.isfinite()
        assert torch.equal(result.isfinite(), finite), name
        assert finite.any(), name
        assert relative_error(result[finite], expected[finite]) < TOLERANCE[dtype], name


def assert_forward_close(
    inputs: Inputs, geometry: Geometry, dtype: torch.dtype, tolerance: float | None = None
) -> None:
    """Assert that the output alone, computed without gradients, is within the tolerance of `dtype`."""
    tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
    with torch.no_grad():
        out = dcnv4(inputs.value, inputs.offset_mask, **geometry.keywords)
        expected = torchvision_oracle(inputs.value, inputs.offset_mask, geometry)
    assert relative_error(out, expected) < tolerance


def assert_forward_like_the_cpu(
    inputs: Inputs, geometry: Geometry, dtype: torch.dtype, tolerance: float | None = None
) -> None:
    """Assert that the output alone is what it is on the CPU in float32, number by number, where some are not finite."""
    tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
    with torch.no_grad():
        out = dcnv4(inputs.value, inputs.offset_mask, **geometry.keywords).cpu()
        on_cpu = (t.cpu().float() for t in (inputs.value, inputs.offset_mask))
        expected = dcnv4(*on_cpu, **geometry.keywords).to(dtype)
    finite = expected.isfinite()
    assert finite.any() and not finite.all()
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
