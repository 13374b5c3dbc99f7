"""Which GPU architectures the CUDA part is compiled for."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from yolo_dcnv4.build.errors import BuildError

# binaries of a compute capability also run on later minor versions of the same major one
WIDE = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
LOWEST = (7, 5)
QUICK = "quick"


@dataclass(frozen=True, order=True)
class Architecture:
    """A compute capability, as machine code (`ptx=False`) or as PTX, which newer GPUs compile when they load it."""

    major: int
    minor: int
    ptx: bool = False

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}{'+PTX' if self.ptx else ''}"

    @property
    def capability(self) -> tuple[int, int]:
        """The compute capability, (major, minor)."""
        return self.major, self.minor

    def is_covered_by(self, built: Collection[str]) -> bool:
        """Return whether a library built for `built` (as `str` writes architectures) serves this one."""
        return str(self) in built or str(Architecture(*self.capability, ptx=True)) in built

    def nvcc_flags(self) -> list[str]:
        """Return the -gencode flags; `9.0+PTX` is machine code and PTX, as in torch's own TORCH_CUDA_ARCH_LIST."""
        number = f"{self.major}{self.minor}"
        codes = [f"sm_{number}", f"compute_{number}"] if self.ptx else [f"sm_{number}"]
        return [f"-gencode=arch=compute_{number},code={code}" for code in codes]


def parse_architectures(text: str) -> tuple[Architecture, ...]:
    """Read a list such as `"8.6,9.0+PTX"`.

    Args:
        text: Compute capabilities, separated by commas, semicolons or spaces.

    Raises:
        BuildError: The list is empty or an entry is no compute capability.
    """
    entries = [entry for entry in re.split(r"[,;\s]+", text.strip()) if entry]
    if not entries:
        raise BuildError(f"arch={text!r} names no architecture; expected compute capabilities such as arch=8.6,9.0+PTX")
    return tuple(sorted({_parse_one(entry, text) for entry in entries}))


def _parse_one(entry: str, text: str) -> Architecture:
    match = re.fullmatch(r"(\d+)\.(\d)(\+PTX)?", entry, flags=re.IGNORECASE)
    if not match:
        raise BuildError(
            f"arch={text}: {entry!r} is no compute capability; expected numbers such as arch=8.6,9.0+PTX, "
            "or one of arch=native, arch=wide, arch=quick"
        )
    return Architecture(int(match[1]), int(match[2]), bool(match[3]))


def choose_architectures(
    request: str | None, supported: Sequence[tuple[int, int]], present: Sequence[tuple[int, int]]
) -> tuple[Architecture, ...]:
    """Choose what to compile for.

    Args:
        request: A list of compute capabilities, `"native"` (the GPUs present), `"wide"` (from 7.5 to 12.0 and PTX of
            the newest) or `None`: native where there is a GPU, else wide. `"quick"` is native too, else one
            architecture: enough to see that everything compiles.
        supported: Compute capabilities that the nvcc at hand compiles for.
        present: Compute capabilities of the GPUs of this machine.

    Raises:
        BuildError: The request is malformed, or this nvcc does not compile for it.
    """
    if request is None or request == QUICK:
        request = "native" if present else request or "wide"
    if request == "native":
        if not present:
            raise BuildError("arch=native: this machine shows no GPU; name compute capabilities, such as arch=8.6,9.0")
        return tuple(sorted({_for_gpu(capability, supported) for capability in present}))
    if request == QUICK:
        return (Architecture(*min(capability for capability in supported if capability >= LOWEST)),)
    if request == "wide":
        *older, newest = [capability for capability in WIDE if capability in supported]
        return (*(Architecture(*capability) for capability in older), Architecture(*newest, ptx=True))
    asked = parse_architectures(request)
    for architecture in asked:
        if architecture.capability not in supported:
            raise BuildError(
                f"arch={request}: this nvcc does not compile for {architecture.major}.{architecture.minor}; "
                f"it does for {_listed(supported)}"
            )
    return asked


def _for_gpu(capability: tuple[int, int], supported: Sequence[tuple[int, int]]) -> Architecture:
    if capability in supported:
        return Architecture(*capability)
    older = [candidate for candidate in supported if candidate < capability]
    if not older:
        raise BuildError(
            f"this nvcc no longer compiles for the GPU here, compute capability {capability[0]}.{capability[1]}; "
            f"it does for {_listed(supported)}"
        )
    # a GPU newer than the compiler: the driver compiles the PTX
    return Architecture(*max(older), ptx=True)


def _listed(capabilities: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{major}.{minor}" for major, minor in sorted(capabilities))
