"""Virtual environments like the running one, with packages left out, made of symbolic links in a second."""

from __future__ import annotations

import sys
import venv
from importlib.metadata import entry_points
from pathlib import Path

# an editable install is a .pth file and a module, both named so
THIS_PACKAGE = ("yolo_dcnv4", "__editable__")


def make_environment(folder: Path, without: tuple[str, ...] = ()) -> Path:
    """Make an environment and return its interpreter; the `yolo` command lies beside it.

    Args:
        folder: Where; must not exist.
        without: Names of packages to leave out, metadata included.
    """
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python3*/site-packages")
    for listed in sys.path:
        if listed.endswith(("site-packages", "dist-packages")):
            for entry in Path(listed).iterdir():
                # a distribution's metadata begin with its name too
                left_out = entry.name.split("-")[0].split(".")[0] in without
                # folders that a .pth names are on the path, and linked, themselves
                left_out |= entry.suffix == ".pth" and not entry.name.startswith("__editable__")
                if not left_out and not (site / entry.name).exists():
                    (site / entry.name).symlink_to(entry)
    python = folder / "bin" / "python"
    for command in entry_points(group="console_scripts", name="yolo"):
        script = folder / "bin" / command.name
        script.write_text(
            f"#!{python}\nimport sys\nfrom {command.module} import {command.attr}\nsys.exit({command.attr}())\n"
        )
        script.chmod(0o755)
    return python
