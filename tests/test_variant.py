from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from ultralytics import RTDETR, YOLO
from ultralytics.nn import tasks
from ultralytics.nn.modules import Conv

import yolo_dcnv4
from yolo_dcnv4.cli import main
from yolo_dcnv4.modules import DCNv4
from yolo_dcnv4.variant import write_variant

# comments, quotes, several styles of lists, a layer over lines and one with a trailing comment that names a module
OWN = """\
# my own model
nc: 3   # C2f in a comment

backbone:
  - [-1, 1, Conv, [16, 3, 2]]   # 0-P1/2
  - [ -1,1,'Conv',[32, 3, 2] ]  # 1-P2/4
  - [-1, 1, "C2f", [32, true]]  # 2: C2f before P3
  - [-1, 1, Conv, [64, 3, 2]]
  -  # 4
    - -1
    - 2
    - C2f
    - [64, True]
  - [-1, 1, SPPF, [64, 5]]

head:
  - [-1, 1, !!str C3, [64,
      False]] # 6
  - {name}
  - [[6, 7], 1, Detect, [nc]]
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own(text: str = OWN, layer: str = "[-1, 1, Bottleneck, [64]]", name: str = "own.yaml") -> Path:
    file = Path(name)
    file.write_bytes(text.replace("{name}", layer).encode())
    return file


def modules(file: str | Path) -> list[str]:
    config = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    return [module for _, _, module, _ in config["backbone"] + config["head"]]


@pytest.mark.parametrize(
    ("where", "replaced"),
    [
        ("backbone", {4: "C2f_DCNv4"}),
        ("neck", {6: "C3_DCNv4", 7: "Bottleneck_DCNv4"}),
        ("full", {2: "C2f_DCNv4", 4: "C2f_DCNv4", 6: "C3_DCNv4", 7: "Bottleneck_DCNv4"}),
        ("3,1,4", {1: "DCNv4Conv", 3: "DCNv4Conv", 4: "C2f_DCNv4"}),
        ([2], {2: "C2f_DCNv4"}),
        ((7, 0), {0: "DCNv4Conv", 7: "Bottleneck_DCNv4"}),
        (6, {6: "C3_DCNv4"}),
    ],
    ids=str,
)
def test_only_names_of_modules_change(where, replaced: dict[int, str]):
    base = own()
    before = base.read_text(encoding="utf-8")
    variant = write_variant(base, where)
    header, _, after = variant.file.read_text(encoding="utf-8").partition("\n")
    assert header == f"# own.yaml with {variant.summary}; figures in comments are those of the original"
    assert variant.modules == replaced
    expected = modules(base)
    for index, module in replaced.items():
        expected[index] = module
    assert modules(variant.file) == expected
    # the text without what was put in is the text as it was
    restored = after.replace("DCNv4Conv", "Conv").replace("_DCNv4", "")
    assert restored == before
    assert YOLO(variant.file).model.stride.tolist() == [8, 8]


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "byte order mark"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_line_ends_and_byte_order_mark_stay(ending: str, mark: str):
    base = own(mark + OWN.replace("\n", ending))
    before = base.read_bytes().decode().removeprefix(mark)
    header, _, after = write_variant(base, "4").file.read_bytes().decode().partition(ending)
    assert header.startswith(f"{mark}# own.yaml with C2f_DCNv4 in layer 4;")
    assert after.replace("_DCNv4", "") == before


def test_names():
    assert write_variant("yolov8n.yaml", "backbone").file == Path("yolov8-dcnv4-backbone.yaml")
    assert write_variant("yolov8s-seg.yaml", "8,4").usage == "yolov8s-dcnv4-4-8-seg.yaml"
    variant = write_variant("yolo11.yaml", "neck", "deep/own-yolo11.yaml")
    assert variant.file.is_file() and variant.usage == str(Path("deep/own-yolo11n.yaml"))
    assert variant.base.name == "yolo11.yaml" and variant.base.is_absolute()
    assert write_variant(own(name="yolov8m-mine.yml"), "full").usage == "yolov8m-mine-dcnv4-full.yaml"


def test_usage_is_taken_by_ultralytics_with_its_scale():
    for model, scale in (
        ("yolov8m-pose.yaml", "m"),
        ("yolo11.yaml", "n"),
        ("yolov10b.yaml", ""),
        ("yolov10x.yaml", "x"),
    ):
        assert tasks.yaml_model_load(write_variant(model, "backbone").usage)["scale"] == scale


def test_a_variant_of_a_variant():
    first = write_variant("yolov8-dcnv4-neck.yaml", "backbone", "yolov8-both.yaml")
    assert first.modules == dict.fromkeys((4, 6, 8), "C2f_DCNv4")
    assert modules(first.file).count("C2f_DCNv4") == 7
    with pytest.raises(
        ValueError, match=r"where=backbone: yolov8-both\.yaml has no block from P3 .*layer 2 \(stride 4\)"
    ):
        write_variant(first.file, "backbone")


def test_plain_layout_holds_the_same_model():
    base = own()
    kept = write_variant(base, "full", "kept.yaml").file.read_text(encoding="utf-8")
    plain = write_variant(base, "full", "plain.yaml", layout="plain").file.read_text(encoding="utf-8")
    assert yaml.safe_load(kept) == yaml.safe_load(plain)
    assert "# made by: yolo-dcnv4 variant model=own.yaml where=full layout=plain out=plain.yaml\n" in plain
    assert "  - [-1, 2, C2f_DCNv4, [64, True]] # 4\n" in plain and "# 3, P3/8\n" in plain


REFUSED = {
    "no block": (
        "yolov9c.yaml",
        "backbone",
        r"where=backbone: yolov9c\.yaml has none of .*C2f.* only Conv, RepNCSPELAN4",
    ),
    "no block, Conv by number": ("yolov9c.yaml", "neck", r"Detect$"),
    "number of another module": ("yolov8.yaml", "4,9", r"where=4,9: layer 9 of yolov8\.yaml is SPPF.*Conv.*C3k2"),
    "number out of range": ("yolov8.yaml", "23", r"where=23: yolov8\.yaml has layers 0 to 22, no layer 23"),
    "already": ("yolov8-dcnv4-neck.yaml", "15", r"layer 15 of yolov8-dcnv4-neck\.yaml is C2f_DCNv4 already"),
    "word": ("yolov8.yaml", "spine", r"where must be backbone, neck, full or numbers of layers.*'spine'"),
    "negative": ("yolov8.yaml", [-1], r"where must be .*got \[-1\]"),
    "truth": ("yolov8.yaml", True, r"where must be .*got True"),
    "nothing": ("yolov8.yaml", [], r"where must be .*got \[\]"),
    "weights": ("yolov8n.pt", "full", r"model must be a YAML file.*'yolov8n\.pt'"),
}


@pytest.mark.parametrize(("model", "where", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses_what_it_cannot_place(model: str, where, message: str, elsewhere: Path):
    with pytest.raises(ValueError, match=message):
        write_variant(model, where)
    assert not list(elsewhere.iterdir())


BROKEN = {
    "no yaml": ("nc: [3", r"own\.yaml: cannot be read as YAML"),
    "no model": ("path: data\nnames: [a]\n", r"lists backbone and head, this one has no list backbone"),
    "a list": ("- 3\n", r"no list backbone"),
    "no head": ("backbone:\n  - [-1, 1, C2f, [8]]\n", r"no list head"),
    "short layer": ("backbone:\n  - [-1, 1, C2f]\nhead: []\n", r"layer 0 \(line 2\) must be a list \[from, repeats"),
    "alias": (
        "backbone:\n  - [-1, 1, Conv, [8, 3, 2]]\n  - &block [-1, 1, C2f, [8]]\n  - *block\nhead: []\n",
        r"own\.yaml: layers 1 cannot be replaced alone.*anchors",
    ),
    "bytes": (b"nc: 3 # \xff\n", r"own\.yaml: must be text in UTF-8"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN)
def test_refuses_what_is_no_model(text: str | bytes, message: str):
    Path("own.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        write_variant("own.yaml", "1", "out.yaml")
    assert not Path("out.yaml").exists()


def test_modules_that_are_unknown_here():
    base = own(OWN.replace("[-1, 1, Conv, [16, 3, 2]]", "[-1, 1, Mystery, [16, 3, 2]]"))
    with pytest.raises(ValueError, match=r"stride of layer 2 .*KeyError: 'Mystery'; register the modules"):
        write_variant(base, "backbone")
    assert write_variant(base, "neck").modules == {6: "C3_DCNv4", 7: "Bottleneck_DCNv4"}
    # the backbone's strides do not depend on the head
    base = own(layer="[-1, 1, Mystery, [64]]", name="head.yaml")
    assert write_variant(base, "backbone").modules == {4: "C2f_DCNv4"}


def test_activation_of_the_model_does_not_outlive_the_look_at_its_strides():
    before = Conv.default_act
    write_variant(own("activation: torch.nn.PReLU()\n" + OWN), "backbone")
    assert Conv.default_act is before
    base = own("activation: torch.nn.PReLU()\n" + OWN.replace("SPPF", "Mystery"), name="unknown.yaml")
    with pytest.raises(ValueError, match="KeyError: 'Mystery'"):
        write_variant(base, "backbone")
    assert Conv.default_act is before


def test_refuses_to_lose_a_file():
    base = own()
    with pytest.raises(FileExistsError, match=r"out='own\.yaml' exists and differs"):
        write_variant(base, "full", base)
    first = write_variant(base, "full")
    again = first.file.read_bytes()
    assert write_variant(base, "full").file.read_bytes() == again
    with pytest.raises(FileExistsError, match="delete it, or name another"):
        write_variant(base, "neck", first.file)
    assert first.file.read_bytes() == again


@pytest.mark.parametrize(
    ("model", "out", "message"),
    [
        ("yolov8.yaml", "out.txt", r"out must end in \.yaml or \.yml, got 'out\.txt'"),
        ("yolov8-rtdetr.yaml", "out.yaml", r"out must have 'rtdetr' in its name.*yolov8-rtdetr\.yaml"),
        ("yolov8.yaml", "yoloe-own.yaml", r"out must not have 'yoloe' in its name"),
    ],
)
def test_refuses_names_under_which_ultralytics_would_take_the_file_for_something_else(
    model: str, out: str, message: str
):
    with pytest.raises(ValueError, match=message):
        write_variant(model, "backbone", out)


def test_unknown_model_and_layout():
    with pytest.raises(FileNotFoundError, match=r"model='yolov8-nowhere\.yaml': no such YAML"):
        write_variant("yolov8-nowhere.yaml", "full")
    with pytest.raises(ValueError, match=r"layout must be one of keep, plain, got 'neat'"):
        write_variant("yolov8.yaml", "full", layout="neat")


def test_command(capsys: pytest.CaptureFixture[str]):
    assert main(["variant", "model=yolov8s.yaml", "where=4,6", "out=yolov8-mine.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "written to yolov8-mine.yaml: yolov8.yaml with C2f_DCNv4 in layers 4, 6\n" in shown
    assert "use it: yolo train model=yolov8s-mine.yaml\n" in shown
    assert modules("yolov8-mine.yaml")[:7].count("C2f_DCNv4") == 2


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["where=full"], 2, "missing model="),
        (["model=yolov8.yaml"], 2, "missing where="),
        (["model=yolov8.yaml", "where=9"], 2, "layer 9 of yolov8.yaml is SPPF"),
        (["model=nowhere.yaml", "where=full"], 2, "no such YAML"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_command_tells_mistakes_in_a_line(
    words: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["variant", *words]) == status
    assert message in capsys.readouterr().err


def test_is_exported_lazily():
    code = "import sys, yolo_dcnv4; assert 'torch' not in sys.modules; yolo_dcnv4.write_variant"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert yolo_dcnv4.write_variant is write_variant


def known_to_ultralytics() -> list[str]:
    return sorted(file.name for file in (Path(tasks.__file__).parents[1] / "cfg" / "models").rglob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("model", known_to_ultralytics())
def test_every_model_of_ultralytics_takes_a_step_or_is_refused(model: str):
    for where in ("backbone", "neck", "full"):
        before = modules(tasks.check_yaml(model))
        try:
            variant = write_variant(model, where)
        except ValueError as refusal:
            section = {"backbone": "backbone", "neck": "head", "full": "backbone and head"}[where]
            assert re.match(rf"where={where}: {re.escape(model)} has none of .* in its {section}, only ", str(refusal))
            config = yaml.safe_load(Path(tasks.check_yaml(model)).read_text(encoding="utf-8"))
            inside = [m for part in section.split(" and ") for _, _, m, _ in config[part]]
            assert not {"Bottleneck", "C2f", "C3", "C3k2"} & set(inside)
            continue
        after = modules(variant.file)
        assert after == [variant.modules.get(index, module) for index, module in enumerate(before)]
        _take_a_step(variant.usage)


def _take_a_step(file: str) -> None:
    torch.manual_seed(0)
    model = (RTDETR if "rtdetr" in file else YOLO)(file).model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    sum(tensor.float().square().mean() for tensor in maps_in(model(torch.rand(2, 3, 64, 64)))).backward()
    layers = [module for module in model.modules() if isinstance(module, DCNv4)]
    assert layers
    before = [layer.output_proj.weight.detach().clone() for layer in layers]
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    for layer, weight in zip(layers, before, strict=True):
        assert layer.output_proj.weight.isfinite().all() and not torch.equal(layer.output_proj.weight, weight)


def maps_in(value: object) -> list[torch.Tensor]:
    """Tensors of a model's output that depend on its parameters."""
    if isinstance(value, torch.Tensor):
        return [value] if value.requires_grad else []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in maps_in(part)]
