"""A detector, batches and a measure small enough to train in a blink; a script that is killed and resumes."""

import csv
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from detloom import durable
from detloom.data.loader import Batch
from detloom.engine.loop import Training
from detloom.engine.preparation import prepare
from detloom.engine.processes import open_accelerator
from detloom.engine.progress import RunView, SilentView
from detloom.engine.run import Run, open_run
from detloom.engine.statistics import renew_statistics_
from detloom.hookspecs import hookimpl
from detloom.interfaces import Ema, Metrics, Observer
from detloom.recipe import Recipe
from detloom.structures import Targets
from detloom_plugins.csv_observer import CsvObserver
from detloom_plugins.ramped_ema import RampedEma
from detloom_plugins.swa import SwaEma

SETTINGS: dict[str, Any] = {
    "epochs": 3,
    "batch": 4,
    "nominal_batch": 8,
    "learning_rate": 0.01,
    "warmup_epochs": 1.0,
    "warmup_min_steps": 0,
    "log_every": 2,
}


class StandInDetector(nn.Module):
    """Two convolutions that learn two numbers of each picture."""

    def __init__(self, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU(), nn.Dropout(dropout)
        )
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, images_BCHW: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Return two losses."""
        maps_BCHW = self.head(self.backbone(images_BCHW)).float()
        aims_BC = torch.stack([images_BCHW.mean((1, 2, 3)), images_BCHW.amax((1, 2, 3))], 1)
        errors_C = (maps_BCHW.mean((2, 3)) - aims_BC).square().mean(0)
        return {"box": errors_C[0], "classes": errors_C[1] + 0 * targets.boxes_T4.sum()}


class StandInBatches:
    """Pictures of noise, the same for an epoch and a position."""

    def __init__(self, *, batch: int = 4, length: int = 5, rank: int = 0, world: int = 1) -> None:
        self.batch, self.length = batch, length
        self.share = slice(rank * batch // world, (rank + 1) * batch // world)

    def __len__(self) -> int:
        """Return the number of batches."""
        return self.length

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches."""
        for position in range(start_batch, self.length):
            generator = torch.Generator().manual_seed(1000 * epoch + position)
            images_BCHW = torch.randint(0, 256, (self.batch, 3, 16, 16), generator=generator, dtype=torch.uint8)
            images_BCHW = images_BCHW[self.share].contiguous(memory_format=torch.channels_last)
            count = len(images_BCHW)
            boxes, labels = [torch.tensor([[1.0, 1, 9, 9]])] * count, [torch.zeros(1)] * count
            yield Batch(images_BCHW, Targets.from_lists(boxes, labels, (16, 16)), tuple(range(count)))


def renew(model: nn.Module) -> None:
    """Compute the statistics of an average over noise."""
    batches = (batch.images_BCHW.contiguous().float() / 255 for batch in StandInBatches(length=3).epoch(7))
    renew_statistics_(model.get_submodule("backbone"), batches)


def measure(model: nn.Module) -> Metrics:
    """Return metrics that depend on the weights alone."""
    total = sum(float(parameter.abs().sum()) for parameter in model.parameters())
    return Metrics({"AP": total % 1.0, "AP50": float("nan")}, {"thing": {"AP": total % 1.0}})


def begin(
    out: Path,
    *,
    resume: bool = False,
    settings: dict[str, Any] | None = None,
    observers: Sequence[Observer] = (),
    detector: nn.Module | None = None,
    evaluate: Callable[[nn.Module], Metrics] | None = measure,
    view: RunView | None = None,
    make_ema: Callable[[nn.Module], Ema] | None = lambda model: RampedEma(model, ramp=5),
    renew_statistics: Callable[[nn.Module], None] | None = None,
) -> tuple[Training, Run]:
    """Return a training that is ready to begin, and its run."""
    recipe = Recipe("stand-in", {"train": {**SETTINGS, **(settings or {})}}, {})
    # Bits repeat on a CPU.
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.manual_seed(recipe.train.seed)
    detector = detector or StandInDetector()
    accelerator = open_accelerator(recipe.train)
    batches = StandInBatches(batch=recipe.train.batch, rank=accelerator.process_index, world=accelerator.num_processes)
    prepared = prepare(
        detector,
        len(batches),
        settings=recipe.train,
        accelerator=accelerator,
        make_ema=make_ema,
        observers=observers,
    )
    run = open_run(recipe, data="noise", names=("thing", "other"), out=out, resume=resume)
    view = view or SilentView()
    training = Training(
        prepared,
        batches,
        run,
        settings=recipe.train,
        evaluate=evaluate,
        view=view,
        renew_statistics=renew_statistics,
    )
    if resume:
        training.resume()
    return training, run


def digest(run: Path) -> dict[str, str]:
    """Return what must be equal of two runs: weights, state and history."""
    found = {}
    for name in ("last.safetensors", "best.safetensors", "state.safetensors"):
        tensors, _ = durable.read_tensors(run / name)
        content = b"".join(key.encode() + tensors[key].numpy().tobytes() for key in sorted(tensors))
        found[name] = hashlib.sha256(content).hexdigest()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found["metrics"] = json.dumps([{key: line[key] for key in line if key != "seconds"} for line in lines])
    with (run / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    found["log"] = json.dumps([{key: row[key] for key in row if key != "seconds"} for row in rows])
    return found


class Killer(Observer):
    """Kills its process at one point of a run."""

    def __init__(self, point: str) -> None:
        self.kind, _, number = point.partition(" ")
        self.left = int(number or 1)

    def reach(self, kind: str) -> bool:
        """Return whether this is the point."""
        self.left -= kind == self.kind
        return kind == self.kind and self.left == 0

    def die_at(self, kind: str) -> None:
        """Be killed, if this is the point."""
        if self.reach(kind):
            os.kill(os.getpid(), signal.SIGKILL)

    @hookimpl
    def run_started(self) -> None:
        """Before the first step."""
        self.die_at("start")

    @hookimpl
    def step_finished(self) -> None:
        """Between steps."""
        self.die_at("look")

    @hookimpl
    def epoch_finished(self) -> None:
        """Before anything of the epoch is saved."""
        self.die_at("epoch")

    def lie_in_wait(self) -> None:
        """Reach into the writing of files."""
        save_file, replace = safetensors.torch.save_file, Path.replace

        def half_saved(tensors: Any, path: Path, metadata: Any) -> None:
            save_file(tensors, path, metadata=metadata)
            if self.reach("write"):
                os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        def replaced(path: Path, target: Path) -> Path:
            self.die_at("before-rename")
            result = replace(path, target)
            self.die_at("after-rename")
            return result

        patches = pytest.MonkeyPatch()
        patches.setattr(durable, "save_file", half_saved)
        patches.setattr(Path, "replace", replaced)


def train_here(out: Path, point: str | None, settings: dict[str, Any]) -> None:
    """Train in this process, resuming what is there, and perhaps be killed."""
    observers: list[Observer] = [CsvObserver()]
    if point:
        killer = Killer(point)
        killer.lie_in_wait()
        observers.append(killer)
    settings = dict(settings)
    average: dict[str, Any] = {}
    if swa := settings.pop("swa", None):
        average = {"make_ema": lambda model: SwaEma(model, **swa), "renew_statistics": renew}
    training, _ = begin(out, resume=out.exists(), settings=settings, observers=observers, **average)
    training.train()


def train_apart(out: Path, point: str | None, settings: dict[str, Any]) -> int:
    """Train in a forked process; returns the signal that killed it, or minus its exit code."""
    child = os.fork()
    if child == 0:
        try:
            train_here(out, point, settings)
        except BaseException as error:  # noqa: BLE001 - a forked test process says what went wrong and ends
            sys.stderr.write(f"{point}: {error!r}\n")
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def train_together(out: Path, settings: dict[str, Any]) -> None:
    """Train as one of the processes that torchrun or accelerate started; the main one prints its losses."""
    rank = int(os.environ.get("RANK", "0"))
    torch.manual_seed(settings["seed"])
    # Dropout draws other numbers in other processes.
    detector = StandInDetector(dropout=0.0)
    training, run = begin(out if rank == 0 else out.with_name(f"rank-{rank}"), settings=settings, detector=detector)
    training.train()
    weights = torch.cat([parameter.detach().flatten() for parameter in training.averaged.parameters()])
    found = {"losses": [record.losses for record in run.history], "weights": weights.tolist(), "step": run.step}
    (out.parent / f"found-{rank}.json").write_text(json.dumps(found))


def main() -> None:
    """Kill a run at each point, resume it, and print what came of it as JSON."""
    root, settings, points = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
    torch.set_num_threads(1)
    if points == ["together"]:
        train_together(root / "run", settings)
        return
    whole = root / "whole"
    results: dict[str, Any] = {"": {"killed": train_apart(whole, None, settings), "digest": digest(whole)}}
    for number, point in enumerate(points):
        out = root / f"run-{number}"
        killed = train_apart(out, point, settings)
        resumed = train_apart(out, None, settings)
        leftovers = [path.name for path in out.glob("*.unfinished")]
        results[point] = {"killed": killed, "resumed": resumed, "digest": digest(out), "leftovers": leftovers}
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main()
