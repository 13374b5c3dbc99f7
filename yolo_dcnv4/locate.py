"""The one place that knows where the data folders `model_yamls` and `cuda_src` lie."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def data_folder(name: str) -> Path:
    """Return a data folder: the copy installed inside the package first, then the one of the checkout.

    Args:
        name: `"model_yamls"` or `"cuda_src"`.

    Raises:
        FileNotFoundError: Neither place holds the folder.
    """
    candidates = [PACKAGE / name, PACKAGE.parent / name]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"folder {name!r} not found; looked for {' and '.join(map(str, candidates))}")
