"""The deployed form's forward pass, beside the reference implementation's figures.

    python benchmarks/forward.py [--recipes yolov7-tiny yolov7] [--threads 1 2] [--repeats 9] [--device cuda]

Batch 1 at 320 and 640 pixels, 80 classes, decoded, without suppression: medians in seconds. On a GPU
also batch 32, pictures trained on in a second, and how often a step waits for the device. The
reference figures are of the official implementation, eager, float32, on a 2-core processor with
AVX-512 and bfloat16; ratios mean something on a like machine alone.
"""

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from detloom.assembly import assemble
from detloom.detector import Detector
from detloom.engine.optimise import build_optimizer
from detloom.engine.settings import TrainSettings
from detloom.structures import Targets

SIDES, CLASSES, OBJECTS = (320, 640), 80, 10
# By recipe and threads: seconds at each side.
REFERENCE = {
    ("yolov7-tiny", 1): (0.067, 0.243),
    ("yolov7-tiny", 2): (0.037, 0.212),
    ("yolov7", 1): (0.395, 1.72),
    ("yolov7", 2): (0.211, 1.7),
}
VARIANTS = (
    ("float32", torch.float32, torch.contiguous_format),
    ("float32, channels last", torch.float32, torch.channels_last),
    ("bfloat16, channels last", torch.bfloat16, torch.channels_last),
)


def main() -> None:
    """Measure every recipe and variant, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["yolov7-tiny", "yolov7"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, min(2, os.cpu_count() or 1)])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    for recipe in options.recipes:
        torch.manual_seed(0)
        detector = assemble(recipe, num_classes=CLASSES).to(device)
        for threads in (1,) if on_gpu else dict.fromkeys(options.threads):
            torch.set_num_threads(threads)
            print(f"\n{recipe}, {device}" + ("" if on_gpu else f", {threads} thread(s); load {os.getloadavg()[0]:.1f}"))
            _print_latencies(detector, device, options.repeats, None if on_gpu else REFERENCE.get((recipe, threads)))
        if on_gpu:
            _print_training(detector.train(), device, options.repeats)


def _print_latencies(
    detector: Detector, device: torch.device, repeats: int, reference: tuple[float, ...] | None
) -> None:
    cases = [(batch, side) for batch in ((1, 32) if device.type == "cuda" else (1,)) for side in SIDES]
    print(f"{'':26}" + "".join(f"{f'{batch} x {side}':>12}" for batch, side in cases) + "   over the reference")
    if reference:
        print(f"{'reference, float32':26}" + "".join(f"{seconds:12.4f}" for seconds in reference))
    for name, dtype, layout in VARIANTS:
        deployed = detector.fuse().to(memory_format=layout)
        found = []
        for batch, side in cases:
            images_BCHW = torch.rand(batch, 3, side, side, device=device).contiguous(memory_format=layout)
            found.append(_median(_forward(deployed, images_BCHW, dtype), device, repeats))
        ratios = "".join(f"{mine / its:7.2f}" for mine, its in zip(found, reference or (), strict=False))
        print(f"{name:26}" + "".join(f"{seconds:12.4f}" for seconds in found) + f"   {ratios}")


def _forward(deployed: Detector, images_BCHW: Tensor, dtype: torch.dtype) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode(), torch.autocast(images_BCHW.device.type, dtype, enabled=dtype != torch.float32):
            return deployed.predictions(images_BCHW)

    return run


def _print_training(detector: Detector, device: torch.device, repeats: int, batch: int = 32, side: int = 640) -> None:
    """Print the throughput of training in bfloat16, and the waits of a step, on a GPU."""
    detector.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(detector, TrainSettings(batch=batch))
    images_BCHW = torch.rand(batch, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    corners_N2 = torch.rand(OBJECTS, 2) * side * 0.7
    boxes_N4 = torch.cat((corners_N2, corners_N2 + torch.rand(OBJECTS, 2) * side * 0.25 + 4), 1)
    labels_N = torch.arange(OBJECTS) % CLASSES
    targets = Targets.from_lists([boxes_N4] * batch, [labels_N] * batch, (side, side)).to(device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            losses = detector(images_BCHW, targets)
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds = _median(step, device, repeats)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [f"{each.filename}:{each.lineno}" for each in caught if "synchroniz" in str(each.message)]
    print(f"training, bfloat16, batch {batch} at {side}: {batch / seconds:.0f} pictures a second")
    print(f"a step waits for the device {len(waits)} times: {', '.join(waits) or 'never'}")


def _median(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    times = []
    for number in range(repeats + 3):
        start = _now(device)
        run()
        if number >= 3:
            times.append(_now(device) - start)
    return statistics.median(times)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
