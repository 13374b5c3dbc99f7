from __future__ import annotations

import pytest

from yolo_dcnv4.build.command import parse_arguments
from yolo_dcnv4.build.errors import BuildError


def test_arguments():
    assert parse_arguments(["cuda=1", "arch=8.6,9.0", "jobs=4", "verbose=0", "force=true"]) == {
        "cuda": True,
        "archs": "8.6,9.0",
        "jobs": 4,
        "verbose": False,
        "force": True,
    }
    assert parse_arguments(["cuda=try"]) == {"cuda": "try"}
    assert parse_arguments([]) == {}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("cuda=yes", "cuda=yes: expected cuda=0 or cuda=1 or cuda=try"),
        ("verbose=try", "verbose=try: expected verbose=0 or verbose=1"),
        ("jobs=0", "jobs=0: expected a positive number"),
        ("jobs=all", "jobs=all: expected a positive number"),
        ("archs=9.0", "unknown argument 'archs=9.0'; expected cuda=, arch=, jobs=, verbose= or force="),
        ("rebuild", "unknown argument 'rebuild'"),
    ],
)
def test_wrong_argument_is_named(argument: str, message: str):
    with pytest.raises(BuildError) as caught:
        parse_arguments([argument])
    assert message in str(caught.value)
