"""Let ultralytics find the shipped model YAMLs by their bare names, from any directory."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from yolo_dcnv4.locate import data_folder


def without_scale(name: str) -> str:
    """Return a YAML's file name without its scale letter: `yolov8n-seg.yaml` -> `yolov8-seg.yaml`.

    Args:
        name: File name without folders.
    """
    return re.sub(r"(\d+)[nslmx](.+)?$", r"\1\2", name)


def shipped_yaml(name: str) -> Path | None:
    """Return the shipped model YAML of that name, its scale letter there or not; None where there is none.

    Args:
        name: File name without folders.
    """
    try:
        folder = data_folder("model_yamls")
    except FileNotFoundError:
        return None
    candidates = (folder / name, folder / without_scale(name))
    return next((file for file in candidates if file.is_file()), None)


def with_shipped_yamls(check_yaml: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `check_yaml` of `ultralytics.nn.tasks` so that it also finds the shipped YAMLs.

    What ultralytics finds itself, in the working directory or in its own package, comes first; for a name that
    nobody knows its own error stays.

    Args:
        check_yaml: The function to wrap.
    """

    @functools.wraps(check_yaml)
    def find(file: str | Path, suffix: tuple[str, ...] = (".yaml", ".yml"), hard: bool = True) -> Any:
        # `yaml_model_load` asks softly for a str that it has shortened itself, and whose folders its pattern may have
        # mangled (exp10s/ -> exp10/); the name as the user gave it comes as a Path, and is the one to look for
        if isinstance(file, str) and not hard:
            return check_yaml(file, suffix, hard)
        try:
            found = check_yaml(file, suffix, hard)
        except FileNotFoundError:
            if candidate := next(_elsewhere(Path(file), check_yaml, suffix), None):
                return candidate
            raise
        return found or next(_elsewhere(Path(file), check_yaml, suffix), found)

    return find


def _elsewhere(path: Path, check_yaml: Callable[..., Any], suffix: tuple[str, ...]) -> Iterator[str]:
    if not path.name:
        return
    shortened = path.with_name(without_scale(path.name))
    if shortened != path and (found := check_yaml(shortened, suffix, hard=False)):
        yield found
    if path == Path(path.name) and (shipped := shipped_yaml(path.name)):
        yield str(shipped)
