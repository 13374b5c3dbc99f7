"""README.md and README.zh.md say the same, with the same figures."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    (script,) = (ROOT / "docs").rglob("tables.py")
    spec = importlib.util.spec_from_file_location("tables", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def generated(text: str, name: str) -> str:
    (part,) = re.findall(rf"<!-- {name} begin: .+ -->\n(.*)\n<!-- {name} end -->", text, re.DOTALL)
    return part


def without_generated(text: str) -> str:
    return re.sub(r"(<!-- (\w+) begin: .+ -->\n).*?(<!-- \2 end -->)", r"\1\3", text, flags=re.DOTALL)


def code_blocks(text: str) -> list[str]:
    blocks = re.findall(r"^ *```\w+\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [re.sub(r" *#.*| {3,}", "", block) for block in blocks]


def test_model_tables_hold_the_same_figures(tables: ModuleType):
    assert generated(CHINESE, "models") == tables.in_chinese(generated(ENGLISH, "models"))


def test_latencies_are_those_of_the_committed_result(tables: ModuleType):
    table = tables.export_table()
    assert generated(ENGLISH, "export").startswith(f"{table}\n\n")
    assert generated(CHINESE, "export").startswith(f"{tables.in_chinese(table)}\n\n")
    report, file = tables.export_report()
    for text in (ENGLISH, CHINESE):
        told = generated(text, "export").replace("\n", " ")
        for fact in (report["machine"]["cpu"], report["machine"]["commit"], report["versions"]["onnxruntime"], file):
            assert fact in told


def test_unknown_word_of_a_table_is_refused(tables: ModuleType):
    with pytest.raises(KeyError, match="no such place"):
        tables.in_chinese("| `yolov8{}.yaml` | no such place | 3.16 M, 8.9 |")


def found(pattern: str, text: str) -> list[str]:
    return sorted(re.findall(pattern, text, re.MULTILINE))


def test_sections_commands_links_names_and_figures_are_the_same():
    english, chinese = without_generated(ENGLISH), without_generated(CHINESE)
    headings, links, items = r"^#+ ", r"\]\((?!README)([^)]+)\)", r"^(?:- |\d\. )"
    for pattern in (headings, links, items, r"<!-- .+ -->"):
        assert found(pattern, chinese) == found(pattern, english), pattern
    assert code_blocks(chinese) == code_blocks(english)
    assert len(code_blocks(english)) >= 5
    english, chinese = (re.sub(r"```.*?```", "", text, flags=re.DOTALL) for text in (english, chinese))
    for pattern in (r"`[^`\n]+`", r"\d+(?:\.\d+)*"):
        assert set(found(pattern, chinese)) == set(found(pattern, english)), pattern


def test_each_leads_to_the_other():
    assert "(README.zh.md)" in ENGLISH.split("##")[0]
    assert "(README.md)" in CHINESE.split("##")[0]
