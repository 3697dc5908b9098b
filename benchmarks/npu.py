"""What Vela makes of the bundled recipes: file, operators, time and memory on three Ethos-U NPUs, as Markdown.

    python benchmarks/npu.py [yolov7-tiny yolov7 ...] [--accelerators ethos-u55-256 ...] [--classes 3] [--size 320]

Weights are random: where an operator runs depends on shapes alone, and times on the compression of weights a little.
Figures are the compiler's estimates, with the usual system and memory mode of each accelerator. Recipes with a level of
stride 64 take pictures of 384 pixels unless a size is given. Needs `pip install 'detloom[ethos-u]'`.
"""

import argparse
from collections.abc import Iterator, Sequence

import torch

from detloom.assembly import assemble
from detloom.errors import DetloomError
from detloom.export.network import Network, Placement, RawMaps, Verdict
from detloom_plugins.ethos_u.machines import Machine, family_of
from detloom_plugins.ethos_u.placement import figures_of, verdicts_of
from detloom_plugins.ethos_u.vela import compile_model
from detloom_plugins.litert import convert_to_int8, graph_of

RECIPES = (
    "yolov7-tiny",
    "yolov7-tiny-silu",
    "yolov7-tiny-relu6",
    "yolov7-tiny-npu",
    "yolov7",
    "yolov7x",
    "yolov7-w6",
    "yolov7-e6",
    "yolov7-d6",
    "yolov7-e6e",
    "yolor-csp",
    "csp-vovnet",
    "yolov5s-style",
    "yolov6s-style",
    "yolox-s",
)
ACCELERATORS = ("ethos-u55-256", "ethos-u65-512", "ethos-u85-256")
SIZE, COARSE_SIZE, COARSE_STRIDE = 320, 384, 64
HEADER = ("recipe", "pixels", "NPU", "file, MiB", "on NPU", "split", "on CPU", "GMAC", "ms", "SRAM, KiB")


def network_of(recipe: str, size: int, num_classes: int) -> Network:
    """Return a recipe's deployed network with random weights, the same each time."""
    torch.manual_seed(0)
    detector = assemble(recipe, num_classes=num_classes).fuse()
    decode = detector.head.decode_spec()
    if not size:
        size = COARSE_SIZE if any(each["stride"] >= COARSE_STRIDE for each in decode["levels"]) else SIZE
    return Network(RawMaps(detector).eval(), (size, size), decode, detector.names)


def rows_of(recipe: str, network: Network, accelerators: Sequence[str]) -> Iterator[tuple[list[str], list[Verdict]]]:
    """Yield a row for each accelerator, and what falls back on it."""
    file = convert_to_int8(network, graph_of(network), network.example_BCHW(), calibration="min-max", percentile=100.0)
    for accelerator in accelerators:
        compiled = compile_model(file.data, Machine.of(accelerator))
        verdicts = verdicts_of(compiled, file.operators, family_of(accelerator))
        figures = figures_of(compiled, verdicts)
        fallen = [each for each in verdicts if each.placement == Placement.CPU]
        split = sum(each.placement == Placement.SPLIT for each in verdicts)
        row = [
            recipe,
            str(network.image_size[0]),
            accelerator,
            f"{len(compiled.content) / 2**20:.1f}",
            f"{figures['npu_operators']:.0f}",
            str(split),
            f"{figures['cpu_operators']:.0f}",
            f"{figures['macs'] / 1e9:.2f}",
            f"{figures['inference_ms']:.1f}",
            f"{figures['sram_kib']:.0f}",
        ]
        yield row, fallen


def main() -> None:
    """Print the table, then what falls back and why."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--accelerators", nargs="+", default=ACCELERATORS)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--size", type=int, default=0)
    options = parser.parse_args()
    print("| " + " | ".join(HEADER) + " |")
    print("|" + "---|" * len(HEADER), flush=True)
    notes = []
    for recipe in options.recipes:
        try:
            for row, fallen in rows_of(recipe, network_of(recipe, options.size, options.classes), options.accelerators):
                print("| " + " | ".join(row) + " |", flush=True)
                notes += [
                    f"- {recipe} on {row[2]}: `{each.module}`, {each.operator}: {each.reason}. {each.remedy}."
                    for each in fallen
                ]
        except DetloomError as error:
            notes.append(f"- {recipe}: {error}")
    print("\n" + ("\n".join(notes) or "No operator falls back to the host processor."))


if __name__ == "__main__":
    main()
