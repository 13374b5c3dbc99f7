from __future__ import annotations

import io
import pickle

import pytest
import torch
from torch import nn

import yolo_dcnv4.modules
from yolo_dcnv4.ops.window import Window
from yolo_dcnv4.registry import register, register_module, safe_load, unregister


class Geometry:
    def __init__(self, size):
        self.size = size


class OwnLayer(nn.Module):
    def __init__(self, size=3):
        super().__init__()
        self.geometry = Geometry(size)


def round_trip(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_all_classes_of_the_pack_are_allowed(hook):
    allowed = set(torch.serialization.get_safe_globals())
    blocks = {getattr(yolo_dcnv4.modules, name) for name in yolo_dcnv4.modules.__all__}
    assert blocks | {Window} <= allowed
    assert round_trip(Window.make(3, 1, 1, 1)) == Window.make(3, 1, 1, 1)


def test_own_module_with_helpers(hook):
    with pytest.raises(pickle.UnpicklingError):
        round_trip(OwnLayer())
    register_module(OwnLayer, like=None)
    with pytest.raises(pickle.UnpicklingError, match="Geometry"):
        round_trip(OwnLayer())
    register_module(OwnLayer, like=None, helpers=[Geometry])
    assert round_trip(OwnLayer(5)).geometry.size == 5


def test_unregister_takes_back_its_own_only(hook):
    unregister()
    torch.serialization.add_safe_globals([Geometry])
    try:
        register_module(OwnLayer, like=None, helpers=[Geometry])
        assert OwnLayer in torch.serialization.get_safe_globals()
        unregister()
        allowed = torch.serialization.get_safe_globals()
        assert Geometry in allowed and OwnLayer not in allowed and yolo_dcnv4.modules.DCNv4 not in allowed
    finally:
        torch.serialization.clear_safe_globals()
        register()


def test_classes_of_a_package_are_its_own():
    classes = safe_load.classes_of("yolo_dcnv4.modules")
    assert yolo_dcnv4.modules.DCNv4Core in classes and nn.Linear not in classes
    assert len(classes) == len(set(classes))
