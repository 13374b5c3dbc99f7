"""Write a model YAML anew with DCNv4 in chosen layers: a text edit that keeps comments and layout."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from yolo_dcnv4.loading import quiet
from yolo_dcnv4.registry.pack import PACK

PLACES = ("backbone", "neck", "full")
LAYOUTS = ("keep", "plain")
SUFFIXES = (".yaml", ".yml")
REPLACEMENTS = {theirs: ours for ours, theirs in PACK.items()}
# a strided or 1x1 Conv is replaced only where its layer is named: what a place stands for are blocks
BLOCKS = tuple(name for name in REPLACEMENTS if name != "Conv")
# stride of P3, the first map that the shipped backbones change
FIRST_STRIDE = 8
# ultralytics chooses the model's class by these parts of the file's name
CLASS_MARKS = ("rtdetr", "-world", "yoloe")


@dataclass(frozen=True)
class Variant:
    """A variant that has been written.

    Args:
        file: The file written.
        base: The file of the model it was made from.
        modules: Number of each replaced layer -> its module now, in order.
        usage: Name under which ultralytics takes the file, with the scale letter of the model that was asked for.
    """

    file: Path
    base: Path
    modules: dict[int, str]
    usage: str

    @property
    def summary(self) -> str:
        """Which modules stand in which layers, such as `C2f_DCNv4 in layers 4, 6, 8`."""
        return _summary(self.modules)


@dataclass(frozen=True)
class _Layer:
    index: int
    module: str
    section: str
    # where the module's name stands in the text
    start: int
    end: int


def write_variant(
    model: str | Path, where: str | int | Sequence[int], out: str | Path | None = None, layout: str = "keep"
) -> Variant:
    """Write a variant of any model YAML with DCNv4 in place of chosen layers.

    C2f becomes C2f_DCNv4, and C3k2, C3 and Bottleneck likewise; Conv becomes DCNv4Conv where its number is given.

    Args:
        model: YAML of ultralytics, of this package or your own: a bare name, a scale letter in it or not, or a path.
        where: `"backbone"`: the backbone's blocks from P3 (stride 8) on; `"neck"`: the blocks of the YAML's `head`;
            `"full"`: all blocks of both; or numbers of layers, such as `[4, 6, 8]` or `"4,6,8"`.
        out: File to write. `None` puts `<model>-dcnv4-<where>.yaml`, the task last, into the working
            directory.
        layout: `"keep"` changes nothing but the names of the modules, and adds a comment on top; `"plain"` drops the
            model's comments and writes one line per layer, with its number and, where it changes, its stride.

    Returns:
        What was written, and what was replaced.

    Raises:
        FileNotFoundError: There is no such model.
        FileExistsError: `out` holds something else already.
        ValueError: The model is no model YAML, or holds nothing that can be replaced there; or an argument is wrong.
            Nothing is written then.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    place = _place(where)
    base = _find(model)
    out = Path(_default_name(base, place) if out is None else out).expanduser()
    _check_out(out, base)
    text = _read(base)
    layers = _layers(text, base.name)
    if layout == "plain":
        text = _plain(_load(text, base.name))
        layers = _layers(text, base.name)
    modules = {layer.index: REPLACEMENTS[layer.module] for layer in _chosen(place, layers, text, base.name)}
    usage = out.with_name(_scaled(out.name, model, _load(text, base.name)))
    header = [f"# {base.name} with {_summary(modules)}"]
    if layout == "plain":
        named = "" if out.name == _default_name(base, place) else f" out={out.name}"
        header.append(f"# made by: yolo-dcnv4 variant model={base.name} where={_written(place)} layout=plain{named}")
        header.append(f"# use: yolo train model={usage.name}")
    else:
        header[0] += "; figures in comments are those of the original"
    _write(out, _with_header(_edit(text, layers, modules, base.name), header))
    return Variant(out, base, modules, str(usage))


def _place(where: str | int | Sequence[int]) -> str | tuple[int, ...]:
    """Return the name of a place, or numbers of layers in order."""
    if isinstance(where, str):
        if where.strip() in PLACES:
            return where.strip()
        numbers: Sequence[Any] = [int(part) if part.strip().isdecimal() else part for part in where.split(",")]
    else:
        numbers = list(where) if isinstance(where, Sequence) else [where]
    if not numbers or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"where must be {', '.join(PLACES)} or numbers of layers such as 4,6,8, got {where!r}")
    return tuple(sorted(set(numbers)))


def _written(place: str | tuple[int, ...]) -> str:
    return place if isinstance(place, str) else ",".join(map(str, place))


def _find(model: str | Path) -> Path:
    """Return the file of a model YAML, looked for as ultralytics does, among the shipped ones, too."""
    if Path(model).suffix not in SUFFIXES:
        raise ValueError(f"model must be a YAML file ({' or '.join(SUFFIXES)}), got {str(model)!r}")
    # the hook's check_yaml knows the shipped YAMLs and keeps scale letters in folders
    from ultralytics.nn import tasks

    import yolo_dcnv4.modules  # noqa: F401

    try:
        return Path(tasks.check_yaml(Path(model).expanduser()))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"model={str(model)!r}: no such YAML, here or in ultralytics; {error}") from None


def variant_stem(stem: str, place: str) -> str:
    """Return the name of a variant without `.yaml`: the task stays last, as ultralytics has it.

    Args:
        stem: Name of the model, such as `yolov8n-seg`.
        place: Where DCNv4 is, such as `neck` or `4-6-8`.
    """
    model, task = re.fullmatch(r"(.+?)(-(?:cls|obb|pose|seg))?", stem).groups("")  # type: ignore[union-attr]
    return f"{model}-dcnv4-{place}{task}"


def _default_name(base: Path, place: str | tuple[int, ...]) -> str:
    return f"{variant_stem(base.stem, _written(place).replace(',', '-'))}.yaml"


def _check_out(out: Path, base: Path) -> None:
    if out.suffix not in SUFFIXES:
        raise ValueError(f"out must end in {' or '.join(SUFFIXES)}, got {str(out)!r}")
    for mark in CLASS_MARKS:
        if (mark in base.stem) != (mark in out.stem):
            negation = "" if mark in base.stem else "not "
            raise ValueError(
                f"out must {negation}have {mark!r} in its name: ultralytics chooses the model's class by it, and the "
                f"model is {base.name}; got {out.name!r}"
            )


def _read(file: Path) -> str:
    try:
        # not read_text, which would turn \r\n into \n
        return file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"model={file.name}: must be text in UTF-8: {error}") from error


def _write(out: Path, text: str) -> None:
    data = text.encode()
    if out.exists() and out.read_bytes() != data:
        raise FileExistsError(f"out={str(out)!r} exists and differs: delete it, or name another file")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(data)


def _load(text: str, name: str) -> dict[str, Any]:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"model={name}: cannot be read as YAML: {error}") from error


def _layers(text: str, name: str) -> list[_Layer]:
    """Return the layers in order, backbone first, and where the text names their modules."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"model={name}: cannot be read as YAML: {error}") from error
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    sections = {key.value: value for key, value in pairs if isinstance(key, yaml.ScalarNode)}
    layers: list[_Layer] = []
    for section in ("backbone", "head"):
        node = sections.get(section)
        if not isinstance(node, yaml.SequenceNode):
            raise ValueError(
                f"model={name}: a model YAML holds the lists backbone and head, this one has no list {section}"
            )
        for index, entry in zip(count(len(layers)), node.value):
            layers.append(_layer(index, entry, section, text, name))
    return layers


def _layer(index: int, node: yaml.Node, section: str, text: str, name: str) -> _Layer:
    parts = node.value if isinstance(node, yaml.SequenceNode) else []
    if len(parts) != 4 or not isinstance(parts[2], yaml.ScalarNode):
        raise ValueError(
            f"model={name}: layer {index} (line {node.start_mark.line + 1}) must be a list "
            "[from, repeats, module, arguments]"
        )
    module = parts[2].value
    # the node's text may hold quotes, a tag or an anchor besides the name, which comes last
    start = text.rfind(module, parts[2].start_mark.index, parts[2].end_mark.index)
    return _Layer(index, module, section, start, start + len(module))


def _chosen(place: str | tuple[int, ...], layers: Sequence[_Layer], text: str, name: str) -> list[_Layer]:
    """Return the layers to replace."""
    if isinstance(place, tuple):
        for index in place:
            _check_numbered(index, place, layers, name)
        return [layers[index] for index in place]
    sections = {"backbone": ("backbone",), "neck": ("head",), "full": ("backbone", "head")}[place]
    inside = [layer for layer in layers if layer.section in sections]
    blocks = [layer for layer in inside if layer.module in BLOCKS]
    if not blocks:
        raise ValueError(
            f"where={place}: {name} has none of {', '.join(BLOCKS)} in its {' and '.join(sections)}, "
            f"only {', '.join(dict.fromkeys(layer.module for layer in inside))}{_by_number(inside)}"
        )
    if place != "backbone":
        return blocks
    # the head may hold what does not run here
    strides, error = _strides(_load(text, name) | {"head": []})
    for layer in blocks:
        if strides[layer.index] is None:
            reason = f": {type(error).__name__}: {error}" if error else ""
            raise ValueError(
                f"where={place}: the stride of layer {layer.index} ({layer.module}) of {name} cannot be found{reason}; "
                "register the modules that ultralytics does not know, or give numbers of layers instead"
            )
    late = [layer for layer in blocks if (strides[layer.index] or 0) >= FIRST_STRIDE]
    if not late:
        found = ", ".join(f"layer {layer.index} (stride {strides[layer.index]})" for layer in blocks)
        raise ValueError(
            f"where={place}: {name} has no block from P3 (stride {FIRST_STRIDE}) on in its backbone, only {found}; "
            "give numbers of layers instead"
        )
    return late


def _check_numbered(index: int, place: tuple[int, ...], layers: Sequence[_Layer], name: str) -> None:
    if index >= len(layers):
        raise ValueError(f"where={_written(place)}: {name} has layers 0 to {len(layers) - 1}, no layer {index}")
    module = layers[index].module
    if module in PACK:
        raise ValueError(f"where={_written(place)}: layer {index} of {name} is {module} already")
    if module not in REPLACEMENTS:
        raise ValueError(
            f"where={_written(place)}: layer {index} of {name} is {module}, which DCNv4 cannot replace; "
            f"it can replace {', '.join(REPLACEMENTS)}"
        )


def _by_number(layers: Sequence[_Layer]) -> str:
    numbers = [str(layer.index) for layer in layers if layer.module in REPLACEMENTS]
    return f"; layers to be had by number, where=...: {', '.join(numbers)} (Conv)" if numbers else ""


def _strides(config: dict[str, Any]) -> tuple[list[int | None], Exception | None]:
    """Return each layer's stride against the picture, and what ended the run.

    None stands for a layer whose output is no map, and for all from where the model does not run: its modules may be
    unknown here, or take more than maps.
    """
    import torch
    from ultralytics.nn.modules import Conv
    from ultralytics.nn.tasks import parse_model

    config = copy.deepcopy(config)
    number = len(config["backbone"]) + len(config["head"])
    if config.get("scales"):
        config["scale"] = next(iter(config["scales"]))
    strides: list[int | None] = []
    failure = None
    size = 256
    outputs: list[Any] = []
    # a model's `activation` would stay set where parse_model raises, and in older releases anyway
    activation = Conv.default_act
    try:
        # on the meta device nothing is computed or stored, however wide the model
        with torch.device("meta"), torch.no_grad(), quiet(logging.ERROR):
            channels = config.get("ch") or config.get("channels") or 3
            model, _ = parse_model(config, ch=channels, verbose=False)
            x: Any = torch.zeros(1, channels, size, size)
            for layer in model.eval():
                if layer.f != -1:
                    x = outputs[layer.f] if isinstance(layer.f, int) else [outputs[f] for f in layer.f]
                x = layer(x)
                outputs.append(x)
                spatial = isinstance(x, torch.Tensor) and x.ndim == 4 and size % x.shape[-1] == 0
                strides.append(size // x.shape[-1] if spatial else None)
    except Exception as error:
        failure = error
    finally:
        Conv.default_act = activation
    return strides + [None] * (number - len(strides)), failure


def _edit(text: str, layers: Sequence[_Layer], modules: Mapping[int, str], name: str) -> str:
    edited = text
    for layer in sorted(layers, key=lambda layer: layer.start, reverse=True):
        if layer.index in modules:
            edited = edited[: layer.start] + modules[layer.index] + edited[layer.end :]
    expected, got = _load(text, name), _load(edited, name)
    rows = [list(row) for row in (*expected["backbone"], *expected["head"])]
    for index, module in modules.items():
        rows[index][2] = module
    first_of_head = len(expected["backbone"])
    expected |= {"backbone": rows[:first_of_head], "head": rows[first_of_head:]}
    if got != expected:
        raise ValueError(
            f"model={name}: layers {', '.join(map(str, modules))} cannot be replaced alone, for the file names them "
            "elsewhere, too (anchors and aliases); write these layers out first"
        )
    return edited


def _summary(modules: Mapping[int, str]) -> str:
    numbers: dict[str, list[str]] = {}
    for index, module in modules.items():
        numbers.setdefault(module, []).append(str(index))
    return "; ".join(f"{m} in layer{'s' * (len(n) > 1)} {', '.join(n)}" for m, n in numbers.items())


def _scaled(name: str, model: str | Path, config: dict[str, Any]) -> str:
    """Put a scale letter into a file's name, as ultralytics expects it: that of `model`, else the YAML's first."""
    letter = r"(yolo(?:e-)?v?\d+)([nslmx])"
    if re.search(letter, name):
        return name
    asked = re.search(letter, Path(model).stem)
    scale = asked[2] if asked else str(next(iter(config.get("scales") or ()), ""))
    return re.sub(r"(yolo(?:e-)?v?\d+)", rf"\g<1>{scale}", name, count=1) if scale in set("nslmx") else name


def _with_header(text: str, header: Sequence[str]) -> str:
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    ending = re.search(r"\r\n|\r|\n", text)
    return mark + "".join(line + (ending[0] if ending else "\n") for line in header) + text.removeprefix(mark)


def _plain(config: dict[str, Any]) -> str:
    """Write a model in the layout of the shipped YAMLs."""
    lines = [""]
    for key, value in config.items():
        if key == "scales":
            lines.append("scales: # depth, width, most channels")
            lines += [f"  {_flow({scale: numbers})[1:-1]}" for scale, numbers in value.items()]
        elif key not in ("backbone", "head"):
            lines.append(_flow({key: value})[1:-1])
    # the last layer joins maps and gives none
    strides = iter([*_strides(config | {"head": config["head"][:-1]})[0], None])
    last, index = None, 0
    for section in ("backbone", "head"):
        lines += ["", *["# from, repeats, module, arguments"] * (section == "backbone"), f"{section}:"]
        for row in config[section]:
            stride = next(strides)
            changed = stride is not None and stride != last and stride & (stride - 1) == 0
            level = f", P{stride.bit_length() - 1}/{stride}" if stride is not None and changed else ""
            lines.append(f"  - {_flow(row)} # {index}{level}")
            last, index = stride, index + 1
    return "\n".join([*lines, ""])


class _Dumper(yaml.SafeDumper):
    """Writes True and False as model YAMLs do."""


_Dumper.add_representer(bool, lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:bool", str(value)))


def _flow(value: Any) -> str:
    return yaml.dump(value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, width=10**6).strip()
