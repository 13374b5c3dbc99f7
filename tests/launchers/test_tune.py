"""`model.tune`: by ultralytics itself, which starts `yolo` anew, and by Ray Tune, whose workers are fresh processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SETTINGS = "epochs=1, imgsz=64, batch=4, workers=0, plots=False, device='cpu', optimizer='AdamW'"
PLAIN = """
import sys
from ultralytics import YOLO
if __name__ == "__main__":
    YOLO("yolov8n-dcnv4-backbone.yaml").tune(
        data=sys.argv[1], iterations=2, save=False, val=True, project=sys.argv[2], {settings}
    )
"""
RAY = """
import sys
sys.path.insert(0, sys.argv[2])
import inspect
import own_blocks
import ray
from ray import tune
from ultralytics import YOLO
from ultralytics.utils.tuner import run_ray_tune
if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False)
    # the default search of newer releases wants further packages
    chosen = {{"search_alg": "random"}} if "search_alg" in inspect.signature(run_ray_tune).parameters else {{}}
    results = YOLO(sys.argv[3]).tune(
        data=sys.argv[1], use_ray=True, iterations=2, space={{"lr0": tune.uniform(1e-4, 1e-3)}}, grace_period=1,
        project=sys.argv[2], **chosen, {settings}
    )
    print("trials:", [(result.error, "metrics/mAP50(B)" in result.metrics) for result in results])
"""


def test_tune_of_ultralytics(run, data: Path, tmp_path: Path):
    script = tmp_path / "tune.py"
    script.write_text(PLAIN.format(settings=SETTINGS))
    out = run(str(script), str(data), str(tmp_path))
    (results,) = tmp_path.rglob("tune_results.*")
    rows = results.read_text().strip().splitlines()
    assert len([row for row in rows if row and not row.lstrip().startswith("fitness")]) == 2, out
    assert "KeyError" not in out and "failure" not in out.lower(), out


@pytest.mark.skipif(sys.platform == "win32", reason="Ray Tune writes its results elsewhere on Windows")
def test_ray_tune_runs_two_trials(run, data: Path, own_model: Path, tmp_path: Path):
    # a Ray without its extra raises an ImportError of its own
    pytest.importorskip("ray.tune", exc_type=ImportError)
    script = tmp_path / "tune.py"
    script.write_text(RAY.format(settings=SETTINGS))
    out = run(str(script), str(data), str(tmp_path), str(own_model))
    assert "trials: [(None, True), (None, True)]" in out, out
