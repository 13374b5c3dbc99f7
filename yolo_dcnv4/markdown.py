"""Markdown tables whose columns line up on a screen."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with its first column to the left and the others to the right.

    Args:
        header: Names of the columns.
        rows: One text per column each.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in (header, *rows)
    ]
    lines.insert(1, rule)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
