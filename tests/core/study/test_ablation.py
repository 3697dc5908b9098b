"""A study from end to end: whole, killed and gone on with, changed; and its runs compared.

Most commands here are copies of a process that has imported everything, as are their workers: an import takes far
longer than a run of these. What is said of killing holds for them as for others. Of processes from nothing are the
last command of the killed study, and the study that is interrupted.
"""

import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from detloom.cli import cli
from detloom.engine.run import read_run
from detloom.scenes import write_scenes
from detloom.study.matches import Matches, matches_file
from detloom.workshop import workshop

STUDY = """
recipe = "yolov7-tiny"
data = {data}
seeds = [0, 1]
resamples = 200

[cells.plain]
[cells.atss]
assigner = "atss"
[cells.broken]
"train.learning_rate" = 1e30
[cells.odd]
"data.image_size" = 65

[overrides]
"backbone.stem" = [[3, 2, 8], [3, 2, 8]]
"backbone.hidden" = [8, 8, 8, 8]
"backbone.widths" = [8, 16, 16, 16]
"neck.hidden" = [8, 8, 8]
"neck.widths" = [8, 8, 8]
"neck.outputs" = [16, 16, 16]
"data.image_size" = 64
"train.epochs" = 2
"train.batch" = 4
"train.nominal_batch" = 4
"train.warmup_epochs" = 0.0
"train.warmup_min_steps" = 0
"train.precision" = "float32"
"train.checkpoint_minutes" = 1e-9
"""


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "detloom", *(str(each) for each in arguments)]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments])


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    data = write_scenes(folder / "data", train=12, val=4, unseen=0)
    path = folder / "small.toml"
    path.write_text(STUDY.format(data=json.dumps(str(data))), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(study: Path, warm: Any) -> Path:
    """Return the directory of a study that was never stopped."""
    out, said = study.parent / "whole", study.parent / "said.txt"
    # Some runs fail, as they are meant to.
    assert warm.wait(warm.start("ablate", study, "-o", out, "--jobs", "2", out=said)) == 1, said.read_text()
    assert "[6/6]" in said.read_text()
    assert "impossible: odd: " in said.read_text()
    assert "broken, seed 0: " in said.read_text()
    return out


def report(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "report.json").read_text())
    return content


def lasting(out: Path) -> list[dict[str, Any]]:
    """Return what of a report does not depend on how long things took, or on where."""
    kept = ("name", "status", "reason", "AP", "difference", "statement", "parameters", "gflops")
    return [
        {
            **{key: cell[key] for key in kept},
            "runs": [(each["seed"], each["status"], each["AP"]) for each in cell["runs"]],
        }
        for cell in report(out)["cells"]
    ]


@pytest.mark.slow
def test_report_has_every_cell_whatever_became_of_it(whole: Path) -> None:
    cells = {cell["name"]: cell for cell in report(whole)["cells"]}

    assert [cell["status"] for cell in cells.values()] == ["finished", "finished", "failed", "impossible"]
    assert cells["atss"]["difference"]["seeds"] == 2
    assert cells["broken"]["runs"][0]["error"]
    assert "65 x 65" in cells["odd"]["reason"]
    assert cells["plain"]["latency_ms"]["before"] > 0 < cells["plain"]["latency_ms"]["after"]
    assert cells["plain"]["training_seconds"] > 0
    assert cells["plain"]["peak_memory_mib"] > 50


@pytest.mark.slow
def test_each_run_is_an_ordinary_one_with_its_seed_and_its_evaluators_ap(whole: Path) -> None:
    for seed in (0, 1):
        directory = whole / "cells" / "plain" / f"seed-{seed}"
        recipe, _ = read_run(directory)
        last = json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])

        assert recipe.train.seed == seed
        assert Matches.read(matches_file(directory, "last")).ap == pytest.approx(last["metrics"]["AP"], abs=1e-6)


def steps_done(out: Path) -> int:
    """Return the steps, of the 24 of the runs that do not fail, after which a state was kept."""
    found = 0
    for file in out.glob("cells/[ap]*/seed-*/run.json"):
        found += json.loads(file.read_text())["steps_done"]
    return found


@pytest.mark.slow
def test_study_that_was_killed_at_any_moments_goes_on_to_the_same_table(study: Path, whole: Path, warm: Any) -> None:
    out, said = study.parent / "killed", study.parent / "killed.txt"
    chance = random.Random(5)  # noqa: S311 - no secret
    moments = [(point, chance.uniform(0, 0.5)) for point in sorted(chance.sample(range(24), 5))]
    kept: dict[Path, int] = {}

    for point, later in moments:
        started = warm.start("ablate", study, "-o", out, out=said)
        deadline = time.monotonic() + 300
        while steps_done(out) < point:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        # Between two steps, in the middle of one, in an evaluation, or between two runs.
        time.sleep(later)
        kept |= {file: file.stat().st_mtime_ns for file in out.glob("cells/*/seed-*/measured-last.json")}
        os.kill(started, signal.SIGKILL)
        assert warm.wait(started) == -signal.SIGKILL, said.read_text()
    again = subprocess.run(
        command("ablate", study, "-o", out, "--jobs", "2"),
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        timeout=600,
    )

    assert again.returncode == 1, again.stderr
    assert lasting(out) == lasting(whole)
    weights = [path.relative_to(whole) for path in sorted(whole.glob("cells/*/seed-*/last.safetensors"))]
    assert len(weights) == 4
    for path in weights:
        mine, others = load_file(out / path), load_file(whole / path)
        assert mine.keys() == others.keys()
        assert all(torch.equal(mine[name], others[name]) for name in mine)
    # What was finished was kept.
    assert len(kept) >= 2
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


@pytest.mark.slow
def test_interrupted_study_stops_its_runs_cleanly(study: Path) -> None:
    out = study.parent / "interrupted"
    # A process that was started in the background may have been told to ignore Ctrl-C.
    code = (
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from detloom.cli import main\nmain()\n"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", code, "ablate", str(study), "-o", str(out)], env=environment(), stderr=subprocess.PIPE
    )
    state = out / "cells" / "plain" / "seed-0" / "state.safetensors"
    deadline = time.monotonic() + 300
    while not state.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)

    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=120)

    assert started.returncode == 130, said
    assert said.decode().endswith("Stopped.\n")
    about = json.loads((state.parent / "run.json").read_text())
    assert about["status"] in ("interrupted", "finished")
    # Nobody holds its locks any more.
    assert not (out / "report.json").exists()
    with (out / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.slow
def test_changed_study_is_refused_and_says_in_what_it_differs(study: Path, whole: Path) -> None:
    changed = study.with_name("changed.toml")
    changed.write_text(study.read_text().replace('"train.epochs" = 2', '"train.epochs" = 3'), encoding="utf-8")

    result = run("ablate", changed, "-o", whole)

    assert result.exit_code == 2
    assert "another study was begun here; it differs in" in result.output
    assert "overrides.train.epochs (2, now 3)" in result.output


@pytest.mark.slow
def test_runs_compared_by_themselves_differ_as_in_the_study(whole: Path, tmp_path: Path) -> None:
    runs = [whole / "cells" / cell / f"seed-{seed}" for cell in ("plain", "atss") for seed in (0, 1)]

    result = run("compare", *runs, "--resamples", "200", "--json", "-o", tmp_path / "report")

    assert result.exit_code == 0, result.output
    plain, atss = json.loads(result.stdout)["cells"]
    expected = report(whole)["cells"][1]
    assert (plain["name"], atss["name"]) == ("plain", "atss")
    assert atss["AP"] == expected["AP"]
    # Holm corrects nothing there, either: the other cells could not be compared.
    assert atss["difference"] == expected["difference"]
    assert "assigner.use" in " ".join(atss["overrides"])
    assert (tmp_path / "report" / "report.html").exists()


@pytest.mark.slow
def test_comparing_other_weights_leaves_the_study_as_it_was(
    study: Path, whole: Path, warm: Any, tmp_path: Path
) -> None:
    before = lasting(whole)
    runs = [whole / "cells" / cell / "seed-0" for cell in ("plain", "atss")]

    best = run("compare", *runs, "--weights", "best", "--resamples", "100", "--json")
    again = warm.wait(warm.start("ablate", study, "-o", whole, "--json", out=tmp_path / "said.txt"))

    assert best.exit_code == 0, best.output
    for cell, directory in zip(json.loads(best.stdout)["cells"], runs, strict=True):
        epochs = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        ap = max(epochs, key=lambda epoch: epoch["fitness"])["metrics"]["AP"]
        assert cell["AP"]["mean"] == pytest.approx(ap, abs=1e-6)
    assert again == 1
    assert lasting(whole) == before


@pytest.mark.slow
def test_runs_that_cannot_be_compared_are_refused(whole: Path) -> None:
    plain, atss = (whole / "cells" / cell for cell in ("plain", "atss"))

    alone = run("compare", plain / "seed-0", plain / "seed-1")
    mixed = run("compare", f"a={plain / 'seed-0'}", f"a={atss / 'seed-1'}", f"b={atss / 'seed-0'}")
    twice = run("compare", f"a={plain / 'seed-0'}", f"a={plain / 'seed-0'}", atss / "seed-0")

    assert [each.exit_code for each in (alone, mixed, twice)] == [2, 2, 2]
    assert "all 2 runs have one recipe" in alone.output
    assert "have different recipes: assigner.use" in mixed.output
    assert "have the same seed, 0" in twice.output


@pytest.mark.slow
def test_dry_run_lists_cells_with_size_and_time_and_makes_nothing(study: Path, tmp_path: Path) -> None:
    result = run("ablate", study, "-o", tmp_path / "none", "--dry-run", "--json")

    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["runs_left"] == 6
    assert [cell["runs_left"] for cell in plan["cells"]] == [2, 2, 2, 0]
    assert plan["cells"][0]["seconds"] > 0
    assert plan["cells"][0]["parameters"] > 10_000
    assert "65 x 65" in plan["cells"][3]["reason"]
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_studies_of_the_page_can_be_run(study: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    # One of them runs a plugin's file, which the next test is not to find.
    request.addfinalizer(workshop.cache_clear)
    text = (Path(__file__).parents[3] / "docs" / "ablation.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```toml\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    names = []
    example = Path(__file__).parents[3] / "examples/detloom-centre-assigner/src/detloom_centre/__init__.py"
    mine = example.read_text(encoding="utf-8").replace('register("centre"', 'register("mine"')
    (tmp_path / "my_assigner.py").write_text(mine, encoding="utf-8")
    for number, block in enumerate(blocks):
        file = tmp_path / f"study-{number}.toml"
        file.write_text(block.replace('"demo/data"', json.dumps(str(study.parent / "data"))), encoding="utf-8")

        result = run("ablate", file, "-o", tmp_path / "none", "--dry-run", "--json")

        assert result.exit_code == 0, result.output
        cells = json.loads(result.stdout)["cells"]
        assert [cell["reason"] for cell in cells] == [""] * len(cells)
        names.append([cell["name"] for cell in cells])
    assert names[0] == ["baseline", "assigner=simota", "assigner=atss", "assigner=paa(candidates=9)", "implicit=false"]
    assert names[1] == ["yolov7", "simota", "mine"]
    assert names[2] == ["plain", "atss", "atss-without-implicit"]
    assert all(f"`{name}`" in text for name in names[0])
