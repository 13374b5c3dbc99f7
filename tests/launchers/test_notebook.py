from __future__ import annotations

from pathlib import Path

import pytest

CELLS = (
    "from ultralytics import YOLO\nimport yolo_dcnv4",
    "from ultralytics.nn.modules import C2f\nclass Cell(C2f): pass\nyolo_dcnv4.register_module(Cell);",
    # a cell that is run again defines its class anew
    "class Cell(C2f): again = True\nyolo_dcnv4.register_module(Cell);",
    "model = YOLO('yolov8n-dcnv4-backbone.yaml')\nconfig = model.model.yaml\n"
    "config['head'][-2][2] = 'Cell'\n"
    "from ultralytics.nn.tasks import DetectionModel\n"
    "print([type(m).__name__ for m in DetectionModel(config, verbose=False).model][-2])",
    "results = model.train(data={data!r}, epochs=1, imgsz=64, batch=4, workers=0, plots=False, device='cpu', "
    "project={folder!r}, name='train')\n"
    "print(type(YOLO({folder!r} + '/train/weights/best.pt').model.model[4]).__name__)",
)


@pytest.mark.slow
def test_in_a_notebook_kernel(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("YOLO_AUTOINSTALL", "false")
    cells = [cell.replace("{data!r}", repr(str(data))).replace("{folder!r}", repr(str(tmp_path))) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    # without kernels.json of the machine: the kernel of this very Python
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    printed = [
        "".join(output.get("text", "") for output in cell.outputs if output.get("name") == "stdout")
        for cell in notebook.cells
    ]
    assert printed[3].strip().splitlines()[-1] == "Cell"
    assert printed[4].strip().splitlines()[-1] == "C2f_DCNv4"
