from __future__ import annotations

import copy
import json
import re

import pytest

from tests.compat import __main__ as command
from tests.compat import table
from tests.compat.cells import CELLS, NEWEST
from tests.compat.environments import CHECKOUT
from tests.compat.runner import RESULTS, number_of
from yolo_dcnv4.registry.rewrite import SUPPORTED

FINE = {step: {"error": None} for step in table.STEPS}
CELL = {
    "ultralytics": "8.3.0",
    "torch": "2.10.0",
    "environment": {},
    "plain": {"yolov8": FINE, "yolo11": FINE},
    "register": {"error": None},
    "build": {"error": None, "built": ["a", "b"], "unknown": ["c"], "errors": {}, "upstream": {}},
    "fork": {"error": None},
    "dcnv4": {"yolov8": FINE, "yolo11": FINE},
    "date": "2026-01-01",
    "python": "3.11.7",
    "tree": "0123",
}
BROKEN = {"train": {"error": "ValueError: no `luck`"}}


def cell(**changes) -> dict:
    return copy.deepcopy(CELL) | changes


def test_all_is_well():
    assert table.row(CELL) == ["8.3.0", "2.10.0", "ok", "ok", "2 of 2", *["ok"] * 6]
    assert table.passes(CELL) and table.reasons([CELL]) == []


def test_what_is_broken_upstream_is_told_from_what_is_ours():
    upstream = cell(plain={"yolov8": BROKEN}, dcnv4={"yolov8": BROKEN}, fork=BROKEN["train"])
    assert table.row(upstream)[2:] == ["fails in train", "ok", "2 of 2", *["as plain"] * 6]
    ours = cell(dcnv4={"yolov8": FINE, "yolo11": {**FINE, "export": {"error": "RuntimeError: no"}}})
    assert table.row(ours)[2:] == ["ok", "ok", "2 of 2", "ok", "ok", "ok", "ok", "fails", "ok"]
    assert not table.passes(upstream) and not table.passes(ours)
    assert table.reasons([ours]) == ["- 8.3.0 with torch 2.10.0: `DCNv4 yolo11, export: RuntimeError: no`"]
    assert "`plain yolov8, train: ValueError: no 'luck'`" in table.reasons([upstream])[0]


def test_step_that_was_not_reached_has_failed():
    stopped = cell(dcnv4={"yolov8": BROKEN})
    assert table.row(stopped)[5:] == [*["fails"] * 5, "ok"]


@pytest.mark.parametrize("phase", ["register", "build", "fork"])
def test_phase_that_failed(phase):
    failed = cell(**{phase: {"error": "RuntimeError: no"}})
    assert "fails" in table.row(failed) and not table.passes(failed)


def test_yamls_that_fail_upstream_too():
    build = CELL["build"] | {"upstream": {"d": "TypeError: no"}}
    assert table.row(cell(build=build))[4] == "2 of 3, 1 as plain"


def test_oldest_must_pass_with_every_torch_and_without_help():
    cells = [
        cell(ultralytics="8.0.1", environment={"A": "1"}),
        cell(ultralytics="8.1.0", plain={"yolov8": BROKEN}, dcnv4={"yolov8": BROKEN}),
        cell(ultralytics="8.2.0"),
        cell(ultralytics="8.2.0", torch="2.11.0", dcnv4={"yolov8": BROKEN}),
        cell(ultralytics="8.10.0"),
        cell(ultralytics="8.9.0"),
    ]
    assert table.oldest_that_passes(cells) == "8.9.0"


def test_page_needs_its_markers():
    assert table.between("a\n<\nold\n>\n", "<", ">", "new") == "a\n<\nnew\n>\n"
    with pytest.raises(ValueError, match="once each"):
        table.between("nothing", "<", ">", "new")


def test_command_refuses_unknown_options(capsys):
    assert command.main(["ultralytic=8.3.0"]) == 2
    assert "ultralytic" in capsys.readouterr().err


def results() -> dict:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def test_page_holds_the_results():
    assert table.matrix(results()) in table.PAGE.read_text(encoding="utf-8")


def test_every_release_was_run_with_the_oldest_torch_and_the_newest():
    ran = {(cell["ultralytics"], cell["torch"]) for cell in results()["cells"]}
    torches = sorted({torch for _, torch in ran}, key=number_of)
    listed = {cell.ultralytics for cell in CELLS} - {NEWEST}
    assert len(torches) >= 2 and torches[0] == "2.10.0"
    assert {(release, torch) for release in listed for torch in (torches[0], torches[-1])} <= ran


def test_bounds_are_what_was_run():
    cells = results()["cells"]
    oldest = table.oldest_that_passes(cells)
    newest = max((cell["ultralytics"] for cell in cells if table.passes(cell)), key=number_of)
    assert f"{oldest} to {newest}" == SUPPORTED
    pyproject = (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r'"ultralytics>=([\d.]+)"', pyproject) == [oldest]
    assert f"ultralytics {SUPPORTED}" in (CHECKOUT / "README.md").read_text(encoding="utf-8")
