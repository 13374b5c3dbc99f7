"""What can go wrong in a build; in each case the package goes on working on its PyTorch backend."""

from __future__ import annotations

from pathlib import Path


class BuildError(RuntimeError):
    """The library could not be built."""


class NoCompilerError(BuildError):
    """This machine has nothing to build with: an untested platform, or no C++ compiler."""


class CompileError(BuildError):
    """A compiler or the linker failed.

    Attributes:
        first_error: The first error line of the compiler, the linker or the loader.
        log: The file that holds everything they said.
    """

    def __init__(self, first_error: str, log: Path):
        super().__init__(f"{first_error}\nthe whole output is in {log}")
        self.first_error = first_error
        self.log = log
