"""Fold every bundled model and measure what changes: differences, parameters, latency.

    python benchmarks/folds.py [--size 192] [--rounds 5] [--threads 1] [NAME ...]

Weights are drawn, norms have statistics that make a mistake visible. A NAME is a recipe, or timm:MODEL for a backbone.
"""

import argparse
import time
from collections.abc import Sequence

import timm
import torch
from torch import Tensor, nn

from detloom.assembly import assemble
from detloom.detector import Detector
from detloom.interfaces import ReparamPass
from detloom.reparam import FoldReport, fold
from detloom_plugins.fuse_bn import FuseBnPass
from detloom_plugins.merge_e_elan import MergeEElanPass

FAMILY = ("tiny", "tiny-silu", "", "x", "w6", "e6", "d6", "e6e")
NAMES = (
    *(f"yolov7{'-' if len(name) > 1 else ''}{name}" for name in FAMILY),
    "yolov7-e6e grouped",
    "yolov6s-style",
    "timm:resnet50",
    "timm:mobilenetv3_large_100",
)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    side = -(-options.size // 64) * 64
    print(f"{side} x {side} pixels, {options.threads} thread(s), the fastest of {options.rounds} rounds\n")
    print("| model | folded | parameters before, after | float64, worst | float32, worst | latency before, after |")
    print("|---|---|---|---|---|---|")
    for name in options.names:
        print(_row(name, side, options.rounds), flush=True)


def _row(name: str, side: int, rounds: int) -> str:
    torch.manual_seed(0)
    model, passes = _model(name)
    images_BCHW = torch.rand(1, 3, side, side)
    folded, report = fold(model, passes, example=images_BCHW)
    before, after = _latencies([model.eval(), folded], images_BCHW, rounds)
    counts = [sum(parameter.numel() for parameter in each.parameters()) for each in (model, folded)]
    applied = sum(each.fold.applies for each in report.folds)
    return (
        f"| {name} | {applied} of {len(report.folds)} | {counts[0]:,}, {counts[1]:,} "
        f"| {_worst(report, 'float64')} | {_worst(report, 'float32')} "
        f"| {before * 1e3:.1f} ms, {after * 1e3:.1f} ms ({after / before - 1:+.0%}) |"
    )


def _model(name: str) -> tuple[nn.Module, Sequence[ReparamPass]]:
    recipe, _, variant = name.partition(" ")
    kind, _, backbone = name.partition(":")
    if backbone:
        return _excited(timm.create_model(backbone, features_only=True, pretrained=False)), [FuseBnPass()]
    if kind != recipe and variant != "grouped":
        raise SystemExit(f"{name!r} is no recipe, no recipe with 'grouped', and no timm:MODEL")
    detector = assemble(recipe)
    return _excited(detector), [*detector.passes, *([MergeEElanPass()] if variant else [])]


def _excited(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None  # noqa: S101 - narrows the type
            assert module.running_var is not None  # noqa: S101 - narrows the type
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.uniform_(tensor, -0.5, 0.5)
    return model


def _worst(report: FoldReport, precision: str) -> str:
    outputs = [each for each in report.outputs if each.precision == precision]
    modules = [each for each in report.modules if each.precision == precision]
    found = [f"outputs {max(each.absolute for each in outputs):.1e} ({max(each.relative for each in outputs):.1e})"]
    if modules:
        found.append(f"modules {max(each.absolute for each in modules):.1e}")
    return ", ".join(found)


@torch.inference_mode()
def _latencies(models: Sequence[nn.Module], images_BCHW: Tensor, rounds: int) -> list[float]:
    """Return the least seconds of each; rounds alternate, so that what else the machine does falls on all."""
    runs = [each.predictions if isinstance(each, Detector) else each for each in models]
    for run in runs:
        run(images_BCHW)
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for index, run in enumerate(runs):
            start = time.perf_counter()
            run(images_BCHW)
            seconds[index].append(time.perf_counter() - start)
    return [min(each) for each in seconds]


if __name__ == "__main__":
    main()
