"""The notebook of examples/ runs from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "quickstart.ipynb"
# what a user would write into the first cell
SMALL = {"PICTURES": 16, "EPOCHS": 1, "IMGSZ": 64}


@pytest.fixture
def notebook() -> Any:
    return pytest.importorskip("nbformat").read(NOTEBOOK, as_version=4)


def with_values(source: str, values: dict[str, Any]) -> str:
    for name, value in values.items():
        source, changed = re.subn(rf"^{name} = \S+", f"{name} = {value!r}", source, flags=re.MULTILINE)
        assert changed == 1, name
    return source


def test_is_committed_without_what_a_machine_printed(notebook: Any):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 5
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert set(notebook.metadata["kernelspec"]) == {"display_name", "language", "name"}


@pytest.mark.slow
def test_runs_from_top_to_bottom(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    nbclient = pytest.importorskip("nbclient")
    for package in ("ipykernel", "onnx", "onnxruntime", "onnxslim"):
        pytest.importorskip(package)
    monkeypatch.setenv("YOLO_AUTOINSTALL", "0")
    # the kernel is no test of ultralytics', which would have other folders
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source = with_values(first.source, SMALL)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()

    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if any(kind.startswith("image/") for kind in output.get("data", {}))
    ]
    # three of the data, the comparison, the sampling points
    assert len(pictures) == 5
    printed = "".join(
        output.text for cell in notebook.cells for output in cell.get("outputs", ()) if output.get("name") == "stdout"
    )
    assert "best.pt: " in printed and "best.onnx: " in printed
    for name in ("yolov8n", "yolov8n-dcnv4-backbone"):
        assert f"{name}.yaml: mAP50 0." in printed
        assert (tmp_path / "quickstart" / name / "weights" / "best.pt").is_file()
