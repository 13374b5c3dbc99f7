"""Compare models by layers, parameters, gradients and GFLOPs, as ultralytics itself counts them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from yolo_dcnv4.comparison.cost import ModelCost
from yolo_dcnv4.loading import image_size, load_model, quiet
from yolo_dcnv4.markdown import markdown_table

PLOT_NAME = "compare.png"
MODEL_SUFFIXES = (".yaml", ".yml", ".pt")


def compare(
    models: Sequence[str | Path],
    imgsz: int | Sequence[int] = 640,
    format: str | None = None,
    out: str | Path | None = None,
    verbose: bool = True,
    plot: bool | str | Path = False,
    results: Sequence[str | Path | None] | None = None,
) -> list[ModelCost]:
    """Compare models with the first one.

    Args:
        models: Model YAMLs (bare names of ultralytics' and of this package's, or paths) and checkpoints.
        imgsz: Picture size in pixels: a side, or (height, width).
        format: `"md"`, `"csv"` or `"json"`; `None` goes by the suffix of `out`, and is `"md"` without `out`.
        out: File to write.
        verbose: Print the result: as a table where it is written to `out`, else in `format`.
        plot: Draw parameters, GFLOPs, the latency here, and mAP where there are results, into a figure: a file, or
            `True` for `compare.png`.
        results: For the figure: per model its results.csv or training folder, or `None`; by default the results.csv
            beside checkpoints.

    Returns:
        One entry per model, in the given order.

    Raises:
        TypeError: `models` is no sequence of names.
        ValueError: No models, an unknown suffix or format, a wrong `imgsz`, or `results` that do not fit.
        FileNotFoundError: A model or a file of `results` does not exist.
        RuntimeError: A model cannot be built or counted; names the model and the cause.
    """
    names = _model_names(models)
    size = image_size(imgsz)
    out = None if out is None else Path(out).expanduser()
    format = _output_format(format, out)
    if results is not None and (isinstance(results, (str, Path)) or len(results) != len(names)):
        raise ValueError(f"results must be a list with an entry for each of the {len(names)} models, got {results!r}")
    measured = [(name, *_measure(name, size)) for name in names]
    _, _, first_parameters, _, first_gflops = measured[0]
    costs = [
        ModelCost(
            model=name,
            layers=layers,
            parameters=parameters,
            gradients=gradients,
            gflops=gflops,
            parameters_change_pct=_change_pct(parameters, first_parameters),
            gflops_change_pct=_change_pct(gflops, first_gflops),
        )
        for name, layers, parameters, gradients, gflops in measured
    ]
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(FORMATS[format](costs), encoding="utf-8")
    if verbose:
        print(FORMATS["md" if out is not None else format](costs), end="")
    if plot:
        # matplotlib takes a second to import
        from yolo_dcnv4.comparison.figure import save_comparison_figure

        file = Path(PLOT_NAME if plot is True else plot).expanduser()
        save_comparison_figure(file, costs, size, results)
    return costs


def to_markdown(costs: Sequence[ModelCost]) -> str:
    """Render a Markdown table whose columns line up on a screen."""
    header = ("model", "layers", "parameters", "gradients", "GFLOPs", "parameters, %", "GFLOPs, %")
    rows = [
        (
            cost.model,
            f"{cost.layers:,}",
            f"{cost.parameters:,}",
            f"{cost.gradients:,}",
            f"{cost.gflops:.2f}",
            f"{cost.parameters_change_pct:+.1f}",
            f"{cost.gflops_change_pct:+.1f}",
        )
        for cost in costs
    ]
    return markdown_table(header, rows)


def to_csv(costs: Sequence[ModelCost]) -> str:
    """Render comma-separated values under the names of `ModelCost`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(ModelCost)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, costs))
    return text.getvalue()


def to_json(costs: Sequence[ModelCost]) -> str:
    """Render a JSON list of objects with the names of `ModelCost` as keys."""
    return json.dumps([asdict(cost) for cost in costs], indent=2) + "\n"


FORMATS: dict[str, Callable[[Sequence[ModelCost]], str]] = {"md": to_markdown, "csv": to_csv, "json": to_json}


def _model_names(models: Sequence[str | Path]) -> list[str]:
    if isinstance(models, (str, Path)) or not all(isinstance(model, (str, Path)) for model in models):
        raise TypeError(f"models must be a list of names or paths, got {models!r}")
    names = [str(model) for model in models]
    if not names:
        raise ValueError("models must name at least one model, got none")
    for name in names:
        if Path(name).suffix not in MODEL_SUFFIXES:
            raise ValueError(f"models must end in {', '.join(MODEL_SUFFIXES)}, got {name!r}")
    return names


def _output_format(format: str | None, out: Path | None) -> str:
    known = ", ".join(FORMATS)
    if format is not None:
        if format not in FORMATS:
            raise ValueError(f"format must be one of {known}, got {format!r}")
        return format
    if out is None:
        return "md"
    suffix = out.suffix.lstrip(".").lower()
    if suffix not in FORMATS:
        raise ValueError(f"out must end in one of {known}, or format be given; got out = {str(out)!r}")
    return suffix


def _change_pct(value: float, first: float) -> float:
    return round(100 * (value / first - 1), 3)


def _measure(name: str, size: list[int]) -> tuple[int, int, int, float]:
    """Return (layers, parameters, gradients, GFLOPs) of a model as ultralytics counts them."""
    # registers the blocks with ultralytics and the operator with thop
    import yolo_dcnv4.modules  # noqa: F401

    model = load_model(name)
    with quiet():
        layers, parameters, gradients, gflops = model.info(verbose=True, imgsz=size)
    if not gflops:
        raise _uncounted(name, model, size)
    return layers, parameters, gradients, gflops


def _uncounted(name: str, model: Any, size: list[int]) -> RuntimeError:
    """Return the error behind a GFLOPs of zero: `get_flops` swallows whatever went wrong."""
    message = f"{name}: GFLOPs cannot be counted"
    try:
        import thop
        import torch

        first = next(model.parameters())
        channels = model.yaml.get("channels", 3)
        picture = torch.zeros(1, channels, *size, device=first.device, dtype=first.dtype)
        thop.profile(deepcopy(model), inputs=[picture], verbose=False)
    except Exception as cause:
        error = RuntimeError(f"{message}: {type(cause).__name__}: {cause}")
        error.__cause__ = cause
        return error
    return RuntimeError(f"{message}: ultralytics returned 0, though the model runs")
