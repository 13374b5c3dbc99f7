from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import blocks_of

ROOT = Path(__file__).resolve().parents[2]

COMPARE = """
import sys, torch
from ultralytics import YOLO
expected = torch.load("expected.pt")
model = YOLO("converted.pt").model.float().eval()
names = sorted({type(m).__module__ for m in model.modules() if type(m).__name__ in ("DCNv4", "OwnC2f")})
with torch.no_grad():
    output = model(expected["picture"])[0]
torch.testing.assert_close(output, expected["output"], rtol=1e-4, atol=1e-3)
assert "DCNv4" not in sys.modules
print(*names, *(row[2] for row in model.yaml["backbone"]))
"""


def python(*arguments: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_converted_checkpoint_gives_the_same_output(tmp_path: Path):
    python(
        *("-m", "tests.docs.recipe", "recipe.pt", "expected.pt"),
        folder=tmp_path,
        PYTHONPATH=str(ROOT),
        YOLO_DCNV4_AUTOLOAD="0",
    )
    for block in blocks_of(ROOT / "docs" / "migrating.md"):
        if block.file:
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
    python("convert.py", "recipe.pt", "converted.pt", folder=tmp_path)
    printed = python("-c", COMPARE, folder=tmp_path)
    modules = "own_dcnv4 yolo_dcnv4.modules.dcnv4"
    assert printed.splitlines()[-1] == f"{modules} Conv Conv Conv OwnC2f Conv OwnC2f"
