from __future__ import annotations

from pathlib import Path

import yaml

from yolo_dcnv4 import __version__

CITATION = Path(__file__).resolve().parents[2] / "CITATION.cff"


def test_citation_is_of_this_version_and_names_the_paper():
    citation = yaml.safe_load(CITATION.read_text(encoding="utf-8"))
    assert citation["version"] == __version__ and citation["license"] == "AGPL-3.0-only"
    (paper,) = citation["references"]
    assert paper["url"].endswith("2401.06197") and len(paper["authors"]) == 13
    assert (paper["authors"][0]["family-names"], paper["authors"][-1]["family-names"]) == ("Xiong", "Dai")
