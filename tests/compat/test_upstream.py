from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from tests.compat import table, upstream

REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_one[x::y]"/>
<testcase classname="tests.test_a" name="test_two"><failure message="no">text</failure></testcase>
<testcase classname="tests.test_b" name="test_one"><error message="no">text</error></testcase>
<testcase classname="tests.test_b" name="test_two"><skipped message="no">text</skipped></testcase>
<testcase classname="tests.test_b" name="test_three"><system-out>text</system-out></testcase>
</testsuite></testsuites>"""
OUTCOMES = {
    "tests/test_a.py::test_one[x::y]": "passed",
    "tests/test_a.py::test_two": "failed",
    "tests/test_b.py::test_one": "failed",
    "tests/test_b.py::test_two": "skipped",
    "tests/test_b.py::test_three": "passed",
}


def record(**changed: str) -> dict:
    outcomes = {"without": dict(OUTCOMES), "with": copy.deepcopy(OUTCOMES) | changed}
    return {"ultralytics": "8.4.0", "torch": "2.10.0", "tree": "0123", "date": "2026-01-01", "outcomes": outcomes}


def test_outcomes_of_a_report(tmp_path: Path):
    (tmp_path / "report.xml").write_text(REPORT)
    assert upstream.outcomes_in(tmp_path / "report.xml") == OUTCOMES


def test_counts():
    lines = upstream.summary(record()).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["`tests/test_a.py`", "1", "1", "1", "1"]
    assert [cell.strip() for cell in lines[4].split("|")[1:-1]] == ["all", "2", "2", "2", "2"]
    assert "every test ended alike" in lines[-1]


@pytest.mark.parametrize("outcome", ["failed", "skipped"])
def test_what_no_longer_passes_is_named(outcome: str):
    changed = record(**{"tests/test_b.py::test_three": outcome})
    assert upstream.different(changed["outcomes"]) == ["tests/test_b.py::test_three"]
    assert "different: `tests/test_b.py::test_three`" in upstream.summary(changed)


def test_what_was_not_run_is_named():
    changed = record()
    del changed["outcomes"]["with"]["tests/test_a.py::test_two"]
    assert upstream.different(changed["outcomes"]) == ["tests/test_a.py::test_two"]


def test_command_refuses_unknown_options(capsys):
    assert upstream.main(["cach=there"]) == 2
    assert "cach" in capsys.readouterr().err


def test_page_holds_the_record():
    results = json.loads(upstream.RESULTS.read_text(encoding="utf-8"))
    assert not upstream.different(results["outcomes"])
    assert upstream.summary(results) in table.PAGE.read_text(encoding="utf-8")
