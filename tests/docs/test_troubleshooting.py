from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OURS = "## Other messages of this package"


def sources() -> str:
    """The package's sources with string literals of several lines joined."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "yolo_dcnv4").rglob("*.py")))
    return re.sub(r"\"\n\s*f?\"", "", text)


def test_messages_of_this_package_are_those_it_has():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+`.*?) \| ", page.partition(OURS)[2], re.MULTILINE)
    pieces = [piece.strip() for row in rows for message in re.findall("`(.+?)`", row) for piece in message.split("...")]
    text = sources()
    assert len(rows) > 15
    assert [piece for piece in pieces if piece not in text] == []
