"""A fit of real components on drawn pictures, alone or as one of several processes; started by tests."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from detloom.engine.checkpoint import save_state
from detloom.engine.fit import fit, resume
from detloom.hookspecs import hookimpl
from detloom.interfaces import Observer

SMALL: dict[str, Any] = {
    "backbone.stem": [[3, 2, 8], [3, 2, 8]],
    "backbone.hidden": [8, 8, 8, 8],
    "backbone.widths": [8, 16, 16, 16],
    "neck.hidden": [8, 8, 8],
    "neck.widths": [8, 8, 8],
    "neck.outputs": [16, 16, 16],
    "data.image_size": 64,
    "data.workers": 1,
    "train.epochs": 2,
    "train.batch": 4,
    "train.nominal_batch": 4,
    "train.warmup_epochs": 0.0,
    "train.warmup_min_steps": 0,
    "train.precision": "float32",
    "train.checkpoint_minutes": 1e-9,
    "train.log_every": 1,
}


class Killer(Observer):
    """Kills its process after an optimiser step."""

    def __init__(self, step: int) -> None:
        self.step = step

    @hookimpl
    def step_finished(self, step: int) -> None:
        """Be killed, if this is the step."""
        if step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Begin a run, or resume one, and write what came of it beside its directory."""
    data, out, kill_at, learning_rate = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    num_states = 0

    def counted(path: Path, state: Any) -> None:
        nonlocal num_states
        num_states += 1
        save_state(path, state)

    pytest.MonkeyPatch().setattr("detloom.engine.loop.save_state", counted)
    if out.exists():
        run = resume(out, progress=False)
    else:
        overrides = {**SMALL, "train.learning_rate": learning_rate}
        run = fit("yolov7-tiny", data=data, out=out, overrides=overrides, observers=[Killer(kill_at)], progress=False)
    found: dict[str, Any] = {"losses": [record.losses for record in run.history], "states": num_states}
    if dist.is_initialized():
        group = dist.distributed_c10d._get_default_group()
        found["timeout"] = group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
    if int(os.environ.get("RANK", "0")) == 0:
        out.with_suffix(".json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
