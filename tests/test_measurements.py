"""What the documents say was measured is what the results hold."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "scripts" / "measurements.py"


@pytest.fixture
def measurements() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measurements", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_fresh(measurements):
    assert measurements.main(["check=1"]) == 0


def test_stale_table_is_noticed(measurements, monkeypatch, capsys):
    monkeypatch.setitem(measurements.DOCUMENTS["docs/performance.md"], "means", lambda: "other figures")
    assert measurements.main(["check=1"]) == 1
    assert "performance.md" in capsys.readouterr().err
