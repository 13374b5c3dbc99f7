"""Which initialisation, and which norm after the layer, trains best in a YOLO bottleneck?

Trains the plain yolov8n and three DCNv4 models, each with four forms of the bottleneck's second stage, on generated
shapes, several seeds each, many runs side by side on one device. Every finished run is written at once:

    python benchmarks/initialisation.py device=0 out=runs/initialisation page=docs/initialisation.md
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PLAIN = "yolov8n.yaml"
MODELS = ("yolov8n-dcnv4-backbone.yaml", "yolov8n-dcnv4-neck.yaml", "yolov8n-dcnv4-full.yaml")
VARIANTS = {
    "alone, zero": "DCNv4 alone, published initialisation (all weights zero)",
    "alone, 1/K": "DCNv4 alone, weights at 1/K",
    "norm, zero": "DCNv4 + BatchNorm + SiLU, published initialisation",
    "norm, 1/K": "DCNv4 + BatchNorm + SiLU, weights at 1/K: `DCNv4Conv` as shipped",
}
BEGIN, END = "<!-- results begin -->", "<!-- results end -->"


@dataclass
class Settings:
    """What the command line may change."""

    device: str = "0"
    out: str = "runs/initialisation"
    page: str = ""
    commit: str = ""
    processes: int = 12
    seeds: int = 3
    epochs: int = 20
    train: int = 640
    val: int = 256
    imgsz: int = 128
    batch: int = 32
    optimizer: str = "AdamW"
    lr0: float = 0.002


def train_once(model: str, variant: str, seed: int, data: str, project: str, settings: Settings) -> dict[str, Any]:
    """Train one model from scratch and return its validation curve."""
    # the machine may have no network; ultralytics asks once at import
    os.environ["YOLO_OFFLINE"] = "true"
    import torch
    from ultralytics import YOLO
    from ultralytics.utils import LOGGER

    from yolo_dcnv4.modules import Bottleneck_DCNv4

    torch.set_num_threads(1)
    LOGGER.setLevel("WARNING")
    published = Bottleneck_DCNv4.__init__
    curve: list[tuple[float, float]] = []

    def note(trainer: Any) -> None:
        # the last call comes after training, on the same weights
        if len(curve) < trainer.epochs:
            metrics = trainer.metrics
            curve.append((float(metrics["metrics/mAP50(B)"]), float(metrics["metrics/mAP50-95(B)"])))

    start = time.perf_counter()
    try:
        Bottleneck_DCNv4.__init__ = with_second_stage(published, variant)
        yolo = YOLO(model)
        yolo.add_callback("on_fit_epoch_end", note)
        yolo.train(
            data=data,
            epochs=settings.epochs,
            imgsz=settings.imgsz,
            batch=settings.batch,
            nbs=settings.batch,
            device=settings.device,
            optimizer=settings.optimizer,
            lr0=settings.lr0,
            seed=seed,
            warmup_epochs=1,
            mosaic=0.0,
            workers=0,
            amp=False,
            plots=False,
            save=False,
            pretrained=False,
            deterministic=False,
            verbose=False,
            project=project,
            name=f"{Path(model).stem}-{variant}-{seed}".replace(", ", "-").replace("/", ""),
        )
    finally:
        Bottleneck_DCNv4.__init__ = published
    return {
        "model": model,
        "variant": variant,
        "seed": seed,
        "map50": [m for m, _ in curve],
        "map50_95": [m for _, m in curve],
        "seconds": round(time.perf_counter() - start, 1),
    }


def with_second_stage(construct: Callable[..., None], variant: str) -> Callable[..., None]:
    """Return the bottleneck's constructor with the second stage that `variant` names."""
    from torch import nn

    from yolo_dcnv4.modules import DCNv4, DCNv4Conv

    norm, _, start = variant.partition(", ")
    init = "published" if start == "zero" else "average"

    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        stage = self.cv2
        if not isinstance(stage, DCNv4Conv):
            raise TypeError(f"this experiment varies DCNv4Conv, but the bottleneck's second stage is {stage}")
        if norm == "alone":
            core, channels = stage.dcn.core, stage.dcn.channels
            width = stage.bn.num_features
            self.cv2 = DCNv4(channels, core.kernel_size, pad=core.pad, group=None, out_channels=width, init=init)
        else:
            stage.dcn.init = init
            stage.dcn.reset_parameters()

    return construct if not variant else __init__


def describe_machine(settings: Settings) -> dict[str, Any]:
    """Return what a reader needs to repeat the run."""
    import torch
    import ultralytics

    from yolo_dcnv4 import __version__
    from yolo_dcnv4.ops import backend

    device = torch.device(settings.device if settings.device == "cpu" else f"cuda:{settings.device}")
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "backend": str(backend(device)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ultralytics": ultralytics.__version__,
        "yolo_dcnv4": __version__,
        "commit": settings.commit or git.stdout.strip() or "unknown",
    }


def render(report: dict[str, Any]) -> str:
    """Return the table of final and mean-over-epochs mAP per model and variant."""
    machine, settings = report["machine"], report["settings"]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in report["runs"]:
        groups.setdefault((run["model"], run["variant"]), []).append(run)
    lines = [
        f"{machine['device']}, Python {machine['python']}, torch {machine['torch']}, ultralytics "
        f"{machine['ultralytics']}, commit {machine['commit']}; {settings['train']} training and {settings['val']} "
        f"validation pictures of {settings['imgsz']} px, {settings['epochs']} epochs, batch {settings['batch']}, "
        f"{settings['optimizer']}, lr0 {settings['lr0']}, float32, from scratch. Mean ± standard deviation over the "
        "seeds; 'all epochs' is the mean over the whole curve, so it rewards an early start.",
        "",
        "| model | second stage | seeds | mAP50-95, last epoch | mAP50, last epoch | mAP50-95, all epochs |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for model in (PLAIN, *MODELS):
        for variant in ("", *VARIANTS):
            runs = groups.get((model, variant), [])
            if not runs:
                continue
            cells = (
                [run["map50_95"][-1] for run in runs],
                [run["map50"][-1] for run in runs],
                [statistics.fmean(run["map50_95"]) for run in runs],
            )
            stage = VARIANTS.get(variant, "Conv (unchanged)")
            figures = " | ".join(_mean_and_deviation(cell) for cell in cells)
            lines.append(f"| {Path(model).stem} | {stage} | {len(runs)} | {figures} |")
    return "\n".join(lines)


def _mean_and_deviation(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def write_page(page: Path, table: str) -> None:
    """Put the table between the page's markers; the words around it stay."""
    text = page.read_text(encoding="utf-8") if page.exists() else f"# Initialisation\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page} must hold the lines {BEGIN!r} and {END!r}")
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(pattern.sub(lambda _: f"{BEGIN}\n{table}\n{END}", text), encoding="utf-8")


def parse_settings(arguments: list[str]) -> Settings:
    """Read key=value arguments."""
    settings = Settings()
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in asdict(settings):
            raise SystemExit(f"unknown argument {argument!r}; known: {', '.join(f'{k}=' for k in asdict(settings))}")
        setattr(settings, key, type(getattr(settings, key))(value))
    return settings


def main() -> int:
    from yolo_dcnv4.demo_data import write_demo_data

    settings = parse_settings(sys.argv[1:])
    out = Path(settings.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    report = {"machine": describe_machine(settings), "settings": asdict(settings), "runs": []}
    # one seed of everything before the next seed: a run cut short is still balanced
    jobs = [
        (model, variant, seed)
        for seed in range(settings.seeds)
        for model, variants in ((PLAIN, ("",)), *((model, VARIANTS) for model in MODELS))
        for variant in variants
    ]
    failures = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(settings.processes, mp_context=get_context("spawn")) as pool,
    ):
        data = write_demo_data(Path(folder) / "data", settings.train, settings.val, settings.imgsz)
        futures = {pool.submit(train_once, *job, str(data), folder, settings): job for job in jobs}
        for future in as_completed(futures):
            model, variant, seed = futures[future]
            try:
                run = future.result()
            except Exception as error:
                failures += 1
                print(f"FAILED {model} ({variant}) seed {seed}: {type(error).__name__}: {error}", flush=True)
                continue
            report["runs"].append(run)
            report["runs"].sort(key=lambda run: jobs.index((run["model"], run["variant"], run["seed"])))
            (out / "initialisation.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            print(
                f"{len(report['runs'])}/{len(jobs)} {model} ({variant or 'unchanged'}) seed {seed}: "
                f"mAP50 {run['map50'][-1]:.3f} in {run['seconds']} s",
                flush=True,
            )
    table = render(report)
    print(table)
    write_page(Path(settings.page) if settings.page else out / "initialisation.md", table)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
