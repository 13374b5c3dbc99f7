"""What the documents say was measured is what the results hold."""

import measurements


def test_tables_are_fresh():
    assert measurements.main(["check=1"]) == 0


def test_stale_table_is_noticed(monkeypatch, capsys):
    monkeypatch.setitem(measurements.PAGES["docs/performance.md"], "means", lambda: "other figures")
    assert measurements.main(["check=1"]) == 1
    assert "performance.md" in capsys.readouterr().err
