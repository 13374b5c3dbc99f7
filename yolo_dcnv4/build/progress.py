"""Shows how far ninja has come: one line that is written over on a terminal, a line a step elsewhere."""

from __future__ import annotations

import re
import shutil
import time
from typing import TextIO

STATUS = re.compile(r"\[(\d+)/(\d+)\] (.*)")


class Progress:
    """Progress of one run of ninja.

    Args:
        stream: Where it is shown.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.started = time.monotonic()
        self.shown = ""

    def tell(self, line: str) -> None:
        """Take a line of ninja's output; what is no status, such as a compiler's message, is not shown.

        Args:
            line: Such as `[3/12] cpu/dcnv4.cpp.o`.
        """
        match = STATUS.match(line)
        if match:
            done, total, target = match.groups()
            self.shown = f"[{done}/{total}] {target.strip()}"
            self._show()

    def tick(self) -> None:
        """Let the clock of a terminal's line go on."""
        if self.stream.isatty():
            self._show()

    def finish(self) -> None:
        """Leave a terminal's line empty: the outcome is told elsewhere."""
        if self.stream.isatty():
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def _show(self) -> None:
        text = f"{self.shown or 'compiling'} ({time.monotonic() - self.started:.0f} s)"
        if self.stream.isatty():
            # one column stays free: a line that fills the terminal would wrap and could not be written over
            self.stream.write(f"\r{text[: shutil.get_terminal_size().columns - 1]}\x1b[K")
        else:
            self.stream.write(f"{text}\n")
        self.stream.flush()
