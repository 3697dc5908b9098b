"""Every assigner x head trained on a real data set from scratch: does it learn, and how far?

    python benchmarks/matrix.py DATA -o matrix.jsonl [--epochs 10] [--size 256] [--share 0/2]

A quarter of YOLOv7-tiny, with the settings of `yolov7-tiny-small-data`, evaluated after the last epoch. Heads with an
objectness have the losses of YOLOv7, others the varifocal ones. Rows that stand in the file are not run again; several
processes, each with its share, may write to one file. Without --share the table is printed at the end.
"""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import detloom
from detloom.assembly import check
from detloom.errors import DetloomError, RecipeError
from detloom.kinds import Kind
from detloom.workshop import workshop

QUARTER = {
    "backbone.stem": [[3, 2, 16], [3, 2, 32]],
    "backbone.hidden": [16, 32, 64, 128],
    "backbone.widths": [32, 64, 128, 256],
    "neck.hidden": [16, 32, 64],
    "neck.widths": [32, 64, 128],
    "neck.outputs": [64, 128, 256],
}
WITH_OBJECTNESS: dict[str, Any] = {}
WITHOUT: dict[str, Any] = {"criterion": {"use": "varifocal"}}
HEADS: dict[str, dict[str, Any]] = {
    "anchor, implicit": WITH_OBJECTNESS,
    "anchor, plain": {"head.implicit": False, **WITH_OBJECTNESS},
    "decoupled": {"head": {"use": "decoupled", "width": 64}, **WITH_OBJECTNESS},
    "distribution": {"head": {"use": "distribution"}, **WITHOUT},
    "one-to-one": {"head": {"use": "one-to-one"}, **WITHOUT},
}
# An assigner of the auxiliary branch belongs to the head that has one.
WRAPPERS = {"coarse-to-fine", "independent", "lead-guided"}


def assigners_of(head: str) -> dict[str, dict[str, Any]]:
    """Return the tables of the assigners that are tried on a head, by name."""
    names = [name for name in workshop().names(Kind.ASSIGNER) if name not in WRAPPERS]
    tables: dict[str, dict[str, Any]] = {name: {"use": name} for name in names}
    if head == "one-to-one":
        many = {"use": "task-aligned"}
        tables["hungarian"] = {"use": "independent", "inner": {"use": "hungarian"}, "auxiliary": many}
    return tables


def trained(data: Path, overrides: dict[str, Any]) -> dict[str, float]:
    """Return AP and AP50 of the last epoch."""
    with TemporaryDirectory() as place:
        run = detloom.fit(
            "yolov7-tiny-small-data", data=data, out=Path(place) / "run", overrides=overrides, progress=False
        )
        assert run.metrics is not None  # noqa: S101 - the last epoch is evaluated
        return {"AP": run.metrics["AP"], "AP50": run.metrics["AP50"]}


def row(data: Path, assigner: str, head: str, table: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    """Return what became of one combination."""
    overrides = {**QUARTER, **common, **HEADS[head], "assigner": table}
    found: dict[str, Any] = {"assigner": assigner, "head": head}
    start = time.perf_counter()
    try:
        check("yolov7-tiny-small-data", overrides, num_classes=3)
    except RecipeError as error:
        return {**found, "refused": str(error)}
    try:
        found |= trained(data, overrides)
    except DetloomError as error:
        found["failed"] = str(error)
    return {**found, "seconds": round(time.perf_counter() - start)}


def cell(found: dict[str, Any]) -> str:
    """Return a row's cell of the table."""
    if "AP50" in found:
        return f"{found['AP50']:.3f}"
    return "refused" if "refused" in found else "failed"


def main() -> None:
    """Train what is not in the file yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True, help="a line of JSON for each combination")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--share", default="", help="i/n: this process's part, from 0")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    done = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    have = {(each["assigner"], each["head"]) for each in done}
    common = {
        "data.image_size": arguments.size,
        "data.workers": 0,
        "train.epochs": arguments.epochs,
        "train.evaluate_every": arguments.epochs,
    }
    wanted = [(name, head, table) for head in HEADS for name, table in assigners_of(head).items()]
    if arguments.share:
        index, count = map(int, arguments.share.split("/"))
        wanted = wanted[index::count]
    for name, head, table in wanted:
        if (name, head) in have:
            continue
        found = row(arguments.data, name, head, table, common)
        done.append(found)
        with arguments.out.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(f"{name:14} {head:18} {cell(found)}", flush=True)
    if arguments.share:
        return
    names = sorted({each["assigner"] for each in done})
    cells = {(each["assigner"], each["head"]): cell(each) for each in done}
    print("\n| AP50 | " + " | ".join(HEADS) + " |\n|---|" + "---|" * len(HEADS))
    for name in names:
        print(f"| {name} | " + " | ".join(cells.get((name, head), "") for head in HEADS) + " |")
    for reason in sorted({each["refused"] for each in done if "refused" in each}):
        print(f"refused: {reason}")


if __name__ == "__main__":
    main()
