"""A training step of yolov7-tiny, stage by stage, beside the reference implementation's figures.

    python benchmarks/step.py [--threads 1 2] [--repeats 7] [--device cpu]

320 x 320 pixels, batch 8, 10 objects a picture, 80 classes: forward, loss with dynamic assignment,
backward, optimiser; medians in seconds. The reference figures are of the official implementation in
float32 on a 2-core processor with AVX-512 and bfloat16; ratios mean something on a like machine alone.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detloom.assembly import assemble, build
from detloom.engine.optimise import build_optimizer
from detloom.engine.processes import numerics
from detloom.engine.settings import TrainSettings
from detloom.kinds import Kind
from detloom.structures import Targets

SIDE, BATCH, OBJECTS, CLASSES = 320, 8, 10, 80
STAGES = ("forward", "loss", "backward", "optimiser")
REFERENCE = {
    1: {"forward": 0.570, "loss": 0.027, "backward": 0.919, "optimiser": 0.016, "step": 1.545},
    2: {"forward": 0.332, "loss": 0.033, "backward": 0.552, "optimiser": 0.012, "step": 0.912},
}


@dataclass(frozen=True, slots=True)
class Variant:
    """A way of computing the same step."""

    name: str
    channels_last: bool
    dtype: torch.dtype


VARIANTS = (
    Variant("float32", channels_last=False, dtype=torch.float32),
    Variant("float32, channels last", channels_last=True, dtype=torch.float32),
    Variant("bfloat16, channels last", channels_last=True, dtype=torch.bfloat16),
)


def batch(device: torch.device) -> tuple[Tensor, Targets]:
    """Return pictures of noise and boxes of many sizes."""
    generator = torch.Generator().manual_seed(0)
    images_BCHW = torch.rand(BATCH, 3, SIDE, SIDE, generator=generator)
    boxes, labels = [], []
    for _ in range(BATCH):
        sizes_N2 = torch.rand(OBJECTS, 2, generator=generator) ** 2 * SIDE * 0.5 + 8
        corners_N2 = torch.rand(OBJECTS, 2, generator=generator) * (SIDE - sizes_N2)
        boxes.append(torch.cat((corners_N2, corners_N2 + sizes_N2), 1))
        labels.append(torch.randint(0, CLASSES, (OBJECTS,), generator=generator))
    return images_BCHW.to(device), Targets.from_lists(boxes, labels, (SIDE, SIDE)).to(device)


def measure(variant: Variant, device: torch.device, repeats: int) -> dict[str, float]:
    """Return the median seconds of each stage, of the whole step, and of the average's update."""
    settings = TrainSettings(batch=BATCH)
    torch.manual_seed(0)
    detector = assemble("yolov7-tiny", num_classes=CLASSES).to(device).train()
    layout = torch.channels_last if variant.channels_last else torch.contiguous_format
    detector.to(memory_format=layout)
    optimizer = build_optimizer(detector, settings)
    assert detector.recipe is not None  # noqa: S101 - narrows the type
    ema = build(Kind.EMA, detector.recipe.tables[Kind.EMA], detector)
    images_BCHW, targets = batch(device)
    images_BCHW = images_BCHW.contiguous(memory_format=layout)
    clock = _clock(device)
    stamps: list[float] = []
    detector.head.register_forward_hook(lambda *_: stamps.append(clock()))
    times: dict[str, list[float]] = {name: [] for name in (*STAGES, "step", "average")}
    with numerics(settings, device):
        for number in range(repeats + 2):
            stamps.clear()
            start = clock()
            with torch.autocast(device.type, dtype=variant.dtype, enabled=variant.dtype != torch.float32):
                losses: Any = detector(images_BCHW, targets)
                total = torch.stack(list(losses.values())).sum()
            stamps.append(clock())
            torch.autograd.backward(total)
            stamps.append(clock())
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            stamps.append(clock())
            ema.update(detector, number + 1)
            averaged = clock()
            if number < 2:
                continue
            for name, before, after in zip(STAGES, (start, *stamps), stamps, strict=False):
                times[name].append(after - before)
            times["step"].append(stamps[-1] - start)
            times["average"].append(averaged - stamps[-1])
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Measure every variant and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, min(2, os.cpu_count() or 1)])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    columns = (*STAGES, "step", "average")
    for threads in dict.fromkeys(options.threads):
        torch.set_num_threads(threads)
        reference = REFERENCE.get(threads) if device.type == "cpu" else None
        print(f"\n{threads} thread(s), {device}; load {os.getloadavg()[0]:.1f}")
        print(f"{'':26}" + "".join(f"{name:>11}" for name in columns) + "   step / reference")
        if reference:
            print(
                f"{'reference, float32':26}" + "".join(f"{reference.get(name, float('nan')):11.3f}" for name in columns)
            )
        for variant in VARIANTS:
            found = measure(variant, device, options.repeats)
            ratio = f"{found['step'] / reference['step']:19.2f}" if reference else ""
            print(f"{variant.name:26}" + "".join(f"{found[name]:11.3f}" for name in columns) + ratio)


def _clock(device: torch.device) -> Callable[[], float]:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


if __name__ == "__main__":
    main()
