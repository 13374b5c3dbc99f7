"""Latency of a model with DCNv4, and of each of its DCNv4 layers, against the plain variant."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import ultralytics
from torch import Tensor, nn
from ultralytics.utils import TQDM

from yolo_dcnv4.devices import find_device
from yolo_dcnv4.loading import fused_for_inference, image_size, input_channels, load_model
from yolo_dcnv4.markdown import markdown_table
from yolo_dcnv4.modules import DCNv4, DCNv4Core
from yolo_dcnv4.ops import backend
from yolo_dcnv4.registry.pack import PACK
from yolo_dcnv4.timing import run_seconds

# model and plain variant take turns, so that a machine that slows down slows both
TURNS = 3
MODEL_SECONDS = 3.0
LAYER_SECONDS = 0.5


@dataclass(frozen=True)
class ModelLatency:
    """How long one forward pass of a model takes.

    Attributes:
        model: The model as the caller named it.
        median_ms: Median in milliseconds.
        p10_ms: A tenth of the passes took less.
        p90_ms: A tenth of the passes took more.
        pictures_per_second: Pictures per second at the median.
    """

    model: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    pictures_per_second: float


@dataclass(frozen=True)
class LayerLatency:
    """How long one DCNv4 layer takes within a model, in milliseconds.

    Attributes:
        layer: Path of the module in the model: the one that stands in another's place in the plain variant.
        input: Its input's shape (N, C, H, W).
        groups: Number of groups.
        operator_ms: The core operator alone.
        layer_ms: The module.
        plain: Type of the module in its place in the plain variant; `None` where there is none.
        plain_ms: How long that takes; `None` where there is none.
    """

    layer: str
    input: tuple[int, ...]
    groups: int
    operator_ms: float
    layer_ms: float
    plain: str | None
    plain_ms: float | None


@dataclass(frozen=True)
class BenchReport:
    """What was measured, and on what.

    Attributes:
        setting: Device, versions, dtype, batch and picture size.
        models: The model, then its plain variant.
        ratio: Median of the model over that of the plain variant.
        layers: The DCNv4 layers of the model.
    """

    setting: dict[str, Any]
    models: tuple[ModelLatency, ModelLatency]
    ratio: float
    layers: tuple[LayerLatency, ...]


def bench(
    model: str | Path,
    plain: str | Path | None = None,
    imgsz: int | Sequence[int] = 640,
    batch: int = 1,
    device: str | int | None = None,
    half: bool = False,
    format: str | None = None,
    out: str | Path | None = None,
    verbose: bool = True,
) -> BenchReport:
    """Time the forward pass of a model and of its plain variant, fused as for inference, and of each DCNv4 layer.

    Args:
        model: A model YAML or checkpoint with DCNv4 blocks.
        plain: What to compare with; `None` for the same architecture with the blocks that they stand in for.
        imgsz: Picture size in pixels: a side, or (height, width).
        batch: Pictures at a time.
        device: `"cpu"`, `"cuda"` or the index of a CUDA device; `None` chooses.
        half: Run in float16; needs a CUDA device.
        format: `"md"` or `"json"`; `None` goes by the suffix of `out`, and is `"md"` without `out`.
        out: File to write.
        verbose: Print the result: as a table where it is written to `out`, else in `format`; and show progress.

    Raises:
        ValueError: An argument makes no sense, or the model holds no DCNv4 layer.
        FileNotFoundError: A model does not exist.
        RuntimeError: A model cannot be built.
    """
    size = image_size(imgsz)
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise ValueError(f"batch must be a positive integer, got {batch!r}")
    target = find_device(device)
    if half and target.type != "cuda":
        raise ValueError(f"half=1 needs a CUDA device, got device {target}")
    out = None if out is None else Path(out).expanduser()
    format = _output_format(format, out)

    net = load_model(str(model))
    if not any(isinstance(module, DCNv4) for module in net.modules()):
        raise ValueError(f"{model} holds no DCNv4 layer to measure")
    other = plain_variant(net, str(model)) if plain is None else load_model(str(plain))
    dtype = torch.float16 if half else torch.float32
    nets = [fused_for_inference(each, target, dtype) for each in (net, other)]
    picture = torch.rand(batch, input_channels(net), *size, device=target, dtype=dtype)

    with torch.inference_mode():
        pairs = _layer_pairs(nets[0], nets[1], picture)
        times: list[list[float]] = [[], []]
        with TQDM(total=TURNS + len(pairs), disable=not verbose, leave=False, file=sys.stderr) as bar:
            for _ in range(TURNS):
                bar.set_description("timing models")
                for each, collected in zip(nets, times, strict=True):
                    collected += run_seconds(partial(each, picture), target, MODEL_SECONDS / TURNS)
                bar.update(1)
            layers = []
            for pair in pairs:
                bar.set_description(f"timing {pair.path}")
                layers.append(pair.measure(target))
                bar.update(1)
    name = str(plain) if plain is not None else f"{model} without DCNv4"
    models = (_latency(str(model), times[0], batch), _latency(name, times[1], batch))
    report = BenchReport(
        _setting(target, dtype, batch, size), models, models[0].median_ms / models[1].median_ms, tuple(layers)
    )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(FORMATS[format](report), encoding="utf-8")
    if verbose:
        print(FORMATS["md" if out is not None else format](report), end="")
    return report


def plain_variant(net: nn.Module, name: str) -> nn.Module:
    """Return an untrained model of the same architecture with the modules that the DCNv4 blocks stand in for.

    Args:
        net: A model of ultralytics.
        name: Its name, for messages.

    Raises:
        ValueError: None of this package's blocks stands in its YAML.
    """
    description: dict[str, Any] = deepcopy(net.yaml)  # type: ignore[arg-type]
    replaced = False
    for part in ("backbone", "head"):
        for layer in description[part]:
            if layer[2] in PACK:
                layer[2], replaced = PACK[layer[2]], True
    if not replaced:
        raise ValueError(f"{name} names no block of yolo_dcnv4 in its YAML; say what to compare with: plain=")
    return type(net)(description, ch=input_channels(net), verbose=False)


def to_markdown(report: BenchReport) -> str:
    """Render two tables, models and layers, and a line on the setting."""
    setting = ", ".join(f"{key} {value}" for key, value in report.setting.items())
    models = [
        (
            row.model,
            *(f"{value:.3f}" for value in (row.median_ms, row.p10_ms, row.p90_ms)),
            f"{row.pictures_per_second:.1f}",
            f"{ratio:.2f}",
        )
        for row, ratio in zip(report.models, (report.ratio, 1.0), strict=True)
    ]
    layers = []
    for layer in report.layers:
        shape = "x".join(map(str, layer.input))
        plain = ("-", "-", "-")
        if layer.plain is not None and layer.plain_ms is not None:
            plain = (layer.plain, f"{layer.plain_ms:.3f}", f"{layer.layer_ms / layer.plain_ms:.2f}")
        times = (f"{layer.operator_ms:.3f}", f"{layer.layer_ms:.3f}")
        layers.append((layer.layer, shape, str(layer.groups), *times, *plain))
    models_table = markdown_table(("model", "median ms", "p10", "p90", "pictures/s", "ratio"), models)
    layers_header = ("layer", "input", "groups", "operator ms", "layer ms", "plain", "plain ms", "ratio")
    return f"{setting}\n\n{models_table}\n{markdown_table(layers_header, layers)}"


def to_json(report: BenchReport) -> str:
    """Render a JSON object with the names of `BenchReport` as keys."""
    return json.dumps(asdict(report), indent=2) + "\n"


FORMATS = {"md": to_markdown, "json": to_json}


@dataclass(frozen=True)
class _LayerPair:
    """A layer of the model, what stands in its place in the plain variant, and what both get."""

    path: str
    core: DCNv4Core
    core_inputs: tuple[Any, ...]
    module: nn.Module
    inputs: tuple[Any, ...]
    plain: nn.Module | None
    plain_inputs: tuple[Any, ...]

    def measure(self, device: torch.device) -> LayerLatency:
        def milliseconds(module: nn.Module, inputs: tuple[Any, ...]) -> float:
            return 1e3 * median(run_seconds(lambda: module(*inputs), device, LAYER_SECONDS))

        return LayerLatency(
            layer=self.path,
            input=tuple(self.inputs[0].shape),
            groups=self.core.group,
            operator_ms=milliseconds(self.core, self.core_inputs),
            layer_ms=milliseconds(self.module, self.inputs),
            plain=None if self.plain is None else type(self.plain).__name__,
            plain_ms=None if self.plain is None else milliseconds(self.plain, self.plain_inputs),
        )


def _layer_pairs(net: nn.Module, plain: nn.Module, picture: Tensor) -> list[_LayerPair]:
    layers = {path: layer for path, layer in net.named_modules() if isinstance(layer, DCNv4)}
    blocks = {path: _block_around(net, path) for path in layers}
    plain_modules = dict(plain.named_modules())
    others = {
        path: plain_modules[block]
        for path, block in blocks.items()
        if block in plain_modules
        and type(plain_modules[block]).__name__ == PACK.get(type(net.get_submodule(block)).__name__)
    }
    modules = {path: net.get_submodule(block) for path, block in blocks.items()}
    seen = _inputs_of([*modules.values(), *(layer.core for layer in layers.values())], net, picture)
    seen_plain = _inputs_of(list(others.values()), plain, picture)
    pairs = []
    for path, layer in layers.items():
        inputs, other = seen[modules[path]], others.get(path)
        # at the same place of a plain model of the user's choice there may be a map of another size
        if other is not None and seen_plain[other][0].shape != inputs[0].shape:
            other = None
        plain_inputs = () if other is None else seen_plain[other]
        pairs.append(_LayerPair(blocks[path], layer.core, seen[layer.core], modules[path], inputs, other, plain_inputs))
    return pairs


def _block_around(net: nn.Module, path: str) -> str:
    """Return the path of the innermost block around a layer that a plain module can stand in for, else its own."""
    block = path
    while block:
        if type(net.get_submodule(block)).__name__ in PACK:
            return block
        block = block.rpartition(".")[0]
    return path


def _inputs_of(modules: Sequence[nn.Module], net: nn.Module, picture: Tensor) -> dict[nn.Module, tuple[Any, ...]]:
    seen: dict[nn.Module, tuple[Any, ...]] = {}
    hooks = [module.register_forward_pre_hook(seen.__setitem__) for module in modules]
    try:
        net(picture)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _latency(name: str, times: Sequence[float], batch: int) -> ModelLatency:
    milliseconds = sorted(1e3 * seconds for seconds in times)
    middle = median(milliseconds)
    tenth = len(milliseconds) // 10
    return ModelLatency(name, middle, milliseconds[tenth], milliseconds[-1 - tenth], 1e3 * batch / middle)


def _setting(device: torch.device, dtype: torch.dtype, batch: int, size: Sequence[int]) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "ultralytics": ultralytics.__version__,
        "backend": backend(device).name,
        "dtype": str(dtype).removeprefix("torch."),
        "batch": batch,
        "imgsz": f"{size[0]}x{size[1]}",
    }


def _output_format(format: str | None, out: Path | None) -> str:
    if format is None:
        format = "md" if out is None else out.suffix.lstrip(".").lower()
    if format not in FORMATS:
        raise ValueError(f"format, or the suffix of out, must be one of {', '.join(FORMATS)}, got {format!r}")
    return format
