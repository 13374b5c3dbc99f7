"""The blocks beside ultralytics' originals: shapes, paths, copies, dtypes, fusing."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn
from ultralytics.nn.modules.block import C3, Bottleneck, C2f, C3k, C3k2
from ultralytics.nn.modules.conv import Conv
from ultralytics.nn.tasks import DetectionModel

from yolo_dcnv4.modules import Bottleneck_DCNv4, C2f_DCNv4, C3_DCNv4, C3k2_DCNv4, C3k_DCNv4, DCNv4, DCNv4Conv

PAIRS = [
    pytest.param(Bottleneck_DCNv4, Bottleneck, (32, 32), id="Bottleneck"),
    pytest.param(Bottleneck_DCNv4, Bottleneck, (16, 48, False), id="Bottleneck-widths-differ"),
    pytest.param(Bottleneck_DCNv4, Bottleneck, (32, 32, True, 1, (1, 3), 1.0), id="Bottleneck-kernels"),
    pytest.param(C2f_DCNv4, C2f, (32, 48), id="C2f"),
    pytest.param(C2f_DCNv4, C2f, (32, 64, 3, True), id="C2f-repeats-shortcut"),
    pytest.param(C2f_DCNv4, C2f, (48, 32, 2, False, 1, 0.25), id="C2f-expansion"),
    pytest.param(C3_DCNv4, C3, (32, 48), id="C3"),
    pytest.param(C3_DCNv4, C3, (32, 64, 3, False, 1, 0.25), id="C3-repeats-expansion"),
    pytest.param(C3k_DCNv4, C3k, (32, 48), id="C3k"),
    pytest.param(C3k_DCNv4, C3k, (32, 32, 3, False, 1, 0.5, 5), id="C3k-kernel5"),
    pytest.param(C3k2_DCNv4, C3k2, (32, 48), id="C3k2"),
    pytest.param(C3k2_DCNv4, C3k2, (32, 48, 2, False), id="C3k2-bottlenecks"),
    pytest.param(C3k2_DCNv4, C3k2, (32, 48, 2, True), id="C3k2-c3k"),
    pytest.param(C3k2_DCNv4, C3k2, (32, 64, 1, True, 0.25), id="C3k2-c3k-expansion"),
]
BLOCKS = [
    pytest.param(lambda: Bottleneck_DCNv4(16, 16), id="Bottleneck_DCNv4"),
    pytest.param(lambda: C2f_DCNv4(16, 32, 2, True), id="C2f_DCNv4"),
    pytest.param(lambda: C3_DCNv4(16, 32, 2), id="C3_DCNv4"),
    pytest.param(lambda: C3k_DCNv4(16, 32, 1), id="C3k_DCNv4"),
    pytest.param(lambda: C3k2_DCNv4(16, 32, 1, True), id="C3k2_DCNv4"),
    pytest.param(lambda: DCNv4Conv(16, 32, 3, 2), id="DCNv4Conv"),
]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def _trained(block: nn.Module) -> nn.Module:
    """Parameters and statistics as after some training, offsets included."""
    for module in block.modules():
        if isinstance(module, DCNv4):
            nn.init.normal_(module.offset_mask.weight, std=0.1)
            nn.init.normal_(module.offset_mask.bias, std=0.3)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return block.eval()


def _layers(block: nn.Module) -> list[DCNv4]:
    return [m for m in block.modules() if isinstance(m, DCNv4)]


@pytest.mark.parametrize(("ours", "theirs", "arguments"), PAIRS)
def test_beside_the_original(ours, theirs, arguments):
    """Same shape; the same bottlenecks, each with one DCNv4 where its second convolution was."""
    block, original = _trained(ours(*arguments)), theirs(*arguments).eval()
    assert isinstance(block, theirs)
    x = torch.randn(2, arguments[0], 9, 12)
    assert block(x).shape == original(x).shape
    bottlenecks = [m for m in block.modules() if isinstance(m, Bottleneck)]
    originals = [m for m in original.modules() if isinstance(m, Bottleneck)]
    assert len(bottlenecks) == len(originals) == len(_layers(block)) > 0
    for bottleneck, before in zip(bottlenecks, originals, strict=True):
        assert isinstance(bottleneck, Bottleneck_DCNv4)
        assert isinstance(bottleneck.cv1, Conv)
        assert isinstance(bottleneck.cv2, DCNv4Conv)
        assert bottleneck.add == before.add
        assert bottleneck.cv1.conv.kernel_size == before.cv1.conv.kernel_size
        window = bottleneck.cv2.dcn.core.window
        assert (window.kernel_h, window.kernel_w) == before.cv2.conv.kernel_size
        assert bottleneck.cv2.dcn.output_proj.out_features == before.cv2.conv.out_channels
        assert bottleneck.cv2.dcn.channels == before.cv2.conv.in_channels
    # nothing else differs
    kept = {n: t.shape for n, t in block.state_dict().items() if "cv2.dcn" not in n}
    assert kept.items() <= {n: t.shape for n, t in original.state_dict().items()}.items()


def _has_attention() -> bool:
    return "attn" in inspect.signature(C3k2.__init__).parameters


@pytest.mark.parametrize("positional", [True, False])
def test_c3k2_with_attention(positional):
    if not _has_attention():
        pytest.skip("this ultralytics' C3k2 knows no attn")
    arguments = (128, 128, 2, False, 0.5, True) if positional else (128, 128, 2)
    keywords = {} if positional else {"attn": True}
    block, original = _trained(C3k2_DCNv4(*arguments, **keywords)), C3k2(*arguments, **keywords).eval()
    assert [type(m) for m in block.m] == [type(m) for m in original.m]
    for ours, theirs in zip(block.m, original.m, strict=True):
        assert [type(part).__name__.removesuffix("_DCNv4") for part in ours] == [type(part).__name__ for part in theirs]
    assert len(_layers(block)) == 2
    x = torch.randn(1, 128, 8, 8)
    assert block(x).shape == original(x).shape


def test_c3k2_keyword_forms():
    for keywords in ({"c3k": True}, {"c3k": True, "e": 0.25, "shortcut": False}, {"n": 2, "g": 1}):
        block, original = C3k2_DCNv4(32, 32, **keywords), C3k2(32, 32, **keywords)
        adds = [m.add for m in original.modules() if isinstance(m, Bottleneck)]
        assert [m.add for m in block.modules() if isinstance(m, Bottleneck)] == adds
        assert block(torch.randn(2, 32, 8, 8)).shape == (2, 32, 8, 8)


def test_shortcut():
    x = torch.randn(1, 16, 8, 8)
    with_shortcut = _trained(Bottleneck_DCNv4(16, 16, True))
    without = Bottleneck_DCNv4(16, 16, False).eval()
    without.load_state_dict(with_shortcut.state_dict())
    torch.testing.assert_close(with_shortcut(x), x + without(x))
    assert not Bottleneck_DCNv4(16, 32, True).add


@pytest.mark.parametrize(
    "block", [C2f_DCNv4(32, 32, 2, True), C3k2_DCNv4(32, 32, 2, True)], ids=lambda b: type(b).__name__
)
def test_forward_split_equals_forward(block):
    """Export swaps forward for forward_split."""
    _trained(block)
    x = torch.randn(2, 32, 8, 9)
    out = block(x)
    torch.testing.assert_close(block.forward_split(x), out)
    with torch.no_grad():
        for layer in _layers(block):
            layer.output_proj.weight.zero_()
    assert not torch.allclose(block.forward_split(x), out), "forward_split bypasses DCNv4"


@pytest.mark.parametrize("make", BLOCKS)
def test_copies(make):
    block = _trained(make())
    x = torch.randn(1, 16, 8, 8)
    expected = block(x)
    copied = copy.deepcopy(block)
    assert torch.equal(copied(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(block))(x), expected)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(block(x), expected), "a copy shares no parameter"


@pytest.mark.parametrize("make", BLOCKS)
def test_weights_loaded_in_eval_take_effect(make):
    """No cache of weights may outlive load_state_dict or an in-place EMA update."""
    block, other = _trained(make()), _trained(make())
    x = torch.randn(1, 16, 8, 8)
    with torch.no_grad():
        block(x)
        block.load_state_dict(other.state_dict())
        assert torch.equal(block(x), other(x))
        for mine, theirs in zip(block.parameters(), other.parameters(), strict=True):
            mine.mul_(0.5)
            theirs.mul_(0.5)
        assert torch.equal(block(x), other(x))


@pytest.mark.parametrize("make", BLOCKS)
def test_channels_last(make):
    block = _trained(make())
    x = torch.randn(2, 16, 8, 10)
    expected = block(x)
    out = block.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", BLOCKS)
def test_half(make, dtype):
    block = _trained(make())
    x = torch.randn(2, 16, 8, 8)
    expected = block(x)
    out = block.to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    assert (out.float() - expected).norm() <= (0.03 if dtype == torch.float16 else 0.2) * expected.norm()


@pytest.mark.parametrize("make", BLOCKS)
def test_training_step_under_autocast(make):
    block = make().train()
    x = torch.randn(2, 16, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = block(x)
    out.float().square().mean().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert any(layer.offset_mask.weight.grad.count_nonzero() for layer in _layers(block))


def test_fuse_keeps_the_model():
    """BaseModel.fuse folds the Convs and leaves the blocks' results alone."""
    description = {
        "nc": 3,
        "scales": {"n": [1.0, 1.0, 1024]},
        "backbone": [
            [-1, 1, "Conv", [16, 3, 2]],
            [-1, 1, "DCNv4Conv", [16, 3, 2]],
            [-1, 2, "C2f_DCNv4", [32, True]],
            [-1, 1, "Conv", [32, 3, 2]],
            [-1, 1, "C3k2_DCNv4", [32, True]],
        ],
        "head": [[[2, 4], 1, "Detect", ["nc"]]],
    }
    model = DetectionModel(description, ch=3, nc=3, verbose=False)
    assert model.stride.tolist() == [4.0, 8.0]
    _trained(model)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x)[0]
        norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        model.fuse(verbose=False)
        after = model(x)[0]
    assert norms > 10
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert [layer.packed_proj is None for layer in _layers(model)] == [True, False, False, False, False]
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


def test_bottleneck_takes_a_kernel_that_is_not_square():
    """Both numbers of (h, w) reach DCNv4, which keeps the map's size."""
    block = Bottleneck_DCNv4(8, 8, k=((3, 3), (1, 5)))
    assert block.cv2.dcn.core.points == 5
    assert block(torch.randn(1, 8, 6, 7)).shape == (1, 8, 6, 7)
