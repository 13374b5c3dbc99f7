"""Keeps two builds out of one work folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold the lock of a work folder; waits, and says so, while another process builds there.

    Args:
        folder: The work folder; made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # the system lets go of it when a process dies: a killed build locks nobody out
    lock = FileLock(folder / "build.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another build works in {folder}; waiting for it to end ...", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
