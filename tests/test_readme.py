"""README.md and README.zh.md say the same, with the same figures."""

from __future__ import annotations

import re
from pathlib import Path

import chinese
import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))


def without_generated(text: str) -> str:
    return re.sub(r"(<!-- (\w+) begin: .+ -->\n).*?(<!-- \2 end -->)", r"\1\3", text, flags=re.DOTALL)


def code_blocks(text: str) -> list[str]:
    blocks = re.findall(r"^ *```\w+\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [re.sub(r" *#.*| {3,}", "", block) for block in blocks]


def figures(text: str) -> list[str]:
    return re.findall(r"\d+(?:\.\d+)*", text)


def test_generated_parts_are_fresh_and_hold_the_same_figures():
    assert chinese.main(["check=1"]) == 0
    rows = [re.findall(r"^\|.*\d\d.*$", text, re.MULTILINE) for text in (ENGLISH, CHINESE)]
    assert len(rows[0]) > 15
    for english, translated in zip(*rows, strict=True):
        assert sorted(figures(translated)) == sorted(figures(english))


def test_stale_part_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    (tmp_path / "README.md").write_text(ENGLISH.replace("3.16 M, 8.9", "3.17 M, 8.9"), encoding="utf-8")
    (tmp_path / "README.zh.md").write_text(CHINESE, encoding="utf-8")
    monkeypatch.setattr(chinese, "ROOT", tmp_path)
    assert chinese.main(["check=1"]) == 1
    assert "run python docs/scripts/chinese.py" in capsys.readouterr().err
    assert chinese.main([]) == 0
    assert "3.17 M, 8.9" in (tmp_path / "README.zh.md").read_text(encoding="utf-8")
    assert chinese.main(["check=1"]) == 0


@pytest.mark.parametrize("line", ["| `yolov8{}.yaml` | no such place | 3.16 M, 8.9 |", "No such line."])
def test_words_without_chinese_are_refused(line: str):
    with pytest.raises(ValueError, match=r"chinese\.yaml has no (cell|line) '[Nn]o such"):
        chinese.in_chinese(line)


def test_other_parts_are_refused():
    with pytest.raises(ValueError, match=r"README.md has the parts models, .*, README.zh.md "):
        chinese.with_parts("", ENGLISH)


def found(pattern: str, text: str) -> list[str]:
    return sorted(re.findall(pattern, text, re.MULTILINE))


def test_sections_commands_links_names_and_figures_are_the_same():
    english, chinese = without_generated(ENGLISH), without_generated(CHINESE)
    headings, links, items = r"^#+ ", r"\]\((?!README)([^)]+)\)", r"^(?:- |\d\. )"
    for pattern in (headings, links, items, r"<!-- (?:\w+ (?:begin|end)|not run)"):
        assert found(pattern, chinese) == found(pattern, english), pattern
    assert code_blocks(chinese) == code_blocks(english)
    assert len(code_blocks(english)) >= 5
    english, chinese = (re.sub(r"```.*?```", "", text, flags=re.DOTALL) for text in (english, chinese))
    for pattern in (r"`[^`\n]+`", r"\d+(?:\.\d+)*"):
        assert set(found(pattern, chinese)) == set(found(pattern, english)), pattern


def test_each_leads_to_the_other():
    assert "(README.zh.md)" in ENGLISH.split("##")[0]
    assert "(README.md)" in CHINESE.split("##")[0]
