from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

import yolo_dcnv4
from yolo_dcnv4 import ops

ROOT = Path(__file__).resolve().parents[2]
needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="needs the extra `docs`: pip install -e '.[docs]'"
)


def build(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    config = root / "docs" / "site" / "mkdocs.yml"
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(out)],
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@needs_mkdocs
def test_site_holds_every_page_and_no_script(site: Path):
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages <= {path.stem for path in site.glob("*.html")}
    assert (site / "repository" / "patches" / "index.html").is_file()
    assert not list(site.rglob("mkdocs.yml")) and not (site / "scripts").exists()


@needs_mkdocs
def test_site_fetches_nothing(site: Path):
    for page in site.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"(?:https?:)?//[^\"]*", html)
        assert [tag for tag in fetched if 'rel="canonical"' not in tag] == [], page.name


@needs_mkdocs
def test_no_markdown_is_left_as_it_stood(site: Path):
    """What a host of repositories takes for a table, list or block, MkDocs may not, without a word."""
    for page in site.rglob("*.html"):
        text = re.sub(r"<(pre|code|script)\b.*?</\1>|<[^>]+>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert re.findall(r"^(?:\|.*\||```.*|\s*- .*|\s*\d+\. .*)$|\*\*.*", text, re.MULTILINE) == [], page.name


@needs_mkdocs
def test_reference_holds_the_public_names(site: Path):
    html = (site / "reference.html").read_text(encoding="utf-8")
    article = unescape(re.sub(r"<[^>]+>", "", html[html.index("<article") : html.index("</article>")]))
    names = {f"yolo_dcnv4.{name}" for name in yolo_dcnv4._HOMES} | {f"yolo_dcnv4.ops.{name}" for name in ops.__all__}
    names -= {"yolo_dcnv4.ops.Backend"}  # told where `backend` returns it
    # the heading is written in the page, what follows comes from the sources
    shown = {
        name for name in names if re.search(rf"^\s*{re.escape(name)}\s*¶\s*{name.split('.')[-1]}\s*\(", article, re.M)
    }
    assert names - shown == set()
    assert "3 * groups * K" in article  # asterisks that are not taken for emphasis


@needs_mkdocs
@pytest.mark.parametrize(
    ("link", "complaint"),
    [("../patches/NOWHERE.md", "NOWHERE.md"), ("build.md#nowhere", "#nowhere"), ("nowhere.md", "nowhere.md")],
)
def test_broken_link_fails_the_build(tmp_path: Path, link: str, complaint: str):
    for name in ("docs/site/mkdocs.yml", "docs/site/repository_links.py", "docs/build.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        text = (ROOT / name).read_text(encoding="utf-8")
        if name.endswith(".yml"):
            text = f"{text[: text.index('nav:' + chr(10) + '  - Quick start')]}nav: [index.md, build.md]\n"
        (tmp_path / name).write_text(text, encoding="utf-8")
    page = tmp_path / "docs" / "index.md"
    page.write_text("[works](build.md)\n", encoding="utf-8")
    assert build(tmp_path, tmp_path / "site").returncode == 0
    page.write_text(f"[broken]({link})\n", encoding="utf-8")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0 and complaint in done.stdout + done.stderr
