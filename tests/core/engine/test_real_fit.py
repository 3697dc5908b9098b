"""Real components, in two processes against one, and killed against whole."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from detloom.durable import read_tensors
from detloom.scenes import write_scenes

SCRIPT = Path(__file__).with_name("real_fit.py")
TOGETHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
A_DAY = 24 * 3600


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", train=12, val=4, unseen=0)


def fitted(data: Path, out: Path, *, launcher: list[str] | None = None, kill_at: int = -1, rate: float = 1e-4) -> int:
    """Begin or resume a run in processes of its own; returns the exit status."""
    command = [*(launcher or [sys.executable]), str(SCRIPT), str(data), str(out), str(kill_at), str(rate)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=240)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode


def found(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())
    return content


@pytest.mark.slow
def test_two_processes_fit_as_one_and_agree_when_to_save(data: Path, tmp_path: Path) -> None:
    # The weights hardly move: rounding alone changes the gradients of so small a network in float32, and with them
    # the matches of the next step. `test_processes` compares the gradients, in float64.
    fitted(data, tmp_path / "one", rate=1e-12)
    fitted(data, tmp_path / "two", rate=1e-12, launcher=TOGETHER)

    alone, both = found(tmp_path / "one"), found(tmp_path / "two")
    for ours, theirs in zip(both["losses"], alone["losses"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    assert both["states"] == alone["states"] > len(both["losses"])
    # The others wait for as long as the main process evaluates.
    assert both["timeout"] == A_DAY


@pytest.mark.slow
def test_fit_that_was_killed_ends_like_a_whole_one(data: Path, tmp_path: Path) -> None:
    fitted(data, tmp_path / "whole")

    killed = fitted(data, tmp_path / "run", kill_at=5)
    resumed = fitted(data, tmp_path / "run")

    assert (killed, resumed) == (-9, 0)
    assert found(tmp_path / "run")["losses"] == found(tmp_path / "whole")["losses"]
    for name in ("last.safetensors", "best.safetensors", "state.safetensors"):
        ours, theirs = (read_tensors(tmp_path / out / name)[0] for out in ("run", "whole"))
        assert ours.keys() == theirs.keys()
        assert all(ours[key].equal(theirs[key]) for key in ours)
