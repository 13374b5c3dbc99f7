"""What the pages show a reader runs: each bash and Python block, in order, in a folder with what a reader has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ultralytics
from ultralytics.utils import ASSETS, SettingsManager

from tests.docs.blocks import Block, blocks_of
from tests.task_data import write_task_data
from yolo_dcnv4.demo_data import write_demo_data

ROOT = Path(__file__).resolve().parents[2]
# the blocks of README.zh.md are those of README.md: tests/test_readme.py
TOP_PAGES = sorted(page for page in ROOT.glob("*.md") if page.name != "README.zh.md")
PAGES = (*TOP_PAGES, *sorted(ROOT.glob("docs/*.md")), ROOT / "patches" / "README.md")
RUN = ("bash", "python")
TIMEOUT_S = 600
MODEL = "yolov8n-dcnv4-backbone.yaml"
OWN_MODULE = "from ultralytics.nn.modules import C2f\n\n\nclass MyBlock(C2f):\n    pass\n"

# reads blocks from stdin, a JSON string a line, and answers each with a line; what they print goes where errors go
SESSION = """
import json, os, sys, traceback
sys.path.insert(0, "")
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
blocks, sys.stdin = sys.stdin, open(os.devnull)
for line in blocks:
    try:
        exec(compile(json.loads(line), "block", "exec"), globals())
        print("done", file=answers, flush=True)
    except BaseException:
        traceback.print_exc()
        print("failed", file=answers, flush=True)
"""


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks_of(page) if block.language in RUN or block.file]


class Reader:
    """Somebody who follows one page, in a folder of their own."""

    def __init__(self, folder: Path):
        self.folder = folder
        # a reader is no test, of whose results ultralytics makes files in its own folder
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "GITHUB_"))}
        self.environment = inherited | {
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "PYTHONPATH": str(Path(__file__).parent / "small_runs"),
            "PYTHONIOENCODING": "utf-8",
            "YOLO_CONFIG_DIR": str(folder.parent / "settings"),
            "YOLO_AUTOINSTALL": "false",
        }
        # results go where ultralytics puts them for a reader outside of a git checkout
        (folder.parent / "settings" / "Ultralytics").mkdir(parents=True)
        settings = SettingsManager(folder.parent / "settings" / "Ultralytics" / "settings.json")
        settings.update({name: str(folder / name[:-4]) for name in ("runs_dir", "datasets_dir", "weights_dir")})
        self.section = -1
        self.python: subprocess.Popen[str] | None = None
        self.log = folder.parent / "python.log"
        self.failed = ""

    def follow(self, block: Block) -> None:
        if block.file:
            (self.folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "bash":
            self.run("bash", "-euo", "pipefail", "-c", block.text)
        else:
            self.run_in_session(block)

    def run(self, *command: str) -> None:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
        )
        assert done.returncode == 0, done.stdout[-8000:]

    def run_in_session(self, block: Block) -> None:
        if self.python is None or block.section != self.section:
            self.leave()
            self.section = block.section
            with self.log.open("w") as log:
                self.python = subprocess.Popen(
                    [sys.executable, "-c", SESSION],
                    cwd=self.folder,
                    env=self.environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
        timer = threading.Timer(TIMEOUT_S, self.python.kill)
        timer.start()
        print(json.dumps(block.text), file=self.python.stdin, flush=True)
        answer = self.python.stdout.readline().strip()
        timer.cancel()
        assert answer == "done", self.log.read_text(encoding="utf-8", errors="replace")[-8000:]

    def leave(self) -> None:
        if self.python is not None:
            self.python.stdin.close()
            self.python.stdout.close()
            self.python.wait(60)
            self.python = None


@pytest.fixture(scope="module")
def belongings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages take for granted: data sets, pictures, weights, models and a module of one's own."""
    folder = tmp_path_factory.mktemp("belongings") / "home"
    folder.mkdir()
    for name in ("coco8", "demo"):
        data = write_demo_data(folder / "data" / name, train=4, val=2, imgsz=64)
        text = data.read_text(encoding="utf-8")
        (folder / f"{name}.yaml").write_text(f"path: {data.parent}\n{text}", encoding="utf-8")
    for name, task in (("coco8-seg", "segment"), ("coco8-pose", "pose"), ("dota8", "obb")):
        shutil.copy(write_task_data(folder / "data" / name, task), folder / f"{name}.yaml")
    write_task_data(folder / "imagenet10", "classify")
    for name in ("bus.jpg", "zidane.jpg"):
        shutil.copy(ASSETS / name, folder / name)
    shutil.copy(ASSETS / "bus.jpg", folder / "picture.jpg")
    (folder / "my_blocks.py").write_text(OWN_MODULE, encoding="utf-8")
    (folder / "my-models").mkdir()
    stock = Path(ultralytics.__file__).parent / "cfg" / "models" / "v8" / "yolov8.yaml"
    for name in ("my-yolo.yaml", "my-models/birds.yaml"):
        shutil.copy(stock, folder / name)
    reader = Reader(folder)
    train = ("data=coco8.yaml", "plots=False", "device=cpu")
    for name, model in (("best", MODEL), ("yolov8n", "yolov8n.yaml")):
        reader.run("yolo", "train", f"model={model}", f"name={name}", *train)
        shutil.copy(folder / "runs" / "detect" / name / "weights" / "best.pt", folder / f"{name}.pt")
    shutil.rmtree(folder / "runs")
    reader.environment |= {"PYTHONPATH": str(ROOT), "YOLO_DCNV4_AUTOLOAD": "0"}
    reader.run(sys.executable, "-m", "tests.docs.recipe", "recipe.pt", "expected.pt")
    return folder


@pytest.fixture(scope="module")
def readers(belongings: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Reader]]:
    class Readers(dict[str, Reader]):
        def __missing__(self, page: str) -> Reader:
            folder = tmp_path_factory.mktemp(page.replace("/", "-")) / "home"
            # data sets stay where they are: their descriptions name them
            shutil.copytree(belongings, folder, ignore=shutil.ignore_patterns("data"))
            self[page] = Reader(folder)
            return self[page]

    everybody = Readers()
    yield everybody
    for reader in everybody.values():
        reader.leave()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "block"),
    [
        pytest.param(name, block, id=f"{name}:{block.line}")
        for page in PAGES
        for name in [page.relative_to(ROOT).as_posix()]
        for block in runnable(page)
    ],
)
def test_block_runs(page: str, block: Block, readers: dict[str, Reader]):
    if block.not_run:
        pytest.skip(f"not run: {block.not_run}")
    reader = readers[page]
    if reader.failed:
        pytest.fail(f"the block at {reader.failed}, which comes before, has failed")
    try:
        reader.follow(block)
    except BaseException:
        reader.failed = f"{page}:{block.line}"
        raise


def test_pages_show_blocks_that_run():
    pages = {page.stem for page in PAGES if any(not block.not_run for block in runnable(page))}
    assert pages >= {"README", "index", "models", "export", "plug-in", "migrating", "troubleshooting"}


def python_block(text: str, section: int = 1) -> Block:
    return Block("page.md", 1, section, "python", text, "")


def test_python_blocks_of_a_section_belong_together(tmp_path: Path):
    (tmp_path / "home").mkdir()
    reader = Reader(tmp_path / "home")
    reader.follow(python_block("x = 1"))
    reader.follow(python_block("assert x == 1 and __name__ == '__main__'"))
    with pytest.raises(AssertionError, match="name 'x' is not defined"):
        reader.follow(python_block("print(x)", section=2))
    reader.leave()


@pytest.mark.parametrize(("language", "text"), [("bash", "false | true"), ("python", "raise SystemExit(0)")])
def test_block_that_fails_is_noticed(tmp_path: Path, language: str, text: str):
    (tmp_path / "home").mkdir()
    reader = Reader(tmp_path / "home")
    with pytest.raises(AssertionError):
        reader.follow(Block("page.md", 1, 1, language, text, ""))
    reader.leave()


def test_blocks_are_told_apart(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n```bash\n# a remark\nls\n```\n\n## Two\n<!-- not run: needs two GPUs -->\n```bash\n"
        "torchrun a\n```\n- item\n\n  ```python\n  # train.py\n  x = 1\n  ```\n\n```\nprinted\n```\n",
        encoding="utf-8",
    )
    shell, skipped, file, output = blocks_of(page)
    assert (shell.language, shell.text, shell.line, shell.section, shell.file) == ("bash", "# a remark\nls\n", 3, 1, "")
    assert (skipped.not_run, skipped.section) == ("needs two GPUs", 2)
    assert (file.file, file.text, file.not_run) == ("train.py", "# train.py\nx = 1\n", "")
    assert (output.language, output.text) == ("", "printed\n")


@pytest.mark.parametrize("text", ["<!-- not run: because -->\n\n```bash\nls\n```\n", "```bash\nls\n"])
def test_page_with_a_mistake_is_refused(tmp_path: Path, text: str):
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"page\.md:\d"):
        blocks_of(page)
