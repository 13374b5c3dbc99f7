"""MkDocs hook: pages link to files of the repository, for its readers, and the site has these files too.

What lies in docs/ keeps its place. What a page links to elsewhere in the repository comes into the site as
`repository/<path>`, and every link is rewritten to where its target lies there.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs/"
COPIES = "repository/"
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that pages of the site link to, or the navigation names."""
    listed = {uri for uri in _leaves(config.nav) if uri.startswith(COPIES)}
    wanted = [_origin(uri) for uri in listed]
    for file in files.documentation_pages():
        wanted += _outside(_origin(file.src_uri))
    while wanted:
        path = wanted.pop()
        uri = _place(path)
        if files.get_file_from_path(uri) is None:
            inclusion = InclusionLevel.INCLUDED if uri in listed else InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / path), inclusion=inclusion))
            wanted += _outside(path)
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Rewrite the links of a page to where their targets lie in the site."""
    origin, folder = _origin(page.file.src_uri), posixpath.dirname(page.file.src_uri)

    def rewritten(match: re.Match[str]) -> str:
        target = _target(origin, match[0])
        return match[0] if target is None else posixpath.relpath(_place(target), folder or ".")

    return LINK.sub(rewritten, markdown)


def _outside(path: str) -> list[str]:
    """Return the files outside docs/ that a page of the repository links to."""
    if not path.endswith(".md"):
        return []
    links = LINK.findall((ROOT / path).read_text(encoding="utf-8"))
    return [target for link in links if (target := _target(path, link)) and not target.startswith(DOCS)]


def _target(page: str, link: str) -> str | None:
    """Return the file of the repository that a link leads to; None leaves a broken link to MkDocs to report."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return path if (ROOT / path).is_file() else None


def _origin(uri: str) -> str:
    """Return the path in the repository of a page of the site."""
    return uri.removeprefix(COPIES) if uri.startswith(COPIES) else DOCS + uri


def _place(path: str) -> str:
    """Return where a file of the repository lies in the site."""
    return path.removeprefix(DOCS) if path.startswith(DOCS) else COPIES + path


def _leaves(nav: Any) -> Iterable[str]:
    if isinstance(nav, str):
        yield nav
    elif nav:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from _leaves(entry)
