"""Auxiliary heads on YOLOv7-tiny: none, and each way to assign them, over several seeds.

    python benchmarks/auxiliary.py DATA -o auxiliary.jsonl [--epochs 15] [--size 256] [--seeds 3]

The settings of `yolov7-tiny-small-data`, with an auxiliary level at each stride of the neck, evaluated after the last
epoch. Rows that stand in the file are not run again. Ends with mean and standard deviation over the seeds, and with the
mean difference to none of the same seeds.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import detloom

AUXILIARY = {"neck.auxiliary": [128, 256, 512]}
INNER = {"use": "yolov7"}
ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    "independent": {**AUXILIARY, "assigner": {"use": "independent", "inner": INNER}},
    "lead-guided": {**AUXILIARY, "assigner": {"use": "lead-guided", "inner": INNER}},
    "coarse-to-fine": {**AUXILIARY, "assigner": {"use": "coarse-to-fine", "inner": INNER}},
}


def trained(data: Path, overrides: dict[str, Any]) -> dict[str, float]:
    """Return AP, AP50 and the seconds of one training."""
    start = time.perf_counter()
    with TemporaryDirectory() as place:
        run = detloom.fit(
            "yolov7-tiny-small-data", data=data, out=Path(place) / "run", overrides=overrides, progress=False
        )
        assert run.metrics is not None  # noqa: S101 - the last epoch is evaluated
        return {"AP": run.metrics["AP"], "AP50": run.metrics["AP50"], "seconds": time.perf_counter() - start}


def main() -> None:
    """Train what is not in the file yet, seed by seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True, help="a line of JSON for each training")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    done = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    have = {(each["arm"], each["seed"]) for each in done}
    common = {
        "data.image_size": arguments.size,
        "data.workers": 0,
        "train.epochs": arguments.epochs,
        "train.evaluate_every": arguments.epochs,
    }
    for seed in range(arguments.seeds):
        for arm, overrides in ARMS.items():
            if (arm, seed) in have:
                continue
            found = {"arm": arm, "seed": seed} | trained(arguments.data, {**common, "train.seed": seed, **overrides})
            done.append(found)
            with arguments.out.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(f"{arm:15} seed {seed}  AP {found['AP']:.3f}  AP50 {found['AP50']:.3f}", flush=True)
    print(table(done))


def table(rows: list[dict[str, Any]]) -> str:
    """Return the arms as a Markdown table."""
    by_arm = {arm: {each["seed"]: each for each in rows if each["arm"] == arm} for arm in ARMS}
    lines = ["", "| arm | AP | AP50 | AP above none |", "|---|---|---|---|"]
    for arm, runs in by_arm.items():
        seeds = sorted(runs.keys() & by_arm["none"].keys())
        above = [runs[seed]["AP"] - by_arm["none"][seed]["AP"] for seed in seeds]
        columns = [[each[key] for each in runs.values()] for key in ("AP", "AP50")] + [above]
        lines.append(f"| {arm} | " + " | ".join(map(spread, columns)) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Return mean and standard deviation."""
    if not values:
        return ""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.3f}"


if __name__ == "__main__":
    main()
