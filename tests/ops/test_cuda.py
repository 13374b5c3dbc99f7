"""What only a GPU can show: streams, devices, graphs, tensors beyond 2^31 elements."""

from __future__ import annotations

import gc

import pytest
import torch

from yolo_dcnv4.ops import dcnv4

from .cases import DTYPES, TOLERANCE, Case, assert_close, named, relative_error, run
from .oracles import Geometry, torchvision_gradients, torchvision_oracle

pytestmark = pytest.mark.gpu

CASE = Case("cuda", 4, (23, 20), 16, Geometry(4))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stream_of_the_caller(dtype, compiled):
    """Work is queued behind what the caller's stream is still doing, not on the default stream."""
    inputs = CASE.inputs(dtype, "cuda")
    expected = torchvision_gradients(*inputs, CASE.geometry)
    late = inputs._replace(**{name: torch.full_like(t, torch.nan) for name, t in inputs._asdict().items()})
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # about a fifth of a second in which a kernel on another stream would read NaN
        torch.cuda._sleep(400_000_000)
        for target, source in zip(late, inputs, strict=True):
            target.copy_(source)
        value, offset_mask = late.leaves()
        out = dcnv4(value, offset_mask, **CASE.geometry.keywords)
        grads = torch.autograd.grad(out, (value, offset_mask), late.grad)
    stream.synchronize()
    assert_close((out, *grads), expected, dtype)


@pytest.mark.parametrize("deterministic_backward", [False, True])
@pytest.mark.parametrize("needs_value", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward_waits_for_its_gradient(dtype, needs_value, deterministic_backward, compiled, request):
    """Kernels that start early do so among themselves, not before what was queued ahead of them has ended."""
    if deterministic_backward:
        request.getfixturevalue("deterministic")
    inputs = CASE.inputs(dtype, "cuda")
    expected = torchvision_gradients(*inputs, CASE.geometry)
    value, offset_mask = inputs.leaves()
    late = torch.full_like(inputs.grad, torch.nan)
    out = dcnv4(value.requires_grad_(needs_value), offset_mask, **CASE.geometry.keywords)
    torch.cuda._sleep(40_000_000)
    late.copy_(inputs.grad)
    grads = torch.autograd.grad(out, (value, offset_mask) if needs_value else (offset_mask,), late)
    for actual, wanted in zip(reversed(grads), reversed(expected), strict=False):
        assert relative_error(actual, wanted) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_second_gpu_while_the_first_is_current(dtype):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    assert torch.cuda.current_device() == 0
    inputs = CASE.inputs(dtype, "cuda:1")
    result = run(dcnv4, inputs, CASE.geometry)
    assert torch.cuda.current_device() == 0
    assert all(t.device == torch.device("cuda:1") for t in result)
    assert_close(result, torchvision_gradients(*inputs, CASE.geometry), dtype)


@pytest.mark.parametrize("deterministic_backward", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [CASE, *named("yolo-n-p5", "yolo-n-p5-batch1")], ids=lambda c: c.id)
def test_graph_capture(case, dtype, deterministic_backward, compiled, caching_allocator, request):
    """Forward and backward captured once, replayed on other numbers."""
    if deterministic_backward:
        request.getfixturevalue("deterministic")
    inputs = case.inputs(dtype, "cuda", seed=1)
    value, offset_mask = inputs.leaves()

    def step():
        out = dcnv4(value, offset_mask, **case.geometry.keywords)
        return out, *torch.autograd.grad(out, (value, offset_mask), inputs.grad)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (2, 3):
        fresh = case.inputs(dtype, "cuda", seed=seed)
        with torch.no_grad():
            for target, source in zip((value, offset_mask, inputs.grad), fresh, strict=True):
                target.copy_(source)
        graph.replay()
        torch.cuda.synchronize()
        assert_close(captured, torchvision_gradients(*fresh, case.geometry), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case", named("yolo-n-p5", "swin-14x14", "channels2048-groups128", "far-offsets"), ids=lambda c: c.id
)
def test_runs_agree_without_determinism(case, dtype):
    """The order of atomics may differ; the numbers stay within the tolerance of each other."""
    inputs = case.inputs(dtype, "cuda")
    first, second = (run(dcnv4, inputs, case.geometry) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert_close(second, first, dtype)


def test_no_memory_is_kept(compiled, caching_allocator):
    inputs = CASE.inputs(torch.float16, "cuda")
    run(dcnv4, inputs, CASE.geometry)
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(10):
        run(dcnv4, inputs, CASE.geometry)
    gc.collect()
    # less where what an earlier test left is collected meanwhile
    assert torch.cuda.memory_allocated() <= before


def test_large_grid(compiled):
    """More blocks than the second dimension of a CUDA grid holds."""
    case = Case("large-grid", 70000, (2, 2), 8, Geometry(1, (1, 1), padding=(0, 0)))
    inputs = case.inputs(torch.float32, "cuda")
    assert_close(run(dcnv4, inputs, case.geometry), torchvision_gradients(*inputs, case.geometry), torch.float32)


def _room(gigabytes: float) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes:g} GiB of free GPU memory, there are {free:.0f}")


def _refusal(error: Exception) -> bool:
    return any(word in str(error) for word in ("2^31", "2**31", "2147483647", "too large"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_value_beyond_2_31_elements(dtype, compiled):
    """8192 x 8192 pixels of 64 channels, sampled sparsely: the last rows lie past 2^32 bytes and elements."""
    _room(75 if dtype == torch.float32 else 45)
    geometry = Geometry(4, (1, 1), (64, 64), (0, 0))
    side, strip = 8192, 128
    tail = Case("tail", 1, (strip, side), 16, geometry, padding_rows=0)
    inputs = tail.inputs(dtype, "cuda")
    rows = torch.zeros(1, side // 64, side // 64, tail.row, device="cuda", dtype=dtype)
    rows[:, -strip // 64 :] = inputs.offset_mask
    # a strip that starts on a multiple of the stride sees the offsets from the same window centres
    value = torch.zeros(1, side, side, tail.channels, device="cuda", dtype=dtype)
    value[:, -strip:] = inputs.value
    grad = torch.zeros(1, side // 64, side // 64, tail.channels, device="cuda", dtype=dtype)
    grad[:, -strip // 64 :] = inputs.grad
    value.requires_grad_()
    rows.requires_grad_()
    try:
        out = dcnv4(value, rows, **geometry.keywords)
        grads = torch.autograd.grad(out, (value, rows), grad)
    except (ValueError, RuntimeError) as error:
        assert _refusal(error), error
        return
    # in the strip alone, samples above its first row would be cut off
    wanted = torchvision_gradients(*inputs, geometry)
    keep = slice(1, None)
    assert relative_error(out[:, -strip // 64 :][:, keep], wanted[0][:, keep]) <= TOLERANCE[dtype]
    assert relative_error(grads[0][:, -strip + 32 :], wanted[1][:, 32:]) <= TOLERANCE[dtype]
    assert relative_error(grads[1][:, -strip // 64 :][:, keep], wanted[2][:, keep]) <= TOLERANCE[dtype]
    assert grads[0][:, : -strip - 32].count_nonzero() == 0


@pytest.mark.slow
def test_output_beyond_2_31_elements(compiled):
    """Three maps of 27000 x 27000: output and offset_mask both pass 2^31 elements."""
    dtype = torch.float16
    _room(60)
    geometry = Geometry(1, (1, 1), padding=(0, 0))
    n, side, strip = 3, 27000, 16
    tail = Case("tail", 1, (strip, side), 1, geometry, padding_rows=0, spread=0.5)
    inputs = tail.inputs(dtype, "cuda")
    value = torch.zeros(n, side, side, 1, device="cuda", dtype=dtype)
    rows = torch.zeros(n, side, side, 3, device="cuda", dtype=dtype)
    value[-1:, -strip:] = inputs.value
    rows[-1:, -strip:] = inputs.offset_mask
    try:
        out = dcnv4(value, rows, **geometry.keywords)
    except (ValueError, RuntimeError) as error:
        assert _refusal(error), error
        return
    wanted = torchvision_oracle(inputs.value, inputs.offset_mask, geometry)
    assert relative_error(out[-1:, -strip // 2 :], wanted[:, -strip // 2 :]) <= TOLERANCE[dtype]
