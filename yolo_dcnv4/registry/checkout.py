"""The same integration written into a source checkout of ultralytics, for people who maintain a fork."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from yolo_dcnv4.registry.errors import RegistrationError
from yolo_dcnv4.registry.pack import HOMES, PACK
from yolo_dcnv4.registry.rewrite import rewrite, undo

TASKS_FILE = Path("ultralytics") / "nn" / "tasks.py"


OPTIONS = {
    "check": "write nothing; exit with 1 if something would change",
    "diff": "write nothing; print the change",
    "revert": "take the change back",
}

_COMMENT = "# blocks of yolo_dcnv4; at the end, since they import modules that must be complete by then"
_IMPORTS = re.compile(rf"\r?\n\r?\n{_COMMENT}\r?\n(?:from yolo_dcnv4\.modules\.\w+ import .+\r?\n)+")


def left_out(text: str) -> dict[str, str]:
    """Return the blocks whose like-module a release does not have, and that module.

    Args:
        text: Text of its `ultralytics/nn/tasks.py`.
    """
    return {name: like for name, like in PACK.items() if not re.search(rf"\b{like}\b", text)}


def patched(text: str, *, version: str = "unknown") -> str:
    """Return the text of a `tasks.py` with this package's blocks in `parse_model`'s lists and imported.

    Args:
        text: Text of `ultralytics/nn/tasks.py`, patched already or not; by an earlier version of this package too.
        version: Its release, for messages.

    Raises:
        RegistrationError: `parse_model` has changed beyond recognition.
    """
    text = rewrite(text, _likes(text), version=version)
    block = _import_block(text)
    return _IMPORTS.sub(lambda _: block, text) if _IMPORTS.search(text) else text + block


def reverted(text: str, *, version: str = "unknown") -> str:
    """Return the text of a patched `tasks.py` as it was before; an unpatched one comes back as it is.

    Args:
        text: Text of `ultralytics/nn/tasks.py`.
        version: Its release, for messages.

    Raises:
        RegistrationError: The file was edited after it was patched, so that the change cannot be told from the edits.
    """
    without_imports = _IMPORTS.sub("", text)
    before = undo(without_imports, PACK, version=version)
    if before != without_imports and rewrite(before, _likes(before), version=version) != without_imports:
        raise RegistrationError(
            "tasks.py was edited where it had been patched; take the change back with your version control"
        )
    return before


def _likes(text: str) -> dict[str, str]:
    missing = left_out(text)
    likes = {name: like for name, like in PACK.items() if name not in missing}
    # a file without a single one: let the search say what it looked for
    return likes or PACK


def _import_block(text: str) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    likes = _likes(text)
    lines = ["", "", _COMMENT]
    for home in sorted({HOMES[name] for name in likes}):
        names = ", ".join(sorted(name for name in likes if HOMES[name] == home))
        lines.append(f"from yolo_dcnv4.modules.{home} import {names}  # noqa: E402")
    return newline.join([*lines, ""])


def patch_checkout(folder: str | Path, *, revert: bool = False, write: bool = True) -> str:
    """Patch or revert `DIR/ultralytics/nn/tasks.py` and return the change as a unified diff, empty for none.

    Args:
        folder: DIR, the root of a source checkout of ultralytics.
        revert: Take the change back.
        write: Write the file; else only compute the diff.

    Raises:
        FileNotFoundError: There is no such file in `folder`.
        RegistrationError: The file cannot be patched or reverted; it stays as it is.
    """
    file = Path(folder) / TASKS_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: DIR must be the root of a source checkout of ultralytics")
    # bytes: reading text would turn line ends into \n
    before = file.read_bytes().decode()
    after = (reverted if revert else patched)(before, version=_version(file))
    if write and after != before:
        file.write_bytes(after.encode())
    name = TASKS_FILE.as_posix()
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), f"a/{name}", f"b/{name}"
    )
    return "".join(lines)


def _version(tasks: Path) -> str:
    package = tasks.parents[1] / "__init__.py"
    text = package.read_text(encoding="utf-8") if package.is_file() else ""
    match = re.search(r"""^__version__ = ["'](.+?)["']""", text, re.MULTILINE)
    return match.group(1) if match else "unknown"


def main(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """Run the command; returns its exit status: 1 for a check of a file that would change, 2 for an error.

    Args:
        argv: DIR and options, each in the form `--check` or `check=1`; `None` takes those of the process.
        program: Name of the command in messages.
    """
    parser = argparse.ArgumentParser(
        prog=program, description="Write yolo_dcnv4's blocks into parse_model of a source checkout of ultralytics."
    )
    parser.add_argument("folder", metavar="DIR", help=f"root of the checkout; {TASKS_FILE.as_posix()} is changed")
    for name, effect in OPTIONS.items():
        parser.add_argument(f"--{name}", action="store_true", help=f"{effect}; {name}=1 says the same")
    try:
        arguments = parser.parse_args(_as_flags(sys.argv[1:] if argv is None else argv))
    except SystemExit as end:  # --help, or a wrong command line, which argparse has explained
        return int(end.code or 0)
    file = Path(arguments.folder) / TASKS_FILE
    try:
        diff = patch_checkout(arguments.folder, revert=arguments.revert, write=not (arguments.check or arguments.diff))
        missing = left_out(file.read_bytes().decode())
    except (OSError, UnicodeDecodeError, RegistrationError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    if arguments.diff:
        print(diff, end="")
    elif arguments.check:
        print(f"{file}: {'would change' if diff else 'nothing to do'}")
    else:
        print(f"{file}: {('reverted' if arguments.revert else 'patched') if diff else 'nothing to do'}")
    if missing and diff and not arguments.revert:
        blocks = "; ".join(f"{name} (no {like})" for name, like in missing.items())
        print(f"left out, for this release lacks what they are like: {blocks}", file=sys.stderr)
    return int(arguments.check and bool(diff))


def _as_flags(words: Sequence[str]) -> list[str]:
    """Turn `check=1` into `--check`, and leave `check=0` out."""
    flags = []
    for word in words:
        name, equals, value = word.partition("=")
        if not (equals and name in OPTIONS):
            flags.append(word)
        elif value.lower() in ("1", "true"):
            flags.append(f"--{name}")
        elif value.lower() not in ("0", "false"):
            flags.append(f"--{word}")  # for argparse to refuse
    return flags
