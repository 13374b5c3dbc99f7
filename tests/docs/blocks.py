"""The fenced code blocks of a Markdown page, in order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FENCE = "```"
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
# a first line that names a file: the block is its content
FILE_NAME = re.compile(r"# ([\w.-]+\.(?:py|yaml))")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        page: File name of the page.
        line: Line of the page on which the fence opens.
        section: Number of headings above; the Python blocks of a section belong together.
        language: What stands behind the fence.
        text: What it holds.
        not_run: Why a reader's machine is needed to run it; empty where a test can.
    """

    page: str
    line: int
    section: int
    language: str
    text: str
    not_run: str

    @property
    def file(self) -> str:
        """Name of the file that the block shows, or an empty string."""
        match = FILE_NAME.fullmatch(self.text.partition("\n")[0])
        return match[1] if match else ""


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page.

    Args:
        page: A Markdown file.

    Raises:
        ValueError: A fence is not closed, or a `not run` comment stands before anything but a block.
    """
    blocks: list[Block] = []
    section, reason = 0, ""
    opened: tuple[int, str, str] | None = None
    content: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if opened:
            start, indent, language = opened
            if line.strip() == FENCE:
                blocks.append(Block(page.name, start, section, language, "".join(content), reason))
                opened, content, reason = None, [], ""
            else:
                content.append(line.removeprefix(indent) + "\n")
        elif line.lstrip().startswith(FENCE):
            opened = number, line[: len(line) - len(line.lstrip())], line.strip().removeprefix(FENCE)
        elif reason:
            raise ValueError(f"{page.name}:{number}: `not run` must stand directly before a block, got {line!r}")
        elif line.startswith("#"):
            section += 1
        elif match := NOT_RUN.fullmatch(line.strip()):
            reason = match[1]
    if opened:
        raise ValueError(f"{page.name}:{opened[0]}: the block is not closed")
    return blocks
