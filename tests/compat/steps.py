"""What is done in a cell, by the cell's own Python: `steps.py PHASE FOLDER DATA [MODEL]`, results in FOLDER/PHASE.json.

Imports nothing of this package before ultralytics, so that registration has to happen by itself.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import re
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import ultralytics
from torch import Tensor
from ultralytics import YOLO
from ultralytics.nn import tasks

IMGSZ = 64
QUIET = {"imgsz": IMGSZ, "device": "cpu", "workers": 0, "plots": False}
SUFFIX = re.compile(r"-dcnv4-\w+")
PARTS = ("backbone", "head")
DISTRIBUTIONS = ("ultralytics", "torch", "torchvision", "numpy", "opencv-python", "thop", "ultralytics-thop")


class Report:
    """Results of steps, written after each one: a process may die in the next.

    Args:
        file: The JSON file.
    """

    def __init__(self, file: Path):
        self.file = file
        self.results: dict[str, Any] = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        """Record a step: what the body puts into the dictionary, and its error."""
        result: dict[str, Any] = {"error": "the process died"}
        self.results[name] = result
        self.write()
        try:
            yield result
            result["error"] = None
        except BaseException as error:
            traceback.print_exc()
            result["error"] = describe(error)
            raise
        finally:
            self.write()

    def write(self) -> None:
        self.file.write_text(json.dumps(self.results, indent=1))


def describe(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    lines = re.sub(r"\x1b\[\d+m", "", str(error)).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def register(report: Report) -> None:
    for name in DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            report.results.setdefault("versions", {})[name] = importlib.metadata.version(name)
    with report.step("register") as result:
        from yolo_dcnv4 import ops, register, register_module
        from yolo_dcnv4.registry import registered

        # by itself, when ultralytics was imported above
        result["blocks"] = sorted(registered())
        assert result["blocks"], "nothing was registered when ultralytics was imported"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            register()
        backend = ops.backend(torch.device("cpu"))
        result["backend"] = backend.name
        assert_copies_equal_stock(register_module)


def assert_copies_equal_stock(register_module: Callable[..., Any]) -> None:
    """Build YOLOv8 from copies of its own modules, which must give the very model that the stock modules give."""
    copies = {name: type(f"Own{name}", (getattr(tasks, name),), {}) for name in ("Conv", "C2f", "SPPF", "Detect")}
    for name, copy in copies.items():
        register_module(copy, like=name)
    config = tasks.yaml_model_load("yolov8n.yaml")
    stock = tasks.DetectionModel(dict(config), verbose=False).eval()
    rows = {part: [[*row[:2], "Own" * (row[2] in copies) + row[2], row[3]] for row in config[part]] for part in PARTS}
    own = tasks.DetectionModel(config | rows, verbose=False).eval()
    assert {type(layer) for layer in own.model} >= set(copies.values())
    own.load_state_dict(stock.state_dict())
    assert torch.equal(own.stride, stock.stride)
    x = torch.rand(1, 3, IMGSZ, IMGSZ)
    with torch.no_grad():
        assert torch.equal(predictions(own(x)), predictions(stock(x))), "copies of modules give another model"


def predictions(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else predictions(output[0])


def build(report: Report) -> None:
    """Build every shipped YAML whose base ultralytics ships too, and run it."""
    import yolo_dcnv4.locate

    shipped = yamls_of_ultralytics()
    with report.step("build") as result:
        result.update(built=[], unknown=[], errors={}, upstream={})
        for file in sorted(yolo_dcnv4.locate.data_folder("model_yamls").glob("*.yaml")):
            base = SUFFIX.sub("", file.name)
            if base not in shipped:
                result["unknown"].append(file.name)
                continue
            try:
                run(at_smallest_scale(file.name))
                result["built"].append(file.name)
            except Exception as error:
                traceback.print_exc()
                result["errors"][file.name] = describe(error)
        for name in list(result["errors"]):
            try:
                run(at_smallest_scale(SUFFIX.sub("", name)))
            except Exception:
                result["upstream"][name] = result["errors"].pop(name)
        assert not result["errors"], "; ".join(f"{name}: {error}" for name, error in result["errors"].items())


def yamls_of_ultralytics() -> set[str]:
    return {file.name for file in Path(ultralytics.__file__).parent.glob("cfg/models/**/*.yaml")}


def at_smallest_scale(name: str) -> str:
    """Return a YAML's name with the scale n, or l for RT-DETR, where it has scales."""
    scale = "l" if "rtdetr" in name else "n"
    return re.sub(r"^(yolov?\d+)(?=[-.])", rf"\g<1>{scale}", name)


def run(name: str) -> None:
    if "rtdetr" in name:
        from ultralytics import RTDETR

        model = RTDETR(name).model
    else:
        model = YOLO(name).model
    with torch.no_grad():
        assert predictions(model.eval()(torch.rand(1, 3, 2 * IMGSZ, 2 * IMGSZ))).isfinite().all()


def train(report: Report, folder: Path, data: str, model_yaml: str) -> None:
    settings = QUIET | {"project": str(folder), "exist_ok": True}
    with report.step("train") as result:
        model = YOLO(model_yaml)
        model.train(data=data, epochs=1, batch=4, name="train", **settings)
        weights = folder / "train" / "weights" / "best.pt"
        result["output"] = output_of(YOLO(weights))
    with report.step("val") as result:
        result["map50"] = float(YOLO(weights).val(data=data, name="val", **settings).box.map50)
    with report.step("predict"):
        picture = Path(data).parent / "images" / "val" / "00000.jpg"
        (found,) = YOLO(weights).predict(picture, imgsz=IMGSZ, device="cpu", conf=0.001, project=str(folder))
        assert found.orig_shape == (IMGSZ, IMGSZ)


def output_of(model: YOLO) -> list[float]:
    """Return some figures of what a model makes of a certain input."""
    x = torch.linspace(0, 1, 3 * IMGSZ * IMGSZ).reshape(1, 3, IMGSZ, IMGSZ)
    with torch.no_grad():
        return predictions(model.model.float().eval()(x)).flatten()[::97].tolist()


def reload(report: Report, folder: Path, data: str, model_yaml: str) -> None:
    """Load the checkpoint that `train` has left in another process, and export it."""
    weights = folder / "train" / "weights" / "best.pt"
    expected = json.loads((folder / "train.json").read_text())["train"]["output"]
    with report.step("reload"):
        torch.testing.assert_close(output_of(YOLO(weights)), expected)
    with report.step("export"):
        exported = torch.jit.load(YOLO(weights).export(format="torchscript", imgsz=IMGSZ, device="cpu"))
        x = torch.rand(1, 3, IMGSZ, IMGSZ)
        with torch.no_grad():
            wanted = predictions(YOLO(weights).model.float().fuse().eval()(x))
            torch.testing.assert_close(predictions(exported(x)), wanted, rtol=1e-3, atol=1e-2)


def fork(report: Report, folder: Path, data: str) -> None:
    """Train with a patched copy of ultralytics and without the hook."""
    import yolo_dcnv4.locate
    from yolo_dcnv4.registry import registered, unregister

    with report.step("fork") as result:
        assert Path(ultralytics.__file__).is_relative_to(folder), f"{ultralytics.__file__} is not the patched copy"
        # the copy imports the blocks, which register themselves
        unregister()
        model_yaml = folder / "yolov8n-dcnv4-full.yaml"
        shutil.copy(yolo_dcnv4.locate.data_folder("model_yamls") / "yolov8-dcnv4-full.yaml", model_yaml)
        model = YOLO(model_yaml)
        result["blocks"] = sum(type(layer).__name__ == "C2f_DCNv4" for layer in model.model.model)
        assert result["blocks"] == 8 and not registered()
        model.train(data=data, epochs=1, batch=4, project=str(folder), name="train", **QUIET)
        assert torch.isfinite(torch.tensor(output_of(YOLO(folder / "train" / "weights" / "best.pt")))).all()
        assert not registered()


def main(phase: str, folder: str, data: str, *model: str) -> None:
    """Run a phase."""
    report = Report(Path(folder) / f"{phase}.json")
    if phase in ("train", "reload"):
        {"train": train, "reload": reload}[phase](report, Path(folder), data, *model)
    elif phase == "fork":
        fork(report, Path(folder), data)
    else:
        {"register": register, "build": build}[phase](report)


if __name__ == "__main__":
    main(*sys.argv[1:])
