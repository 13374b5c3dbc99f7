from __future__ import annotations

import copy
import importlib
import importlib.util
import linecache
import sys
import traceback
import types

import pytest
import torch
from torch import nn
from ultralytics.nn.modules import C2f, C3k2, Conv
from ultralytics.nn.modules.block import C3k

import yolo_dcnv4.modules
from yolo_dcnv4.registry import RegistrationError, register, register_module, registered, unregister
from yolo_dcnv4.registry import hook as hook_module
from yolo_dcnv4.registry.pack import HOMES, PACK


class OwnC2f(C2f):
    pass


class OwnConv(Conv):
    pass


class OwnC3k2(C3k2):
    pass


class Scale(nn.Module):
    """Takes its YAML arguments as they are."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def model_with(tasks, base: str, names: dict[str, str], edit=None):
    config = copy.deepcopy(tasks.yaml_model_load(base))
    for row in config["backbone"] + config["head"]:
        row[2] = names.get(row[2], row[2])
    if edit:
        edit(config)
    return tasks.DetectionModel(config, verbose=False)


def test_pack_names_the_blocks_and_their_homes():
    assert HOMES.keys() == PACK.keys()
    for name, home in HOMES.items():
        assert getattr(yolo_dcnv4.modules, name).__module__ == f"yolo_dcnv4.modules.{home}"


@pytest.mark.parametrize("base", ["yolov8n.yaml", "yolo11n.yaml", "yolo11m.yaml"])
def test_registered_copies_equal_the_stock_architecture(hook, base):
    for cls in (OwnC2f, OwnConv, OwnC3k2):
        register_module(cls, like=cls.__bases__[0])
    stock = hook.DetectionModel(base, verbose=False).eval()
    own = model_with(hook, base, {"C2f": "OwnC2f", "Conv": "OwnConv", "C3k2": "OwnC3k2"}).eval()
    kinds = {type(module) for module in own.model}
    assert OwnConv in kinds and kinds & {OwnC2f, OwnC3k2}
    state = stock.state_dict()
    assert {k: v.shape for k, v in own.state_dict().items()} == {k: v.shape for k, v in state.items()}
    assert torch.equal(own.stride, stock.stride)
    own.load_state_dict(state)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(own(x)[0], stock(x)[0])


@pytest.mark.parametrize(
    ("base", "names"),
    [
        ("yolov8n.yaml", {"C2f": "C2f_DCNv4"}),
        ("yolo11n.yaml", {"C3k2": "C3k2_DCNv4"}),
        ("yolov8n.yaml", {"C2f": "Bottleneck_DCNv4"}),
    ],
    ids=["C2f", "C3k2", "Bottleneck"],
)
def test_pack_blocks_train_one_step(hook, base, names):
    def in_backbone_only(config):
        for row in config["head"]:
            row[2] = {v: k for k, v in names.items()}.get(row[2], row[2])

    model = model_with(hook, base, names, in_backbone_only)
    blocks = [module for module in model.modules() if type(module).__name__ in names.values()]
    assert len(blocks) >= 4
    assert model.stride.tolist() == [8, 16, 32]
    out = model.train()(torch.rand(2, 3, 64, 64))
    features = out["feats"] if isinstance(out, dict) else out
    sum(feature.square().mean() for feature in features).backward()
    assert all(p.grad is not None for block in blocks for p in block.parameters())


def test_dcnv4_conv_takes_stride_and_width(hook):
    def edit(config):
        config["backbone"][3][2] = "DCNv4Conv"

    model = model_with(hook, "yolov8n.yaml", {}, edit)
    assert type(model.model[3]).__name__ == "DCNv4Conv"
    assert model.stride.tolist() == [8, 16, 32]


def test_c3k2_variant_forces_c3k_at_larger_scales(hook):
    model = model_with(hook, "yolo11m.yaml", {"C3k2": "C3k2_DCNv4"})
    blocks = [module for module in model.modules() if type(module).__name__ == "C3k2_DCNv4"]
    assert blocks and all(isinstance(inner, C3k) for block in blocks for inner in block.m)


def test_register_is_idempotent(hook):
    code, check_yaml, fuse = hook.parse_model.__code__, hook.check_yaml, hook.BaseModel.fuse
    init = hook.DetectionModel.__init__
    before = registered()
    register()
    register_module(yolo_dcnv4.modules.C2f_DCNv4, like="C2f")
    assert registered() == before and set(before) == set(PACK)
    assert hook.parse_model.__code__ is code and hook.check_yaml is check_yaml and hook.BaseModel.fuse is fuse
    assert hook.DetectionModel.__init__ is init


def test_unregister_restores_everything(hook):
    unregister()
    plain = {name: getattr(hook, name) for name in vars(hook)}
    code, fuse, init = hook.parse_model.__code__, hook.BaseModel.fuse, hook.DetectionModel.__init__
    safe = set(torch.serialization.get_safe_globals())
    assert not registered() and not any(hasattr(hook, name) for name in PACK)
    register_module(OwnC2f)
    assert set(registered()) == {"OwnC2f"}
    assert hook.parse_model.__code__ is not code and hook.BaseModel.fuse is not fuse
    assert hook.DetectionModel.__init__ is not init and hook.check_yaml is not plain["check_yaml"]
    unregister()
    assert {name: getattr(hook, name) for name in vars(hook)} == plain
    assert hook.parse_model.__code__ is code
    assert hook.BaseModel.fuse is fuse and hook.DetectionModel.__init__ is init
    assert set(torch.serialization.get_safe_globals()) == safe
    unregister()
    with pytest.raises(KeyError, match="C2f_DCNv4"):
        model_with(hook, "yolov8n.yaml", {"C2f": "C2f_DCNv4"})


def test_unregister_leaves_what_others_have_wrapped(hook, monkeypatch):
    ours = hook.check_yaml
    others = lambda *args, **kwargs: ours(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(hook, "check_yaml", others)
    unregister()
    assert hook.check_yaml is others
    monkeypatch.undo()
    hook.check_yaml = ours.__wrapped__


def test_earlier_references_follow(hook):
    unregister()
    from ultralytics.nn.tasks import parse_model

    config = copy.deepcopy(hook.yaml_model_load("yolov8n.yaml"))
    config["backbone"][4][2] = "OwnC2f"
    register_module(OwnC2f)
    assert type(parse_model(config, 3, verbose=False)[0][4]) is OwnC2f


def test_tracebacks_show_the_right_line(hook):
    with pytest.raises(KeyError) as error:
        model_with(hook, "yolov8n.yaml", {"C2f": "NoSuchModule"})
    frame = traceback.extract_tb(error.value.__traceback__)[-1]
    assert frame.name == "parse_model" and frame.filename == hook.__file__
    assert "globals()[m]" in linecache.getline(hook.__file__, frame.lineno)


def test_like_none_passes_arguments_as_they_are(hook):
    register_module(Scale, like=None)

    def edit(config):
        config["backbone"].insert(1, [-1, 1, "Scale", [0.5]])
        for row in config["head"]:
            row[0] = [s if s < 0 else s + 1 for s in row[0]] if isinstance(row[0], list) else row[0]

    model = model_with(hook, "yolov8n.yaml", {}, edit)
    assert model.model[1].factor == 0.5 and model.stride.tolist() == [8, 16, 32]


def test_like_a_registered_module(hook):
    register_module(OwnC2f, like="C2f_DCNv4")
    assert type(model_with(hook, "yolov8n.yaml", {"C2f": "OwnC2f"}).model[2]) is OwnC2f


def test_as_a_decorator(hook):
    @register_module
    class Decorated(C2f):
        pass

    assert registered()["Decorated"].cls is Decorated and registered()["Decorated"].like == "C2f"


def test_a_class_defined_anew_takes_its_predecessors_place(hook):
    first, second = (type("Cell", (C2f,), {"__module__": "__main__"}) for _ in range(2))
    register_module(first)
    register_module(second)
    assert registered()["Cell"].cls is second is hook.Cell


def test_name_clash_is_loud(hook):
    before, code = registered(), hook.parse_model.__code__
    with pytest.raises(RegistrationError, match=r"name C3 is taken.*ultralytics\.nn\.modules\.block\.C3"):
        register_module(type("C3", (C2f,), {}))
    with pytest.raises(RegistrationError, match=r"name C2f_DCNv4 is taken.*yolo_dcnv4\.modules\.block"):
        register_module(type("C2f_DCNv4", (C2f,), {}))
    with pytest.raises(RegistrationError, match="name LOGGER is taken"):
        register_module(type("LOGGER", (C2f,), {}))
    assert registered() == before and hook.parse_model.__code__ is code


@pytest.mark.parametrize("name", ["args", "print", "not a name"])
def test_names_that_no_module_can_have(hook, name):
    with pytest.raises(RegistrationError, match="Rename the class"):
        register_module(type(name, (C2f,), {}))


@pytest.mark.parametrize("cls", [nn.Conv2d(1, 1, 1), int, "C2f", None], ids=["instance", "int", "str", "None"])
def test_cls_must_be_a_module_class(hook, cls):
    with pytest.raises(TypeError, match=r"cls must be a subclass of torch\.nn\.Module"):
        register_module(cls)


def test_like_must_be_known(hook):
    before, code = registered(), hook.parse_model.__code__
    with pytest.raises(RegistrationError, match=r"C9 \(for OwnC2f\).*Known there: .*C2f, .*Conv"):
        register_module(OwnC2f, like="C9")
    with pytest.raises(RegistrationError, match="C3k is unknown to parse_model"):
        register_module(OwnC2f, like=C3k)
    with pytest.raises(RegistrationError, match="is not the C2f that ultralytics"):
        register_module(OwnC2f, like=type("C2f", (nn.Module,), {}))
    with pytest.raises(TypeError, match="like must be"):
        register_module(OwnC2f, like=3)
    with pytest.raises(TypeError, match="helpers must be classes"):
        register_module(OwnC2f, helpers=["Window"])
    assert registered() == before and hook.parse_model.__code__ is code and not hasattr(hook, "OwnC2f")


def fake_tasks(tmp_path, source: str) -> types.ModuleType:
    file = tmp_path / "fake_tasks.py"
    file.write_text("class BaseModel:\n    def fuse(self): pass\ncheck_yaml = print\n" + source)
    spec = importlib.util.spec_from_file_location("fake_tasks", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake(tmp_path, monkeypatch):
    unregister()

    def install(source: str) -> types.ModuleType:
        module = fake_tasks(tmp_path, source)
        monkeypatch.setitem(sys.modules, "fake_tasks", module)
        monkeypatch.setattr(hook_module, "TASKS", "fake_tasks")
        return module

    yield install
    unregister()
    monkeypatch.undo()
    register()


SOURCE = "class C2f: pass\ndef parse_model(d, ch, verbose=True):\n    return d in {C2f}\n"


def test_changed_ultralytics(fake):
    module = fake(SOURCE.replace("{C2f}", "C2f.lists"))
    with pytest.raises(RegistrationError, match="beyond recognition"):
        register_module(OwnC2f)
    assert not hasattr(module, "OwnC2f") and module.check_yaml is print


def test_no_parse_model(fake):
    fake("parse_models = 1\n")
    with pytest.raises(RegistrationError, match="no function parse_model"):
        register_module(OwnC2f)


def test_no_source(fake, tmp_path):
    module = fake(SOURCE)
    (tmp_path / "fake_tasks.py").unlink()
    linecache.checkcache()
    with pytest.raises(RegistrationError, match=r"fake_tasks\.py .* is not there.*pip install"):
        register_module(OwnC2f)
    assert not hasattr(module, "OwnC2f")


def test_source_that_is_not_what_is_loaded(fake, tmp_path):
    module = fake(SOURCE)
    (tmp_path / "fake_tasks.py").write_text(
        (tmp_path / "fake_tasks.py").read_text().replace("return d in {C2f}", "return d in {C2f, BaseModel, print}")
    )
    linecache.checkcache()
    with pytest.raises(RegistrationError, match="not what is loaded"):
        register_module(OwnC2f)
    assert not module.parse_model(OwnC2f, 3)


@pytest.mark.parametrize("first_line", [2, 5, 6, 40])
def test_code_of_another_plug_in_is_not_overwritten(fake, first_line):
    module = fake(SOURCE)
    assert module.parse_model.__code__.co_firstlineno == 5
    namespace: dict = {}
    source = "\n" * (first_line - 2) + SOURCE.replace("{C2f}", "{C2f, Theirs}")
    exec(compile(source, module.__file__, "exec"), namespace)
    module.parse_model.__code__ = namespace["parse_model"].__code__
    with pytest.raises(RegistrationError, match="other code has replaced"):
        register_module(OwnC2f)


def test_ultralytics_loaded_anew_is_registered_anew(fake):
    first = fake(SOURCE)
    register_module(OwnC2f)
    assert first.parse_model(OwnC2f, 3)
    second = fake(SOURCE)
    assert not second.parse_model(OwnC2f, 3)
    register_module(OwnConv, like="C2f")
    assert second.parse_model(OwnC2f, 3) and second.parse_model(OwnConv, 3) and second.OwnC2f is OwnC2f
