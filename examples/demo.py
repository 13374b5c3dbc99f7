"""From nothing to a trained YOLO with DCNv4: generated data, then the plain `yolo train`, `yolo val`, `yolo predict`.

Run it with `./make.sh demo`; 2 CPU cores are enough. Arguments: out=DIR train=N val=N epochs=N imgsz=N device=cpu|0.
Ends with exit status 1 where the model did not learn (validation mAP50 below 0.5).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from ultralytics.utils import ASSETS

from yolo_dcnv4.cli import Option, UsageError, parse_options
from yolo_dcnv4.demo_data import write_demo_data

MODEL = "yolov8n-dcnv4-backbone.yaml"
LEAST_MAP50 = 0.5
DEFAULTS = {
    "out": str(Path(__file__).resolve().parents[1] / "demo"),
    "train": 320,
    "val": 80,
    "epochs": 16,
    "imgsz": 128,
    "device": "0" if torch.cuda.is_available() else "cpu",
}


def yolo(*arguments: str) -> str:
    """Run ultralytics' own command, show what it prints and return it."""
    # the command of this environment, also where the environment is not activated
    search = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    program = shutil.which("yolo", path=search)
    if program is None:
        raise SystemExit(f"no `yolo` command in {search}; is ultralytics installed?")
    print(f"\n$ {shlex.join(('yolo', *arguments))}", flush=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    printed = bytearray()
    with subprocess.Popen(
        [program, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        # bytes, as they come: text mode would turn the progress bar's carriage returns into new lines
        while chunk := process.stdout.read1():
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            printed += chunk
    if process.returncode:
        raise SystemExit(f"`yolo {arguments[0]}` ended with status {process.returncode}")
    return printed.decode(errors="replace")


def printed_map50(output: str) -> float:
    """Return mAP50 over all classes from the table that `yolo val` printed."""
    # columns: class, pictures, objects, precision, recall, mAP50, mAP50-95
    rows = re.findall(r"^\s*all\s+\d+\s+\d+\s+\S+\s+\S+\s+(\S+)\s+\S+", output, re.MULTILINE)
    if not rows:
        raise SystemExit("`yolo val` printed no line for all classes")
    return float(rows[-1])


def main() -> int:
    """Run the demo and return its exit status."""
    kinds = {name: Option(type(default)) for name, default in DEFAULTS.items()}
    try:
        options = DEFAULTS | parse_options(sys.argv[1:], kinds)
    except UsageError as error:
        raise SystemExit(f"demo: {error}") from error
    start = time.monotonic()
    out = Path(options["out"]).resolve()
    data = write_demo_data(out / "shapes", options["train"], options["val"], options["imgsz"])
    print(f"wrote {options['train']} training and {options['val']} validation pictures to {data.parent}")

    common = (
        f"imgsz={options['imgsz']}",
        f"device={options['device']}",
        "workers=0",
        "exist_ok=True",
        f"project={out}",
    )
    # a short training from scratch: an optimiser step per batch, the usual augmentation but no mosaics
    schedule = ("batch=16", "nbs=16", "optimizer=AdamW", "lr0=0.002", "warmup_epochs=1", "mosaic=0", "amp=False")
    yolo("train", f"model={MODEL}", f"data={data}", f"epochs={options['epochs']}", *schedule, *common, "name=train")
    weights = out / "train" / "weights" / "best.pt"
    map50 = printed_map50(yolo("val", f"model={weights}", f"data={data}", *common, "name=val"))
    yolo(
        "predict",
        f"model={weights}",
        f"source={ASSETS}",
        f"device={options['device']}",
        "exist_ok=True",
        f"project={out}",
        "name=predict",
    )

    print(f"\ndemo finished in {time.monotonic() - start:.0f} s on {options['device']}")
    print(f"  weights   {weights}")
    print(f"  curves    {out / 'train' / 'results.png'}")
    print(f"  pictures  {out / 'predict'} (bus.jpg, zidane.jpg), {out / 'val'} (the generated pictures)")
    print(f"  mAP50     {map50:.3f} on the validation pictures")
    if map50 < LEAST_MAP50:
        print(f"the model did not learn: mAP50 {map50:.3f} is below {LEAST_MAP50}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
