"""Averages of weights beside their parts: of runs on different data, and of different epochs of one run.

    python benchmarks/averaging.py DATA -o DIRECTORY [--seeds 0,1,2] [--start 10] [--epochs 15] [--parts 3] [--last 5]

A quarter of YOLOv7-tiny, with the settings of `yolov7-tiny-small-data`. For each seed, one training on all pictures is
the start of the others (YOLOv7, section 2.2, names both ensembles):

- a run on each part of the data, and their averages: uniform, uniform with the mean of their statistics, greedy;
- a run on all of it for as many epochs, so as many pictures as the parts' runs have together; of the same run the
  weights of the last epoch, the average that trained beside it, and averages of its last epochs, uniform and weighted;
- such a run with a constant learning rate (Izmailov et al. 2018, section 3.2, average weights along one).

Averages have batch norm statistics over all training pictures, but for those that are said to have "their statistics",
the mean of the parts'. So that what new ones give is not taken for what averaging gives, parts are measured with such
statistics, too.

Artifacts and detections lie in DIRECTORY; what is there is not made again, so a run that was stopped goes on, and
several processes may have seeds of their own. Ends with APs over the seeds that are complete, and with paired
differences: bootstrap intervals over pictures and seeds, p values corrected by Holm. The greedy average is chosen by
the pictures that it is measured on, which flatters it.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

import detloom
from detloom.artifacts import load_artifact
from detloom.data.splits import open_splits
from detloom.engine.evaluate import detect_split
from detloom.engine.statistics import renew_statistics_, training_pictures
from detloom.recipe import load_recipe
from detloom.study.matches import Matches
from detloom.study.statistics import Difference, compare, draw_images, draw_seeds, holm

RECIPE = "yolov7-tiny-small-data"
QUARTER = {
    "backbone.stem": [[3, 2, 16], [3, 2, 32]],
    "backbone.hidden": [16, 32, 64, 128],
    "backbone.widths": [32, 64, 128, 256],
    "neck.hidden": [16, 32, 64],
    "neck.widths": [32, 64, 128],
    "neck.outputs": [64, 128, 256],
}
ARMS = {
    "start": "the start of all others",
    "part": "a part's run (mean of the parts)",
    "part-renewed": "a part's run, statistics of all data",
    "parts-plain": "parts, uniform, statistics of the parts",
    "parts-uniform": "parts, uniform",
    "parts-greedy": "parts, greedy",
    "all-last": "all data, last epoch's weights",
    "all-last-renewed": "all data, last epoch's weights, new statistics",
    "all-ema": "all data, exponential average",
    "all-plain": "all data, last epochs, uniform, their statistics",
    "all-uniform": "all data, last epochs, uniform",
    "all-weighted": "all data, last epochs, weighted 1, 2, ...",
    "constant-last": "constant rate, last epoch's weights",
    "constant-last-renewed": "constant rate, last epoch's weights, new statistics",
    "constant-ema": "constant rate, exponential average",
    "constant-plain": "constant rate, last epochs, uniform, their statistics",
    "constant-uniform": "constant rate, last epochs, uniform",
}
COMPARISONS = (
    ("parts-uniform", "part"),
    ("parts-uniform", "part-renewed"),
    ("parts-greedy", "part"),
    ("parts-uniform", "parts-plain"),
    ("parts-uniform", "all-ema"),
    ("all-ema", "all-last"),
    ("all-uniform", "all-last"),
    ("all-uniform", "all-last-renewed"),
    ("all-weighted", "all-last"),
    ("all-uniform", "all-plain"),
    ("all-uniform", "all-ema"),
    ("constant-uniform", "constant-last"),
    ("constant-uniform", "constant-last-renewed"),
    ("constant-uniform", "constant-plain"),
    ("constant-uniform", "all-uniform"),
)
RESAMPLES, CONFIDENCE = 2000, 0.95


@dataclass(frozen=True, slots=True)
class Bench:
    """Trains, averages and measures what is not there yet.

    Attributes:
        data: The data set.
        out: Where everything lies.
        start: Epochs of the start.
        epochs: Epochs of each run from it.
        parts: Parts that the data is divided in.
        last: How many of a run's last epochs are averaged.
        size: Side of the canvas.
    """

    data: Path
    out: Path
    start: int
    epochs: int
    parts: int
    last: int
    size: int

    def seed(self, seed: int) -> None:
        """Make and measure everything of one seed."""
        place = self.out / f"seed-{seed}"
        common: dict[str, Any] = {"train.seed": seed, "data.part_seed": seed}
        start = self._trained(place / "start", {**common, "train.epochs": self.start}) / "last.safetensors"
        self._measure(place, "start", start)
        common |= {"train.init_from": str(start), "train.epochs": self.epochs, "train.snapshot_every": 1}
        self._different_data(place, common)
        self._different_epochs(place, "all", common)
        self._different_epochs(place, "constant", {**common, "train.schedule": "constant"})

    def _different_data(self, place: Path, common: dict[str, Any]) -> None:
        runs = []
        for part in range(self.parts):
            share = {"data.fraction": 1 / self.parts, "data.part": part, "train.snapshot_every": 0}
            runs.append(self._trained(place / f"part-{part}", {**common, **share}) / "last.safetensors")
            self._measure(place, f"part-{part}", runs[-1])
            self._measure(place, f"part-{part}-renewed", runs[-1], renewed=True)
        self._averaged(place, "parts-plain", runs, recalibrate=False)
        self._averaged(place, "parts-uniform", runs)
        self._averaged(place, "parts-greedy", runs, greedy=True)

    def _different_epochs(self, place: Path, name: str, settings: dict[str, Any]) -> None:
        run = self._trained(place / name, settings)
        snapshots = sorted(run.glob("epoch-*.safetensors"))[-self.last :]
        self._measure(place, f"{name}-last", snapshots[-1])
        self._measure(place, f"{name}-last-renewed", snapshots[-1], renewed=True)
        self._measure(place, f"{name}-ema", run / "last.safetensors")
        self._averaged(place, f"{name}-uniform", snapshots)
        self._averaged(place, f"{name}-plain", snapshots, recalibrate=False)
        if name == "all":
            self._averaged(place, f"{name}-weighted", snapshots, weights=range(1, len(snapshots) + 1))

    def _trained(self, run: Path, settings: dict[str, Any]) -> Path:
        """Return a run's directory, once it is trained to the end."""
        about = run / "run.json"
        if about.exists() and json.loads(about.read_text())["status"] == "finished":
            return run
        fixed = {"data.image_size": self.size, "data.workers": 0, "train.evaluate_every": 0}
        overrides = {**QUARTER, **fixed, **settings}
        done = detloom.fit(RECIPE, data=self.data, out=run, overrides=overrides, resume=about.exists(), progress=False)
        print(f"{run}: {done.status}, {sum(epoch.seconds for epoch in done.history):.0f} s", flush=True)
        if done.status != "finished":
            raise SystemExit(done.message)
        return run

    def _averaged(
        self,
        place: Path,
        name: str,
        artifacts: Sequence[Path],
        *,
        greedy: bool = False,
        weights: Sequence[float] | None = None,
        recalibrate: bool = True,
    ) -> None:
        artifact = place / f"{name}.safetensors"
        if not artifact.exists():
            made = detloom.average(
                artifacts, out=artifact, data=self.data, greedy=greedy, weights=weights, recalibrate=recalibrate
            )
            if greedy:
                print(f"{artifact}: greedy took {sum(part.used for part in made.parts)} of {len(artifacts)}")
        self._measure(place, name, artifact)

    def _measure(self, place: Path, name: str, artifact: Path, *, renewed: bool = False) -> None:
        file = matches_of(place, name)
        if file.exists():
            return
        recipe = load_recipe(RECIPE, {"data.image_size": self.size, "data.workers": 0})
        train, val = open_splits(self.data, recipe.data)
        detector = load_artifact(artifact)
        if renewed:
            renew_statistics_(detector, training_pictures(detector, train, recipe))
        matches = Matches.of(detect_split(detector, val, recipe), val)
        matches.write(file)
        print(f"{place.name}  {name:21} AP {matches.ap:.3f}", flush=True)


def matches_of(place: Path, name: str) -> Path:
    """Return where the detections of an artifact lie."""
    return place / f"matches-{name}.safetensors"


def table(out: Path, parts: int) -> str:
    """Return APs and differences of the seeds that are complete, as Markdown."""
    several = {
        "part": [f"part-{part}" for part in range(parts)],
        "part-renewed": [f"part-{part}-renewed" for part in range(parts)],
    }
    files = {arm: several.get(arm, [arm]) for arm in ARMS}
    places = [
        place
        for place in sorted(out.glob("seed-*"))
        if all(matches_of(place, name).exists() for names in files.values() for name in names)
    ]
    if not places:
        return "no seed is complete"
    random = np.random.default_rng(0)
    pictures = len(Matches.read(matches_of(places[0], "start")).pictures)
    # The first row is the pictures as they are.
    counts_RI = np.concatenate([np.ones((1, pictures), np.int64), draw_images(random, RESAMPLES, pictures)])
    share_RS = draw_seeds(random, RESAMPLES, len(places))
    ap_SR = {
        arm: np.array(
            [
                np.mean([Matches.read(matches_of(place, name)).resampled_ap(counts_RI) for name in names], axis=0)
                for place in places
            ]
        )
        for arm, names in files.items()
    }
    lines = ["", f"{len(places)} seeds, {pictures} pictures", "", "| weights | AP | by seed |", "|---|---|---|"]
    for arm, said in ARMS.items():
        values = ap_SR[arm][:, 0].tolist()
        deviation = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
        lines.append(f"| {said} | {mean(values):.3f}{deviation} | {', '.join(f'{value:.3f}' for value in values)} |")
    differences = [
        compare((ap_SR[arm] - ap_SR[base])[:, 0], (ap_SR[arm] - ap_SR[base])[:, 1:], share_RS, confidence=CONFIDENCE)
        for arm, base in COMPARISONS
    ]
    return "\n".join([*lines, "", *_rows(differences)])


def _rows(differences: Sequence[Difference]) -> list[str]:
    lines = [f"| difference | AP | {CONFIDENCE:.0%} interval | p (Holm) |", "|---|---|---|---|"]
    corrected = holm([each.p for each in differences])
    for (arm, base), each, p in zip(COMPARISONS, differences, corrected, strict=True):
        interval = f"{each.low:+.3f} to {each.high:+.3f}"
        lines.append(f"| {ARMS[arm]} - {ARMS[base]} | {each.mean:+.3f} | {interval} | {p:.3f} |")
    return lines


def main() -> None:
    """Make what is not there yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True, help="a directory for runs and detections")
    parser.add_argument("--seeds", default="0,1,2", help="numbers with commas")
    parser.add_argument("--start", type=int, default=10, help="epochs of the start")
    parser.add_argument("--epochs", type=int, default=15, help="epochs of each run from it")
    parser.add_argument("--parts", type=int, default=3)
    parser.add_argument("--last", type=int, default=5, help="epochs that are averaged")
    parser.add_argument("--size", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(
        arguments.data,
        arguments.out,
        arguments.start,
        arguments.epochs,
        arguments.parts,
        arguments.last,
        arguments.size,
    )
    for seed in arguments.seeds.split(","):
        bench.seed(int(seed))
    print(table(arguments.out, arguments.parts))


if __name__ == "__main__":
    main()
