"""The generated parts of pages: between two markers that name the script which writes them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Return a table.

    Args:
        header: Names of the columns.
        rows: One text per column each.
        texts: How many columns hold text; the others hold numbers.
    """
    lines = [header, ["---"] * texts + ["---:"] * (len(header) - texts), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_parts(text: str, parts: Mapping[str, Callable[[], str]], script: str) -> str:
    """Return a page with its generated parts.

    Args:
        text: The page.
        parts: Name of a part -> what makes it.
        script: The script that the markers name.

    Raises:
        ValueError: The markers are missing.
    """
    for name, make in parts.items():
        begin, end = f"<!-- {name} begin: python docs/scripts/{script} -->", f"<!-- {name} end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"the page must hold the lines {begin!r} and {end!r} once each")
        fresh = f"{begin}\n{make()}\n{end}"
        text = re.sub(f"{re.escape(begin)}.*{re.escape(end)}", lambda _, fresh=fresh: fresh, text, flags=re.DOTALL)
    return text


def write_or_check(
    pages: Mapping[str, Callable[[str], str]], script: str, arguments: Sequence[str], root: Path = ROOT
) -> int:
    """Write pages anew, or with the argument check=1 tell which are stale.

    Args:
        pages: Path in the repository -> what makes the fresh text of the present one.
        script: The script, for messages.
        arguments: Those of its command line.
        root: The repository.

    Returns:
        Exit status: 1 for a stale page, 2 for other arguments.
    """
    if list(arguments) not in ([], ["check=1"]):
        print(f"expected no argument or check=1, got {' '.join(arguments)!r}", file=sys.stderr)
        return 2
    stale = []
    for name, refresh in pages.items():
        text = (root / name).read_text(encoding="utf-8")
        fresh = refresh(text)
        if not arguments:
            (root / name).write_text(fresh, encoding="utf-8")
        elif text != fresh:
            stale.append(name)
    if stale:
        print(f"stale tables in {', '.join(stale)}; run python docs/scripts/{script}", file=sys.stderr)
    return 1 if stale else 0
