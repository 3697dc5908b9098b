"""What a study found: the runs of each cell, and each cell against the baseline.

Shape letters: see ``statistics``.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np

from detloom.assembly import CheckReport
from detloom.errors import DataError
from detloom.study.matches import Matches, Weights, matches_file
from detloom.study.statistics import Difference, compare, draw_images, draw_seeds, holm, statement
from detloom.study.work import read_measured

__all__ = ["CellResult", "Comparison", "RunResult", "compared", "read_result"]

RunStatus = Literal["finished", "failed", "pending"]
Curve = tuple[Mapping[str, float | None], ...]


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run of a cell.

    Attributes:
        seed: Of its training.
        directory: Where it lies.
        status: How it stands.
        error: Why it failed.
        matches: Where its matches are.
        ap: Of the weights that are compared.
        seconds: That its epochs took, evaluation included.
        peak_memory_mib: The most that its training needed, where it was seen.
        curve: Loss and AP of each epoch.
    """

    seed: int
    directory: Path
    status: RunStatus
    error: str = ""
    matches: Path = Path()
    ap: float | None = None
    seconds: float | None = None
    peak_memory_mib: float | None = None
    curve: Curve = ()


@dataclass(frozen=True, slots=True)
class CellResult:
    """A cell and its runs.

    Attributes:
        name: Of the cell.
        overrides: What it sets otherwise.
        runs: One for each seed; none where the cell is impossible.
        reason: Why it is impossible.
        report: What ``check`` counted.
        latency: Milliseconds of a picture ``before`` and ``after`` the reparam passes, and how they were measured.
    """

    name: str
    overrides: Mapping[str, Any]
    runs: tuple[RunResult, ...] = ()
    reason: str = ""
    report: CheckReport | None = None
    latency: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> dict[int, RunResult]:
        """Return the runs that have an AP, by seed."""
        return {run.seed: run for run in self.runs if run.ap is not None}

    @property
    def status(self) -> str:
        """Return how the cell stands in a word."""
        if self.reason:
            return "impossible"
        states = {run.status for run in self.runs}
        if states == {"finished"}:
            return "finished"
        if "failed" in states:
            return "failed" if "finished" not in states else "partly failed"
        return "pending"

    @property
    def ap_mean(self) -> float | None:
        """Return the mean of AP over seeds."""
        values = [run.ap for run in self.runs if run.ap is not None]
        return fmean(values) if values else None

    @property
    def ap_spread(self) -> float | None:
        """Return the standard deviation of AP over seeds, where there are several."""
        values = [run.ap for run in self.runs if run.ap is not None]
        return stdev(values) if len(values) > 1 else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A cell against the baseline.

    Attributes:
        difference: In AP; None where nothing could be compared.
        p_holm: The p value, corrected for the number of comparisons.
        statement: What it shows, in words.
    """

    difference: Difference | None
    p_holm: float | None
    statement: str


def read_result(directory: Path, seed: int, error: str = "", weights: Weights = "last") -> RunResult:
    """Return what is known of a run."""
    curve = _curve(directory)
    seconds = sum(epoch["seconds"] or 0.0 for epoch in curve) if curve else None
    measured = read_measured(directory, weights)
    if measured is None:
        return RunResult(seed, directory, "failed" if error else "pending", error, seconds=seconds, curve=curve)
    ap, memory = measured["AP"], measured.get("peak_memory_mib")
    matches = matches_file(directory, weights)
    return RunResult(
        seed, directory, "finished", matches=matches, ap=ap, seconds=seconds, peak_memory_mib=memory, curve=curve
    )


def compared(
    cells: Sequence[CellResult],
    *,
    resamples: int,
    confidence: float,
    progress: Callable[[int, int], None] | None = None,
) -> list[Comparison]:
    """Return each cell against the first, which is the baseline and is not compared with itself.

    Args:
        cells: The baseline first.
        resamples: Draws of the bootstrap.
        confidence: Of the intervals.
        progress: Called with the runs counted and all of them.

    Raises:
        DataError: Runs were measured on different pictures.
    """
    random = np.random.default_rng(0)
    everything = [run for cell in cells for run in cell.finished.values()]
    ap_R: dict[Path, Any] = {}
    images_RI, reference = None, None
    for done, run in enumerate(everything, 1):
        matches = Matches.read(run.matches)
        if reference is None or images_RI is None:
            reference, images_RI = (matches, run), draw_images(random, resamples, len(matches.pictures))
        _demand_same_pictures(matches, run, *reference)
        ap_R[run.directory] = matches.resampled_ap(images_RI)
        if progress is not None:
            progress(done, len(everything))
    # One choice of seeds for all comparisons that have so many.
    most = max((len(cell.finished) for cell in cells), default=0)
    shares = {number: draw_seeds(random, resamples, number) for number in range(1, most + 1)}
    differences = [_difference(cells[0], cell, ap_R, shares, confidence) for cell in cells[1:]]
    corrected = iter(holm([each.p for each in differences if each is not None]))
    found = [Comparison(None, None, "baseline")]
    for cell, difference in zip(cells[1:], differences, strict=True):
        if difference is None:
            found.append(Comparison(None, None, _why_not(cells[0], cell)))
            continue
        p_holm = next(corrected)
        found.append(Comparison(difference, p_holm, statement(difference, p_holm, confidence=confidence)))
    return found


def _difference(
    baseline: CellResult,
    cell: CellResult,
    ap_R: Mapping[Path, Any],
    shares: Mapping[int, Any],
    confidence: float,
) -> Difference | None:
    seeds = sorted(baseline.finished.keys() & cell.finished.keys())
    if not seeds:
        return None
    pairs = [(cell.finished[seed], baseline.finished[seed]) for seed in seeds]
    return compare(
        np.array([(arm.ap or 0.0) - (base.ap or 0.0) for arm, base in pairs]),
        np.array([ap_R[arm.directory] - ap_R[base.directory] for arm, base in pairs]),
        shares[len(seeds)],
        confidence=confidence,
    )


def _why_not(baseline: CellResult, cell: CellResult) -> str:
    if cell.reason:
        return "impossible"
    if not cell.finished or not baseline.finished:
        return f"not compared: {'the baseline' if cell.finished else 'it'} has no finished run"
    return "not compared: no finished run has a seed of the baseline's"


def _demand_same_pictures(matches: Matches, run: RunResult, other: Matches, other_run: RunResult) -> None:
    same_names = [Path(each).name for each in matches.pictures] == [Path(each).name for each in other.pictures]
    if same_names and matches.names == other.names and np.array_equal(matches.objects_IC, other.objects_IC):
        return
    raise DataError(
        f"{run.directory} and {other_run.directory} were measured on different pictures or annotations, so their "
        "difference says nothing of the recipes. Compare runs with one validation split; where the data has changed "
        f"since, remove {run.matches.name} from both, so that they are measured again."
    )


def _curve(directory: Path) -> tuple[dict[str, float | None], ...]:
    try:
        lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return ()
    records = [json.loads(line) for line in lines]
    return tuple(
        {
            "epoch": record["epoch"],
            "loss": sum(value or 0.0 for value in record["losses"].values()),
            "AP": (record["metrics"] or {}).get("AP"),
            "seconds": record["seconds"],
        }
        for record in records
    )
