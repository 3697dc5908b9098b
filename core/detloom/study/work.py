"""One item of a study's work, in a process of its own: train a run, measure it, or time a detector.

A task is JSON data on the standard input, whose end is the end of the process that wrote it, and then of this one.
Everything that was done is in files, so an item that was cut off is simply done again.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from detloom.durable import write_text
from detloom.errors import ArtifactError, DataError, DetloomError, TrainingError
from detloom.recipe import Recipe
from detloom.study.executor import ERROR_MARK, INTERRUPTED, MISTAKE
from detloom.workshop import workshop

if TYPE_CHECKING:
    from detloom.study.matches import Weights

__all__ = [
    "latency",
    "latency_task",
    "measure",
    "measured_file",
    "perform",
    "read_measured",
    "train_task",
    "weights_of",
]

# Of timing a detector: passes at least, and seconds after which no more are begun.
FEWEST, LONG_ENOUGH = 5, 3.0
TRAIN, LATENCY = "train", "latency"


def train_task(recipe: Recipe, *, data: str, out: Path, weights: "Weights") -> dict[str, Any]:
    """Return the task to train a run, or go on with it, and to measure its weights."""
    plain = {
        "name": recipe.name,
        "tables": dict(recipe.tables),
        "origins": dict(recipe.origins),
        "summary": recipe.summary,
    }
    plugins = list(recipe.plugins)
    return {"do": TRAIN, "recipe": plain, "data": data, "out": str(out), "weights": weights, "plugins": plugins}


def latency_task(run: Path, *, out: Path, weights: "Weights", plugins: Sequence[str] = ()) -> dict[str, Any]:
    """Return the task to time the detector of a run, with these files of plugins, and to write the times to ``out``."""
    return {"do": LATENCY, "run": str(run), "out": str(out), "weights": weights, "plugins": list(plugins)}


def perform(task: Mapping[str, Any]) -> None:
    """Do a task.

    Raises:
        DetloomError: It cannot be done.
        KeyboardInterrupt: It was asked to stop, and can be gone on with.
    """
    # A process begins without them.
    for each in task["plugins"]:
        workshop().load_file(each)
    if task["do"] == LATENCY:
        found = latency(weights_of(Path(task["run"]), task["weights"]))
        write_text(Path(task["out"]), json.dumps(found) + "\n")
        return
    from detloom.engine.fit import fit

    plain = task["recipe"]
    recipe = Recipe(plain["name"], plain["tables"], plain["origins"], plain["summary"], tuple(task["plugins"]))
    out = Path(task["out"])
    steps_before = _steps_done(out)
    run = fit(recipe, data=task["data"], out=out, resume=out.is_dir())
    if run.status == "interrupted":
        raise KeyboardInterrupt
    if not run.history:
        raise TrainingError(f"{out}: the run ended without a finished epoch: {run.message or run.status}")
    # A process that found the run complete has needed less memory than training does.
    memory = peak_memory_mib() if run.step > steps_before else None
    measure(out, weights=task["weights"], peak_memory=memory)


def measure(run: Path, *, weights: "Weights", data: str | None = None, peak_memory: float | None = None) -> float:
    """Match the detections of a run's weights on its validation split, and write what a study needs of it.

    Args:
        run: The run's directory.
        weights: Of which epoch.
        data: Where the data set lies now, if it was moved.
        peak_memory: Of its training in MiB, where it is known.

    Returns:
        AP.

    Raises:
        ArtifactError: There is no run, or its weights cannot be read.
        DataError: The data cannot be read.
    """
    from detloom.artifacts import load_artifact
    from detloom.data.faults import refuse_faults
    from detloom.data.splits import open_splits
    from detloom.engine.evaluate import detect_split
    from detloom.engine.run import read_run
    from detloom.kinds import Kind
    from detloom.study.matches import Matches, matches_file

    recipe, begun_with = read_run(run)
    artifact = weights_of(run, weights)
    table = recipe.tables.get(Kind.DATASET)
    _, val = open_splits(data or begun_with, recipe.data, table, seed=recipe.train.seed)
    refuse_faults((val,), skip_bad=recipe.data.skip_bad)
    if not any((~image.is_crowd_N).any() for image in val.images):
        raise DataError(
            f"{val.source}: the split '{recipe.data.val}' has no objects, so there is no AP to compare; "
            "name another in data.val"
        )
    found = detect_split(load_artifact(artifact), val, recipe, device=_device())
    matches = Matches.of(found, val, source=digest(artifact))
    matches.write(matches_file(run, weights))
    content = {"AP": matches.ap, "weights": weights, "peak_memory_mib": peak_memory}
    write_text(measured_file(run, weights), json.dumps(content) + "\n")
    return matches.ap


def latency(artifact: Path) -> dict[str, Any]:
    """Return the median milliseconds of one picture, to decoded boxes, before and after the reparam passes.

    The two forms take turns, so that what slows the machine down meanwhile slows both.
    """
    import torch

    from detloom.artifacts import load_artifact

    device = torch.device(_device())
    detector = load_artifact(artifact).to(device)
    assert detector.recipe is not None  # noqa: S101 - an artifact has one
    size = detector.recipe.data.image_size
    height, width = (size, size) if isinstance(size, int) else size
    image_BCHW = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)
    forms = {"before": detector.eval(), "after": detector.fuse().to(device).eval()}
    taken: dict[str, list[float]] = {name: [] for name in forms}
    with torch.inference_mode():
        for form in forms.values():
            form.predictions(image_BCHW)
        started = time.perf_counter()
        while len(taken["after"]) < FEWEST or time.perf_counter() - started < LONG_ENOUGH:
            for name, form in forms.items():
                begun = time.perf_counter()
                form.predictions(image_BCHW)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                taken[name].append((time.perf_counter() - begun) * 1000)
    return {
        **{name: round(median(values), 3) for name, values in taken.items()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "passes": len(taken["after"]),
    }


def measured_file(run: Path, weights: "Weights") -> Path:
    """Return where it is kept what a study knows of a finished run beside its matches; written last."""
    return run / f"measured-{weights}.json"


def read_measured(run: Path, weights: "Weights") -> dict[str, Any] | None:
    """Return what is kept in the measured file of a run, or None where the run is not finished.

    Raises:
        ArtifactError: Something else is in the file.
    """
    file = measured_file(run, weights)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        float(content["AP"])
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError) as broken:
        raise ArtifactError(
            f"{file}: this is not what a run was measured with: {broken}; remove the file, and it is measured anew"
        ) from broken
    found: dict[str, Any] = content
    return found


def weights_of(run: Path, weights: "Weights") -> Path:
    """Return the artifact of a run that is compared; that of the last epoch where none was evaluated."""
    best = run / "best.safetensors"
    return best if weights == "best" and best.exists() else run / "last.safetensors"


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def peak_memory_mib() -> float | None:
    """Return the most memory that this process had at once: of its GPU, where it has one, else of the machine."""
    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    status = Path("/proc/self/status")
    if status.exists():
        # What getrusage says on Linux counts the process from which this one was forked, too.
        line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
        return round(int(line.split()[1]) / 2**10, 1)
    try:
        import resource
    except ImportError:  # Windows does not say.
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _steps_done(run: Path) -> int:
    try:
        return int(json.loads((run / "run.json").read_text(encoding="utf-8"))["steps_done"])
    except (OSError, ValueError, KeyError):
        return 0


def _device() -> str:
    import torch
    from accelerate.utils import parse_flag_from_env

    return "cuda" if torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU") else "cpu"


def _die_with_the_other_end() -> None:
    """End this process at once when the standard input ends: a run is made to be killed at any moment."""
    sys.stdin.buffer.read()
    os._exit(INTERRUPTED)


def main() -> None:
    """Do the task on the standard input."""
    # What a shell starts in the background ignores it, and so would this; the executor asks to stop in this way.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    task = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_die_with_the_other_end, daemon=True).start()
    try:
        perform(task)
        status = 0
    except DetloomError as error:
        sys.stderr.write(f"{ERROR_MARK}\n{error}\n")
        status = MISTAKE
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception:  # noqa: BLE001 - it is told, and the exit status says so
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    sys.stdout.flush()
    # Not through the interpreter's end, which would wait for the lock that the reading thread holds.
    os._exit(status)


if __name__ == "__main__":
    main()
