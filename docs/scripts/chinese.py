"""Put the generated parts of README.md into README.zh.md, in Chinese: `python docs/scripts/chinese.py [check=1]`.

Run it after what writes those of README.md. With check=1 nothing is written; the exit status is 1 where one is stale.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from generated import ROOT, write_or_check

WORDS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
PART = re.compile(r"(<!-- (\w+) begin: .+ -->\n)(.*?)(\n<!-- \2 end -->)", re.DOTALL)
# cells that stay: file names, figures, rules, scales, runtimes with a size
SAME = re.compile(r"`.+`|[\d.]+( M, [\d.]+)?( \([\d.]+\))?|-+:?|[a-z]|.+, \d+ px|")


# a place as the model YAMLs say it, alone or after the scales that it holds for
PLACE = re.compile(r"(?:([nsmblx, ]+): )?(\w+) in layers? ([\d, ]+)")


def place_in_chinese(place: re.Match[str]) -> str:
    """Return where a model YAML holds DCNv4 in Chinese."""
    words = WORDS["places"]
    scales, module, layers = (part and part.replace(", ", words["comma"]) for part in place.groups())
    at = words["at"].format(module=module, layers=layers)
    return words["scales"].format(scales=scales) + at if scales else at


def cell_in_chinese(cell: str) -> str:
    """Return a cell of a table in Chinese.

    Raises:
        ValueError: chinese.yaml does not have it.
    """
    if SAME.fullmatch(cell):
        return cell
    places = [PLACE.fullmatch(place) for place in cell.split("; ")]
    if all(places):
        return WORDS["places"]["semicolon"].join(place_in_chinese(place) for place in places if place)
    if cell not in WORDS["cells"]:
        raise ValueError(f"docs/scripts/chinese.yaml has no cell {cell!r}")
    return WORDS["cells"][cell]


def line_in_chinese(line: str) -> str:
    """Return a line of a generated part in Chinese.

    Raises:
        ValueError: chinese.yaml does not have it.
    """
    if line.startswith("|"):
        return f"| {' | '.join(cell_in_chinese(cell.strip()) for cell in line.split('|')[1:-1])} |"
    for english, chinese in WORDS["lines"].items():
        pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(english))
        if match := re.fullmatch(pattern, line):
            return chinese.format_map(match.groupdict())
    if line:
        raise ValueError(f"docs/scripts/chinese.yaml has no line {line!r}")
    return line


def in_chinese(part: str) -> str:
    """Return a generated part of README.md in Chinese."""
    return "\n".join(map(line_in_chinese, part.splitlines()))


def with_parts(text: str, english: str) -> str:
    """Return README.zh.md with the generated parts of README.md.

    Raises:
        ValueError: The two do not have the same parts.
    """
    parts = {name: part for _, name, part, _ in PART.findall(english)}
    names = [name for _, name, _, _ in PART.findall(text)]
    if names != list(parts):
        raise ValueError(f"README.md has the parts {', '.join(parts)}, README.zh.md {', '.join(names)}")
    return PART.sub(lambda match: match[1] + in_chinese(parts[match[2]]) + match[4], text)


def main(arguments: Sequence[str]) -> int:
    """Write or check README.zh.md."""

    def refresh(text: str) -> str:
        return with_parts(text, (ROOT / "README.md").read_text(encoding="utf-8"))

    return write_or_check({"README.zh.md": refresh}, "chinese.py", arguments, ROOT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
