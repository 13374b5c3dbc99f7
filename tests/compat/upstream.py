"""Run ultralytics' own tests without this package and with it: `python -m tests.compat.upstream [cache=DIR]`.

The tests come from the source distribution of the newest release. Nothing is downloaded for them: models of random
weights and generated pictures stand in for what they expect, and tests that want more fail in both runs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.compat import table
from tests.compat.environments import CHECKOUT, Environments
from tests.compat.runner import tree
from yolo_dcnv4.markdown import markdown_table

RESULTS = CHECKOUT / "docs" / "results" / "upstream-tests.json"
BEGIN, END = "<!-- upstream begin: python -m tests.compat.upstream -->", "<!-- upstream end -->"
ASSETS = Path(__file__).with_name("upstream_assets.py")
NEEDED = ("pytest", "pytest-timeout", "onnx", "onnxruntime", "onnxslim", "lap", "aiohttp")
# these want a GPU, or videos
LEFT_OUT = ("test_cuda.py", "test_rocm.py", "test_solutions.py")
TEST_SECONDS = 180
SETTINGS = "import sys; from ultralytics import settings; settings.update(dict(a.split('=', 1) for a in sys.argv[1:]))"
REGISTERED = "from ultralytics.nn import tasks; import sys; sys.exit('C2f_DCNv4' not in vars(tasks))"


class Suite:
    """ultralytics' tests in a folder of their own.

    Args:
        home: The folder; made anew.
        source: The unpacked source distribution.
        python: Python of the environment with that ultralytics.
        packages: Further folders to import from.
    """

    def __init__(self, home: Path, source: Path, python: Path, packages: Sequence[Path] = ()):
        self.home, self.python = home, python
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        shutil.copytree(source / "tests", home / "tests")
        shutil.copy(source / "pyproject.toml", home)
        # what is inherited of these would turn the hook off, or find this package beside the tests
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("YOLO_", "PYTHON", "PYTEST"))}
        self.environment = kept | {
            "PATH": os.pathsep.join((str(python.parent), os.environ["PATH"])),
            "PYTHONPATH": os.pathsep.join(map(str, packages)),
            "YOLO_CONFIG_DIR": str(home / "settings"),
            "YOLO_AUTOINSTALL": "false",
            "MPLBACKEND": "Agg",
        }
        folders = {name: home / name.removesuffix("_dir") for name in ("datasets_dir", "weights_dir", "runs_dir")}
        self.run("-c", SETTINGS, *(f"{name}={folder}" for name, folder in folders.items())).check_returncode()

    def run(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """Run Python in the folder."""
        with (self.home / "output.log").open("a") as log:
            return subprocess.run(
                [str(self.python), *words],
                cwd=self.home,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
            )

    def outcomes(self, tests: Sequence[str]) -> dict[str, str]:
        """Run tests and return what became of each: passed, failed or skipped."""
        report = self.home / "report.xml"
        report.unlink(missing_ok=True)
        options = ("-p", "no:cacheprovider", "-o", "addopts=", "--timeout", str(TEST_SECONDS), "-q", "--tb=short")
        self.run("-m", "pytest", *options, f"--junitxml={report}", *tests)
        return outcomes_in(report)


def outcomes_in(report: Path) -> dict[str, str]:
    """Return what became of each test of a JUnit report."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        file = case.get("classname", "").replace(".", "/") + ".py"
        marks = {child.tag for child in case}
        outcome = "failed" if marks & {"failure", "error"} else "skipped" if "skipped" in marks else "passed"
        found[f"{file}::{case.get('name')}"] = outcome
    return found


def run_suite(cache: Path) -> dict[str, Any]:
    """Run the tests without this package and with it, and return the record.

    Args:
        cache: Folder for environments, kept for the next time.
    """
    environments = Environments(cache)
    version, torch = environments.newest("ultralytics"), environments.newest("torch")
    torch_python = environments.torch(torch)
    environments.install_package(torch_python)
    site = environments.beside(torch_python, "upstream", f"ultralytics=={version}", *NEEDED)
    # the commands of this environment are to find torch as well
    (site / "torch.pth").write_text(environments.site_of(torch_python.parents[1]))
    python = environments.cache / "upstream" / "bin" / "python"
    source = environments.source(version)
    tests = sorted(f"tests/{file.name}" for file in source.glob("tests/test_*.py") if file.name not in LEFT_OUT)

    runs = environments.cache / "runs" / "upstream"
    suites = {
        "without": Suite(runs / "without", source, python),
        "with": Suite(runs / "with", source, python, [environments.package]),
    }
    suites["without"].run(str(ASSETS)).check_returncode()
    for folder in ("weights", "datasets"):
        shutil.copytree(runs / "without" / folder, runs / "with" / folder)
    if [suite.run("-c", REGISTERED).returncode for suite in suites.values()] != [1, 0]:
        raise RuntimeError(f"the blocks are to be registered in one of the two runs; see output.log below {runs}")

    outcomes = {name: suite.outcomes(tests) for name, suite in suites.items()}
    # some tests depend on time or chance: those that differ run again, alone
    differing = different(outcomes)
    if differing:
        for name, suite in suites.items():
            outcomes[name] |= suite.outcomes(differing)
    return {
        "ultralytics": version,
        "torch": torch,
        "tree": tree(),
        "date": time.strftime("%Y-%m-%d"),
        "run_again": differing,
        "outcomes": outcomes,
    }


def different(outcomes: dict[str, dict[str, str]]) -> list[str]:
    """Return the tests that one run passed and the other did not, or did not know."""
    before, after = outcomes["without"], outcomes["with"]
    return sorted(test for test in before.keys() | after.keys() if before.get(test) != after.get(test))


def summary(record: dict[str, Any]) -> str:
    """Return the table of a record and what differs."""
    before, after = (record["outcomes"][name] for name in ("without", "with"))
    files = sorted({test.partition("::")[0] for test in before | after})
    rows = []
    for file in (*files, ""):
        counts = [
            sum(test.startswith(file) and outcome == wanted for test, outcome in run.items())
            for run, wanted in ((before, "passed"), (after, "passed"), (before, "failed"), (after, "failed"))
        ]
        rows.append((f"`{file}`" if file else "all", *map(str, counts)))
    header = ("tests", "passed without", "passed with", "failed without", "failed with")
    differing = different(record["outcomes"])
    words = f"different: {', '.join(f'`{test}`' for test in differing)}" if differing else "every test ended alike"
    return (
        f"{markdown_table(header, rows)}\n"
        f"ultralytics {record['ultralytics']}, torch {record['torch']}, {record['date']}, tree {record['tree']} of "
        f"yolo_dcnv4/: {words}. Each test's end stands in [results/{RESULTS.name}](results/{RESULTS.name})."
    )


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = dict(argument.partition("=")[::2] for argument in arguments)
    if options.keys() - {"cache", "table"} or not all(options.values()):
        print(f"unknown or empty among: {', '.join(arguments)}\n{__doc__}", file=sys.stderr)
        return 2
    if options.get("table") != "1":
        record = run_suite(Path(options.get("cache", CHECKOUT / "build" / "compat")))
        RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    text = table.PAGE.read_text(encoding="utf-8")
    table.PAGE.write_text(table.between(text, BEGIN, END, summary(record)), encoding="utf-8")
    print(summary(record))
    return int(bool(different(record["outcomes"])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
