"""Run the matrix and write its table: `python -m tests.compat [ultralytics=8.3.0,...] [torch=2.10.0,...] [cache=DIR]`.

Without a version every one is run, which takes about an hour on two CPU cores and 20 GB below `cache` (build/compat),
where the environments stay for the next time. table=1 only writes the table of docs/compatibility.md anew.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tests.compat import table
from tests.compat.environments import CHECKOUT
from tests.compat.runner import run_matrix

KEYS = ("ultralytics", "torch", "cache", "table")


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = dict(argument.partition("=")[::2] for argument in arguments)
    unknown = [key for key, value in options.items() if key not in KEYS or not value]
    if unknown:
        print(f"unknown or empty: {', '.join(unknown)}\n{__doc__}", file=sys.stderr)
        return 2
    if options.get("table") != "1":
        versions = {key: [v for v in options.get(key, "").split(",") if v] for key in ("ultralytics", "torch")}
        cache = Path(options.get("cache", CHECKOUT / "build" / "compat"))
        run_matrix(cache, versions["ultralytics"], versions["torch"])
    table.write()
    print(f"written to {table.PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
