"""Exported files on this processor beside the folded network in torch: latency, size, and how true their outputs are.

    python benchmarks/export.py [yolov7-tiny ...] [--size 320] [--threads 2] [--rounds 30] [--calibration 8]

Batch 1; a SOURCE is a recipe, whose weights are drawn and whose norms are settled on noise, or an artifact. The worst
output is that with the least signal over noise, against the folded network in torch, on one picture of noise. All forms
are run in turns, in one process, so that what else the machine does falls on all of them; where it does much, the
fastest runs say more. Ratios are over torch in float32, with the norms folded away; channels-last is torch's own best
case. An exporter whose packages are not installed is left out, with a line that says what installs them.
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detloom.artifacts import load_artifact
from detloom.assembly import assemble
from detloom.detector import Detector
from detloom.errors import DetloomError
from detloom.export.fidelity import decibels, noise_share
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
SETTLING = 4
Run = Callable[[NDArray[np.float32]], Sequence[NDArray[np.float32]]]


@dataclass(frozen=True, slots=True)
class Form:
    """What runs here, its network in torch, and the size of its file."""

    run: Run
    network: Network
    mebibytes: float | None = None


def main() -> None:
    """Print a table in Markdown for each source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", default=["yolov7-tiny"])
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calibration", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for source in options.sources:
        detector = _detector(source, options.size)
        side = -(-options.size // detector.max_stride) * detector.max_stride
        _print_table(source, detector, side, options)


def _print_table(source: str, detector: Detector, side: int, options: argparse.Namespace) -> None:
    network = _network(detector, side)
    picture_BCHW = network.example_BCHW()
    with tempfile.TemporaryDirectory() as folder:
        forms = {"torch": _torch(network), "torch, channels last": _torch(network, torch.channels_last)}
        for name, settings in EXPORTERS:
            forms |= _exported(
                name, settings, detector, side=side, calibration=options.calibration, folder=Path(folder)
            )
        seconds = _timed(forms, picture_BCHW.numpy(), options.rounds)
        worst = {name: _worst_db(form, picture_BCHW) for name, form in forms.items()}
    print(
        f"\n{source}, 1 x 3 x {side} x {side}, {options.threads} thread(s), {options.rounds} runs; "
        f"load {os.getloadavg()[0]:.1f}\n"
    )
    print("| form | MiB | worst output, dB | fastest, ms | over torch | median, ms | over torch |")
    print("|---|---|---|---|---|---|---|")
    fastest, median = min(seconds["torch"]), statistics.median(seconds["torch"])
    for name, found in seconds.items():
        low, middle = min(found), statistics.median(found)
        size = "" if forms[name].mebibytes is None else f"{forms[name].mebibytes:.1f}"
        print(
            f"| {name} | {size} | {worst[name]:.1f} | {low * 1e3:.1f} | {low / fastest:.2f} "
            f"| {middle * 1e3:.1f} | {middle / median:.2f} |",
            flush=True,
        )


def _detector(source: str, size: int) -> Detector:
    """Return the folded detector of an artifact or a recipe."""
    if Path(source).exists():
        return load_artifact(Path(source)).fuse().eval()
    torch.manual_seed(0)
    detector = assemble(source).train()
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        # None for the plain mean of what is seen, as large signals of a drawn network would saturate in eight bits.
        norm.reset_running_stats()
        norm.momentum = None
    side = -(-size // detector.max_stride) * detector.max_stride
    with torch.no_grad():
        RawMaps(detector)(torch.rand(SETTLING, 3, side, side))
    return detector.eval().fuse()


@torch.inference_mode()
def _worst_db(form: Form, picture_BCHW: Tensor) -> float:
    outputs = zip(form.network.module(picture_BCHW), form.run(picture_BCHW.numpy()), strict=True)
    return min(decibels(noise_share(ours, torch.as_tensor(theirs))) for ours, theirs in outputs)


def _network(detector: Detector, side: int) -> Network:
    return Network(RawMaps(detector).eval(), (side, side), detector.head.decode_spec(), detector.names)


def _torch(network: Network, layout: torch.memory_format = torch.contiguous_format) -> Form:
    module = copy.deepcopy(network.module).to(memory_format=layout)

    def run(images_BCHW: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        with torch.inference_mode():
            return [each.numpy() for each in module(torch.from_numpy(images_BCHW).contiguous(memory_format=layout))]

    return Form(run, network)


def _exported(
    name: str, settings: Mapping[str, Any], detector: Detector, *, side: int, calibration: int, folder: Path
) -> dict[str, Form]:
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
    # What a device runs comes first, the stage before it second; some formats are files of one stem.
    stems = list(dict.fromkeys(Path(each).stem for each in exported.files))
    stages = [stage for stage in runners if stage in STAGES]
    stem_of = dict(zip(reversed(stages), stems, strict=False))
    return {
        f"{name}, {stage}": Form(runners[stage], network, _mebibytes(folder / name, stem_of[stage])) for stage in stages
    }


def _mebibytes(folder: Path, stem: str) -> float:
    return sum(file.stat().st_size for file in folder.iterdir() if file.stem == stem) / 2**20


def _timed(forms: Mapping[str, Form], images_BCHW: NDArray[np.float32], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each run of each form."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(rounds + 3):
        for name, form in forms.items():
            start = time.perf_counter()
            form.run(images_BCHW)
            if number >= 3:
                seconds[name].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
