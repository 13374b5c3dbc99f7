"""What ultralytics' export formats make of the operator, said before an export spends time on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

EVENT = "on_export_start"
# from opset 20 on, TensorRT's parser reads GridSample as sampling of the nearest pixel (NVIDIA/TensorRT #4646)
TENSORRT_OPSET = 19
# what newer releases of ultralytics choose themselves; some older ones choose up to 20
DEFAULT_OPSET = 18

REFUSED = {
    "imx": "its converter traces the model with torch.fx, which cannot follow a layer that looks at its input's sizes",
    "paddle": "its converter x2paddle knows no grid_sampler",
}
# exported and run, or (coreml, which runs on macOS alone) converted
TESTED = frozenset({"coreml", "executorch", "litert", "mnn", "ncnn", "onnx", "openvino", "torchscript"})
# their tools want a GPU, another machine, a download or a vendor's account
UNTESTED = frozenset(
    {
        "ascend",
        "axelera",
        "coreai",
        "deepx",
        "edgetpu",
        "engine",
        "hailo",
        "pb",
        "qnn",
        "rknn",
        "saved_model",
        "tflite",
        "tfjs",
        "xilinx",
    }
)


def prepare_export(exporter: Any) -> None:
    """Refuse a format that cannot hold the operator, and settle what a format needs; for `on_export_start`.

    Args:
        exporter: ultralytics' Exporter, its model and arguments ready.

    Raises:
        ValueError: The format cannot hold the operator; the message says why.
    """
    from ultralytics.utils import LOGGER

    from yolo_dcnv4.modules import DCNv4Core

    if getattr(exporter, "model", None) is None:
        _put_off(exporter)
        return
    if not any(isinstance(module, DCNv4Core) for module in exporter.model.modules()):
        return
    name = exporter.args.format.lower()
    # releases before 8.4 keep the alias
    name = {"tensorrt": "engine", "trt": "engine"}.get(name, name)
    if name in REFUSED:
        raise ValueError(
            f"format={name} cannot hold DCNv4: {REFUSED[name]}. docs/export.md lists the formats that can."
        )
    if name in UNTESTED:
        LOGGER.warning(f"format={name} has not been tested with DCNv4; compare its detections with the model's.")
    if name == "ncnn":
        # releases before 8.4 convert a file that the step before has traced
        exporter.export_torchscript = _with_form(exporter.export_torchscript, "grid_sample_finite")
        exporter.export_ncnn = _with_form(exporter.export_ncnn, "grid_sample_finite")
    if name == "engine":
        exporter.args.opset = exporter.args.opset or DEFAULT_OPSET
    if (exporter.args.opset or 0) > TENSORRT_OPSET:
        reason = "TensorRT would sample the nearest pixel (NVIDIA/TensorRT #4646)"
        if name == "engine":
            LOGGER.warning(f"opset={exporter.args.opset} is lowered to {TENSORRT_OPSET}: with more, {reason}.")
            exporter.args.opset = TENSORRT_OPSET
        else:
            LOGGER.warning(f"opset={exporter.args.opset}: from this file, {reason}; for TensorRT: opset=18.")


def _put_off(exporter: Any) -> None:
    # the event of releases before 8.3.200 comes before they take up the model, which stands at the first step
    names = [name for name in dir(type(exporter)) if name.startswith("export_")]

    def prepare_and(name: str) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            for replaced in names:
                delattr(exporter, replaced)
            prepare_export(exporter)
            return getattr(exporter, name)(*args, **kwargs)

        return step

    for name in names:
        setattr(exporter, name, prepare_and(name))


def _with_form(export: Any, form: str) -> Any:
    from yolo_dcnv4.ops import export_form

    def exporting(*args: Any, **kwargs: Any) -> Any:
        with export_form(form):
            return export(*args, **kwargs)

    return exporting


def watch() -> None:
    """Have `prepare_export` called at the start of every export of models made from now on."""
    if prepare_export not in _callbacks():
        _callbacks().append(prepare_export)


def withdraw() -> None:
    """Leave the exports of models made from now on alone."""
    if prepare_export in _callbacks():
        _callbacks().remove(prepare_export)


def _callbacks() -> list[Any]:
    from ultralytics.utils.callbacks.base import default_callbacks

    return default_callbacks[EVENT]
