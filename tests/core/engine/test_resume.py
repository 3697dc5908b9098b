"""A run killed at any moment resumes and ends as one that was not killed, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("stand_in.py")

POINTS = [
    "start",
    "look 1",
    "look 4",
    "epoch 1",
    "epoch 3",
    "write 1",
    "write 3",
    "write 6",
    "before-rename 7",
    "after-rename 7",
    "after-rename 12",
]

# Once with states between epochs, momentum and averages; once with states within them, Adam's moments, half precision,
# a limit on gradients and few evaluations.
KINDS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adamw": {
        "optimizer": "adamw",
        "precision": "bfloat16",
        "clip_norm": 1.0,
        "evaluate_every": 2,
        "checkpoint_minutes": 1e-9,
    },
    # An equal average, whose statistics are computed anew at the end of an epoch, with states within epochs.
    "swa": {"swa": {"start": 3, "every": 2}, "checkpoint_minutes": 1e-9},
}


@pytest.fixture(scope="module", params=list(KINDS))
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what came of a run killed at each point; one process imports, its forks train."""
    command = [
        sys.executable,
        str(SCRIPT),
        str(tmp_path_factory.mktemp("runs")),
        json.dumps(KINDS[request.param]),
        *POINTS,
    ]

    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )

    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("point", POINTS)
def test_killed_run_ends_like_a_whole_one(outcome: dict[str, Any], point: str) -> None:
    killed = outcome[point]

    assert killed["killed"] == 9
    assert killed["resumed"] == 0
    assert killed["digest"] == outcome[""]["digest"]
    assert killed["leftovers"] == []
