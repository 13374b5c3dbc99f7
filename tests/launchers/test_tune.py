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
BLOCKS = """
from ultralytics.nn.modules import C2f
from yolo_dcnv4 import register_module
@register_module
class OwnC2f(C2f):
    pass
"""
RAY = """
import sys
sys.path.insert(0, sys.argv[2])
import ray
from ray import tune
from ultralytics import YOLO
import own_blocks
if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False)
    results = YOLO(sys.argv[3]).tune(
        data=sys.argv[1], use_ray=True, iterations=2, space={{"lr0": tune.uniform(1e-4, 1e-3)}}, grace_period=1,
        project=sys.argv[2], {settings}
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
def test_ray_tune_runs_two_trials(run, data: Path, tmp_path: Path):
    pytest.importorskip("ray.tune")
    (tmp_path / "own_blocks.py").write_text(BLOCKS)
    from ultralytics import YOLO
    from ultralytics.utils import YAML

    config = {key: value for key, value in YOLO("yolov8n-dcnv4-backbone.yaml").model.yaml.items() if key != "yaml_file"}
    for row in config["head"]:
        row[2] = row[2].replace("C2f", "OwnC2f")
    model = tmp_path / "yolov8n-both.yaml"
    YAML.save(model, config)
    script = tmp_path / "tune.py"
    script.write_text(RAY.format(settings=SETTINGS))
    out = run(str(script), str(data), str(tmp_path), str(model), RAY_TRAIN_V2_ENABLED="0")
    assert "trials: [(None, True), (None, True)]" in out, out
