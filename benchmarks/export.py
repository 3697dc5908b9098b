"""Latency of exported files on this processor, beside the folded network in torch.

    python benchmarks/export.py [--source yolov7-tiny] [--size 320] [--threads 2] [--rounds 30] [--calibration 8]

Batch 1; a SOURCE is a recipe, whose weights are drawn, or an artifact. All forms are run in turns, in one process, so
that what else the machine does falls on all of them; where it does much, the fastest runs say more. Ratios are over
torch in float32, with the norms folded away; channels-last is torch's own best case. An exporter whose packages are not
installed is left out, with a line that says what installs them.
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from detloom.artifacts import load_artifact
from detloom.assembly import assemble
from detloom.detector import Detector
from detloom.errors import DetloomError
from detloom.export.network import Network, RawMaps
from detloom.kinds import Kind
from detloom.reparam import fold
from detloom.workshop import workshop

# Name of the exporter, and its settings.
EXPORTERS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("onnx-int8", {}),
    ("openvino", {}),
    ("litert", {}),
)
# Arithmetic of a chip to the bit is not made to be fast.
STAGES = ("float", "int8")
Run = Callable[[NDArray[np.float32]], object]


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="yolov7-tiny")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calibration", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    path = Path(options.source)
    detector = (load_artifact(path) if path.exists() else assemble(options.source)).fuse().eval()
    side = -(-options.size // detector.max_stride) * detector.max_stride
    network = _network(detector, side)
    with tempfile.TemporaryDirectory() as folder:
        runs = {"torch": _torch(network), "torch, channels last": _torch(network, torch.channels_last)}
        for name, settings in EXPORTERS:
            runs |= _exported(name, settings, detector, side=side, calibration=options.calibration, folder=Path(folder))
        seconds = _timed(runs, network.example_BCHW().numpy(), options.rounds)
    print(
        f"\n{options.source}, 1 x 3 x {side} x {side}, {options.threads} thread(s), {options.rounds} runs; "
        f"load {os.getloadavg()[0]:.1f}\n"
    )
    print("| form | fastest, ms | over torch | median, ms | over torch |\n|---|---|---|---|---|")
    fastest, median = min(seconds["torch"]), statistics.median(seconds["torch"])
    for form, found in seconds.items():
        low, middle = min(found), statistics.median(found)
        print(f"| {form} | {low * 1e3:.1f} | {low / fastest:.2f} | {middle * 1e3:.1f} | {middle / median:.2f} |")


def _network(detector: Detector, side: int) -> Network:
    return Network(RawMaps(detector).eval(), (side, side), detector.head.decode_spec(), detector.names)


def _torch(network: Network, layout: torch.memory_format = torch.contiguous_format) -> Run:
    module = copy.deepcopy(network.module).to(memory_format=layout)

    def run(images_BCHW: NDArray[np.float32]) -> object:
        with torch.inference_mode():
            return module(torch.from_numpy(images_BCHW).contiguous(memory_format=layout))

    return run


def _exported(
    name: str, settings: Mapping[str, Any], detector: Detector, *, side: int, calibration: int, folder: Path
) -> dict[str, Run]:
    """Return what runs the files of an exporter, or say why there is nothing."""
    try:
        cls = workshop().component(Kind.EXPORTER, name)
        if absent := cls.missing():
            print(absent)
            return {}
        exporter = cls(**settings)
        passes = [workshop().component(Kind.REPARAM, each)() for each in exporter.passes]
        network = _network(fold(detector, passes)[0], side)
        (folder / name).mkdir()
        images_NCHW = network.example_BCHW(calibration) if exporter.calibrates else None
        exported = exporter.export(network, images_NCHW, folder / name)
        runners = exporter.runners(exported, folder / name)
    except DetloomError as error:
        print(f"{name} is left out: {error}")
        return {}
    return {f"{name}, {stage}": run for stage, run in runners.items() if stage in STAGES}


def _timed(runs: Mapping[str, Run], images_BCHW: NDArray[np.float32], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each run of each form."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 3):
        for name, run in runs.items():
            start = time.perf_counter()
            run(images_BCHW)
            if number >= 3:
                seconds[name].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
