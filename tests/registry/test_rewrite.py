from __future__ import annotations

import ast
import inspect
import textwrap

import pytest
import ultralytics
import ultralytics.nn.tasks as tasks

from yolo_dcnv4.registry.errors import RegistrationError
from yolo_dcnv4.registry.pack import PACK
from yolo_dcnv4.registry.rewrite import SUPPORTED, known_modules, rewrite, undo


def function(body: str) -> str:
    return "def parse_model(d, ch, verbose=True):\n" + textwrap.indent(textwrap.dedent(body).strip("\n"), "    ") + "\n"


LISTS = {
    "set": ("if m in {Conv, C2f}:\n    n = 1", "if m in {Conv, C2f, New}:\n    n = 1"),
    "tuple": ("if m in (C2f, Conv):\n    n = 1", "if m in (C2f, New, Conv):\n    n = 1"),
    "list": ("if m in [C2f]:\n    n = 1", "if m in [C2f, New]:\n    n = 1"),
    "one-tuple": ("if m in (C2f,):\n    n = 1", "if m in (C2f, New,):\n    n = 1"),
    "frozenset": ("base = frozenset({Conv, C2f})", "base = frozenset({Conv, C2f, New})"),
    "lines": (
        "base = frozenset(  # modules\n    {\n        C2f,  # csp\n        nn.Conv2d,\n    }\n)",
        "base = frozenset(  # modules\n    {\n        C2f, New,  # csp\n        nn.Conv2d,\n    }\n)",
    ),
    "starred": ("base = {*others, C2f}", "base = {*others, C2f, New}"),
    "is": ("if m is C2f:\n    n = 1", "if m in (C2f, New):\n    n = 1"),
    "equal": ("if m == C2f:\n    n = 1", "if m in (C2f, New):\n    n = 1"),
    "is not": ("if m is not C2f and n:\n    n = 1", "if m not in (C2f, New) and n:\n    n = 1"),
    "reversed": ("if C2f is m:\n    n = 1", "if m in (C2f, New):\n    n = 1"),
    "parentheses": ("if m is (C2f) or n:\n    n = 1", "if m in (C2f, New) or n:\n    n = 1"),
    "or": ("if m is Conv or m is C2f:\n    n = 1", "if m is Conv or m in (C2f, New):\n    n = 1"),
    "twice": ("a = {C2f}\nb = {Conv, C2f}", "a = {C2f, New}\nb = {Conv, C2f, New}"),
    "not ascii": ("x = 'ä→'; a = {C2f}  # ü", "x = 'ä→'; a = {C2f, New}  # ü"),
}


@pytest.mark.parametrize(("before", "after"), LISTS.values(), ids=LISTS)
def test_new_module_stands_where_the_like_module_stands(before, after):
    loop = "for m, n in d:\n"
    before, after = (function(loop + textwrap.indent(text, "    ")) for text in (before, after))
    assert rewrite(before, {"New": "C2f"}) == after
    assert rewrite(after, {"New": "C2f"}) == after


def test_a_test_over_several_lines_keeps_the_line_numbers():
    source = function("for m in d:\n    if (m is\n            C2f):\n        n = 1")
    after = rewrite(source, {"New": "C2f"})
    assert after.count("\n") == source.count("\n")
    namespace = {"C2f": int, "New": str}
    exec(after.replace("n = 1", "return m"), namespace)
    assert [namespace["parse_model"]([m], 3) for m in (int, str, float)] == [int, str, None]


def test_names_that_are_no_list_of_classes_stay():
    source = function(
        """
        n, m = 1, d
        pair = (C2f, n)
        Conv.default_act = C2f(n)
        for C2f_like, args in d:
            args = [n, m]
        base = {C2f}
        """
    )
    assert rewrite(source, {"New": "C2f"}) == source.replace("{C2f}", "{C2f, New}")


def test_only_parse_model_is_touched():
    source = "GROUP = {C2f}\n\n\ndef other(m):\n    return m in {C2f}\n\n\n" + function("base = {C2f}")
    assert rewrite(source, {"New": "C2f"}) == source.replace("    base = {C2f}", "    base = {C2f, New}")


def test_several_modules_keep_their_order():
    source = function("base = {Conv, C2f}")
    after = rewrite(source, {"A": "C2f", "B": "Conv", "C": "C2f"})
    assert after == function("base = {Conv, B, C2f, A, C}")
    assert rewrite(after, {"A": "C2f", "B": "Conv", "C": "C2f"}) == after
    assert rewrite(after, {"D": "C2f"}) == function("base = {Conv, B, C2f, D, A, C}")


def test_like_of_a_like():
    assert rewrite(function("base = {C2f}"), {"B": "A", "A": "C2f"}) == function("base = {C2f, B, A}")


def test_likes_in_a_circle():
    with pytest.raises(RegistrationError, match="circle: A -> B -> A"):
        rewrite(function("base = {C2f}"), {"A": "B", "B": "A"})


def test_dotted_like_matches_by_its_end():
    source = function("base = {torch.nn.ConvTranspose2d, ConvTranspose}")
    after = function("base = {torch.nn.ConvTranspose2d, New, ConvTranspose}")
    assert rewrite(source, {"New": "nn.ConvTranspose2d"}) == after
    assert rewrite(source, {"New": "ConvTranspose2d"}) == after


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_line_ends_and_byte_order_mark_stay(newline):
    source = "\ufeff# head" + newline + function("base = {C2f}").replace("\n", newline)
    assert rewrite(source, {"New": "C2f"}) == source.replace("C2f", "C2f, New")


def test_all_or_nothing_names_what_was_looked_for():
    with pytest.raises(RegistrationError) as error:
        rewrite(function("base = {Conv, C2f}"), {"A": "C2f", "B": "C9"}, version="9.9.9")
    message = str(error.value)
    assert "C9 (for B)" in message and "9.9.9" in message and "C2f, Conv" in message and SUPPORTED in message
    assert "for A" not in message


CHANGED = {
    "no function": ("def build_model(d, ch):\n    base = {C2f}\n", "no function parse_model"),
    "no list": (function("base = MODULES"), "beyond recognition"),
    "no Python": ("def parse_model(:\n", "does not parse"),
    "indented": ("    def parse_model(d, ch):\n        return d\n", "does not parse"),
}


@pytest.mark.parametrize(("source", "match"), CHANGED.values(), ids=CHANGED)
def test_changed_beyond_recognition(source, match):
    with pytest.raises(RegistrationError, match=match) as error:
        rewrite(source, {"New": "C2f"}, version="9.9.9")
    assert "9.9.9" in str(error.value) and SUPPORTED in str(error.value)


@pytest.mark.parametrize(
    "text", [inspect.getsource(tasks.parse_model), inspect.getsource(tasks)], ids=["function", "file"]
)
def test_installed_parse_model(text):
    after = rewrite(text, PACK, version=ultralytics.__version__)
    assert rewrite(after, PACK) == after
    assert undo(after, PACK) == text
    before_lines, after_lines = text.split("\n"), after.split("\n")
    assert len(before_lines) == len(after_lines)
    changed = [(b, a) for b, a in zip(before_lines, after_lines, strict=True) if a != b]
    # Conv and Bottleneck in one list each, C2f, C3 and C3k2 in two, and the test for C3k2
    assert len(changed) == 9
    assert all(name in "".join(a for _, a in changed) for name in PACK)
    ast.parse(after)


def test_known_modules_of_the_installed_parse_model():
    known = known_modules(inspect.getsource(tasks.parse_model))
    assert {"Conv", "C2f", "C3k2", "Bottleneck", "Detect", "Concat"} <= set(known)
    assert not {"m", "n", "args", "c1", "c2", "f", "i"} & set(known)
    assert "C3k" not in known


UNDONE = ("set", "tuple", "list", "frozenset", "lines", "starred", "is", "is not", "or", "twice", "not ascii")


@pytest.mark.parametrize(("before", "after"), [LISTS[name] for name in UNDONE], ids=UNDONE)
def test_undo(before, after):
    loop = "for m, n in d:\n"
    before, after = (function(loop + textwrap.indent(text, "    ")) for text in (before, after))
    assert undo(after, ["New"]) == before
    assert undo(before, ["New"]) == before
