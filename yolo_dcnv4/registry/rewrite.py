"""Teach the source of ultralytics' `parse_model` new modules: text in, text out, nothing executed.

`parse_model` decides by membership in literal lists (sets, tuples, frozensets; the form changed between releases) and
by tests such as `m is C3k2` what arguments a module gets. The rule here: wherever the like-module stands in such a
list or test, the new module stands too. Line numbers, comments and formatting stay.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeGuard

from yolo_dcnv4.registry.errors import RegistrationError

SUPPORTED = "8.2.103 to 8.4.190"


@dataclass(frozen=True)
class _Edit:
    start: int
    end: int
    text: bytes


class _Source:
    """Byte positions of the nodes of a parsed text: ast counts columns in UTF-8 bytes."""

    def __init__(self, data: bytes):
        self.data = data
        self.line_starts = [0, *(match.end() for match in re.finditer(rb"\r\n|\r|\n", data))]

    def start(self, node: ast.expr) -> int:
        return self.line_starts[node.lineno - 1] + node.col_offset

    def end(self, node: ast.expr) -> int:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self.line_starts[node.end_lineno - 1] + node.end_col_offset


def rewrite(source: str, likes: Mapping[str, str], *, version: str = "unknown") -> str:
    """Return `source` with each new module standing wherever the module it is like stands in `parse_model`.

    Args:
        source: Source of the function `parse_model`, or of a file that defines it at its top level.
        likes: Name of each new module -> name of the module it is like, which may be another new module. A dotted
            name such as `nn.ConvTranspose2d` is matched by its end.
        version: The release of ultralytics that `source` is from, for messages.

    Returns:
        The new text; `source` itself where every new module already stands where it should.

    Raises:
        RegistrationError: There is no readable `parse_model`, or a like-module stands in none of its lists and tests.
    """
    data = source.encode()
    function = _find_parse_model(data, version)
    groups = _group(likes)
    edits: list[_Edit] = []
    found: set[str] = set()
    text = _Source(data)
    for literal in _class_lists(function):
        for like, news in groups.items():
            element = _find(literal.elts, like)
            if element is None:
                continue
            found.add(like)
            missing = [name for name in news if _find(literal.elts, name) is None]
            if missing:
                end = text.end(element)
                edits.append(_Edit(end, end, ", ".join(["", *missing]).encode()))
    for test, variable, tested in _class_tests(function):
        for like, news in groups.items():
            if not _matches(tested, like):
                continue
            found.add(like)
            start, end = text.start(test), text.end(test)
            operator = "in" if isinstance(test.ops[0], (ast.Is, ast.Eq)) else "not in"
            # a test over several lines keeps their number
            newlines = "\n" * text.data[start:end].count(b"\n")
            members = ", ".join([ast.unparse(tested), *news])
            edits.append(_Edit(start, end, f"{variable.id} {operator} ({newlines}{members})".encode()))
    lost = [like for like in groups if like not in found]
    if lost:
        raise RegistrationError(_not_found(lost, groups, function, version))
    return _apply(edits, data)


def undo(source: str, names: Collection[str], *, version: str = "unknown") -> str:
    """Return `source` without the new modules that `rewrite` has added.

    Args:
        source: As in `rewrite`.
        names: Names of the modules to take out.
        version: As in `rewrite`.

    Raises:
        RegistrationError: There is no readable `parse_model`.
    """
    data = source.encode()
    function = _find_parse_model(data, version)
    text = _Source(data)
    edits: list[_Edit] = []
    tests = {id(node.comparators[0]): node for node in ast.walk(function) if _is_membership_test(node)}
    for literal in _class_lists(function):
        kept = [element for element in literal.elts if not any(_matches(element, name) for name in names)]
        if len(kept) == len(literal.elts):
            continue
        test = tests.get(id(literal))
        if test is not None and len(kept) == 1 and isinstance(literal, ast.Tuple):
            operator = "is" if isinstance(test.ops[0], ast.In) else "is not"
            edits.append(_Edit(text.end(test.left), text.end(test), f" {operator} {ast.unparse(kept[0])}".encode()))
            continue
        for before, element in pairwise(literal.elts):
            if element not in kept:
                edits.append(_Edit(text.end(before), text.end(element), b""))
    return _apply(edits, data)


def known_modules(source: str, *, version: str = "unknown") -> list[str]:
    """Return the names of the modules that stand in a list or test of `parse_model`, sorted.

    Args:
        source: As in `rewrite`.
        version: As in `rewrite`.

    Raises:
        RegistrationError: There is no readable `parse_model`.
    """
    return _known(_find_parse_model(source.encode(), version))


def _apply(edits: list[_Edit], data: bytes) -> str:
    for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
        data = data[: edit.start] + edit.text + data[edit.end :]
    return data.decode()


def _find_parse_model(data: bytes, version: str) -> ast.FunctionDef:
    try:
        # bytes, so that ast itself deals with a byte order mark
        tree = ast.parse(data)
    except (SyntaxError, ValueError) as error:
        raise RegistrationError(
            f"the source of parse_model (ultralytics {version}) does not parse: {error}. {_way_out()}"
        ) from error
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "parse_model":
            return node
    raise RegistrationError(f"no function parse_model in the source of ultralytics {version}. {_way_out()}")


def _group(likes: Mapping[str, str]) -> dict[str, list[str]]:
    """Map each module that the source must already know to the new ones, following likes of likes."""
    groups: dict[str, list[str]] = {}
    for name, like in likes.items():
        seen = [name]
        while like in likes:
            if like in seen:
                raise RegistrationError(f"modules registered like each other in a circle: {' -> '.join([*seen, like])}")
            seen.append(like)
            like = likes[like]
        groups.setdefault(like, []).append(name)
    return groups


def _local_names(function: ast.FunctionDef) -> set[str]:
    names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return names | {argument.arg for argument in ast.walk(function) if isinstance(argument, ast.arg)}


def _class_lists(function: ast.FunctionDef) -> Iterator[ast.Set | ast.Tuple | ast.List]:
    """Yield the literals that hold nothing but names of classes."""
    local = _local_names(function)
    for node in ast.walk(function):
        if (
            isinstance(node, (ast.Set, ast.Tuple, ast.List))
            and isinstance(getattr(node, "ctx", ast.Load()), ast.Load)
            and node.elts
            and all(_is_class_name(element, local) for element in node.elts)
        ):
            yield node


def _class_tests(function: ast.FunctionDef) -> Iterator[tuple[ast.Compare, ast.Name, ast.expr]]:
    """Yield the tests `m is X`, `m == X` and their negations, with m and X, whichever comes first."""
    local = _local_names(function)
    for node in ast.walk(function):
        if (
            not isinstance(node, ast.Compare)
            or len(node.ops) != 1
            or not isinstance(node.ops[0], (ast.Is, ast.IsNot, ast.Eq, ast.NotEq))
        ):
            continue
        left, right = node.left, node.comparators[0]
        for variable, tested in ((left, right), (right, left)):
            if isinstance(variable, ast.Name) and variable.id in local and _is_class_name(tested, local):
                yield node, variable, tested


def _is_membership_test(node: ast.AST) -> TypeGuard[ast.Compare]:
    return isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], (ast.In, ast.NotIn))


def _is_class_name(node: ast.expr, local: set[str]) -> bool:
    if isinstance(node, ast.Starred):
        node = node.value
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id not in local


def _matches(node: ast.expr, name: str) -> bool:
    if isinstance(node, ast.Starred):
        return False
    written = ast.unparse(node)
    return written == name or written.endswith(f".{name}")


def _find(elements: list[ast.expr], name: str) -> ast.expr | None:
    return next((element for element in elements if _matches(element, name)), None)


def _known(function: ast.FunctionDef) -> list[str]:
    names = {
        ast.unparse(element)
        for node in _class_lists(function)
        for element in node.elts
        if not isinstance(element, ast.Starred)
    }
    return sorted(names | {ast.unparse(tested) for _, _, tested in _class_tests(function)})


def _not_found(lost: list[str], groups: dict[str, list[str]], function: ast.FunctionDef, version: str) -> str:
    wanted = "; ".join(f"{like} (for {', '.join(groups[like])})" for like in lost)
    known = _known(function)
    if not known:
        return (
            f"parse_model of ultralytics {version} has changed beyond recognition: looked for {wanted}, "
            f"found no list of modules at all. {_way_out()}"
        )
    return (
        f"looked for {wanted} in parse_model of ultralytics {version}: it stands in none of its lists and tests. "
        f"Known there: {', '.join(known)}. {_way_out()}"
    )


def _way_out() -> str:
    return f"Nothing was changed. If the name is right, install an ultralytics that is supported ({SUPPORTED})."
