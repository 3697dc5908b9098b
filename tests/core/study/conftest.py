"""Runs that were never trained, with matches of their own: what reports are made of. Commands that start at once."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detloom.assembly import CheckReport
from detloom.study.matches import OVERLAPS, Matches, matches_file
from detloom.study.reporting import Report
from detloom.study.results import CellResult, RunResult, compared, read_result
from detloom.study.statistics import METHOD
from detloom.study.work import measured_file

NUM_IMAGES = 40
CHECKED = CheckReport("made", 1, (64, 64), (8,), 2000, 1000, 0.5, 0.25, ())

MakeRun = Callable[..., RunResult]


class WarmCommands:
    """Commands whose processes, and those of their runs, need not import anything: see ``warm.py``."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    def start(self, *arguments: str | Path, out: Path) -> int:
        """Start ``detloom ...``; its output goes to a file. Return its process id."""
        return self._ask(arguments=[str(each) for each in arguments], out=str(out), env=self.environment)

    def wait(self, pid: int) -> int:
        """Return the exit status of a command; that of a killed one is less than nothing."""
        return self._ask(wait=pid)

    def _ask(self, **line: Any) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(line).encode() + b"\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="session")
def warm() -> Iterator[WarmCommands]:
    """Return what starts commands, on one thread of the processor each."""
    commands = WarmCommands(
        {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    )
    with commands.process:
        yield commands


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Return what makes a run whose detections are right with a chance."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(NUM_IMAGES):
        Image.new("RGB", (64, 48), (40, 90, index)).save(pictures / f"{index}.png")

    def make(name: str, seed: int, chance: float) -> RunResult:
        random = np.random.default_rng([seed, round(chance * 1000)])
        is_right = random.random(NUM_IMAGES) < chance
        matches = Matches(
            pictures=tuple(str(pictures / f"{index}.png") for index in range(NUM_IMAGES)),
            names=("</script>",),
            objects_IC=np.ones((NUM_IMAGES, 1), np.int64),
            image_N=np.arange(NUM_IMAGES),
            label_N=np.zeros(NUM_IMAGES, np.int64),
            score_N=np.linspace(0.9, 0.5, NUM_IMAGES).astype(np.float32),
            boxes_N4=np.tile(np.array([[4, 4, 30, 30]], np.float32), (NUM_IMAGES, 1)),
            right_N=is_right * ((1 << len(OVERLAPS)) - 1),
            ignored_N=np.zeros(NUM_IMAGES, np.int64),
        )
        directory = tmp_path / name / f"seed-{seed}"
        directory.mkdir(parents=True)
        matches.write(matches_file(directory, "last"))
        measured = {"AP": matches.ap, "weights": "last", "peak_memory_mib": 100.0 + seed}
        measured_file(directory, "last").write_text(json.dumps(measured))
        epochs = [
            {
                "epoch": epoch,
                "losses": {"boxes": 2.0 / epoch},
                "metrics": {"AP": matches.ap * epoch / 3},
                "seconds": 7.0,
            }
            for epoch in (1, 2, 3)
        ]
        (directory / "metrics.jsonl").write_text("".join(f"{json.dumps(epoch)}\n" for epoch in epochs))
        return read_result(directory, seed)

    return make


@pytest.fixture
def report(make_run: MakeRun) -> Report:
    """Return a report with a better cell, an equal one, one that failed, and an impossible one."""
    cells = [
        CellResult(
            name,
            {"assigner": name},
            tuple(make_run(name, seed, chance) for seed in (0, 1, 2)),
            report=CHECKED,
            latency={"before": 4.0, "after": 2.0},
        )
        for name, chance in (("plain", 0.4), ("better", 0.95), ("alike", 0.41))
    ]
    failed = tuple(RunResult(seed, Path("gone"), "failed", "a loss is not finite") for seed in (0, 1, 2))
    cells += [CellResult("broken", {}, failed, report=CHECKED), CellResult("odd", {}, reason="no such size | at all")]
    about = {
        "name": "made",
        "recipe": "made",
        "data": "made",
        "design": "cells",
        "baseline": "plain",
        "seeds": [0, 1, 2],
        "weights": "last",
        "resamples": 400,
        "confidence": 0.95,
        "method": METHOD,
    }
    return Report(about, tuple(zip(cells, compared(cells, resamples=400, confidence=0.95), strict=True)))
