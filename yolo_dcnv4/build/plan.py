"""What is compiled, with which flags, and how it is linked (Linux, g++ or clang++, nvcc)."""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path

from yolo_dcnv4.build.architectures import Architecture
from yolo_dcnv4.build.errors import BuildError
from yolo_dcnv4.build.installed_torch import InstalledTorch
from yolo_dcnv4.build.toolchain import HostCompiler, Nvcc

# the oldest torch that the library loads into, in the notation of the LibTorch stable ABI
TORCH_TARGET_VERSION = "0x020a000000000000"

# baseline stands first: where two objects hold the same inline function, the linker keeps the first one,
# and that one has to run on every machine
INSTRUCTION_SETS = {
    "baseline": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": (
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c"),
        "-mprefer-vector-width=512",
    ),
}


@dataclass(frozen=True)
class Compilation:
    """One source compiled into one object.

    Attributes:
        source: The source file.
        object: Path of the object, relative to the work folder.
        compiler: `"cxx"` or `"nvcc"`.
        extra_flags: Flags of this object alone.
    """

    source: Path
    object: str
    compiler: str
    extra_flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Everything that decides what a build yields."""

    sources: Path
    torch: InstalledTorch
    compiler: HostCompiler
    nvcc: Nvcc | None
    architectures: tuple[Architecture, ...]

    @property
    def macros(self) -> list[str]:
        """Macro definitions for every source."""
        # torch's headers declare the current CUDA stream only under USE_CUDA
        with_cuda = ["-DYOLO_DCNV4_WITH_CUDA=1", "-DUSE_CUDA"] if self.nvcc else []
        with_kernels = ["-DDCNV4_X86_KERNELS"] if self.on_x86 else []
        return [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", *with_kernels, *with_cuda]

    @property
    def include_flags(self) -> list[str]:
        """Include folders for every source."""
        return [f"-I{self.sources}", "-isystem", str(self.torch.folder / "include")]

    @property
    def cxx_flags(self) -> list[str]:
        """Flags of the C++ compiler."""
        shared = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-Wall"]
        # errors name their place in the sources, not the folder that those lay in
        places = {self.torch.folder / "include": "", self.sources: "cuda_src/"}
        named = [f"-fmacro-prefix-map={folder}/={name}" for folder, name in places.items()]
        return [*shared, *named, *self.macros, *self.include_flags]

    @property
    def nvcc_flags(self) -> list[str]:
        """Flags of nvcc."""
        architectures = [flag for architecture in self.architectures for flag in architecture.nvcc_flags()]
        return [
            "-std=c++17",
            "-O3",
            "--expt-relaxed-constexpr",
            "-Xcompiler=-fPIC,-fvisibility=hidden",
            f"-ccbin={self.compiler.command[-1]}",
            # more threads than cores only cost memory
            f"--threads={min(len(architectures), os.cpu_count() or 1)}",
            *architectures,
            *self.macros,
            *self.include_flags,
        ]

    @property
    def link_flags(self) -> list[str]:
        """Flags of the link, libraries included."""
        libraries = [
            f"-L{self.torch.folder / 'lib'}",
            "-Wl,--no-as-needed",
            "-ltorch",
            "-ltorch_cpu",
            "-Wl,--as-needed",
        ]
        if self.nvcc:
            libraries += [f"-L{folder}" for folder in self.nvcc.library_folders]
            libraries += ["-lcudart_static", "-lrt", "-lpthread", "-ldl"]
        return ["-shared", "-Wl,-z,defs", "-Wl,--exclude-libs,ALL", *libraries]

    @property
    def compilations(self) -> list[Compilation]:
        """Every object, in link order."""
        host = [self.sources / "dcnv4.cpp", *sorted((self.sources / "cpu").glob("*.cpp"))]
        kernels = [source for source in host if source.stem.endswith("_kernel")]
        listed = [self._compile(source) for source in host if source not in kernels]
        for name, flags in INSTRUCTION_SETS.items():
            if name == "baseline" or self.on_x86:
                listed += [self._compile(source, (f"-DDCNV4_ISA={name}", *flags), f".{name}") for source in kernels]
        if self.nvcc:
            headers = tuple(flag for folder in self.nvcc.include_folders for flag in ("-isystem", str(folder)))
            listed += [self._compile(source, headers) for source in sorted((self.sources / "cuda").glob("*.cpp"))]
            listed += [self._compile(source) for source in sorted((self.sources / "cuda").glob("*.cu"))]
        return listed

    @property
    def on_x86(self) -> bool:
        """Whether there are kernels for more instruction sets than the baseline."""
        return platform.machine() in ("x86_64", "AMD64")

    def _compile(self, source: Path, extra_flags: tuple[str, ...] = (), variant: str = "") -> Compilation:
        name = f"{source.relative_to(self.sources).as_posix()}{variant}.o"
        return Compilation(source, name, "nvcc" if source.suffix == ".cu" else "cxx", extra_flags)

    def fingerprint(self) -> str:
        """Return a hash of all that the CPU part and the sources of the CUDA part depend on.

        CUDA version and architectures stay out: a library that covers more than is asked for counts as up to date.
        """
        digest = hashlib.sha256()
        host_only = replace(self, nvcc=None, architectures=())
        for text in (self.torch.version, self.compiler.version, *host_only.cxx_flags, *host_only.link_flags):
            # a library that came in a wheel was built in another place
            here = text.replace(str(self.sources), "cuda_src").replace(str(self.torch.folder), "torch")
            digest.update(here.encode() + b"\0")
        digest.update(repr(INSTRUCTION_SETS).encode())
        for path in sorted(path for path in self.sources.rglob("*") if path.is_file()):
            digest.update(path.relative_to(self.sources).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
        return digest.hexdigest()


def require_sources(folder: Path) -> None:
    """Raise BuildError unless `folder` holds the operator's sources."""
    if not (folder / "dcnv4.cpp").is_file():
        raise BuildError(f"no dcnv4.cpp in {folder}: the sources of the operator are incomplete")
